"""Grids that are even in some function of the noise sigma / alpha.

Their ends are the schedule's t_min and t_max; or, `within` another grid, that one's
first and last time, as published Euler and Heun samplers have it; or sigma_min and
sigma_max (values of sigma / alpha). `over` "time", t takes the place of sigma / alpha in
all of this, as is usual on a rectified flow, where t is sigma.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.diffusion import time_grids, visited_times
from diffusion_jax.diffusion.process import Real
from diffusion_jax.diffusion.schedule_protocol import Schedule
from diffusion_jax.diffusion.visited_times import Grid

WITHIN = {
    "leading": time_grids.leading,
    "trailing": time_grids.trailing,
    "linspace": time_grids.linspace,
}


def karras(
    schedule: Schedule,
    steps: int,
    *,
    sigma_min: Real | None = None,
    sigma_max: Real | None = None,
    rho: Real = 7,
    within: Grid | str | None = None,
    over: str = "noise",
    end: Real = 0,
) -> Float[Array, "steps_plus_1"]:
    """(sigma / alpha)**(1 / rho) evenly spaced (Karras et al., 2022, eq. 5)."""

    def shape(high: Real, low: Real) -> np.ndarray:
        return np.linspace(high ** (1 / rho), low ** (1 / rho), steps) ** rho

    span = ("karras", sigma_min, sigma_max, within, over)
    return _between(schedule, steps, shape, span, end)


def exponential(
    schedule: Schedule,
    steps: int,
    *,
    sigma_min: Real | None = None,
    sigma_max: Real | None = None,
    within: Grid | str | None = None,
    over: str = "noise",
    end: Real = 0,
) -> Float[Array, "steps_plus_1"]:
    """sigma / alpha falls by one factor a step: the VE SDE of Song et al. (2021)."""

    def shape(high: Real, low: Real) -> np.ndarray:
        return np.geomspace(high, low, steps)

    span = ("exponential", sigma_min, sigma_max, within, over)
    return _between(schedule, steps, shape, span, end)


def polyexponential(
    schedule: Schedule,
    steps: int,
    *,
    sigma_min: Real | None = None,
    sigma_max: Real | None = None,
    rho: Real = 1,
    within: Grid | str | None = None,
    end: Real = 0,
) -> Float[Array, "steps_plus_1"]:
    """log(sigma / alpha) is a power of the step: rho > 1 dwells on the clean end."""

    def shape(high: Real, low: Real) -> np.ndarray:
        return low * (high / low) ** (np.linspace(1, 0, steps) ** rho)

    span = ("polyexponential", sigma_min, sigma_max, within, "noise")
    return _between(schedule, steps, shape, span, end)


def beta(
    schedule: Schedule,
    steps: int,
    *,
    alpha: Real = 0.6,
    beta: Real = 0.6,
    sigma_min: Real | None = None,
    sigma_max: Real | None = None,
    within: Grid | str | None = None,
    over: str = "time",
    end: Real = 0,
) -> Float[Array, "steps_plus_1"]:
    """Quantiles of Beta(alpha, beta): below 1 both ends are dense (Lee et al., 2024).

    The paper's are of time; `over="noise"` is what libraries made of it.
    arXiv:2407.12173.
    """
    share = _beta_quantiles(np.linspace(1, 0, steps), alpha, beta)

    def shape(high: Real, low: Real) -> np.ndarray:
        return low + (high - low) * share

    return _between(
        schedule, steps, shape, ("beta", sigma_min, sigma_max, within, over), end
    )


def uniform_logsnr(
    schedule: Schedule,
    steps: int,
    *,
    logsnr_min: Real | None = None,
    logsnr_max: Real | None = None,
    end: Real = 0,
) -> Float[Array, "steps_plus_1"]:
    """log(alpha**2 / sigma**2) evenly spaced (Lu et al., 2022, section 4.1).

    The ends are those of the schedule unless given; `exponential` by another name.
    arXiv:2206.00927.
    """
    visited_times.check_steps(steps)
    low = visited_times.logsnr_at(schedule, schedule.t_max)
    high = visited_times.logsnr_at(schedule, schedule.t_min)
    low = float(low) if logsnr_min is None else logsnr_min
    high = float(high) if logsnr_max is None else logsnr_max
    if not -np.inf < low < high < np.inf:
        raise ValueError(
            f"uniform_logsnr needs finite logsnr_min < logsnr_max on {schedule!r}, "
            f"got {low} and {high}: give them by name"
        )
    times = visited_times.times_at_logsnr(schedule, np.linspace(low, high, steps))
    return visited_times.finish(schedule, times, end)


def laplace(
    schedule: Schedule,
    steps: int,
    *,
    mu: Real = 0.0,
    b: Real = 0.5,
    sigma_min: Real | None = None,
    sigma_max: Real | None = None,
    end: Real = 0,
) -> Float[Array, "steps_plus_1"]:
    """Quantiles of log(sigma / alpha) ~ Laplace(mu, b), cut off at the two ends.

    The schedule of Hang et al. (2024; arXiv:2407.03297) as samplers took it over.
    """
    from_middle = 0.5 - np.linspace(0, 1, steps)
    with np.errstate(divide="ignore"):
        tail = -b * np.log(np.maximum(1 - 2 * np.abs(from_middle), 0))
    quantiles = np.exp(mu + np.sign(from_middle) * tail)

    def shape(high: Real, low: Real) -> np.ndarray:
        return np.clip(quantiles, low, high)

    span = ("laplace", sigma_min, sigma_max, None, "noise")
    return _between(schedule, steps, shape, span, end)


def kl_optimal(
    schedule: Schedule,
    steps: int,
    *,
    sigma_min: Real | None = None,
    sigma_max: Real | None = None,
    end: Real = 0,
) -> Float[Array, "steps_plus_1"]:
    """arctan(sigma / alpha) evenly spaced: optimal for data N(0, 1).

    Sabour et al. (2024), theorem 3.1; arXiv:2404.14507.
    """

    def shape(high: Real, low: Real) -> np.ndarray:
        return np.tan(np.linspace(np.arctan(high), np.arctan(low), steps))

    span = ("kl_optimal", sigma_min, sigma_max, None, "noise")
    return _between(schedule, steps, shape, span, end)


def vp(
    schedule: Schedule,
    steps: int,
    *,
    beta_min: Real = 0.1,
    beta_max: Real = 20.0,
    t_last: Real = 1e-3,
    end: Real = 0,
) -> Float[Array, "steps_plus_1"]:
    """The noise of the VP SDE at even times from 1 to t_last (Song et al., 2021, eq. 33).

    Its most, 152, is beyond many a schedule.
    """
    visited_times.check_steps(steps)
    t = np.linspace(1, t_last, steps)
    ratios = np.sqrt(np.expm1((beta_max - beta_min) * t**2 / 2 + beta_min * t))
    times = visited_times.times_at_ratio(schedule, ratios)
    return visited_times.finish(schedule, times, end)


def crash(
    schedule: Schedule, steps: int, *, end: Real = 0
) -> Float[Array, "steps_plus_1"]:
    """sigma = sin(pi / 2 * s)**2 at even s, on the circle alpha**2 + sigma**2 = 1.

    What improved PNDM samplers visit on `Cosine` with s = 0. It starts at alpha = 0.
    """
    visited_times.check_steps(steps)
    sigma = np.sin(np.pi / 2 * (1 - np.arange(steps) / steps)) ** 2
    with np.errstate(divide="ignore"):
        ratios = sigma / np.sqrt(1 - sigma**2)
    times = visited_times.times_at_ratio(schedule, ratios)
    return visited_times.finish(schedule, times, end)


# ---- ends ---------------------------------------------------------------------------

Span = tuple[str, Real | None, Real | None, Grid | str | None, str]
Shape = Callable[[Real, Real], np.ndarray]
IDENTITY = (lambda schedule, t: t, lambda schedule, t: t)
# name -> (time to value, value to time)
OVER = {
    "noise": (visited_times.ratio_at, visited_times.times_at_ratio),
    "time": IDENTITY,
}


def _between(
    schedule: Schedule, steps: int, shape: Shape, span: Span, end: Real
) -> Float[Array, "steps_plus_1"]:
    """The times of the values shape(high, low), which are exactly the span's at its ends."""
    name, sigma_min, sigma_max, within, over = span
    visited_times.check_steps(steps)
    if over not in OVER:
        raise ValueError(f"unknown over {over!r}; one of {sorted(OVER)}")
    value_of, time_of = OVER[over]
    first, last = _ends(schedule, steps, within)
    high = float(value_of(schedule, first)) if sigma_max is None else sigma_max
    low = float(value_of(schedule, last)) if sigma_min is None else sigma_min
    if not 0 < low < high < np.inf and not (steps == 1 and 0 < low <= high < np.inf):
        raise ValueError(
            f"{name} needs 0 < sigma_min < sigma_max < inf on {schedule!r}, "
            f"got {low} and {high}: give them by name"
        )
    times = np.array(time_of(schedule, shape(high, low)), float)
    if sigma_min is None and steps > 1:
        times[-1] = last
    if sigma_max is None:
        times[0] = first
    return visited_times.finish(schedule, times, end)


