"""Weightings, training times and the terms of a bound against diffusers."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers import training_utils

from diffusion_jax.diffusion import (
    losses,
    parameterization,
    process,
    schedules,
    time_samplers,
    variational,
    weightings,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")

BETAS = dict(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
SCHEDULE = schedules.Discrete("linear", 1e-4, 0.02)
KEY = jax.random.key(0)


def test_snr():
    scheduler = diffusers.DDPMScheduler(**BETAS)
    heard = torch.arange(0, 1000, 7)
    theirs = training_utils.compute_snr(scheduler, heard)
    ours = process.snr(SCHEDULE(jnp.asarray(heard.numpy() + 1.0)))
    assert_allclose(ours, theirs, rtol=2e-4)  # they cumulate betas in float32


@pytest.mark.parametrize(
    ("prediction", "divisor"),
    [("eps", lambda snr: snr), ("v", lambda snr: snr + 1)],
)
def test_min_snr_as_the_training_scripts_write_it(prediction, divisor):
    scheduler = diffusers.DDPMScheduler(**BETAS)
    heard = torch.arange(0, 1000, 7)
    snr = training_utils.compute_snr(scheduler, heard)
    theirs = torch.minimum(snr, torch.full_like(snr, 5.0)) / divisor(snr)
    level = SCHEDULE(jnp.asarray(heard.numpy() + 1.0))
    p = parameterization.PARAMETERIZATIONS[prediction]()
    ours = losses.output_weight(p, weightings.min_snr, level)
    assert_allclose(ours, theirs, rtol=2e-4)


@pytest.mark.parametrize(
    ("scheme", "weighting"),
    [
        ("sigma_sqrt", weightings.sigma_sqrt),
        ("cosmap", weightings.cosmap),
        ("none", weightings.flow),
    ],
)
def test_weightings_of_stable_diffusion_3(scheme, weighting):
    sigma = np.linspace(0.02, 1, 50, dtype=np.float32)
    theirs = training_utils.compute_loss_weighting_for_sd3(scheme, torch.tensor(sigma))
    level = schedules.RectifiedFlow()(jnp.asarray(sigma))
    ours = losses.output_weight(parameterization.flow(), weighting, level)
    assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize(
    ("scheme", "options", "law"),
    [
        (
            "logit_normal",
            dict(logit_mean=0.3, logit_std=0.8),
            functools.partial(time_samplers.logit_normal, mean=0.3, std=0.8),
        ),
        (
            "mode",
            dict(mode_scale=1.29),
            functools.partial(time_samplers.mode, scale=1.29),
        ),
        ("none", {}, time_samplers.uniform),
    ],
)
def test_training_times_of_stable_diffusion_3(scheme, options, law):
    num = 100_000
    theirs = training_utils.compute_density_for_timestep_sampling(
        scheme, num, **options, generator=torch.Generator().manual_seed(0)
    )
    flow = schedules.RectifiedFlow(t_min=0.0)
    ours, _ = time_samplers.drawn(law, draw=time_samplers.low_discrepancy)(
        KEY, num, flow
    )
    at = np.linspace(0.01, 0.99, 30)
    assert_allclose(np.quantile(ours, at), np.quantile(theirs, at), atol=0.006)


@pytest.mark.parametrize("kind", ["fixed_small_log", "fixed_large", "learned_range"])
def test_the_step_of_a_bound_has_the_mean_and_variance_that_ddpm_samples_with(kind):
    """KL(q || p), from the moments of their step with the true and with a guessed x0."""
    scheduler = diffusers.DDPMScheduler(
        **BETAS, variance_type=kind, prediction_type="sample", clip_sample=False
    )
    ours_name = {"fixed_small_log": "posterior", "fixed_large": "beta"}.get(kind, kind)
    x0, guess, x = np.asarray(jax.random.normal(KEY, (3, 1, 4)))
    raw = np.full((1, 4), 0.2, np.float32)
    for t in (2, 10, 400, 1000):
        both = dict(t=t - 1, predicted_variance=torch.tensor(raw))
        variance = scheduler._get_variance(**both, variance_type=kind)
        if kind == "fixed_small_log":  # theirs is a standard deviation
            variance = variance**2
        if kind == "learned_range":  # and theirs the logarithm
            variance = torch.exp(variance)
        true = scheduler._get_variance(t - 1, variance_type="fixed_small")
        alpha2 = scheduler.alphas_cumprod.double()
        coefficient = (
            alpha2[t - 2].sqrt() * scheduler.betas[t - 1] / (1 - alpha2[t - 1])
        )
        gap = coefficient * torch.tensor(x0 - guess)
        theirs = 0.5 * (
            torch.log(variance / true) - 1 + true / variance + gap**2 / variance
        )
        pred = process.Prediction(jnp.asarray(guess), jnp.asarray(x), jnp.asarray(raw))
        term, _ = variational.term_at(
            SCHEDULE,
            pred,
            jnp.asarray(x0),
            jnp.asarray([float(t)]),
            variational.Chain(ours_name),
        )
        assert_allclose(term, theirs.sum(), rtol=2e-3, atol=1e-6)
