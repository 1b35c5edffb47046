"""The autoencoder on large images: tile by tile, or one image of a batch at a time.

Tiles overlap, and over the overlap the later tile fades in linearly. All have one shape,
so that one program serves them all, whose memory is that of one tile and of the result:
the last tile of a row is moved in to fit. Sliced encoding and decoding is exact.
Tiled, it is an approximation: a tile sees no pixel beyond its edges, its norms take their
statistics from the tile alone, and its attention sees the tile alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.models import convolution
from diffusion_jax.models.autoencoder import AutoencoderKL
from diffusion_jax.types import Params


def decode(
    vae: AutoencoderKL,
    params: Params,
    z: Float[Array, "B h w Z"],
    *,
    size: int = 64,
    overlap: int = 16,
) -> Float[Array, "B H W C"]:
    """`vae.decode` in square tiles of `size` latents a side.

    Where the latent is no larger than a tile, this is `vae.decode` itself.
    """

    def decode_tile(tile: Float[Array, "B s t Z"]) -> Float[Array, "B S T C"]:
        return vae.apply({"params": params}, tile, method="decode")

    return over_tiles(decode_tile, z, size, overlap, units=(1, vae.factor))


def encode(
    vae: AutoencoderKL,
    params: Params,
    x: Float[Array, "B H W C"],
    *,
    size: int = 64,
    overlap: int = 16,
) -> tuple[Float[Array, "B h w Z"], Float[Array, "B h w Z"]]:
    """`vae.encode` in square tiles of as many pixels as give `size` latents a side."""

    def encode_tile(
        tile: Float[Array, "B S T C"],
    ) -> tuple[Float[Array, "B s t Z"], Float[Array, "B s t Z"]]:
        return vae.apply({"params": params}, tile, method="encode")

    convolution.check_halves(x, len(vae.channels) - 1)
    return over_tiles(encode_tile, x, size, overlap, units=(vae.factor, 1))


def one_by_one(function: Callable[[Array], Any], batch: Array) -> Any:
    """`function(batch)`, of one example after the other: the memory is that of one."""
    results = jax.lax.map(lambda example: function(example[None]), batch)
    return jax.tree.map(lambda result: result[:, 0], results)


def over_tiles(
    function: Callable[[Array], Any],
    x: Float[Array, "B H W C"],
    size: int,
    overlap: int,
    *,
    units: tuple[int, int] = (1, 1),
) -> Any:
    """`function` of overlapping tiles of x, blended: a map, or a tree of them.

    `size` and `overlap` count squares of `units` = (pixels of x, pixels of the result).
    The gradient computes a tile again, so that it too needs the memory of one.
    """
    unit, unit_out = units
    lengths = [side // unit for side in x.shape[1:3]]
    starts = [cover(length, size, overlap) for length in lengths]
    if all(len(along) == 1 for along in starts):
        return function(x)
    shape = [min(size, length) for length in lengths]
    fades = [fade(*sides, overlap, unit_out) for sides in zip(starts, lengths, shape)]
    grid = np.indices([len(along) for along in starts]).reshape(2, -1)
    corners = np.stack([s[i] for s, i in zip(starts, grid)], axis=-1)
    rows, columns = (jnp.asarray(f[i]) for f, i in zip(fades, grid))

    @jax.checkpoint
    def weighted(corner: Array, row: Array, column: Array) -> Any:
        first = (0, corner[0] * unit, corner[1] * unit, 0)
        sides = (len(x), *(side * unit for side in shape), x.shape[3])
        results = function(jax.lax.dynamic_slice(x, first, sides))
        weight = row[:, None, None] * column[:, None]
        return jax.tree.map(lambda y: y * weight, results)

    def add(total: Any, place: tuple[Array, Array, Array]) -> tuple[Any, None]:
        first = (0, *(place[0] * unit_out), 0)

        def add_one(whole: Array, tile: Array) -> Array:
            here = jax.lax.dynamic_slice(whole, first, tile.shape)
            return jax.lax.dynamic_update_slice(whole, here + tile, first)

        return jax.tree.map(add_one, total, weighted(*place)), None

    places = (jnp.asarray(corners), rows, columns)
    like = jax.eval_shape(weighted, *(place[0] for place in places))
    sides = [length * unit_out for length in lengths]
    nothing = jax.tree.map(
        lambda y: jnp.zeros((len(x), *sides, y.shape[3]), y.dtype), like
    )
    return jax.lax.scan(add, nothing, places)[0]


def cover(length: int, size: int, overlap: int) -> np.ndarray:
    """Where the tiles that cover 0 .. length start; one tile may be longer than that."""
    if not 0 <= overlap < size:
        raise ValueError(f"tiles of {size} cannot overlap by {overlap}")
    last = max(0, length - size)
    num = -(-last // (size - overlap)) + 1
    return np.minimum(np.arange(num) * (size - overlap), last)


def fade(
    starts: np.ndarray, length: int, size: int, overlap: int, unit: int
) -> np.ndarray:
    """Weight of every pixel of every tile; those of the tiles that share one sum to one.

    Every tile is painted over the ones before it, with a share that grows linearly from
    0 on its first pixel to 1 where the overlap ends.
    """
    pixels = np.arange(length * unit) - starts[:, None] * unit
    share = np.clip(pixels / max(1, overlap * unit), 0, 1)
    share = np.where(pixels < 0, 0, share if overlap else 1)
    share[0] = 1
    left = np.cumprod(1 - share[::-1], axis=0)[::-1]  # by this tile and those after it
    left = np.concatenate([left[1:], np.ones_like(left[:1])])
    weights = share * left
    taken = [w[s * unit :][: size * unit] for w, s in zip(weights, starts)]
    return np.stack(taken).astype(np.float32)