def _ends(
    schedule: Schedule, steps: int, within: Grid | str | None
) -> tuple[float, float]:
    """The first and the last time at which the network is called."""
    if within is None:
        return float(schedule.t_max), float(schedule.t_min)
    if isinstance(within, str) and within not in WITHIN:
        raise ValueError(
            f"unknown within {within!r}; a grid or one of {sorted(WITHIN)}"
        )
    grid = WITHIN[within] if isinstance(within, str) else within
    with jax.ensure_compile_time_eval():
        times = np.asarray(grid(schedule, steps))
    return float(times[0]), float(times[-2])


def _beta_quantiles(u: np.ndarray, alpha: Real, beta: Real) -> np.ndarray:
    """Where the distribution function of Beta(alpha, beta) is u, by bisection."""
    if not (alpha > 0 and beta > 0):
        raise ValueError(f"beta needs alpha, beta > 0, got {alpha} and {beta}")
    low, high = np.zeros_like(u), np.ones_like(u)
    with jax.ensure_compile_time_eval():
        for _ in range(60):
            middle = (low + high) / 2
            is_below = np.asarray(jax.scipy.special.betainc(alpha, beta, middle)) < u
            low, high = (
                np.where(is_below, middle, low),
                np.where(is_below, high, middle),
            )
    return np.where(u == 1, 1.0, np.where(u == 0, 0.0, (low + high) / 2))
