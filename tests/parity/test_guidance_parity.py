"""Guidance and clipping against diffusers, on the same random outputs of a network.

Both are given two arbitrary outputs, with the condition and without. diffusers combines
outputs; here predictions are combined, which must be what is read from its result.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
guiders = pytest.importorskip("diffusers.guiders")

from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer

from diffusion_jax.diffusion import (
    denoiser,
    guidance,
    guidance_rules,
    parameterization,
    process,
    schedules,
)
from diffusion_jax.diffusion.samplers import SAMPLERS
from diffusion_jax.types import Conditioning

# Old code in diffusers, where it meets a new NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")


class Published(NamedTuple):
    """What a network of this kind puts out, and a level it hears."""

    space: parameterization.Parameterization
    level: process.NoiseLevel


STABLE_DIFFUSION = schedules.Discrete()(jnp.asarray(400.0))
PUBLISHED = {
    "eps": Published(parameterization.eps(), STABLE_DIFFUSION),
    "v": Published(parameterization.v(), STABLE_DIFFUSION),
    "flow": Published(
        parameterization.flow(), schedules.RectifiedFlow()(jnp.asarray(0.8))
    ),
}
X, GIVEN, WITHOUT = np.asarray(jax.random.normal(jax.random.key(0), (3, 2, 4, 4, 3)))
GIVEN, WITHOUT = 1.5 * GIVEN + 0.2, WITHOUT + 0.7 * GIVEN
COND, NULL = (Conditioning(vector=jnp.full((2, 1), a)) for a in (1.0, 0.0))
SCALE = 5.0


def output(x, time, cond):
    """GIVEN where the condition is there, WITHOUT where it is not."""
    outputs = jnp.stack([WITHOUT, GIVEN])
    which = cond.vector[:, 0].astype(int)
    return outputs[which, jnp.arange(len(x)) % 2]


def largest_difference(guide, combined, published):
    space, level = published
    denoise = denoiser.from_network(output, space)
    x = jnp.asarray(X)
    pred = guide(denoise, COND, NULL, SCALE)(x, level)
    expected = parameterization.read(space, jnp.asarray(combined.numpy()), x, level)
    assert np.abs(expected.x0 - denoise(x, level, COND).x0).max() > 0.1
    return max(
        np.abs(pred.x0 - expected.x0).max(), np.abs(pred.eps - expected.eps).max()
    )


def both():
    return torch.from_numpy(GIVEN.copy()), torch.from_numpy(WITHOUT.copy())


@pytest.fixture(params=PUBLISHED)
def published(request):
    return PUBLISHED[request.param]


@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_rescaled_classifier_free_guidance(published, phi):
    guider = guiders.ClassifierFreeGuidance(guidance_scale=SCALE, guidance_rescale=phi)
    rescale = guidance_rules.rescale(published.space, phi)
    ours = functools.partial(guidance.classifier_free, rescale=rescale)
    theirs = guider.forward(*both()).pred
    assert largest_difference(ours, theirs, published) < 5e-5


@pytest.mark.parametrize("eta, threshold", [(1.0, 0.0), (0.0, 0.0), (0.3, 4.0)])
def test_adaptive_projected_guidance(published, eta, threshold):
    """In the network's output, and written as in the paper: from the condition on."""
    guider = guiders.AdaptiveProjectedGuidance(
        guidance_scale=SCALE - 1,
        adaptive_projected_guidance_rescale=threshold,
        eta=eta,
        use_original_formulation=True,
        guidance_rescale=0.5,
    )
    ours = functools.partial(
        guidance.apg,
        eta=eta,
        threshold=threshold or math.inf,
        space=published.space,
        rescale=guidance_rules.rescale(published.space, 0.5),
    )
    theirs = guider.forward(*both()).pred
    assert largest_difference(ours, theirs, published) < 5e-5


