"""What the tests of the mathematics share: the schedules."""

from __future__ import annotations

import jax
import pytest

from diffusion_jax.diffusion import schedules

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


@pytest.fixture(autouse=True, scope="module")
def _quick_compilation():
    """These programs run for milliseconds: compile them fast rather than well."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
