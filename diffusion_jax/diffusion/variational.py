"""Variational bounds on -log p(x0), in nats per example.

The chain goes from noise at t_max through the levels of a grid to clean data. A step of
it is a Gaussian with the mean of q(x_there | x_here, x0), the estimate in place of x0:

    alpha_there * x0 + sigma_there * sqrt(1 - share) * eps,   share = 1 - snr_here / snr_there,

and one of the variances of `ddim.VARIANCES`; q's own is sigma_there**2 * share (Ho et al.,
2020, eq. 7, arXiv:2006.11239; for any alpha and sigma, Kingma et al., 2021, eq. 25,
arXiv:2107.00630). On the step to clean data q has none, and `least` stands for it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float

from diffusion_jax.diffusion import process, time_samplers
from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.process import NoiseLevel, Prediction, Real, align
from diffusion_jax.diffusion.samplers import ddim
from diffusion_jax.diffusion.samplers.integrate import Keys, integrate, normal_like
from diffusion_jax.diffusion.schedules import Schedule
from diffusion_jax.diffusion.time_samplers import TimeSampler
from diffusion_jax.types import Key


class Bound(NamedTuple):
    """The parts of a bound; `sum(bound)` is at least -log p(x0) on average over keys."""

    prior: Float[Array, "B"]  # what the noisiest level still tells of x0
    diffusion: Float[Array, "B"]
    reconstruction: Float[Array, "B"]  # of x0 from the cleanest level


class Chain(NamedTuple):
    """Which chain a bound is of: its variance, its steps and what the data are.

    Data take `num_bins` values evenly from -1 to 1, 256 for images; with None they are
    real numbers, and the bound is of a density.
    """

    variance: str = "posterior"  # one of ddim.VARIANCES
    num_steps: int | None = None  # the schedule's own
    num_bins: int | None = 256


LEARNED = ("learned_range", "learned", "learned_log")  # of ddim.VARIANCES


# ---- one step -----------------------------------------------------------------------


def step_bound(
    pred: Prediction,
    x0: Float[Array, "B *d"],
    here: NoiseLevel,
    there: NoiseLevel,
    least: Float[Array, "*b"],
    chain: Chain,
) -> Float[Array, "B"]:
    """KL(q(x_there | x_here, x0) || p(x_there | x_here)), or -log p(x0 | x_here).

    The latter where x_there is clean data (Ho et al., 2020, eq. 5).
    """
    if chain.variance not in ddim.VARIANCES:
        choices = sorted(ddim.VARIANCES)
        raise ValueError(f"unknown variance {chain.variance!r}; one of {choices}")
    here, there, least = jax.tree.map(lambda a: align(a, x0), (here, there, least))
    is_clean = there.sigma == 0
    # A level of which nothing is kept: q's variance is its own, and beta that of `here`.
    target = there._replace(
        alpha=jnp.where(is_clean, jnp.inf, there.alpha),
        sigma=jnp.where(is_clean, least, there.sigma),
    )
    std = ddim.VARIANCES[chain.variance](pred, here, target)
    if chain.variance == "beta":
        std = jnp.where(is_clean, least, std)  # as published, and a better decoder
    log_variance = 2 * jnp.log(std)
    excess = 2 * jnp.log(ddim.posterior(pred, here, target)) - log_variance
    # On the step to clean data the share is 1 and the mean is the predicted x0.
    error = there.alpha * ddim.renewed_share(here, there) * (x0 - pred.x0)
    divergence = (jnp.expm1(excess) - excess + error**2 * jnp.exp(-log_variance)) / 2
    surprise = _surprise(x0, pred.x0, log_variance, chain.num_bins)
    return _total(jnp.where(is_clean, surprise, divergence))


def term_at(
    schedule: Schedule,
    pred: Prediction,
    x0: Float[Array, "B *d"],
    t: Float[Array, "B"],
    chain: Chain,
) -> tuple[Float[Array, "B"], int]:
    """The term of the step that starts at t, and how many steps there are.

    All are as long as one of the schedule's whole steps, or 1 / num_steps of t_max.
    """
    num_steps = chain.num_steps or schedule.num_steps
    if num_steps is None:
        raise ValueError(f"{schedule!r} has no steps of its own: give num_steps")
    length = schedule.t_max / num_steps
    here, there = schedule(t), schedule(jnp.maximum(t - length, 0.0))
    second, last = (schedule(jnp.asarray(i * length, float)) for i in (2, 1))
    least = _least(second, last, chain.num_bins)
    return step_bound(pred, x0, here, there, least, chain), num_steps


def discrete_bound(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x0: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    variance: str = "posterior",
    num_bins: int | None = 256,
    data_std: Real = 1,
) -> tuple[Bound, Float[Array, "steps B"]]:
    """The bound of the chain through a grid that ends at 0, and the term of every step.

    Ho et al. (2020), eq. 5; respaced, Nichol and Dhariwal (2021), section 4. Each term is
    estimated with one draw of x. The chain starts from noise of the variance that
    `integrate.prior_sample` draws.
    """
    chain = Chain(variance, len(ts) - 1, num_bins)
    levels = schedule(ts)

    def pick(i: int) -> NoiseLevel:
        return jax.tree.map(lambda a: a[i], levels)

    least = _least(pick(-min(3, len(ts))), pick(-2), num_bins)

    def step(
        x0: Float[Array, "B *d"], key: Keys, here: NoiseLevel, there: NoiseLevel
    ) -> tuple[Float[Array, "B *d"], Float[Array, "B"]]:
        pred = denoise(process.add_noise(x0, normal_like(key, x0), here), here)
        return x0, step_bound(pred, x0, here, there, least, chain)

    _, terms = integrate(step, x0, key, levels)
    prior = prior_bound(x0, pick(0), data_std)
    return Bound(prior, jnp.sum(terms[:-1], axis=0), terms[-1]), terms


def continuous_bound(
    key: Key,
    denoise: Denoiser,
    schedule: Schedule,
    x0: Float[Array, "B *d"],
    *,
    sample_times: TimeSampler | None = None,
    num_bins: int | None = 256,
    data_std: Real = 1,
) -> Bound:
    """The bound of infinitely many steps from t_max to t_min (Kingma et al., 2021, eq. 17).

    1/2 * E[-dlogsnr/dt * |eps - eps_hat|**2], estimated at one time for each example,
    differentiable with respect to a learned schedule. Times must be drawn
    over="logsnr"; by default they are uniform in t, with low discrepancy.
    """
    prior_key, times_key, eps_key = jax.random.split(key, 3)
    if sample_times is None:
        law, draw = time_samplers.uniform, time_samplers.low_discrepancy
        sample_times = time_samplers.drawn(law, draw=draw, over="logsnr")
    x0 = x0.astype(jnp.promote_types(x0.dtype, jnp.float32))
    most, least = (
        schedule(jnp.asarray(t, x0.dtype)) for t in (schedule.t_max, schedule.t_min)
    )
    times = sample_times(times_key, len(x0), schedule)
    level = schedule(times.t)
    eps = normal_like(eps_key, x0)
    error = eps - denoise(process.add_noise(x0, eps, level), level).eps
    return Bound(
        prior_bound(x0, most, data_std),
        times.weight * _total(error**2) / 2,
        reconstruction(x0, normal_like(prior_key, x0), least, num_bins),
    )


def prior_bound(
    x0: Float[Array, "B *d"], level: NoiseLevel, data_std: Real
) -> Float[Array, "B"]:
    """KL of x_t from the noise that sampling starts with, as if the data had that std."""
    log_variance = jnp.log(level.sigma**2 + (level.alpha * data_std) ** 2)
    excess = 2 * jnp.log(level.sigma) - log_variance
    square = (level.alpha * x0) ** 2 * jnp.exp(-log_variance)
    return _total(square + jnp.expm1(excess) - excess) / 2


def reconstruction(
    x0: Float[Array, "B *d"],
    eps: Float[Array, "B *d"],
    level: NoiseLevel,
    num_bins: int | None,
) -> Float[Array, "B"]:
    """-log p(x0 | x_t), proportional to q(x_t | x0) over all values that x0 can take.

    Kingma et al. (2021), section 3.3.
    """
    std = level.sigma / level.alpha
    if num_bins is None:
        log_sum = jnp.log(std) + jnp.log(2 * jnp.pi) / 2
        return _total(eps**2 / 2 + log_sum)
    values = jnp.linspace(-1, 1, num_bins, dtype=x0.dtype)
    distances = (x0[..., None] - values) / std + eps[..., None]
    return _total(eps**2 / 2 + jax.nn.logsumexp(-(distances**2) / 2, axis=-1))


def _least(
    second: NoiseLevel, last: NoiseLevel, num_bins: int | None
) -> Float[Array, ""]:
    """The decoder's standard deviation in a chain whose steps end with these two.

    Bins are decoded with that of q on the step before, as published; real numbers with
    sigma, to which that of x0 given x tends. A chain of one step has no choice either.
    """
    share = ddim.renewed_share(second, last)
    is_alone = share <= 0
    if num_bins is None:
        return last.sigma
    return last.sigma * jnp.where(
        is_alone, 1.0, jnp.sqrt(jnp.where(is_alone, 1.0, share))
    )


def _surprise(
    x0: Float[Array, "B *d"],
    mean: Float[Array, "B *d"],
    log_variance: Float[Array, "..."],
    num_bins: int | None,
) -> Float[Array, "B *d"]:
    """-log of a Gaussian's density, or of what it gives to the bin around x0.

    The first and last bin reach to infinity (Ho et al., 2020, eq. 13).
    """
    if num_bins is None:
        square = (x0 - mean) ** 2 * jnp.exp(-log_variance)
        return (square + log_variance + jnp.log(2 * jnp.pi)) / 2
    half = 1 / (num_bins - 1)
    precision = jnp.exp(-log_variance / 2)
    low, high = ((x0 + sign * half - mean) * precision for sign in (-1, 1))
    at_bottom, at_top = x0 < half - 1, x0 > 1 - half
    edge = log_ndtr(jnp.where(at_bottom, high, -low))
    # In the lower tail both logarithms are exact, so bins above the mean are mirrored.
    low, high = (
        jnp.where(x0 > mean, mirrored, bound)
        for bound, mirrored in ((low, -high), (high, -low))
    )
    excess = jnp.minimum(log_ndtr(low) - log_ndtr(high), -1e-12)
    inside = log_ndtr(high) + jnp.log(-jnp.expm1(excess))
    return -jnp.where(at_bottom | at_top, edge, inside)


def _total(a: Float[Array, "B *d"]) -> Float[Array, "B"]:
    return jnp.sum(a, axis=tuple(range(1, a.ndim)))
