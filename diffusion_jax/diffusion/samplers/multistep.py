"""Linear multistep samplers: a DDIM step with a mean of the last predictions.

DDIM holds its newest prediction constant over a step. A multistep method holds a mean
of the last few outputs constant instead, with weights that add up to one: of their eps,
their x0, or any other form a * x0 + b * eps. The table of weights, a row for each step,
is all by which these methods differ, and it follows from the levels alone.

Mostly the weights are those of an interpolating polynomial. In y = x / alpha and
s = sigma / alpha the probability-flow ODE is dy/ds = eps, in z = x / sigma and
lambda = log(alpha / sigma) it is dz = x0 d(e^lambda); so the exact mean of a polynomial
p over a step is that of p(s) ds, of p(lambda) e^-lambda for eps, of p(lambda) e^lambda
for x0 (Lu et al., 2022: arXiv:2206.00927, eq. 3.4, and arXiv:2211.01095).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax.diffusion import parameterization, process
from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.parameterization import Parameterization
from diffusion_jax.diffusion.process import NoiseLevel, Prediction, Real
from diffusion_jax.diffusion.samplers.integrate import Keys, integrate

# Exact for polynomials to degree 31; for e^20 still to 1e-13.
_ROOTS, _MASSES = np.polynomial.legendre.leggauss(16)
_POSITIONS = (1 + _ROOTS) / 2  # within a step, from 0 to 1

Change = Float[Array, "B *d"]  # of an output
Start = Callable[[Prediction, NoiseLevel, NoiseLevel, Int[Array, ""]], Change]

TILTS = {"x0": 1, "eps": -1}  # the exact mean over a step weighs by e^(tilt * lambda)


# ---- the loop -----------------------------------------------------------------------


def multistep(
    key: Keys,
    denoise: Denoiser,
    levels: NoiseLevel,
    x: Float[Array, "B *d"],
    weights: Float[Array, "steps num"],
    form: str,
    *,
    start: Start | None = None,
    num_start: int = 0,
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """Sample with `weights[i]` on the outputs of steps i, i - 1, ..., newest first.

    The first `num_start` steps, if neither end of them is infinite, take instead what
    `start(pred, here, there, i)` adds to the newest output.
    """
    p = named(form)

    def step(
        carry: tuple[Array, Array, Array],
        key: Keys,
        here: NoiseLevel,
        there: NoiseLevel,
    ) -> tuple[tuple[Array, Array, Array], Array]:
        x, past, i = carry
        pred = denoise(x, here)
        outputs = remember(p, pred, here, past)
        change = weigh(weights[i], outputs - outputs[0])
        if start is not None:
            is_start = (i < num_start) & (here.alpha > 0) & (there.sigma > 0)
            change = jax.lax.cond(
                is_start, lambda: start(pred, here, there, i), lambda: change
            )
        mean = revise(p, pred, here, change)
        return (land(mean, there), outputs[:-1], i + 1), pred.x0

    past = jnp.zeros((weights.shape[1] - 1, *x.shape), x.dtype)
    (x, _, _), trace = integrate(step, (x, past, jnp.zeros((), int)), key, levels)
    return x, trace


def named(form: str) -> Parameterization:
    """The form of the prediction that is averaged: eps, x0 or v."""
    if form not in ("eps", "x0", "v"):
        raise ValueError(f"unknown form {form!r}; one of ['eps', 'v', 'x0']")
    return parameterization.PARAMETERIZATIONS[form]()


def tilt_of(form: str) -> int:
    """1 for x0, -1 for eps, an error for any other form."""
    if form not in TILTS:
        raise ValueError(f"unknown form {form!r}; one of {sorted(TILTS)}")
    return TILTS[form]


def remember(
    p: Parameterization, pred: Prediction, here: NoiseLevel, past: Float[Array, "n ..."]
) -> Float[Array, "n+1 ..."]:
    """The outputs so far, the newest before them."""
    return jnp.concatenate([output(p, pred, here)[None], past])


def output(p: Parameterization, pred: Prediction, level: NoiseLevel) -> Array:
    """What a network that predicts p would have said: a * x0 + b * eps."""
    return parameterization.target(p, pred.x0, pred.eps, level)


def weigh(weights: Float[Array, "n"], outputs: Float[Array, "n ..."]) -> Array:
    """Their weighted sum; not a matrix product, which accelerators round."""
    return jnp.sum(process.align(weights, outputs) * outputs, axis=0)


def revise(
    p: Parameterization,
    pred: Prediction,
    level: NoiseLevel,
    change: Array,
    offset: Array | Real = 0,
) -> Prediction:
    """The prediction after a change of the output, and an offset of x.

    Where p cannot be read (eps of pure noise) the prediction stays as it is.
    """
    a, b = p.coefficients(level)
    det = parameterization.determinant(p, level)
    inverse = jnp.where(det == 0, 0.0, 1 / jnp.where(det == 0, 1.0, det))
    return Prediction(
        pred.x0 + inverse * (b * offset - level.sigma * change),
        pred.eps + inverse * (level.alpha * change - a * offset),
    )


def land(pred: Prediction, there: NoiseLevel) -> Float[Array, "B *d"]:
    """A DDIM step."""
    return process.add_noise(pred.x0, pred.eps, there)


# ---- what a step interpolates -------------------------------------------------------


class Window(NamedTuple):
    """Where each step finds the last evaluations, in the variable of interpolation."""

    nodes: Float[Array, "steps num"]  # newest first
    used: Int[Array, "steps"]  # how many of them, at least one
    start: Float[Array, "steps"]
    stop: Float[Array, "steps"]


def lambdas(levels: NoiseLevel) -> Float[Array, "times"]:
    """log(alpha / sigma); inf for clean data, -inf for pure noise."""
    alpha, sigma = (jnp.where(a > 0, a, 1.0) for a in (levels.alpha, levels.sigma))
    ends = jnp.where(levels.sigma > 0, -jnp.inf, jnp.inf)
    is_finite = (levels.alpha > 0) & (levels.sigma > 0)
    return jnp.where(is_finite, jnp.log(alpha) - jnp.log(sigma), ends)


def ratios(levels: NoiseLevel) -> Float[Array, "times"]:
    """sigma / alpha; inf for pure noise."""
    alpha = jnp.where(levels.alpha > 0, levels.alpha, 1.0)
    return jnp.where(levels.alpha > 0, levels.sigma / alpha, jnp.inf)


def orders(
    levels: NoiseLevel,
    order: int,
    *,
    highest: int = 3,
    lower_order_final_below: Real = 0,
    euler_at_final: bool = False,
) -> Int[np.ndarray, "steps"]:
    """The order of each step: 1, 2, ... up to `order`, and down again at the end.

    It comes down only in fewer than `lower_order_final_below` steps, or, for the last
    step alone, with `euler_at_final`.
    """
    if not 1 <= order <= highest:
        raise ValueError(f"order must be one of 1 .. {highest}, got {order}")
    steps = len(levels.time) - 1
    so_far = 1 + np.arange(steps)
    allowed = np.minimum(order, so_far)
    if steps < lower_order_final_below:
        allowed = np.minimum(allowed, so_far[::-1])
    if euler_at_final:
        allowed[-1] = 1
    return allowed


def window(nodes: Float[Array, "times"], allowed: Int[np.ndarray, "steps"]) -> Window:
    """The last evaluations of each step, `allowed` of them at most.

    Only the newest is used where a step begins or ends at an infinite node, which then
    counts as a step of no length, and none from before such a step.
    """
    back = np.arange(len(allowed))[:, None] - np.arange(allowed.max())
    past = nodes[np.maximum(back, 0)]
    follows = jnp.isfinite(past[:, 1:]) & (past[:, 1:] != past[:, :-1])
    usable = jnp.concatenate([jnp.isfinite(past[:, :1]), follows], axis=1)
    used = jnp.minimum(jnp.cumprod(usable, axis=1).sum(axis=1), allowed)
    is_finite = jnp.isfinite(nodes[:-1]) & jnp.isfinite(nodes[1:])
    used = jnp.where(is_finite, used, 1)
    nodes, past = (jnp.where(jnp.isfinite(a), a, 0.0) for a in (nodes, past))
    stop = jnp.where(is_finite, nodes[1:], nodes[:-1])
    return Window(past, used, nodes[:-1], stop)


# ---- weights ------------------------------------------------------------------------


def shares(exponent: Float[Array, "*n"]) -> Float[Array, "*n points"]:
    """The mass of e^(exponent * u) du at the quadrature's points of [0, 1], 1 in all."""
    positions, masses = (jnp.asarray(a, exponent.dtype) for a in (_POSITIONS, _MASSES))
    return jax.nn.softmax(jnp.log(masses) + exponent[..., None] * positions, axis=-1)


