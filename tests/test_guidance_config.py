"""Guidance and clipping as a config names them."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from numpy.testing import assert_allclose

from diffusion_jax import build
from diffusion_jax.diffusion import (
    denoiser,
    grids,
    guidance,
    guidance_rules,
    guidance_scales,
    parameterization,
    process,
    schedules,
)
from diffusion_jax.diffusion.samplers import SAMPLERS
from diffusion_jax.pipelines import stage
from diffusion_jax.sampling import trained_runs
from diffusion_jax.types import Conditioning

SCHEDULE = schedules.RectifiedFlow()
LEVEL = SCHEDULE(jnp.asarray(0.6))
X = jax.random.normal(jax.random.key(0), (2, 3, 3, 2))
COND, NULL = (Conditioning(vector=jnp.full((2, 1), a)) for a in (1.0, 0.0))


FLOW = parameterization.flow()


def network(x, time, cond):
    return jnp.tanh(x + process.align(cond.vector[:, 0], x) * jnp.cos(3 * x))


DENOISE = denoiser.from_network(network, FLOW)


def guided(spec, scale=None):
    config = ConfigDict(dict(guidance=spec))
    fields = build.guide(config.guidance, FLOW, SCHEDULE)
    guide = fields.get("guide", guidance.classifier_free)
    scale = fields["guidance"] if scale is None else scale
    return guide(DENOISE, COND, NULL, scale)(X, LEVEL).x0


def expected(guide, scale):
    return guide(DENOISE, COND, NULL, scale)(X, LEVEL).x0


def test_a_number_is_classifier_free_guidance():
    assert build.guide(4, FLOW, SCHEDULE) == {"guidance": 4}
    assert_allclose(guided(4.0), expected(guidance.classifier_free, 4.0))
    assert_allclose(
        guided(dict(name="classifier_free", scale=4.0)), guided(4.0), atol=1e-6
    )


@pytest.mark.parametrize("name", guidance.GUIDANCE)
def test_a_config_can_name_every_guide(name):
    rescale = guidance_rules.rescale(FLOW, 0.6)
    ours = guided(dict(name=name, scale=3.0, rescale=0.6))
    guide = functools.partial(guidance.GUIDANCE[name], rescale=rescale)
    assert_allclose(ours, expected(guide, 3.0), atol=1e-6)


def test_options_spaces_curves_and_intervals_combine():
    spec = dict(
        name="apg",
        scale=5.0,
        eta=0.3,
        threshold=1.5,
        space="v",
        curve=dict(name="power_cosine", power=2.0, least=0.5),
        interval=(0.1, 3.0),
    )
    apg = functools.partial(
        guidance.apg, eta=0.3, threshold=1.5, space=parameterization.v()
    )
    curve = functools.partial(guidance_scales.power_cosine, power=2.0)
    inside = expected(guidance.scheduled(apg, curve, SCHEDULE, least=0.5), 5.0)
    assert_allclose(guided(spec), inside, atol=1e-6)
    outside = guided({**spec, "interval": (2.0, 3.0)})
    assert_allclose(outside, DENOISE(X, LEVEL, COND).x0, atol=1e-6)
    assert np.abs(inside - outside).max() > 0.01


def test_the_scale_of_a_config_is_a_default():
    spec = dict(name="apg", scale=5.0)
    assert_allclose(guided(spec, scale=2.0), guided(dict(name="apg", scale=2.0)))


def test_momentum_asks_for_a_memory():
    assert build.guide(dict(name="apg", momentum=-0.5), FLOW, SCHEDULE)["remembers"]
    assert not build.guide(dict(name="apg", eta=0.5), FLOW, SCHEDULE)["remembers"]


@pytest.mark.parametrize(
    "spec, message",
    [
        (dict(name="apgg"), "unknown guidance 'apgg': did you mean 'apg'"),
        (dict(name="apg", etta=0.1), "no option 'etta': did you mean 'eta'"),
        (dict(name="apg", curve=dict(name="cosin")), "did you mean 'cosine'"),
        (dict(name="apg", space="velocity"), "unknown parameterization 'velocity'"),
    ],
)
def test_what_does_not_exist_is_named(spec, message):
    with pytest.raises(build.ConfigError, match=message):
        build.guide(spec, FLOW, SCHEDULE)


def test_a_config_can_name_every_clipping():
    def large(x, level):
        return process.from_x0(x, 3 * x, level)

    for name, spec in {
        "static": dict(bound=0.5),
        "dynamic": dict(quantile=0.9, largest=2.0),
    }.items():
        for rederive_eps in (True, False):
            options = dict(spec, rederive_eps=rederive_eps)
            pred = build.clip(dict(name=name, **options))(large)(X, LEVEL)
            wanted = denoiser.CLIPPINGS[name](large, **options)(X, LEVEL)
            assert_allclose(pred.x0, wanted.x0)
            assert_allclose(pred.eps, wanted.eps)
    assert build.clip(None) is None


def test_the_command_line_changes_the_scale_and_keeps_the_rule():
    config = ConfigDict(dict(sampling=dict(guidance=dict(name="apg", scale=2.0))))
    changed = trained_runs.with_choices(config, dict(guidance=4.0)).sampling.guidance
    assert changed.to_dict() == dict(name="apg", scale=4.0)
    plain = ConfigDict(dict(sampling=dict(guidance=2.0)))
    assert trained_runs.with_choices(plain, dict(guidance=4.0)).sampling.guidance == 4.0


# ---- the stage that runs it ----------------------------------------------------------


class Steered(nn.Module):
    """A network without weights, as a Stage holds one."""

    def __call__(self, x, time, cond):
        return network(x, time, cond)


def make_stage(spec, **fields):
    return stage.Stage(
        Steered(),
        SCHEDULE,
        FLOW,
        SAMPLERS["ddim"],
        grids.trailing,
        3,
        **build.guide(spec, FLOW, SCHEDULE),
        **fields,
    )


def run(made, scale=None):
    keys = stage.image_keys(jax.random.key(0), jnp.arange(2))
    return stage.sample(made, {}, keys, (3, 3, 2), COND, NULL, scale=scale)[0]


def test_a_stage_can_be_hashed_and_its_scale_does_not_recompile():
    made = make_stage(dict(name="apg", scale=2.0, momentum=-0.5, interval=(0.1, 9.0)))
    assert hash(made) == hash(made)
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def compiled(made, scale):
        traces.append(scale)
        return run(made, scale)

    one, other = compiled(made, 1.0), compiled(made, 6.0)
    assert len(traces) == 1
    assert np.abs(one - other).max() > 0.01
    assert_allclose(one, run(make_stage(1.0)), atol=1e-5)


def test_momentum_changes_what_a_stage_samples():
    spec = dict(name="apg", scale=6.0, threshold=100.0)
    plain, none, some = (
        run(make_stage({**spec, **options}))
        for options in ({}, {"momentum": 0.0}, {"momentum": -0.75})
    )
    assert_allclose(none, plain, atol=1e-5)
    assert np.abs(some - plain).max() > 0.01


def test_a_stage_clips_what_is_guided():
    made = make_stage(9.0, clip=build.clip(dict(name="static", bound=0.3)))
    assert np.abs(run(made)).max() <= 0.3 + 1e-6
    assert np.abs(run(make_stage(9.0))).max() > 0.5
