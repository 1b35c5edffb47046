"""What a noise schedule is: t -> (alpha, sigma), with x_t = alpha * x0 + sigma * eps.

Each schedule keeps its paper's own units of t; t = 0 is always clean data (alpha 1,
sigma 0). All are written in a form that neither end makes cancel in float32.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.diffusion.process import NoiseLevel, Real


@runtime_checkable
class Schedule(Protocol):
    """What grids, samplers and losses know of a schedule."""

    @property
    def num_steps(self) -> int | None:
        """How many whole steps t counts; None if t is continuous."""

    @property
    def t_min(self) -> Real:
        """The least noise that a network is trained on; below it lies only t = 0."""

    @property
    def t_max(self) -> Real:
        """The most noise, where sampling starts."""

    def __call__(self, t: Float[Array, "*b"]) -> NoiseLevel:
        """The noise level at t."""

    def inverse(self, logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """The t at which log(alpha**2 / sigma**2) is this."""

    def at_logsnr(self, logsnr: Float[Array, "*b"]) -> NoiseLevel:
        """The noise level at which log(alpha**2 / sigma**2) is this."""

    def quantile(self, u: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """Training times that are uniform in this schedule's sense, for u in [0, 1]."""


def real(t: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """At least float32: a schedule in half precision rounds alpha to 1 near t = 0."""
    return t.astype(jnp.promote_types(t.dtype, jnp.float32))


def variance_preserving(
    log_ratio: Float[Array, "*b"], time: Float[Array, "*b"]
) -> NoiseLevel:
    """The level of this log(sigma / alpha) where alpha**2 + sigma**2 = 1."""
    alpha = jnp.exp(-0.5 * jax.nn.softplus(2 * log_ratio))
    sigma = jnp.exp(-0.5 * jax.nn.softplus(-2 * log_ratio))
    return NoiseLevel(alpha, sigma, time)
