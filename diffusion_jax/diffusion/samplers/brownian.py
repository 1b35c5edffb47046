"""The Brownian motion behind a sampling SDE, the same for every number of steps.

At eta = 1 a step of the reverse SDE adds sigma_there * (W(snr_there) - W(snr_here)) /
sqrt(snr_there), whatever the schedule, with W a Brownian motion in the clock
snr = exp(2 * lambda). With one root key a coarse and a fine grid are thus two
approximations of one solution (Li et al., 2020, section 4; arXiv:2001.01328).

W is kept as U = W / sqrt(snr), a stationary process of unit variance in lambda with
correlation exp(-distance): numbers of order one, where W itself would span 30 decades.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.diffusion import process
from diffusion_jax.diffusion.process import NoiseLevel
from diffusion_jax.diffusion.samplers.integrate import Keys, normal_like

# Noise beyond is pure or invisible. 31 is odd, so no round lambda is a point of the tree.
LOWEST, WIDTH = -14.0, 31.0
DEPTH = 13
CELL = WIDTH / 2**DEPTH  # 0.004; between its ends the path is an arc


def increment(
    key: Keys, x: Float[Array, "B *d"], here: NoiseLevel, there: NoiseLevel
) -> Float[Array, "B *d"]:
    """(W(snr_there) - W(snr_here)) / sqrt(snr_there - snr_here), shaped as x.

    N(0, 1), independent over disjoint intervals. `key` is the root key, the same in all
    calls, not the step's. Pure noise and clean data are finite; no length gives 0. Costs
    32 normal draws of each element. Steps shorter than a cell, 0.004 in lambda, follow
    its arc, so they are not independent of one another; they still add up to the path.
    """
    before, after = (_position(level) for level in (here, there))
    length = jnp.maximum(after - before, 0.0)
    kept = jnp.exp(-length)
    std = jnp.sqrt(-jnp.expm1(-2 * jnp.where(length > 0, length, 1.0)))
    change = _path(key, x, after) - kept * _path(key, x, before)
    return jnp.where(length > 0, change / std, 0.0)


def _position(level: NoiseLevel) -> Float[Array, ""]:
    """lambda within the tree; a path has no slope, so neither has what it is read at."""
    halved = process.logsnr(level) / 2
    inside = jnp.clip(halved, LOWEST, LOWEST + WIDTH)
    return jax.lax.stop_gradient(inside)


def _path(
    key: Keys, x: Float[Array, "B *d"], position: Float[Array, ""]
) -> Float[Array, "B *d"]:
    """U at lambda = position: down the tree to the position's cell, then a last bridge."""
    cell = jnp.floor((position - LOWEST) / CELL).astype(jnp.int32)
    cell = jnp.clip(cell, 0, 2**DEPTH - 1)

    def draw(node: Array) -> Float[Array, "B *d"]:
        return normal_like(_fold_in(key, node), x)

    def halve(
        level: Array, ends: tuple[Float[Array, "B *d"], Float[Array, "B *d"]]
    ) -> tuple[Float[Array, "B *d"], Float[Array, "B *d"]]:
        left, right = ends
        node = (cell + 2**DEPTH) >> (DEPTH - level)  # a heap: 1, then 2 and 3, ...
        half = WIDTH * 0.5 ** (level + 1).astype(x.dtype)
        middle = (left + right) / (2 * jnp.cosh(half))
        middle = middle + jnp.sqrt(jnp.tanh(half)) * draw(node)
        is_right = (cell >> (DEPTH - 1 - level)) & 1 == 1
        return jnp.where(is_right, middle, left), jnp.where(is_right, right, middle)

    first = draw(jnp.asarray(0))
    last = draw(jnp.asarray(2 ** (DEPTH + 1)))  # exp(-WIDTH), their correlation, is 0
    left, right = jax.lax.fori_loop(0, DEPTH, halve, (first, last))
    share = jnp.clip((position - LOWEST) / CELL - cell, 0.0, 1.0)
    # Over so short a cell the bridge of U is that of a Brownian motion of rate 2.
    std = jnp.sqrt(2 * CELL * share * (1 - share))
    return (1 - share) * left + share * right + std * draw(cell + 2**DEPTH)


def _fold_in(key: Keys, data: Array) -> Keys:
    if key.ndim == 0:
        return jax.random.fold_in(key, data)
    return jax.vmap(jax.random.fold_in, (0, None))(key, data)
