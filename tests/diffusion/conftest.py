"""What the tests of the mathematics share: schedules, and data whose denoiser is exact."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from diffusion_jax.diffusion import process, schedules

SCHEDULES = {
    "linear": schedules.Discrete(betas="linear", beta_start=1e-4, beta_end=0.02),
    "scaled_linear": schedules.Discrete(),
    "cosine_betas": schedules.Discrete(betas="cosine"),
    "zero_terminal_snr": schedules.ZeroTerminalSNR(schedules.Discrete()),
    "cosine": schedules.Cosine(),
    "variance_exploding": schedules.VarianceExploding(),
    "rectified_flow": schedules.RectifiedFlow(),
}


@pytest.fixture(params=SCHEDULES)
def schedule(request):
    return SCHEDULES[request.param]


@pytest.fixture
def exact_gaussian():
    """(mean, std) -> the posterior-mean denoiser of data from N(mean, std**2)."""

    def make(mean=0.7, std=0.35):
        def denoise(x, level):
            alpha, sigma = (process.align(a, x) for a in (level.alpha, level.sigma))
            variance = (alpha * std) ** 2 + sigma**2
            residual = x - alpha * mean
            x0 = mean + alpha * std**2 / variance * residual
            return process.Prediction(x0, sigma / variance * residual)

        return denoise

    return make


@pytest.fixture
def exact_flow():
    """(mean, std) -> where the probability-flow ODE takes x from one level to another."""

    def make(mean=0.7, std=0.35):
        def solve(x, here, there):
            spread = [
                jnp.hypot(level.alpha * std, level.sigma) for level in (here, there)
            ]
            return there.alpha * mean + spread[1] / spread[0] * (x - here.alpha * mean)

        return solve

    return make
