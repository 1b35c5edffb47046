"""Grids that are even, or almost, in the schedule's own time.

Formulae count whole steps from 0, as networks hear them; the times are one more.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.diffusion import visited_times
from diffusion_jax.diffusion.process import Real
from diffusion_jax.diffusion.schedule_protocol import Schedule


def leading(
    schedule: Schedule, steps: int, *, offset: int = 1, end: Real = 1
) -> Float[Array, "steps_plus_1"]:
    """Every (num_steps // steps)-th step, counted from the clean end.

    The defaults are Stable Diffusion's. The noisiest step is never visited: Lin et al.
    (2023), section 3.3, on why `trailing` is better. Needs whole steps.
    """
    visited_times.check_steps(steps)
    num_steps = visited_times.check_whole_steps(schedule, "leading")
    heard = np.arange(steps)[::-1] * (num_steps // steps) + offset
    return visited_times.finish(schedule, 1.0 + heard, end)


def leading_open(
    schedule: Schedule,
    steps: int,
    *,
    offset: int = 1,
    logsnr_min: Real | None = None,
    end: Real = 0,
) -> Float[Array, "steps_plus_1"]:
    """`leading` of one step more, the cleanest of them left out.

    What published DPM-Solver, UniPC and DEIS call leading. Steps with a logsnr below
    `logsnr_min` are not counted.
    """
    visited_times.check_steps(steps)
    visited_times.check_whole_steps(schedule, "leading_open")
    stride = int(_first(schedule, logsnr_min)) // (steps + 1)
    heard = np.arange(1, steps + 1)[::-1] * stride + offset
    return visited_times.finish(schedule, 1.0 + heard, end)


def trailing(
    schedule: Schedule, steps: int, *, first: Real | None = None, end: Real = 0
) -> Float[Array, "steps_plus_1"]:
    """From `first`, t_max unless given, evenly towards 0; whole steps stay so.

    Lin et al. (2023), table 2; arXiv:2305.08891.
    """
    visited_times.check_steps(steps)
    first = schedule.t_max if first is None else first
    # Rounding errors decide the halves: these are those of the published code.
    times = np.arange(first, 0, -first / steps)[:steps]
    if schedule.num_steps is not None:
        times = np.round(times)
    return visited_times.finish(schedule, times, end)


def linspace(
    schedule: Schedule,
    steps: int,
    *,
    rounded: bool = False,
    last: Real | None = None,
    end: Real = 0,
) -> Float[Array, "steps_plus_1"]:
    """`steps` times evenly from t_max to `last`, t_min unless given, then `end`.

    `rounded` gives whole steps (DDIM, and the respacing of guided diffusion and
    unCLIP); real ones are usual with Euler and Heun.
    """
    visited_times.check_steps(steps)
    if rounded and schedule.num_steps is None:
        raise ValueError(f"rounded needs a schedule of whole steps, got {schedule!r}")
    last = schedule.t_min if last is None else last
    times = _evenly(schedule.t_max, last, steps)
    # Halves are rounded on the network's count from 0, as the published code does.
    times = np.round(times - 1) + 1 if rounded else times
    return visited_times.finish(schedule, times, end)


def linspace_open(
    schedule: Schedule, steps: int, *, logsnr_min: Real | None = None, end: Real = 0
) -> Float[Array, "steps_plus_1"]:
    """`linspace` of one step more, the cleanest left out; whole steps stay so.

    What published DPM-Solver, UniPC and DEIS call linspace. It starts at the noisiest
    step whose logsnr is not below `logsnr_min`.
    """
    visited_times.check_steps(steps)
    first = _first(schedule, logsnr_min)
    times = _evenly(first, schedule.t_min, steps + 1)[:-1]
    if schedule.num_steps is not None:
        times = np.round(times - 1) + 1
    return visited_times.finish(schedule, times, end)


def quadratic(
    schedule: Schedule,
    steps: int,
    *,
    reach: Real = 0.8,
    offset: int = 0,
    end: Real = 0,
) -> Float[Array, "steps_plus_1"]:
    """tau_i = floor(c * i**2) (Song et al., 2021, appendix D.2; arXiv:2010.02502).

    c is such that the noisiest is `reach` * num_steps. Near clean data several i may
    give one tau, which then repeats, as published.
    """
    visited_times.check_steps(steps)
    num_steps = visited_times.check_whole_steps(schedule, "quadratic")
    roots = _evenly(np.sqrt(reach * num_steps), 0, steps)
    # A whole number that its root leaves just below itself is that number.
    times = 1 + np.floor(roots**2 + 1e-9) + offset
    return visited_times.finish(schedule, times, end, repeats=True)


def explicit(
    schedule: Schedule, steps: int, *, times: tuple[Real, ...] = (), end: Real = 0
) -> Float[Array, "steps_plus_1"]:
    """These times, in the schedule's units: one more than what a network hears."""
    _check_count("explicit", "times", times, steps)
    return visited_times.finish(schedule, np.asarray(times, float), end)


def from_sigmas(
    schedule: Schedule, steps: int, *, sigmas: tuple[Real, ...] = (), end: Real = 0
) -> Float[Array, "steps_plus_1"]:
    """The times at which sigma / alpha is this; the final 0 is `end`, not one of them."""
    _check_count("from_sigmas", "sigmas", sigmas, steps)
    if not min(sigmas) > 0:
        raise ValueError(f"sigmas must be above 0, got {sigmas}; the last is end")
    times = visited_times.times_at_ratio(schedule, np.asarray(sigmas, float))
    return visited_times.finish(schedule, times, end)


def _check_count(grid: str, what: str, given: tuple[Real, ...], steps: int) -> None:
    visited_times.check_steps(steps)
    if len(given) != steps:
        raise ValueError(f"{grid} of {steps} steps was given {len(given)} {what}")


def _evenly(first: Real, last: Real, count: int) -> np.ndarray:
    """From first to last; counted from the last, as published, so that halves agree."""
    return np.linspace(last, first, count)[::-1] if count > 1 else np.asarray([first])


def _first(schedule: Schedule, logsnr_min: Real | None) -> Real:
    """t_max, or the noisiest step, or time, whose logsnr is not below logsnr_min."""
    if logsnr_min is None:
        return schedule.t_max
    if schedule.num_steps is None:
        return float(visited_times.times_at_logsnr(schedule, np.asarray(logsnr_min)))
    logsnrs = visited_times.logsnr_at(schedule, np.arange(1.0, schedule.num_steps + 1))
    if not logsnrs[0] >= logsnr_min:
        raise ValueError(f"{schedule!r} has no step with a logsnr of {logsnr_min}")
    return float(np.sum(logsnrs >= logsnr_min))
