"""The forward process x_t = alpha * x0 + sigma * eps (Kingma et al., 2021, eq. 1;
arXiv:2107.00630) and the two records that every other part of this package exchanges:
a noise level, and what a network predicts at one.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

Real = int | float  # a number in a config, where 7 should do for 7.0


class NoiseLevel(NamedTuple):
    """One point of x_t = alpha * x0 + sigma * eps, and what the network hears."""

    alpha: Float[Array, "*b"]
    sigma: Float[Array, "*b"]
    time: Float[Array, "*b"]


class Prediction(NamedTuple):
    """A network's estimate; x0 and eps always satisfy x = alpha * x0 + sigma * eps."""

    x0: Float[Array, "B *d"]
    eps: Float[Array, "B *d"]
    variance: Float[Array, "B *d"] | None = None  # raw channels, if it learned them


def align(coefficient: Float[Array, "*b"], x: Float[Array, "B *d"]) -> Array:
    """Give a coefficient, one number or one per example, the trailing axes of x."""
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim))


def add_noise(
    x0: Float[Array, "B *d"], eps: Float[Array, "B *d"], level: NoiseLevel
) -> Float[Array, "B *d"]:
    """x_t = alpha * x0 + sigma * eps."""
    return align(level.alpha, x0) * x0 + align(level.sigma, x0) * eps


def from_x0(
    x: Float[Array, "B *d"],
    x0: Float[Array, "B *d"],
    level: NoiseLevel,
    variance: Float[Array, "B *d"] | None = None,
) -> Prediction:
    """The prediction whose x0 is given; eps follows from x. Needs sigma > 0."""
    eps = (x - align(level.alpha, x) * x0) / align(level.sigma, x)
    return Prediction(x0, eps, variance)


def snr(level: NoiseLevel) -> Float[Array, "*b"]:
    """Signal-to-noise ratio alpha**2 / sigma**2; inf for clean data."""
    return (level.alpha / level.sigma) ** 2


def logsnr(level: NoiseLevel) -> Float[Array, "*b"]:
    """log(alpha**2 / sigma**2); inf for clean data, -inf for pure noise."""
    return 2 * (jnp.log(level.alpha) - jnp.log(level.sigma))


def unit_std(level: NoiseLevel) -> Float[Array, "*b"]:
    """1: sampling starts from N(0, 1)."""
    return jnp.ones_like(level.sigma)


def std_of_noise(level: NoiseLevel) -> Float[Array, "*b"]:
    """The standard deviation of x_t for x0 = 0."""
    return level.sigma


def std_of_noisy_data(level: NoiseLevel) -> Float[Array, "*b"]:
    """The standard deviation of x_t for data of variance 1."""
    return jnp.hypot(level.sigma, level.alpha)
