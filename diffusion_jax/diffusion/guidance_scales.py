"""Guidance scales that depend on the noise level, and the curves they follow.

A curve is a function of the way from noise (0) to data (1), and says by how much the
guidance at that point of the way is multiplied. Most are the heuristics of Wang et al.
(2024, section 4; arXiv:2404.13040). All but `power_cosine` have mean 1, so that they
guide no more in all than `constant`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax.scipy.special import betaln, xlog1py, xlogy
from jaxtyping import Array, Float

from diffusion_jax.diffusion import process
from diffusion_jax.diffusion.process import NoiseLevel, Real
from diffusion_jax.diffusion.schedules import Schedule

LevelScale = Callable[[NoiseLevel], Float[Array, "*b"]]
Scale = Real | Float[Array, "*b"] | LevelScale
Curve = Callable[[Float[Array, "*b"]], Float[Array, "*b"]]


def along(
    curve: Curve,
    schedule: Schedule,
    scale: Scale,
    *,
    start: Real | Float[Array, ""] = 1,
    least: Real | Float[Array, ""] = -math.inf,
) -> LevelScale:
    """start + max(least, (scale - start) * curve(way)), with way = 1 - t / t_max.

    At `start` 1 a curve of 0 is the conditional model, as in Wang et al., whose w is
    scale - 1, and in MDT; at 0 it is the unconditional one, as in beta-CFG. `least` is
    the c that Wang et al. clamp w with (1, 2 or 4).
    """

    def scale_at(level: NoiseLevel) -> Float[Array, "*b"]:
        top = scale(level) if callable(scale) else scale
        way = 1 - schedule.inverse(process.logsnr(level)) / schedule.t_max
        return start + jnp.maximum(least, (top - start) * curve(jnp.clip(way, 0, 1)))

    return scale_at


def constant(way: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """1."""
    return jnp.ones_like(way)


def linear(way: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Rises from 0 to 2."""
    return 2 * way


def inverse_linear(way: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Falls from 2 to 0."""
    return 2 * (1 - way)


def cosine(way: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Rises from 0 to 2, level at both ends: cos(pi * t / T) + 1."""
    return 1 - jnp.cos(math.pi * way)


def sine(way: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Falls from 2 to 0, level at both ends: sin(pi * t / T - pi / 2) + 1."""
    return 1 + jnp.cos(math.pi * way)


def v_shape(way: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """2 at both ends, 0 half-way."""
    return 2 * jnp.abs(1 - 2 * way)


def lambda_shape(way: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """0 at both ends, 2 half-way."""
    return 2 - v_shape(way)


def power_cosine(
    way: Float[Array, "*b"], *, power: Real | Float[Array, ""] = 4
) -> Float[Array, "*b"]:
    """(1 - cos(pi * way**power)) / 2, from 0 to 1 (MDT, Gao et al., 2023).

    arXiv:2303.14389, whose `power` is 4; the pcs(s) of Wang et al. (2024).
    """
    return (1 - jnp.cos(math.pi * way**power)) / 2


def beta(
    way: Float[Array, "*b"],
    *,
    a: Real | Float[Array, ""] = 2,
    b: Real | Float[Array, ""] = 2,
) -> Float[Array, "*b"]:
    """The density of Beta(a, b) (beta-CFG, Malarz et al., 2025; arXiv:2502.10574).

    Needs a, b >= 1. Theirs starts from scale 0 and goes with `guidance.normalized`.
    """
    return jnp.exp(xlogy(a - 1, way) + xlog1py(b - 1, -way) - betaln(a, b))


CURVES = {
    "constant": constant,
    "linear": linear,
    "inverse_linear": inverse_linear,
    "cosine": cosine,
    "sine": sine,
    "v_shape": v_shape,
    "lambda_shape": lambda_shape,
    "power_cosine": power_cosine,
    "beta": beta,
}
