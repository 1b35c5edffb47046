"""Grids shifted towards the noise, as rectified flows of many tokens are sampled.

A shift s scales sigma / alpha of every visited time by s. On a rectified flow that is
t -> s t / (1 + (s - 1) t) (Esser et al., 2024, eq. 23; arXiv:2403.03206).
"""

from __future__ import annotations

import functools
import math

import jax
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.diffusion import time_grids, visited_times
from diffusion_jax.diffusion.process import Real
from diffusion_jax.diffusion.schedule_protocol import Schedule
from diffusion_jax.diffusion.visited_times import Grid

OF = {
    "trailing": time_grids.trailing,
    "linspace": time_grids.linspace,
    "linspace_open": time_grids.linspace_open,
}
SHIFTS = {"exponential": math.exp, "linear": float}


def shifted(
    schedule: Schedule,
    steps: int,
    *,
    shift: Real = 3.0,
    of: Grid | str = "trailing",
    terminal: Real | None = None,
    end: Real = 0,
) -> Float[Array, "steps_plus_1"]:
    """The grid `of`, with sigma / alpha scaled by `shift`; 3 is Stable Diffusion 3's.

    `terminal` stretches the times from 1 so that this is the last before `end`; only
    where t_max = 1.
    """
    visited_times.check_steps(steps)
    if not shift > 0:
        raise ValueError(f"shift must be above 0, got {shift}")
    if isinstance(of, str) and of not in OF:
        raise ValueError(f"unknown grid {of!r} to shift; a grid or one of {sorted(OF)}")
    grid = OF[of] if isinstance(of, str) else of
    with jax.ensure_compile_time_eval():
        times = np.asarray(grid(schedule, steps), float)[:-1]
    logsnr = visited_times.logsnr_at(schedule, times) - 2 * math.log(shift)
    times = visited_times.times_at_logsnr(schedule, logsnr)
    if terminal is not None:
        times = _stretched(schedule, times, terminal)
    return visited_times.finish(schedule, times, end)


def sd3(
    schedule: Schedule,
    steps: int,
    *,
    shift: Real = 3.0,
    num_steps: int = 1000,
    end: Real = 0,
) -> Float[Array, "steps_plus_1"]:
    """What Stable Diffusion 3 visits: evenly from t_max, then shifted.

    The least time, 1 / num_steps, was shifted before already, and is so twice.
    """
    last = shift / (num_steps + shift - 1)
    evenly = functools.partial(time_grids.linspace, last=last)
    return shifted(schedule, steps, shift=shift, of=evenly, end=end)


def resolution_shifted(
    schedule: Schedule,
    steps: int,
    *,
    tokens: int = 4096,
    mu_by_tokens: tuple[tuple[int, Real], tuple[int, Real]] = (
        (256, 0.5),
        (4096, 1.15),
    ),
    kind: str = "exponential",
    of: Grid | str = "trailing",
    terminal: Real | None = None,
) -> Float[Array, "steps_plus_1"]:
    """`shifted` by exp(mu), mu linear in the number of tokens; the defaults are FLUX's.

    With `kind="linear"` the shift is mu itself.
    """
    if kind not in SHIFTS:
        raise ValueError(f"unknown kind {kind!r}; one of {sorted(SHIFTS)}")
    (fewest, least), (most, greatest) = mu_by_tokens
    mu = least + (greatest - least) * (tokens - fewest) / (most - fewest)
    shift = SHIFTS[kind](mu)
    return shifted(schedule, steps, shift=shift, of=of, terminal=terminal)


def _stretched(schedule: Schedule, times: np.ndarray, terminal: Real) -> np.ndarray:
    if schedule.t_max != 1 or not 0 < terminal < 1:
        raise ValueError(
            f"terminal must lie in (0, 1) and t_max be 1, got {terminal} on {schedule!r}"
        )
    return 1 - (1 - times) * (1 - terminal) / (1 - times[-1])
