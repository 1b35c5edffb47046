"""Gaussian mixtures: data whose denoiser, marginals and flow are known exactly.

Under x_t = alpha * x0 + sigma * eps a mixture stays a mixture: component k has mean
alpha * m_k and variance alpha**2 * s_k**2 + sigma**2. So solvers, guidance and losses can
be measured against the truth, without a network.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float
from jaxtyping import Key as TypedKey

from diffusion_jax.diffusion.process import NoiseLevel, Prediction


class Mixture(NamedTuple):
    """sum_k weights[k] * N(means[k], diag(stds[k]**2)); the weights sum to 1."""

    weights: Float[Array, "K"]
    means: Float[Array, "K D"]
    stds: Float[Array, "K D"]


def sample(
    key: TypedKey[Array, ""], mixture: Mixture, num: int
) -> Float[Array, "num D"]:
    """`num` independent draws of the data."""
    key_which, key_where = jax.random.split(key)
    which = jax.random.categorical(key_which, jnp.log(mixture.weights), shape=(num,))
    noise = jax.random.normal(key_where, (num, mixture.means.shape[1]))
    return mixture.means[which] + mixture.stds[which] * noise


def denoise(mixture: Mixture, x: Float[Array, "B D"], level: NoiseLevel) -> Prediction:
    """E[x0 | x] and E[eps | x]: a Denoiser, once the mixture is bound."""
    alpha, sigma, variance, residual = _components(mixture, x, level)
    share = jax.nn.softmax(_logits(mixture, variance, residual))[..., None]
    gain = alpha * mixture.stds**2 / variance
    x0 = jnp.sum(share * (mixture.means + gain * residual), axis=1)
    eps = jnp.sum(share * sigma / variance * residual, axis=1)
    return Prediction(x0, eps)


def log_density(
    mixture: Mixture, x: Float[Array, "B D"], level: NoiseLevel
) -> Float[Array, "B"]:
    """log p(x) at this level, in nats."""
    _, _, variance, residual = _components(mixture, x, level)
    constant = -0.5 * x.shape[1] * jnp.log(2 * jnp.pi)
    return jax.nn.logsumexp(_logits(mixture, variance, residual), axis=1) + constant


def moments(mixture: Mixture) -> tuple[Float[Array, "D"], Float[Array, "D"]]:
    """Mean and standard deviation of each dimension of the data."""
    weights = mixture.weights[:, None]
    mean = jnp.sum(weights * mixture.means, axis=0)
    square = jnp.sum(weights * (mixture.means**2 + mixture.stds**2), axis=0)
    return mean, jnp.sqrt(square - mean**2)


def flow(
    mixture: Mixture, x: Float[Array, "B 1"], here: NoiseLevel, there: NoiseLevel
) -> Float[Array, "B 1"]:
    """Where the probability-flow ODE takes x from one level to another, on a line.

    There the flow keeps the order of points, so it maps quantiles to quantiles.
    """
    return _inverse_tails(mixture, *_log_tails(mixture, x, here), there)


def quantiles(mixture: Mixture, num: int, level: NoiseLevel) -> Float[Array, "num 1"]:
    """The (i + 1/2) / num quantiles at this level, on a line."""
    share = (jnp.arange(num, dtype=float)[:, None] + 0.5) / num
    return _inverse_tails(mixture, jnp.log(share), jnp.log1p(-share), level)


def _inverse_tails(
    mixture: Mixture,
    below: Float[Array, "B 1"],
    above: Float[Array, "B 1"],
    level: NoiseLevel,
) -> Float[Array, "B 1"]:
    """x of these `_log_tails`: bisected to the last bit, in whichever is the smaller."""
    spread = 40 * jnp.max(jnp.hypot(level.alpha * mixture.stds, level.sigma))
    centres = level.alpha * mixture.means

    def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        below_middle, above_middle = _log_tails(mixture, middle, level)
        is_low = jnp.where(below < above, below_middle < below, above_middle > above)
        return jnp.where(is_low, middle, low), jnp.where(is_low, high, middle)

    low = jnp.full_like(below, jnp.min(centres) - spread)
    high = jnp.full_like(below, jnp.max(centres) + spread)
    bits = jnp.finfo(below.dtype).nmant + 10  # 2**10 for the bracket's width
    low, high = jax.lax.fori_loop(0, bits, halve, (low, high))
    return (low + high) / 2


def _log_tails(
    mixture: Mixture, x: Float[Array, "B 1"], level: NoiseLevel
) -> tuple[Float[Array, "B 1"], Float[Array, "B 1"]]:
    """log P(X < x) and log P(X > x) at this level."""
    _, _, variance, residual = _components(mixture, x, level)
    scores = residual / jnp.sqrt(variance)
    log_weights = jnp.log(mixture.weights)[:, None]
    below, above = (
        jax.nn.logsumexp(log_weights + log_ndtr(sign * scores), axis=1)
        for sign in (1, -1)
    )
    return below, above


def _components(
    mixture: Mixture, x: Float[Array, "B D"], level: NoiseLevel
) -> tuple[Array, Array, Array, Array]:
    """alpha, sigma, each component's variance and its x - alpha * m; axes B, K, D."""
    alpha, sigma = (jnp.reshape(a, (-1, 1, 1)) for a in (level.alpha, level.sigma))
    variance = (alpha * mixture.stds) ** 2 + sigma**2
    return alpha, sigma, variance, x[:, None] - alpha * mixture.means


def _logits(
    mixture: Mixture, variance: Float[Array, "_ K D"], residual: Float[Array, "B K D"]
) -> Float[Array, "B K"]:
    """log of weight times density of each component, up to one constant."""
    exponent = -0.5 * jnp.sum(residual**2 / variance + jnp.log(variance), axis=-1)
    return jnp.log(mixture.weights) + exponent
