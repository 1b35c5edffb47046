"""Parameterizations: a network is trained to output a * x0 + b * eps.

That one line is both the target and, with x = alpha * x0 + sigma * eps, a 2x2 system
that gives x0 and eps back. Its determinant is alpha * b - sigma * a:

    x0 = (b * x - sigma * output) / det,    eps = (alpha * output - a * x) / det.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.diffusion.process import NoiseLevel, Prediction, Real, align
from diffusion_jax.diffusion.schedules import Schedule

Coefficient = Float[Array, "*b"]


class Parameterization(NamedTuple):
    """Which a and b, and the factor on the network's input. Static under jit."""

    coefficients: Callable[[NoiseLevel], tuple[Coefficient, Coefficient]]
    input_scale: Callable[[NoiseLevel], Coefficient]


def determinant(p: Parameterization, level: NoiseLevel) -> Coefficient:
    """alpha * b - sigma * a; x0 and eps can be read wherever it is not zero."""
    a, b = p.coefficients(level)
    return level.alpha * b - level.sigma * a


def target(
    p: Parameterization,
    x0: Float[Array, "B *d"],
    eps: Float[Array, "B *d"],
    level: NoiseLevel,
) -> Float[Array, "B *d"]:
    """What the network should output: a * x0 + b * eps."""
    a, b = p.coefficients(level)
    return align(a, x0) * x0 + align(b, x0) * eps


def read(
    p: Parameterization,
    output: Float[Array, "B *d"],
    x: Float[Array, "B *d"],
    level: NoiseLevel,
) -> Prediction:
    """x0 and eps from the network's output at x. Undefined where the determinant is 0."""
    a, b = p.coefficients(level)
    det = determinant(p, level)
    x0 = align(b / det, x) * x - align(level.sigma / det, x) * output
    eps = align(level.alpha / det, x) * output - align(a / det, x) * x
    return Prediction(x0, eps)


def check(p: Parameterization, schedule: Schedule) -> None:
    """Raise if x0 and eps cannot be read at one of the schedule's ends."""
    with jax.ensure_compile_time_eval():
        ends = schedule(jnp.asarray([schedule.t_min, schedule.t_max], float))
        dets = [float(det) for det in determinant(p, ends)]
    for t, det in zip((schedule.t_min, schedule.t_max), dets):
        if det == 0:
            raise ValueError(
                f"x0 cannot be read from the network's output at t = {t:g} of "
                f"{schedule!r}, where alpha or sigma is 0; predict v instead, "
                "or let the schedule end before it"
            )


@functools.cache
def eps() -> Parameterization:
    """The noise (Ho et al., 2020, eq. 14). Cannot be read where alpha = 0."""
    return Parameterization(
        lambda level: (jnp.zeros_like(level.alpha), jnp.ones_like(level.alpha)), _ones
    )


@functools.cache
def x0() -> Parameterization:
    """The data. Cannot be read where sigma = 0."""
    return Parameterization(
        lambda level: (jnp.ones_like(level.alpha), jnp.zeros_like(level.alpha)), _ones
    )


@functools.cache
def v() -> Parameterization:
    """alpha * eps - sigma * x0 (Salimans and Ho, 2022, appendix D; arXiv:2202.00512)."""
    return Parameterization(lambda level: (-level.sigma, level.alpha), _ones)


@functools.cache
def flow() -> Parameterization:
    """eps - x0, the velocity of a rectified flow (Liu et al., 2022; arXiv:2209.03003)."""
    return Parameterization(
        lambda level: (-jnp.ones_like(level.alpha), jnp.ones_like(level.alpha)), _ones
    )


@functools.cache
def edm(sigma_data: Real = 0.5) -> Parameterization:
    """The preconditioning of Karras et al. (2022), eq. 7 and table 1, for any alpha.

    With s**2 = (alpha * sigma_data)**2 + sigma**2, the variance of x, their c_skip,
    c_out and c_in amount to a = sigma / (sigma_data * s), b = -alpha * sigma_data / s
    and an input of x / s. With sigma_data = 1 and alpha**2 + sigma**2 = 1 it is -v.
    """

    def scale(level: NoiseLevel) -> Coefficient:
        return 1 / jnp.sqrt((level.alpha * sigma_data) ** 2 + level.sigma**2)

    def coefficients(level: NoiseLevel) -> tuple[Coefficient, Coefficient]:
        return (
            level.sigma / sigma_data * scale(level),
            -level.alpha * sigma_data * scale(level),
        )

    return Parameterization(coefficients, scale)


PARAMETERIZATIONS = {"eps": eps, "x0": x0, "v": v, "flow": flow, "edm": edm}


def _ones(level: NoiseLevel) -> Coefficient:
    return jnp.ones_like(level.alpha)
