"""Schedules made from another: shifted in logsnr, or heard in whole steps.

Frozen dataclasses, hence static under jit if what they wrap is.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from diffusion_jax.diffusion.continuous_schedules import (
    RectifiedFlow,
    VarianceExploding,
)
from diffusion_jax.diffusion.discrete_schedules import Discrete
from diffusion_jax.diffusion.process import NoiseLevel, Real
from diffusion_jax.diffusion.schedule_protocol import Schedule


@dataclasses.dataclass(frozen=True)
class ShiftedSNR:
    """The wrapped schedule with logsnr(t) + shift.

    For d times as many pixels a side as the schedule was made for, d**2 times as many
    of them see through the same noise: shift = -2 log(d) (Hoogeboom et al., 2023,
    section 3.1, with 2 log(64 / d) for d pixels a side; arXiv:2301.11093). On a rectified flow
    shift = -2 log(s) is t -> s t / (1 + (s - 1) t) (Esser et al., 2024, eq. 23;
    arXiv:2403.03206). Chen's (2023) input scale b is shift = 2 log(b).

    What alpha and sigma keep stays: alpha = 1 of `VarianceExploding`, alpha + sigma = 1
    of `RectifiedFlow`, else alpha**2 + sigma**2 = 1. The network hears the wrapped
    schedule's time at t, or with `hears_noise` at the same noise, as one must that was
    trained without the shift.
    """

    wrapped: Schedule = dataclasses.field(default_factory=Discrete)
    shift: Real = 0.0
    hears_noise: bool = False

    @property
    def num_steps(self) -> int | None:
        return self.wrapped.num_steps

    @property
    def t_min(self) -> Real:
        return self.wrapped.t_min

    @property
    def t_max(self) -> Real:
        return self.wrapped.t_max

    @property
    def log_ratios(self) -> Float64[np.ndarray, "num_steps"]:
        """log(sigma / alpha) at t = 1 .. num_steps, where the wrapped has them."""
        return self.wrapped.log_ratios - self.shift / 2

    def __call__(self, t: Float[Array, "*b"]) -> NoiseLevel:
        alpha, sigma, time = self.wrapped(t)
        sigma = jnp.exp(-jnp.asarray(self.shift, sigma.dtype) / 2) * sigma
        total = _total(self.wrapped, alpha, sigma)
        if self.hears_noise:
            # The ends stay where they were, and their logsnr is not finite.
            inside = (alpha > 0) & (sigma > 0)
            logs = (jnp.log(jnp.where(inside, a, 1.0)) for a in (alpha, sigma))
            heard = self.wrapped.at_logsnr(2 * (next(logs) - next(logs))).time
            time = jnp.where(inside, heard, time)
        return NoiseLevel(alpha / total, sigma / total, time)

    def inverse(self, logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        return self.wrapped.inverse(logsnr - self.shift)

    def at_logsnr(self, logsnr: Float[Array, "*b"]) -> NoiseLevel:
        return self(self.inverse(logsnr))

    def quantile(self, u: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """As of the wrapped schedule."""
        return self.wrapped.quantile(u)


@dataclasses.dataclass(frozen=True)
class WholeTimes:
    """The wrapped schedule, of which the network hears whole steps only.

    alpha and sigma stay exact. `rounding` is "nearest", as published solvers do with
    the grid of Karras et al., or "down", as they do with some others; or "below", which
    is down from whole steps too: so theirs goes at the noisiest step, where their
    rounding errors leave it just below its whole number (999 heard as 998).
    """

    wrapped: Schedule = dataclasses.field(default_factory=Discrete)
    rounding: str = "nearest"

    def __post_init__(self):
        if self.rounding not in ROUNDINGS:
            raise ValueError(
                f"unknown rounding {self.rounding!r}; one of {sorted(ROUNDINGS)}"
            )

    @property
    def num_steps(self) -> int | None:
        return self.wrapped.num_steps

    @property
    def t_min(self) -> Real:
        return self.wrapped.t_min

    @property
    def t_max(self) -> Real:
        return self.wrapped.t_max

    @property
    def log_ratios(self) -> Float64[np.ndarray, "num_steps"]:
        """log(sigma / alpha) at t = 1 .. num_steps, where the wrapped has them."""
        return self.wrapped.log_ratios

    def __call__(self, t: Float[Array, "*b"]) -> NoiseLevel:
        return self._heard(self.wrapped(t))

    def inverse(self, logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        return self.wrapped.inverse(logsnr)

    def at_logsnr(self, logsnr: Float[Array, "*b"]) -> NoiseLevel:
        """The level itself: midpoints, which no grid rounds, are heard as they are."""
        return self.wrapped.at_logsnr(logsnr)

    def quantile(self, u: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """As of the wrapped schedule."""
        return self.wrapped.quantile(u)

    def _heard(self, level: NoiseLevel) -> NoiseLevel:
        return level._replace(time=ROUNDINGS[self.rounding](level.time))


def _down(time: Float[Array, "*b"]) -> Float[Array, "*b"]:
    # A step that float32 leaves just below its whole number is that step.
    return jnp.floor(time + 2e-4)


def _below(time: Float[Array, "*b"]) -> Float[Array, "*b"]:
    return jnp.maximum(jnp.ceil(time - 2e-4) - 1, 0)


ROUNDINGS = {"nearest": jnp.round, "down": _down, "below": _below}


def _total(
    schedule: Schedule, alpha: Float[Array, "*b"], sigma: Float[Array, "*b"]
) -> Float[Array, "*b"]:
    """What the schedule keeps at 1."""
    if isinstance(schedule, ShiftedSNR | WholeTimes):
        return _total(schedule.wrapped, alpha, sigma)
    if isinstance(schedule, VarianceExploding):
        return alpha
    if isinstance(schedule, RectifiedFlow):
        return alpha + sigma
    return jnp.sqrt(alpha**2 + sigma**2)
