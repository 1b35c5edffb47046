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
import numpy as np
from jaxtyping import Array, Float, Int

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
    positions = jnp.stack([_position(here), _position(there)])
    length = jnp.maximum(positions[1] - positions[0], 0.0)
    std = jnp.sqrt(-jnp.expm1(-2 * jnp.where(length > 0, length, 1.0)))
    before, after = jax.vmap(_path, (None, None, 0))(key, x, positions)
    change = after - jnp.exp(-length) * before
    return jnp.where(length > 0, change / std, 0.0)


def _position(level: NoiseLevel) -> Float[Array, ""]:
    """lambda within the tree; a path has no slope, so neither has what it is read at."""
    inside = jnp.clip(process.logsnr(level) / 2, LOWEST, LOWEST + WIDTH)
    return jax.lax.stop_gradient(inside)


def _path(
    key: Keys, x: Float[Array, "B *d"], position: Float[Array, ""]
) -> Float[Array, "B *d"]:
    """U at lambda = position, from both ends of the tree down to the position's cell."""
    cell = jnp.floor((position - LOWEST) / CELL).astype(int)
    cell = jnp.clip(cell, 0, 2**DEPTH - 1)
    share = jnp.clip((position - LOWEST) / CELL - cell, 0.0, 1.0)

    def descend(
        ends: Float[Array, "2 B *d"], args: tuple[Array, Array]
    ) -> tuple[Float[Array, "2 B *d"], None]:
        node, weights = args
        fresh = normal_like(_fold_in(key, node), x)
        left, right, drawn = weights.T.reshape(3, 2, *[1] * x.ndim)
        return left * ends[0] + right * ends[1] + drawn * fresh, None

    # The two ends, then a heap: 1, its halves 2 and 3, ..., and the cell itself.
    heap = (cell + 2**DEPTH) >> jnp.arange(DEPTH, -1, -1)
    nodes = jnp.concatenate([jnp.asarray([0, 2 ** (DEPTH + 1)]), heap])
    weights = _descent(cell, share).astype(x.dtype)
    ends, _ = jax.lax.scan(descend, jnp.zeros((2, *x.shape), x.dtype), (nodes, weights))
    return ends[0]


def _descent(cell: Int[Array, ""], share: Float[Array, ""]) -> Float[Array, "n 2 3"]:
    """Which mean of the last left end, right end and a draw each next end is."""
    # Far enough apart to be independent.
    ends = jnp.asarray([[[0, 0, 1], [0, 1, 0]], [[1, 0, 0], [0, 0, 1]]], float)
    half = WIDTH * 0.5 ** np.arange(1, DEPTH + 1)
    mean, std = 0.5 / np.cosh(half), np.sqrt(np.tanh(half))
    middle = jnp.asarray(np.stack([mean, mean, std], axis=-1))
    left, right = (jnp.broadcast_to(jnp.eye(3)[i], middle.shape) for i in (0, 1))
    is_right = ((cell >> np.arange(DEPTH - 1, -1, -1)) & 1 == 1)[:, None]
    halves = [jnp.where(is_right, middle, left), jnp.where(is_right, right, middle)]
    # Over so short a cell the bridge of U is that of a Brownian motion of rate 2.
    arc = jnp.sqrt(2 * CELL * share * (1 - share))
    last = jnp.stack([1 - share, share, arc])
    return jnp.concatenate(
        [ends, jnp.stack(halves, axis=1), jnp.stack([last, last])[None]]
    )


def _fold_in(key: Keys, data: Int[Array, ""]) -> Keys:
    if key.ndim == 0:
        return jax.random.fold_in(key, data)
    return jax.vmap(jax.random.fold_in, (0, None))(key, data)
