"""What makes a list of times a grid, and how grids find the time of a noise.

A grid is (schedule, steps) -> the steps + 1 falling times that a sampler visits. It is
computed when it is traced, so it is a constant of the compiled program.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.diffusion import process
from diffusion_jax.diffusion.process import Real
from diffusion_jax.diffusion.schedule_protocol import Schedule

Grid = Callable[[Schedule, int], Float[Array, "steps_plus_1"]]


def check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"a grid needs at least one step, got {steps}")


def check_whole_steps(schedule: Schedule, what: str) -> int:
    """How many whole steps the schedule has; raises if it has none."""
    if schedule.num_steps is None:
        raise ValueError(
            f"{what} needs a schedule of whole steps, got {schedule!r}; "
            "on a continuous one take trailing or linspace"
        )
    return schedule.num_steps


def logsnr_at(schedule: Schedule, t: Real | np.ndarray) -> np.ndarray:
    with jax.ensure_compile_time_eval():
        return np.asarray(process.logsnr(schedule(jnp.asarray(t, float))), float)


def ratio_at(schedule: Schedule, t: Real | np.ndarray) -> np.ndarray:
    """sigma / alpha."""
    return np.asarray(np.exp(-logsnr_at(schedule, t) / 2))


def times_at_logsnr(schedule: Schedule, logsnr: np.ndarray) -> np.ndarray:
    with jax.ensure_compile_time_eval():
        return np.asarray(schedule.inverse(jnp.asarray(logsnr, float)), float)


def times_at_ratio(schedule: Schedule, ratio: np.ndarray) -> np.ndarray:
    """The times at which sigma / alpha is this."""
    return times_at_logsnr(schedule, -2 * np.log(ratio))


def finish(
    schedule: Schedule, times: np.ndarray, end: Real, *, repeats: bool = False
) -> Float[Array, "steps_plus_1"]:
    """`times`, then `end`, if the schedule has them and they fall.

    With `repeats` a time may follow itself: that step does nothing.
    """
    rises = np.diff(times) > 0 if repeats else np.diff(times) >= 0
    if times[0] > schedule.t_max * (1 + 1e-5) or np.any(rises):
        raise ValueError(
            f"{len(times)} steps from t = {times[0]:g} to {times[-1]:g} do not fit "
            f"{schedule!r}, which ends at t = {schedule.t_max:g}"
        )
    if times[-1] <= 0:
        raise ValueError(f"no network is called at t = {times[-1]:g}: it is clean data")
    if end < 0:
        raise ValueError(f"end = {end} lies below clean data, t = 0")
    if end > times[-1]:
        raise ValueError(f"end = {end} lies above the last time, {times[-1]:g}")
    return jnp.asarray(np.append(times, end), float)
