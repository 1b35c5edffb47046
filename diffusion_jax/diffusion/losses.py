"""Training: weightings of the x0 error, samplers of training times, and the loss.

Every published objective is weight(snr) * |x0_hat - x0|**2 for some weight (Kingma and
Gao, 2023; arXiv:2303.00848). With det the determinant of the parameterization,
x0_hat - x0 = -sigma / det * (output - target), so in the network's own output it is

    weight(snr) * sigma**2 / det**2 * |output - target|**2.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.diffusion import parameterization, process
from diffusion_jax.diffusion.parameterization import Parameterization
from diffusion_jax.diffusion.process import NoiseLevel, Real
from diffusion_jax.diffusion.schedules import Schedule
from diffusion_jax.types import Conditioning, Key, Metrics, Network

Weighting = Callable[[Float[Array, "B"]], Float[Array, "B"]]
TimeSampler = Callable[[Key, int, Schedule], Float[Array, "B"]]

# ---- weightings: snr -> weight of the x0 error --------------------------------------


def x0(snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Mean squared error of x0."""
    return jnp.ones_like(snr)


def eps(snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Mean squared error of eps: L_simple of Ho et al. (2020), eq. 14."""
    return snr


def v(snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Mean squared error of v (Salimans and Ho, 2022, section 4; arXiv:2202.00512)."""
    return snr + 1


def flow(snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Mean squared error of eps - x0 on a rectified flow, where sigma = 1 - alpha."""
    return (jnp.sqrt(snr) + 1) ** 2


def min_snr(snr: Float[Array, "*b"], *, gamma: Real = 5.0) -> Float[Array, "*b"]:
    """min(snr, gamma) (Hang et al., 2023, section 3.4; arXiv:2303.09556)."""
    return jnp.minimum(snr, gamma)


def edm(snr: Float[Array, "*b"], *, sigma_data: Real = 0.5) -> Float[Array, "*b"]:
    """snr + 1 / sigma_data**2 (Karras et al., 2022, table 1)."""
    return snr + 1 / sigma_data**2


WEIGHTINGS = {
    "x0": x0,
    "uniform": x0,  # as the same weight is also called
    "eps": eps,
    "v": v,
    "flow": flow,
    "min_snr": min_snr,
    "edm": edm,
}

# ---- time samplers: (key, num, schedule) -> num training times ----------------------


def uniform(key: Key, num: int, schedule: Schedule) -> Float[Array, "B"]:
    """Independent times, uniform as the schedule means it (see its `quantile`)."""
    return schedule.quantile(jax.random.uniform(key, (num,)))


def low_discrepancy(key: Key, num: int, schedule: Schedule) -> Float[Array, "B"]:
    """As `uniform`, but spread evenly over the batch, with one random shift for all.

    Kingma et al. (2021), appendix I.1; arXiv:2107.00630.
    """
    shift = jax.random.uniform(key)
    return schedule.quantile((shift + jnp.arange(num) / num) % 1)


def log_normal(
    key: Key, num: int, schedule: Schedule, *, mean: Real = -1.2, std: Real = 1.2
) -> Float[Array, "B"]:
    """log(sigma / alpha) ~ N(mean, std**2) (Karras et al., 2022, table 1)."""
    return schedule.inverse(-2 * (mean + std * jax.random.normal(key, (num,))))


def logit_normal(
    key: Key, num: int, schedule: Schedule, *, mean: Real = 0.0, std: Real = 1.0
) -> Float[Array, "B"]:
    """logit(t) ~ N(mean, std**2) for a rectified flow (Esser et al., 2024, eq. 19).

    There logit(t) = log(sigma / alpha), so on any schedule this is `log_normal` with
    the defaults of another paper; arXiv:2403.03206.
    """
    return log_normal(key, num, schedule, mean=mean, std=std)


TIME_SAMPLERS = {
    "uniform": uniform,
    "low_discrepancy": low_discrepancy,
    "log_normal": log_normal,
    "logit_normal": logit_normal,
}

# ---- the loss -----------------------------------------------------------------------


def diffusion_loss(
    key: Key,
    network: Network,
    schedule: Schedule,
    p: Parameterization,
    weighting: Weighting,
    sample_times: TimeSampler,
    x0: Float[Array, "B *d"],
    cond: Conditioning,
) -> tuple[Float[Array, "B"], Metrics]:
    """The weighted loss of each example, in float32, and batch means for the log.

    Draws one time and one eps per example. Squares are averaged over the axes of x0.
    """
    time_key, eps_key = jax.random.split(key)
    x0 = x0.astype(jnp.promote_types(x0.dtype, jnp.float32))
    level = schedule(sample_times(time_key, len(x0), schedule))
    noise = jax.random.normal(eps_key, x0.shape, x0.dtype)
    x = process.add_noise(x0, noise, level)
    output = network(process.align(p.input_scale(level), x) * x, level.time, cond)
    if output.shape != x.shape:
        raise ValueError(f"the network maps {x.shape} to {output.shape}")
    error = output.astype(x.dtype) - parameterization.target(p, x0, noise, level)
    mse = jnp.mean(error**2, axis=tuple(range(1, error.ndim)))
    loss = output_weight(p, weighting, level) * mse
    return loss, {"loss": jnp.mean(loss), "mse": jnp.mean(mse)}


def output_weight(
    p: Parameterization, weighting: Weighting, level: NoiseLevel
) -> Float[Array, "*b"]:
    """The factor on |output - target|**2: weight(snr) * sigma**2 / det**2.

    Exact wherever alpha and sigma exceed 1e-8. Below, they are taken to be that, which
    gives the limit wherever there is one, and a large number instead of inf if not.
    """
    inner = level._replace(
        alpha=jnp.maximum(level.alpha, 1e-8), sigma=jnp.maximum(level.sigma, 1e-8)
    )
    scale = inner.sigma / parameterization.determinant(p, inner)
    return weighting(process.snr(inner)) * scale**2
