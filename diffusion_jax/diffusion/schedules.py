"""Every noise schedule by name: t -> (alpha, sigma), x_t = alpha * x0 + sigma * eps.

A schedule that is trained has parameters, and is made by `learned_schedule`.
"""

from __future__ import annotations

from diffusion_jax.diffusion.continuous_schedules import (
    Cosine,
    Laplace,
    RectifiedFlow,
    Sigmoid,
    SubVariancePreserving,
    VarianceExploding,
    VariancePreserving,
)
from diffusion_jax.diffusion.discrete_schedules import (
    BETAS,
    Discrete,
    ZeroTerminalSNR,
)
from diffusion_jax.diffusion.schedule_protocol import Schedule
from diffusion_jax.diffusion.schedule_wrappers import ShiftedSNR, WholeTimes

__all__ = [
    "BETAS",
    "SCHEDULES",
    "Cosine",
    "Discrete",
    "Laplace",
    "RectifiedFlow",
    "Schedule",
    "ShiftedSNR",
    "Sigmoid",
    "SubVariancePreserving",
    "VarianceExploding",
    "VariancePreserving",
    "WholeTimes",
    "ZeroTerminalSNR",
]

SCHEDULES = {
    "discrete": Discrete,
    "zero_terminal_snr": ZeroTerminalSNR,
    "cosine": Cosine,
    "sigmoid": Sigmoid,
    "laplace": Laplace,
    "variance_preserving": VariancePreserving,
    "sub_variance_preserving": SubVariancePreserving,
    "variance_exploding": VarianceExploding,
    "edm": VarianceExploding,  # as the same schedule is also called
    "rectified_flow": RectifiedFlow,
    "shifted_snr": ShiftedSNR,
    "whole_times": WholeTimes,
}
