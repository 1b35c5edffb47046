"""What the tests of the mathematics share: the schedules."""

from __future__ import annotations

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