def mean_power(exponent: Float[Array, "*n"], power: int = 1) -> Float[Array, "*n"]:
    """The mean of u**power under e^(exponent * u) du on [0, 1]."""
    powers = jnp.asarray(_POSITIONS**power, exponent.dtype)
    return jnp.sum(shares(exponent) * powers, axis=-1)


def lagrange(w: Window, tilt: Real) -> Float[Array, "steps num"]:
    """The mean over each step of the polynomial through its used nodes, as weights."""
    positions = jnp.asarray(_POSITIONS, w.start.dtype)
    points = w.start[:, None] + (w.stop - w.start)[:, None] * positions
    num = w.nodes.shape[1]
    is_used = jnp.arange(num) < w.used[:, None]
    is_pair = is_used[:, :, None] & is_used[:, None] & ~np.eye(num, dtype=bool)
    apart = jnp.where(is_pair, w.nodes[:, :, None] - w.nodes[:, None], 1.0)
    # At each point, for each node, the factor that each other node contributes.
    away = points[:, :, None, None] - w.nodes[:, None, None]
    factors = jnp.where(is_pair[:, None], away / apart[:, None], 1.0)
    basis = jnp.prod(factors, axis=-1)
    masses = shares(tilt * (w.stop - w.start))
    means = jnp.sum(masses[:, :, None] * basis, axis=1)
    return jnp.where(is_used, means, 0.0)


def line(
    w: Window, position: Float[Array, "steps"] | Real
) -> Float[Array, "steps num"]:
    """The line through the newest and the oldest used node, at `position` of the step."""
    num = w.nodes.shape[1]
    oldest = jnp.take_along_axis(w.nodes, w.used[:, None] - 1, axis=1)[:, 0]
    point = w.start + position * (w.stop - w.start)
    apart = jnp.where(w.used > 1, w.nodes[:, 0] - oldest, 1.0)
    share = jnp.where(w.used > 1, (point - oldest) / apart, 1.0)[:, None]
    is_newest, is_oldest = jnp.arange(num) == 0, jnp.arange(num) == w.used[:, None] - 1
    return share * is_newest + (1 - share) * is_oldest
