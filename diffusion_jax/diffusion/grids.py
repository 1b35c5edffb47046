"""Grids: (schedule, steps) -> the steps + 1 decreasing times that a sampler visits.

The network is evaluated at all of them but the last, `end`: 0 is clean data; 1, on a
schedule of whole steps, is what Stable Diffusion was released with. Times are in the
schedule's own units, which for whole steps are one more than what the network hears.
A grid is computed when it is traced, so it is a constant of the compiled program.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.diffusion import process
from diffusion_jax.diffusion.process import Real
from diffusion_jax.diffusion.schedules import Schedule

Grid = Callable[[Schedule, int], Float[Array, "steps_plus_1"]]


def leading(
    schedule: Schedule, steps: int, *, offset: int = 1, end: Real = 1
) -> Float[Array, "steps_plus_1"]:
    """Every (num_steps // steps)-th step, counted from the clean end.

    The defaults are Stable Diffusion's. The noisiest step is never visited: Lin et al.
    (2023), section 3.3, on why `trailing` is better. Needs whole steps.
    """
    _check_steps(steps)
    if schedule.num_steps is None:
        raise ValueError(
            f"leading needs a schedule of whole steps, got {schedule!r}; "
            "on a continuous one take trailing or linspace"
        )
    heard = np.arange(steps)[::-1] * (schedule.num_steps // steps) + offset
    return _times(schedule, 1.0 + heard, end)


def trailing(
    schedule: Schedule, steps: int, *, end: Real = 0
) -> Float[Array, "steps_plus_1"]:
    """From t_max evenly towards 0 (Lin et al., 2023, table 2); whole steps stay so."""
    _check_steps(steps)
    times = schedule.t_max * (1 - np.arange(steps) / steps)
    if schedule.num_steps is not None:
        times = np.round(times)
    return _times(schedule, times, end)


def linspace(
    schedule: Schedule, steps: int, *, rounded: bool = False, end: Real = 0
) -> Float[Array, "steps_plus_1"]:
    """`steps` times evenly from t_max to t_min, then `end`.

    `rounded` gives whole steps (DDIM); real ones are usual with Euler and Heun.
    """
    _check_steps(steps)
    times = np.linspace(schedule.t_max, schedule.t_min, steps)
    if rounded and schedule.num_steps is None:
        raise ValueError(f"rounded needs a schedule of whole steps, got {schedule!r}")
    # Halves are rounded on the network's count from 0, as the published code does.
    times = np.round(times - 1) + 1 if rounded else times
    return _times(schedule, times, end)


def karras(
    schedule: Schedule,
    steps: int,
    *,
    sigma_min: Real | None = None,
    sigma_max: Real | None = None,
    rho: Real = 7,
) -> Float[Array, "steps_plus_1"]:
    """(sigma / alpha)**(1 / rho) evenly spaced, then 0 (Karras et al., 2022, eq. 5).

    The ends are those of the schedule unless given.
    """
    _check_steps(steps)
    low = (
        np.exp(-_logsnr(schedule, schedule.t_min) / 2)
        if sigma_min is None
        else sigma_min
    )
    high = (
        np.exp(-_logsnr(schedule, schedule.t_max) / 2)
        if sigma_max is None
        else sigma_max
    )
    if not 0 < low < high < np.inf:
        raise ValueError(
            f"karras needs 0 < sigma_min < sigma_max < inf on {schedule!r}, "
            f"got {low} and {high}: give them by name"
        )
    sigmas = np.linspace(high ** (1 / rho), low ** (1 / rho), steps) ** rho
    return _times(schedule, _inverse(schedule, -2 * np.log(sigmas)), 0)


def uniform_logsnr(
    schedule: Schedule,
    steps: int,
    *,
    logsnr_min: Real | None = None,
    logsnr_max: Real | None = None,
) -> Float[Array, "steps_plus_1"]:
    """log(alpha**2 / sigma**2) evenly spaced, then 0 (Lu et al., 2022, section 4.1).

    The ends are those of the schedule unless given; arXiv:2206.00927.
    """
    _check_steps(steps)
    low = _logsnr(schedule, schedule.t_max) if logsnr_min is None else logsnr_min
    high = _logsnr(schedule, schedule.t_min) if logsnr_max is None else logsnr_max
    if not -np.inf < low < high < np.inf:
        raise ValueError(
            f"uniform_logsnr needs finite logsnr_min < logsnr_max on {schedule!r}, "
            f"got {low} and {high}: give them by name"
        )
    return _times(schedule, _inverse(schedule, np.linspace(low, high, steps)), 0)


GRIDS = {
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
    "karras": karras,
    "uniform_logsnr": uniform_logsnr,
}


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"a grid needs at least one step, got {steps}")


def _logsnr(schedule: Schedule, t: float) -> float:
    with jax.ensure_compile_time_eval():
        return float(process.logsnr(schedule(jnp.asarray(t, float))))


def _inverse(schedule: Schedule, logsnr: np.ndarray) -> np.ndarray:
    with jax.ensure_compile_time_eval():
        return np.asarray(schedule.inverse(jnp.asarray(logsnr, float)))


def _times(schedule: Schedule, times: np.ndarray, end: Real) -> Array:
    """`times`, then `end`, if the schedule has them."""
    if times[0] > schedule.t_max * (1 + 1e-5) or np.any(np.diff(times) >= 0):
        raise ValueError(
            f"{len(times)} steps from t = {times[0]:g} to {times[-1]:g} do not fit "
            f"{schedule!r}, which ends at t = {schedule.t_max:g}"
        )
    if end > times[-1]:
        raise ValueError(f"end = {end} lies above the last time, {times[-1]:g}")
    return jnp.asarray([*times, end], float)
