"""Inpainting by DALL·E 2: what is kept is kept to the bit, and the rest is painted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_dalle2 as tiny
from numpy.testing import assert_allclose, assert_array_equal

from diffusion_jax.pipelines import painting

PARAMS = tiny.drawn()
KEYS = tiny.keys_for(2)
NULL = tiny.PIPELINE.encode_text(PARAMS, tiny.NULL)
HEARD = tiny.PIPELINE.hear(PARAMS, jnp.ones((2, tiny.WIDTH)), NULL, NULL)
SMALL = dataclasses.replace(tiny.PIPELINE, upsamplers=())


def mask_of(size, columns):
    return jnp.zeros((2, size, size, 1)).at[:, :, columns:].set(1.0)


def paint(pipeline, images, mask):
    run = jax.jit(lambda *args: painting.inpaint(pipeline, PARAMS, KEYS, *args))
    return np.asarray(run(HEARD, images, mask))


def test_what_is_kept_is_the_image_s_own_and_the_rest_is_painted():
    images, mask = tiny.pictures(2, size=16), mask_of(16, 6)
    painted = paint(tiny.PIPELINE, images, mask)
    assert_array_equal(painted[:, :, :6], images[:, :, :6])
    assert np.abs(painted - images)[:, :, 8:].mean() > 0.1
    forgotten = jnp.where(mask > 0, tiny.pictures(2, size=16, seed=9), images)
    assert_allclose(paint(tiny.PIPELINE, forgotten, mask), painted, atol=1e-5)


def test_an_empty_mask_keeps_all_and_a_full_one_nothing():
    images = tiny.pictures(2)
    assert_array_equal(paint(SMALL, images, mask_of(4, 4)), images)
    free = tiny.PIPELINE.decode(PARAMS, KEYS, HEARD)
    assert_allclose(paint(SMALL, images, mask_of(4, 0)), free, atol=1e-4)


def test_pixels_are_painted_as_if_nothing_were_known():
    # This decoder treats every pixel alone.
    images = tiny.pictures(2)
    painted = paint(SMALL, images, mask_of(4, 2))
    free = tiny.PIPELINE.decode(PARAMS, KEYS, HEARD)
    assert_array_equal(painted[:, :, :2], images[:, :, :2])
    assert_allclose(painted[:, :, 2:], free[:, :, 2:], atol=1e-4)


def test_a_mask_at_another_size_has_all_that_is_painted():
    mask = jnp.zeros((1, 16, 16, 1)).at[0, 5, 9].set(1.0)
    small = painting.shrunk(mask, 4)
    assert float(small[0, 1, 2, 0]) == 1
    assert set(np.unique(small).tolist()) == {0.0, 1.0}
    assert float(small.sum()) <= 4  # its neighbours at most
    whole = painting.shrunk(jnp.ones((1, 16, 16, 1)), 4)
    assert_array_equal(whole, jnp.ones((1, 4, 4, 1)))


def test_a_mask_of_another_size_than_its_image_is_refused():
    with pytest.raises(ValueError, match=r"a mask of \(2, 8, 8, 1\)"):
        painting.inpaint(SMALL, PARAMS, KEYS, HEARD, tiny.pictures(2), mask_of(8, 2))
