"""Residual blocks start as the identity; dropout is for training alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw, draw_params

from diffusion_jax.models import attention, blocks
from diffusion_jax.types import Conditioning

COND = Conditioning(tokens=draw(2, 5, 6, seed=1))
RESIDUAL = {
    "resnet": (blocks.ResnetBlock(8, 4), draw(2, 8, seed=2)),
    "scale and shift": (
        blocks.ResnetBlock(8, 4, time_modulation="scale_shift"),
        draw(2, 8, seed=2),
    ),
    "transformer": (attention.SpatialTransformer(2, 1, False, 4), COND),
    "added keys and values": (attention.AddedKVAttention(2, 4), COND),
}


@pytest.mark.parametrize("name", RESIDUAL)
def test_a_residual_branch_starts_at_zero(name):
    block, told = RESIDUAL[name]
    x = draw(2, 4, 4, 8)
    y, _ = jax.jit(block.init_with_output)(jax.random.key(0), x, told)
    np.testing.assert_array_equal(y, x)


def test_dropout_needs_training_and_a_key():
    x = draw(2, 4, 4, 8)
    block = blocks.ResnetBlock(8, 4, dropout=0.5)
    variables = {"params": draw_params(block, x, None)}

    @jax.jit
    def drop(key):
        return block.apply(variables, x, None, train=True, rngs={"dropout": key})

    one, other = drop(jax.random.key(0)), drop(jax.random.key(1))
    assert jnp.abs(one - other).max() > 0.01
    np.testing.assert_array_equal(one, drop(jax.random.key(0)))
    plain = blocks.ResnetBlock(8, 4).apply(variables, x, None)
    np.testing.assert_array_equal(block.apply(variables, x, None), plain)


def test_a_pooled_map_of_squares_is_the_map():
    x = draw(2, 3, 5, 4)
    repeated = blocks.convolution.repeat_pixels(x)
    np.testing.assert_allclose(blocks.average_pool(repeated), x, rtol=1e-6)


@pytest.mark.parametrize("way, size", [("up", 8), ("down", 2)])
def test_resampling_blocks_resample_their_shortcut(way, size):
    """Without its branch, the block is the plain resampling of its input."""
    x = draw(1, 4, 4, 8)
    block = blocks.ResnetBlock(8, 4, resample=way)
    y, _ = jax.jit(block.init_with_output)(jax.random.key(0), x, None)
    assert y.shape == (1, size, size, 8)
    np.testing.assert_allclose(y.mean((1, 2)), x.mean((1, 2)), atol=1e-6)
