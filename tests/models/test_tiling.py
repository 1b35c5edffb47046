"""Tiles cover the image and blend into it; slices change nothing but the memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw, draw_params
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_jax.models import convolution, tiling
from diffusion_jax.models.autoencoder import AutoencoderKL

VAE = AutoencoderKL(channels=(8, 16), blocks_per_level=1, norm_groups=4)


@functools.cache
def parameters():
    return draw_params(VAE, draw(1, 4, 4, 3))


def plain(method, x):
    return VAE.apply({"params": parameters()}, x, method=method)


def repeat_and_square(x):
    return jnp.square(convolution.repeat_pixels(x))


def box(x):
    """The sum over 3x3 pixels: each sees one pixel to all sides."""
    return sum(jnp.roll(x, (i, j), (1, 2)) for i in (-1, 0, 1) for j in (-1, 0, 1))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_weights_sum_to_one(data):
    size = data.draw(st.integers(1, 12))
    overlap = data.draw(st.integers(0, size - 1))
    length = data.draw(st.integers(size, 40))
    unit = data.draw(st.sampled_from([1, 2, 8]))
    starts = tiling.cover(length, size, overlap)
    assert starts[0] == 0
    assert starts[-1] + size == length
    assert np.all(starts[1:] > starts[:-1])
    assert np.all(starts[1:] <= starts[:-1] + size - overlap)
    weights = tiling.fade(starts, length, size, overlap, unit)
    total = np.zeros(length * unit)
    for start, weight in zip(starts, weights):
        assert np.all(weight >= 0)
        total[start * unit : (start + size) * unit] += weight
    np.testing.assert_allclose(total, 1, rtol=1e-6)


def test_an_overlap_fades_linearly():
    weights = tiling.fade(tiling.cover(10, 6, 2), 10, 6, 2, 2)
    np.testing.assert_allclose(weights[0], [*[1] * 8, 1, 0.75, 0.5, 0.25])
    np.testing.assert_allclose(weights[1], [0, 0.25, 0.5, 0.75, *[1] * 8])


@pytest.mark.parametrize("sides", [(7, 12), (5, 4), (4, 9), (3, 3)])
@pytest.mark.parametrize("overlap", [0, 1, 3])
def test_tiles_of_what_sees_one_pixel_make_the_whole(sides, overlap):
    """Several shapes, of which one fits a tile and two do so along one side."""
    x = draw(2, *sides, 3)
    weights = draw(2, 2 * sides[0], 2 * sides[1], 3, seed=1)

    def loss(x, function):
        y = function(x)
        return jnp.sum(weights * y), y

    def tiled(x):
        return tiling.over_tiles(repeat_and_square, x, 4, overlap, units=(1, 2))

    gradient = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    close = functools.partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(close, gradient(x, tiled), gradient(x, repeat_and_square))


def test_what_sees_its_neighbours_agrees_away_from_the_edges_of_tiles():
    x = draw(1, 20, 8, 2)  # tiles of the rows 0 .. 7, 6 .. 13, 12 .. 19
    difference = jnp.abs(tiling.over_tiles(box, x, 8, 2) - box(x)).max((0, 2, 3))
    edges = np.array([0, 7, 13, 19])  # a tile weighs nothing on its first row
    assert np.delete(difference, edges).max() < 1e-5
    assert difference[edges].min() > 0.1


@pytest.mark.parametrize("method, channels", [("encode", 3), ("decode", 4)])
def test_a_tile_is_what_the_autoencoder_makes_of_it_alone(method, channels):
    unit = 2 if method == "encode" else 1
    unit_out = 2 // unit
    x = draw(2, 10 * unit, 6 * unit, channels)
    run = jax.jit(functools.partial(getattr(tiling, method), VAE, size=6, overlap=2))
    alone = jax.jit(functools.partial(plain, method))
    whole = run(parameters(), x)
    close = functools.partial(np.testing.assert_allclose, atol=1e-5)
    for start, first, last in ((0, 0, 4), (4, 6, 10)):
        rows = slice(first * unit_out, last * unit_out)
        own = slice((first - start) * unit_out, (last - start) * unit_out)
        result = alone(x[:, start * unit : (start + 6) * unit])
        jax.tree.map(
            close,
            jax.tree.map(lambda y, rows=rows: y[:, rows], whole),
            jax.tree.map(lambda y, own=own: y[:, own], result),
        )


@pytest.mark.parametrize(
    "method, shape", [("encode", (8, 6, 3)), ("decode", (4, 3, 4))]
)
def test_one_tile_is_the_whole(method, shape):
    x = draw(2, *shape)
    tiled = functools.partial(getattr(tiling, method), VAE, size=4, overlap=1)
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.jit(tiled)(parameters(), x),
        jax.jit(plain, static_argnums=0)(method, x),
    )


@pytest.mark.parametrize("method, channels", [("encode", 3), ("decode", 4)])
def test_slices_change_nothing(method, channels):
    x = draw(3, 4, 6, channels)
    function = functools.partial(plain, method)
    sliced = jax.jit(functools.partial(tiling.one_by_one, function))(x)
    close = functools.partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(close, sliced, jax.jit(function)(x))


def temporaries(function, *args):
    compiled = jax.jit(function).lower(*args).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_is_that_of_a_tile():
    """Backwards too, where a tile is computed again."""
    z = draw(1, 40, 40, 4)
    tiled = functools.partial(tiling.decode, VAE, size=8, overlap=2)

    def whole(params, z):
        return VAE.apply({"params": params}, z, method="decode")

    def loss(function):
        return jax.grad(lambda params, z: function(params, z).sum(), 1)

    assert temporaries(tiled, parameters(), z) < temporaries(whole, parameters(), z) / 4
    backwards = [temporaries(loss(f), parameters(), z) for f in (tiled, whole)]
    assert backwards[0] < backwards[1] / 4


def test_memory_of_slices_is_that_of_one_image():
    z = draw(8, 8, 8, 4)
    function = functools.partial(plain, "decode")
    sliced = functools.partial(tiling.one_by_one, function)
    assert temporaries(sliced, z) < temporaries(function, z) / 3


@pytest.mark.parametrize("overlap", [-1, 4, 5])
def test_an_overlap_must_be_smaller_than_a_tile(overlap):
    with pytest.raises(ValueError, match=f"tiles of 4 cannot overlap by {overlap}"):
        tiling.decode(VAE, parameters(), draw(1, 8, 8, 4), size=4, overlap=overlap)


def test_sides_that_do_not_halve_are_an_error():
    with pytest.raises(ValueError, match="height 9, width 8: not multiples of 2"):
        tiling.encode(VAE, parameters(), draw(1, 9, 8, 3), size=2, overlap=1)