def test_the_momentum_of_adaptive_projected_guidance(published):
    guider = guiders.AdaptiveProjectedGuidance(
        guidance_scale=SCALE - 1,
        adaptive_projected_guidance_rescale=10.0,
        eta=0.2,
        use_original_formulation=True,
    )
    guider.momentum_buffer = MomentumBuffer(-0.5)
    ours = functools.partial(
        guidance.apg,
        eta=0.2,
        threshold=10.0,
        momentum=-0.5,
        memory=jax.new_ref(jnp.zeros(X.shape)),
        space=published.space,
    )
    for _ in range(3):
        theirs = guider.forward(*both()).pred
        assert largest_difference(ours, theirs, published) < 5e-5


def test_cfg_zero_star(published):
    guider = guiders.ClassifierFreeZeroStarGuidance(
        guidance_scale=SCALE, zero_init_steps=1
    )
    ours = functools.partial(guidance.cfg_zero_star, space=published.space)
    for step, zero_from in ((0, 0.0), (1, math.inf)):
        guider.set_state(step, 10, torch.tensor([0]))
        theirs = guider.forward(*both()).pred
        guide = functools.partial(ours, zero_from=zero_from)
        assert largest_difference(guide, theirs, published) < 5e-5


def test_autoguidance(published):
    guider = guiders.AutoGuidance(
        guidance_scale=SCALE,
        auto_guidance_layers=[0],
        dropout=1.0,
        guidance_rescale=0.7,
    )

    def ours(denoise, cond, null, scale):
        good, weak = (
            functools.partial(lambda x, level, told: denoise(x, level, told), told=told)
            for told in (cond, null)
        )
        rescale = guidance_rules.rescale(published.space, 0.7)
        return guidance.autoguidance(good, weak, scale, rescale=rescale)

    theirs = guider.forward(*both()).pred
    assert largest_difference(ours, theirs, published) < 5e-5


@pytest.mark.parametrize("largest", [1.0, 1.5, 100.0])
@pytest.mark.parametrize("quantile", [0.9, 0.995])
def test_dynamic_thresholding(largest, quantile):
    scheduler = diffusers.DDIMScheduler(
        thresholding=True,
        dynamic_thresholding_ratio=quantile,
        sample_max_value=largest,
    )
    x0 = np.concatenate([0.2 * GIVEN[:1], 2.0 * WITHOUT[:1]])
    channels_first = torch.from_numpy(np.moveaxis(x0, -1, 1).copy())
    expected = np.moveaxis(scheduler._threshold_sample(channels_first).numpy(), 1, -1)
    thresholded = denoiser.thresholded(
        lambda x, level: process.from_x0(x, jnp.asarray(x0), level),
        quantile=quantile,
        largest=largest,
    )
    np.testing.assert_allclose(
        thresholded(jnp.asarray(X), STABLE_DIFFUSION).x0, expected, 1e-5
    )


@pytest.mark.parametrize("rederive_eps", [True, False])
@pytest.mark.parametrize("clipping", ["static", "dynamic"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_ddim_step_with_clipped_x0(clipping, rederive_eps, prediction):
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction,
        clip_sample=clipping == "static",
        clip_sample_range=0.8,
        thresholding=clipping == "dynamic",
        dynamic_thresholding_ratio=0.9,
        sample_max_value=3.0,
    )
    scheduler.set_timesteps(10)
    step = scheduler.step(
        torch.from_numpy(np.moveaxis(GIVEN, -1, 1).copy()),
        601,
        torch.from_numpy(np.moveaxis(X, -1, 1).copy()),
        use_clipped_model_output=rederive_eps,
    )
    space = PUBLISHED["eps" if prediction == "epsilon" else "v"].space
    conditional = denoiser.from_network(output, space)
    options = (
        {"bound": 0.8} if clipping == "static" else {"quantile": 0.9, "largest": 3}
    )
    denoise = denoiser.CLIPPINGS[clipping](
        lambda x, level: conditional(x, level, COND),
        rederive_eps=rederive_eps,
        **options,
    )
    ts = jnp.asarray([602.0, 502.0])
    ours, _ = SAMPLERS["ddim"](
        jax.random.key(0), denoise, schedules.Discrete(), jnp.asarray(X), ts
    )
    theirs = np.moveaxis(step.prev_sample.numpy(), 1, -1)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
