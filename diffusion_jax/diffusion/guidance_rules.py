"""Guidance rules: what a prediction with the condition and one without it make.

A rule is (level, scale, given, without) -> Prediction, where `scale` broadcasts against
the predictions. Most move x0 and eps together, so that x = alpha * x0 + sigma * eps
still holds; a learned variance is always that of `given`.

Some papers act on one quantity, as x0 or the velocity, others on whatever the network
puts out. Such a rule has a `space`, the Parameterization that quantity is the output of.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.diffusion import parameterization
from diffusion_jax.diffusion.parameterization import Parameterization
from diffusion_jax.diffusion.process import NoiseLevel, Prediction, Real, align

Rule = Callable[[NoiseLevel, Real | Array, Prediction, Prediction], Prediction]
Rescale = Callable[[NoiseLevel, Prediction, Prediction], Prediction]


def extrapolated(
    level: NoiseLevel, scale: Real | Array, given: Prediction, without: Prediction
) -> Prediction:
    """without + scale * (given - without); exactly `given` at scale 1."""
    return Prediction(
        given.x0 + (scale - 1) * (given.x0 - without.x0),
        given.eps + (scale - 1) * (given.eps - without.eps),
        given.variance,
    )


def projected(
    level: NoiseLevel,
    scale: Real | Array,
    given: Prediction,
    without: Prediction,
    *,
    eta: Real | Float[Array, ""] = 0.0,
    threshold: Real | Float[Array, ""] = 15.0,
    momentum: Real | Float[Array, ""] = 0.0,
    memory: jax.Ref | None = None,
    space: Parameterization | None = None,
) -> Prediction:
    """given + (scale - 1) * update (Sadat et al., 2024, section 4; arXiv:2410.02416).

    The update is given - without, shortened to the norm `threshold`, with what is
    parallel to `given` multiplied by `eta`: in x0, unless another `space` is named.
    eta = 1 and an infinite threshold are classifier-free guidance.

    `memory` holds the running average that a `momentum` needs, one array like x, zero
    before the first step: this function adds to it, once for each call.
    """
    if memory is None and not (isinstance(momentum, Real) and momentum == 0):
        raise ValueError("a momentum needs a memory, which lives as long as a sample")
    space = parameterization.x0() if space is None else space
    toward, away = (_output(space, pred, level) for pred in (given, without))
    update = toward - away
    if memory is not None:
        update = update + momentum * memory[...]
        memory[...] = update
    norm = jnp.sqrt(_nonzero(_inner(update, update)))
    update = update * (jnp.minimum(norm, threshold) / norm)
    along = _inner(update, toward) / _nonzero(_inner(toward, toward)) * toward
    return _moved(space, given, (scale - 1) * (update + (eta - 1) * along), level)


def optimized(
    level: NoiseLevel,
    scale: Real | Array,
    given: Prediction,
    without: Prediction,
    *,
    space: Parameterization | None = None,
) -> Prediction:
    """given + (scale - 1) * (given - s * without), s = <given, without> / |without|**2.

    CFG-Zero* (Fan et al., 2025, algorithm 1; arXiv:2503.18886). In the velocity
    eps - x0, unless another `space` is named.
    """
    space = parameterization.flow() if space is None else space
    toward, away = (_output(space, pred, level) for pred in (given, without))
    s = _inner(toward, away) / _nonzero(_inner(away, away))
    return _moved(space, given, (scale - 1) * (toward - s * away), level)


def renoised(
    level: NoiseLevel, scale: Real | Array, given: Prediction, without: Prediction
) -> Prediction:
    """x0 extrapolated, eps that of `without` (CFG++, Chung et al., 2024, algorithm 2).

    arXiv:2406.08070. Their lambda is `scale`, in [0, 1]: 0 is the unconditional model,
    1 is not the conditional one. x0 and eps do not make up x, so this is for samplers
    that take both from the prediction, as DDIM does.
    """
    x0 = without.x0 + scale * (given.x0 - without.x0)
    return Prediction(x0, without.eps, given.variance)


def normalized(
    level: NoiseLevel,
    scale: Real | Array,
    given: Prediction,
    without: Prediction,
    *,
    gamma: Real | Float[Array, ""] = 1.0,
) -> Prediction:
    """without + scale * (given - without) / |given - without|**gamma, the norm in eps.

    beta-CFG (Malarz et al., 2025; arXiv:2502.10574), whose scale follows
    `guidance_scales.beta` from 0. gamma = 0 is classifier-free guidance.
    """
    change = given.eps - without.eps
    norm = jnp.sqrt(_nonzero(_inner(change, change)))
    return extrapolated(level, scale / norm**gamma, given, without)


def rescale(space: Parameterization, phi: Real | Float[Array, ""] = 0.7) -> Rescale:
    """The rescaling of Lin et al. (2023), eq. 14-16; arXiv:2305.08891.

    The guided output is brought to the standard deviation of the output with the
    condition, by the share phi. `space` is that of the network, because the published
    code acts on what the network puts out, and the result differs between eps and v.
    """

    def rescaled(
        level: NoiseLevel, guided: Prediction, given: Prediction
    ) -> Prediction:
        output = _output(space, guided, level)
        std, wanted = _std(output), _std(_output(space, given, level))
        change = phi * (wanted / _nonzero(std) - 1)
        return _moved(space, guided, change * output, level)

    return rescaled


def _output(space: Parameterization, pred: Prediction, level: NoiseLevel) -> Array:
    return parameterization.target(space, pred.x0, pred.eps, level)


def _moved(
    space: Parameterization, pred: Prediction, change: Array, level: NoiseLevel
) -> Prediction:
    """What is read if the output changes and x does not."""
    det = parameterization.determinant(space, level)
    return Prediction(
        pred.x0 - align(level.sigma / det, change) * change,
        pred.eps + align(level.alpha / det, change) * change,
        pred.variance,
    )


def _inner(a: Float[Array, "B *d"], b: Float[Array, "B *d"]) -> Array:
    """The inner product of each example, which broadcasts against them."""
    return jnp.sum(a * b, axis=range(1, a.ndim), keepdims=True)


def _std(a: Float[Array, "B *d"]) -> Array:
    return jnp.std(a, axis=range(1, a.ndim), keepdims=True)


def _nonzero(norm: Array) -> Array:
    """1 instead of 0: what is divided by it is then 0 too."""
    return jnp.where(norm > 0, norm, 1)
