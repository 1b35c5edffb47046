"""Training times: (key, num, schedule) -> times and the weight of each one's loss.

A law of times is its quantile function, (u, schedule) -> t, which takes a uniform u to a
time, noisier as u grows; how the u of a batch are drawn is another choice. `drawn` joins
the two. Laws of logsnr mean the same on every schedule; times beyond the schedule's t_min
and t_max are moved there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

from diffusion_jax.diffusion import process
from diffusion_jax.diffusion.process import Real
from diffusion_jax.diffusion.schedules import Schedule
from diffusion_jax.types import Key


class Times(NamedTuple):
    """Training times, and the factor on the loss at each that makes up for their law."""

    t: Float[Array, "B"]
    weight: Float[Array, "B"]


Draw = Callable[[Key, int], Float[Array, "B"]]
Quantile = Callable[[Float[Array, "B"], Schedule], Float[Array, "B"]]
TimeSampler = Callable[[Key, int, Schedule], Times]

MEASURES = ("times", "logsnr")


def drawn(
    quantile: Quantile, *, draw: Draw | None = None, over: str = "times"
) -> TimeSampler:
    """Times whose law is `quantile`; `draw` says how u is drawn, by default independently.

    The loss is an average over="times" of this law, as most papers have it; or, whatever
    the law, an integral over="logsnr" from the cleanest to the noisiest time, the form of
    variational bounds (Kingma et al., 2021, eq. 17, arXiv:2107.00630; Kingma and Gao,
    2023): each weight is then -dlogsnr/du, and the law only decides the variance. That
    differentiates through the schedule, which may be learned.
    """
    if over not in MEASURES:
        raise ValueError(f"unknown measure {over!r}; one of {MEASURES}")

    def sample(key: Key, num: int, schedule: Schedule) -> Times:
        u = (draw or independent)(key, num)
        if over == "times":
            return Times(quantile(u, schedule), jnp.ones_like(u))
        if schedule.num_steps is not None and quantile is uniform:
            raise ValueError(
                f"uniform times of {schedule!r} are whole steps, which have no density "
                "over logsnr: take another law, such as uniform_logsnr"
            )

        def noise(u: Float[Array, "B"]) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
            t = quantile(u, schedule)
            return -process.logsnr(schedule(t)), t

        _, weight, t = jax.jvp(noise, (u,), (jnp.ones_like(u),), has_aux=True)
        # Times that were moved or rounded to an end without signal count for nothing.
        return Times(t, jnp.where(jnp.isfinite(weight), weight, 0.0))

    return sample


# ---- how u is drawn -----------------------------------------------------------------


def independent(key: Key, num: int) -> Float[Array, "B"]:
    """Independent u."""
    return jax.random.uniform(key, (num,))


def low_discrepancy(key: Key, num: int) -> Float[Array, "B"]:
    """Evenly spaced u, with one random shift for all.

    Kingma et al. (2021), appendix I.1; arXiv:2107.00630.
    """
    return (jax.random.uniform(key) + jnp.arange(num) / num) % 1


def stratified(key: Key, num: int) -> Float[Array, "B"]:
    """One u in each of `num` equal cells, independent within them."""
    return (jnp.arange(num) + jax.random.uniform(key, (num,))) / num


def antithetic(key: Key, num: int) -> Float[Array, "B"]:
    """Pairs u and 1 - u, the second half of the batch mirroring the first."""
    u = jax.random.uniform(key, ((num + 1) // 2,))
    return jnp.concatenate([u, 1 - u])[:num]


DRAWS = {
    "independent": independent,
    "low_discrepancy": low_discrepancy,
    "stratified": stratified,
    "antithetic": antithetic,
}


# ---- laws of times: the schedule's own, and uniform in logsnr -----------------------


def uniform(u: Float[Array, "B"], schedule: Schedule) -> Float[Array, "B"]:
    """Uniform as the schedule means it; whole steps if it has whole steps."""
    return schedule.quantile(u)


def uniform_logsnr(
    u: Float[Array, "B"],
    schedule: Schedule,
    *,
    logsnr_min: Real | None = None,
    logsnr_max: Real | None = None,
) -> Float[Array, "B"]:
    """Uniform in logsnr between the schedule's ends, unless given, and within +-20.

    The least variance for a loss that is even over="logsnr"; 20 is the greatest that
    Ho and Salimans (2022) draw (arXiv:2207.12598, section 4).
    """
    high, low = (
        jnp.clip(process.logsnr(schedule(jnp.asarray(t, float))), -20, 20)
        if given is None
        else given
        for t, given in ((schedule.t_min, logsnr_max), (schedule.t_max, logsnr_min))
    )
    return _at_logsnr(schedule, high + u * (low - high))


# ---- laws of logsnr -----------------------------------------------------------------


def log_normal(
    u: Float[Array, "B"], schedule: Schedule, *, mean: Real = -1.2, std: Real = 1.2
) -> Float[Array, "B"]:
    """log(sigma / alpha) ~ N(mean, std**2) (Karras et al., 2022, table 1).

    Karras et al. (2024, arXiv:2312.02696) take -0.4 and 1.
    """
    return _at_logsnr(schedule, -2 * (mean + std * ndtri(_inside(u))))


def logit_normal(
    u: Float[Array, "B"], schedule: Schedule, *, mean: Real = 0.0, std: Real = 1.0
) -> Float[Array, "B"]:
    """logit(t) ~ N(mean, std**2) for a rectified flow (Esser et al., 2024, eq. 19).

    There logit(t) = log(sigma / alpha), so on any schedule this is `log_normal` with
    the defaults of another paper; arXiv:2403.03206.
    """
    return log_normal(u, schedule, mean=mean, std=std)


def mode(
    u: Float[Array, "B"], schedule: Schedule, *, scale: Real = 1.29
) -> Float[Array, "B"]:
    """The heavy-tailed law of t on a flow that Esser et al. (2024) give in eq. 20.

    t = u + scale * (u - sin(pi/2 * u)**2), their f with u for 1 - u; more often in the
    middle for a positive scale, at the ends for a negative one, which lies in
    [-1, 2 / (pi - 2)]. On other schedules the law of sigma / alpha is the same.
    """
    u = _inside(u)
    t = u + scale * (u - jnp.sin(jnp.pi / 2 * u) ** 2)
    # 1 - t is the same function of 1 - u, which rounds less where t is near 1.
    rest = (1 - u) + scale * ((1 - u) - jnp.cos(jnp.pi / 2 * u) ** 2)
    return _at_logsnr(schedule, 2 * (jnp.log(rest) - jnp.log(t)))


def cosmap(
    u: Float[Array, "B"], schedule: Schedule, *, mean: Real = 0.0, scale: Real = 1.0
) -> Float[Array, "B"]:
    """t = 1 - 1 / (1 + tan(pi/2 * u)) on a flow (Esser et al., 2024, eq. 21).

    logsnr = mean - 2 * scale * log(tan(pi/2 * u)): that of the cosine schedule, and of the
    shifted and scaled ones of Hang et al. (2024, table 1), whose s is 1 / scale.
    """
    log_tan = jnp.log(jnp.tan(jnp.pi / 2 * _inside(u)))
    return _at_logsnr(schedule, mean - 2 * scale * log_tan)


def laplace(
    u: Float[Array, "B"], schedule: Schedule, *, mean: Real = 0.0, scale: Real = 0.5
) -> Float[Array, "B"]:
    """logsnr ~ Laplace(mean, scale) (Hang et al., 2024, table 1; arXiv:2407.03297)."""
    u = _inside(u)
    nearest = jnp.minimum(u, 1 - u)  # to an end
    return _at_logsnr(schedule, mean + scale * jnp.sign(u - 0.5) * jnp.log(2 * nearest))


def cauchy(
    u: Float[Array, "B"], schedule: Schedule, *, mean: Real = 0.0, scale: Real = 1.0
) -> Float[Array, "B"]:
    """logsnr ~ Cauchy(mean, scale) (Hang et al., 2024, table 1; arXiv:2407.03297)."""
    return _at_logsnr(schedule, mean + scale * jnp.tan(jnp.pi * (0.5 - _inside(u))))


QUANTILES = {
    "uniform": uniform,
    "uniform_logsnr": uniform_logsnr,
    "log_normal": log_normal,
    "logit_normal": logit_normal,
    "mode": mode,
    "cosmap": cosmap,
    "laplace": laplace,
    "cauchy": cauchy,
}


def _inside(u: Float[Array, "B"]) -> Float[Array, "B"]:
    """Off 0 and 1, where most quantiles are infinite, by half a step of float32 draws."""
    return jnp.clip(u, 2.0**-24, 1 - 2.0**-24)


def _at_logsnr(schedule: Schedule, logsnr: Float[Array, "B"]) -> Float[Array, "B"]:
    # No schedule tells levels apart beyond 80, where float32 overflows in the end.
    t = schedule.inverse(jnp.clip(logsnr, -80, 80))
    return jnp.clip(t, schedule.t_min, schedule.t_max)
