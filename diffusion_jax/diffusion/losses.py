"""Training losses: (key, network, schedule, ...) -> the loss of each example.

Every published objective of x0 is weight(snr) * |x0_hat - x0|**2 for some weight (Kingma
and Gao, 2023; arXiv:2303.00848). With det the determinant of the parameterization,
x0_hat - x0 = -sigma / det * (output - target), so in the network's own output it is

    weight(snr) * sigma**2 / det**2 * |output - target|**2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.diffusion import likelihood, parameterization, process, variational
from diffusion_jax.diffusion.parameterization import Parameterization
from diffusion_jax.diffusion.process import NoiseLevel, Real
from diffusion_jax.diffusion.schedules import Schedule
from diffusion_jax.diffusion.time_samplers import Times, TimeSampler
from diffusion_jax.diffusion.weightings import Weighting
from diffusion_jax.types import Conditioning, Key, Metrics, Network


@runtime_checkable
class Loss(Protocol):
    """What all losses are; their options are keyword-only."""

    def __call__(
        self,
        key: Key,
        network: Network,
        schedule: Schedule,
        p: Parameterization,
        weighting: Weighting,
        sample_times: TimeSampler,
        x0: Float[Array, "B *d"],
        cond: Conditioning,
    ) -> tuple[Float[Array, "B"], Metrics]:
        """The loss of each example, in float32, and batch means for the log."""


def diffusion_loss(
    key: Key,
    network: Network,
    schedule: Schedule,
    p: Parameterization,
    weighting: Weighting,
    sample_times: TimeSampler,
    x0: Float[Array, "B *d"],
    cond: Conditioning,
    *,
    offset_noise: Real | Float[Array, ""] = 0.0,
    input_perturbation: Real | Float[Array, ""] = 0.0,
    measure: Callable[[Float[Array, "B *d"]], Metrics] | None = None,
) -> tuple[Float[Array, "B"], Metrics]:
    """The weighted squared error of each example, at one time and with one eps.

    Squares are averaged over the axes of x0. `offset_noise` is the standard deviation of
    what is added to eps for each example and channel (Guttenberg, 2023; 0.1 is usual),
    `input_perturbation` that of noise which the network sees and its target does not,
    in units of eps (Ning et al., 2023, algorithm 1, arXiv:2301.11706; theirs is 0.1).
    `measure` makes more metrics of the x0 that the network predicts.
    """
    noised = _add_noise(key, schedule, sample_times, x0)
    noised = _disturb(key, noised, offset_noise, input_perturbation)
    output = _evaluate(network, p, noised, cond)
    if output.shape != x0.shape:
        raise ValueError(f"the network maps {x0.shape} to {output.shape}")
    loss, mse = _weighted_error(p, weighting, noised, output)
    metrics = _means(loss=loss, mse=mse)
    if measure is not None:
        metrics |= measure(parameterization.read(p, output, noised.x, noised.level).x0)
    return loss, metrics


def hybrid_loss(
    key: Key,
    network: Network,
    schedule: Schedule,
    p: Parameterization,
    weighting: Weighting,
    sample_times: TimeSampler,
    x0: Float[Array, "B *d"],
    cond: Conditioning,
    *,
    vlb_weight: Real | Float[Array, ""] = 1e-3,
    variance: str = "learned_range",
    num_steps: int | None = None,
    num_bins: int | None = 256,
) -> tuple[Float[Array, "B"], Metrics]:
    """`diffusion_loss` + vlb_weight * `vlb_loss` (Nichol and Dhariwal, 2021, eq. 16).

    The second term teaches only the variance: in it x0 is held fixed. arXiv:2102.09672.
    """
    noised = _add_noise(key, schedule, sample_times, x0)
    chain = variational.Chain(variance, num_steps, num_bins)
    output, raw = _evaluate_with_variance(network, p, noised, cond, chain)
    simple, mse = _weighted_error(p, weighting, noised, output)
    output = jax.lax.stop_gradient(output)
    vlb = _bits_of_chain(schedule, p, noised, output, raw, chain)
    loss = simple + vlb_weight * vlb
    return loss, _means(loss=loss, mse=mse, vlb=vlb)


def vlb_loss(
    key: Key,
    network: Network,
    schedule: Schedule,
    p: Parameterization,
    weighting: Weighting,
    sample_times: TimeSampler,
    x0: Float[Array, "B *d"],
    cond: Conditioning,
    *,
    variance: str = "learned_range",
    num_steps: int | None = None,
    num_bins: int | None = 256,
) -> tuple[Float[Array, "B"], Metrics]:
    """L_vlb of Nichol and Dhariwal (2021), eq. 4 to 7, in bits per dimension.

    `num_steps` times the term of one step, from t to t - t_max / num_steps, which for
    uniform times is on average the whole bound but for its constant prior term. By
    default the steps are the schedule's own. With a learned variance the network's last
    axis is twice as long as that of x0. It has no use for the weighting.
    """
    noised = _add_noise(key, schedule, sample_times, x0)
    chain = variational.Chain(variance, num_steps, num_bins)
    output, raw = _evaluate_with_variance(network, p, noised, cond, chain)
    loss = _bits_of_chain(schedule, p, noised, output, raw, chain)
    _, mse = _weighted_error(p, weighting, noised, output)
    return loss, _means(loss=loss, mse=mse)


LOSSES = {"diffusion": diffusion_loss, "hybrid": hybrid_loss, "vlb": vlb_loss}


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


# ---- what the losses are made of ----------------------------------------------------


class _Noised(NamedTuple):
    """A batch at its training times."""

    x0: Float[Array, "B *d"]
    eps: Float[Array, "B *d"]
    x: Float[Array, "B *d"]
    level: NoiseLevel
    times: Times


def _add_noise(
    key: Key, schedule: Schedule, sample_times: TimeSampler, x0: Float[Array, "B *d"]
) -> _Noised:
    """One time and one eps for each example, in float32 at least."""
    time_key, eps_key = jax.random.split(key)
    x0 = x0.astype(jnp.promote_types(x0.dtype, jnp.float32))
    times = sample_times(time_key, len(x0), schedule)
    level = schedule(times.t)
    eps = jax.random.normal(eps_key, x0.shape, x0.dtype)
    return _Noised(x0, eps, process.add_noise(x0, eps, level), level, times)


def _disturb(
    key: Key,
    noised: _Noised,
    offset: Real | Float[Array, ""],
    perturbation: Real | Float[Array, ""],
) -> _Noised:
    x0, eps, _, level, _ = noised
    # Keys of their own: at 0 every draw is that of a loss without disturbance.
    offset_key, perturbation_key = jax.random.split(jax.random.fold_in(key, 1))
    shape = (len(x0), *(1,) * (x0.ndim - 2), x0.shape[-1])
    eps = eps + offset * jax.random.normal(offset_key, shape, x0.dtype)
    extra = jax.random.normal(perturbation_key, x0.shape, x0.dtype)
    x = process.add_noise(x0, eps + perturbation * extra, level)
    return noised._replace(eps=eps, x=x)


def _evaluate(
    network: Network, p: Parameterization, noised: _Noised, cond: Conditioning
) -> Float[Array, "B *d2"]:
    x, level = noised.x, noised.level
    output = network(process.align(p.input_scale(level), x) * x, level.time, cond)
    return output.astype(x.dtype)


def _evaluate_with_variance(
    network: Network,
    p: Parameterization,
    noised: _Noised,
    cond: Conditioning,
    chain: variational.Chain,
) -> tuple[Float[Array, "B *d"], Float[Array, "B *d"] | None]:
    output = _evaluate(network, p, noised, cond)
    is_learned = chain.variance in variational.LEARNED
    *axes, channels = noised.x0.shape
    if output.shape != (*axes, channels * (2 if is_learned else 1)):
        raise ValueError(
            f"the network maps {noised.x0.shape} to {output.shape} "
            f"with variance={chain.variance!r}"
        )
    if not is_learned:
        return output, None
    output, raw = jnp.split(output, 2, axis=-1)
    return output, raw


def _weighted_error(
    p: Parameterization,
    weighting: Weighting,
    noised: _Noised,
    output: Float[Array, "B *d"],
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """Weighted and plain mean squared error of the output."""
    x0, eps, _, level, times = noised
    error = output - parameterization.target(p, x0, eps, level)
    mse = jnp.mean(error**2, axis=tuple(range(1, error.ndim)))
    return times.weight * output_weight(p, weighting, level) * mse, mse


def _bits_of_chain(
    schedule: Schedule,
    p: Parameterization,
    noised: _Noised,
    output: Float[Array, "B *d"],
    raw: Float[Array, "B *d"] | None,
    chain: variational.Chain,
) -> Float[Array, "B"]:
    x0, _, x, level, times = noised
    pred = parameterization.read(p, output, x, level)._replace(variance=raw)
    nats, num_steps = variational.term_at(schedule, pred, x0, times.t, chain)
    return times.weight * num_steps * likelihood.bits_per_dim(nats, x0.shape[1:])


def _means(**values: Float[Array, "B"]) -> Metrics:
    return {name: jnp.mean(value) for name, value in values.items()}
