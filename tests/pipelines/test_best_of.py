"""Ranking of images by CLIP, and the labels that it sees."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_dalle2 as tiny
from numpy.testing import assert_allclose, assert_array_equal

from diffusion_jax.pipelines import best_of

PARAMS = tiny.drawn()


def test_the_best_come_first_with_their_own_images():
    texts = jnp.eye(4)[:2]
    angles = jnp.array([0.9, 0.1, 0.5, 0.2, 0.7, 0.0])
    across = jnp.eye(4)[3]
    embeds = [
        5 * (jnp.cos(a) * texts[i // 3] + jnp.sin(a) * across)
        for i, a in enumerate(angles)
    ]
    images = jnp.broadcast_to(jnp.arange(6.0)[:, None, None, None], (6, 2, 2, 3))
    ranked = best_of.ranked(images, jnp.stack(embeds), 3 * texts)
    assert ranked.order.tolist() == [[1, 2, 0], [2, 0, 1]]
    assert ranked.images[:, :, 0, 0, 0].tolist() == [[1, 2, 0], [5, 3, 4]]
    expected = jnp.cos(jnp.array([[0.1, 0.5, 0.9], [0.0, 0.2, 0.7]]))
    assert_allclose(ranked.scores, expected, atol=1e-5)


def test_the_best_of_some_are_the_images_that_their_keys_make():
    pipeline = dataclasses.replace(tiny.PIPELINE, upsamplers=())
    keys, tokens = tiny.keys_for(4), tiny.TOKENS[:2]
    draw = jax.jit(
        lambda params: best_of.best_of(
            pipeline, params, keys, tokens, tiny.NULL, decoder_scale=3.0
        )
    )
    ranked = draw(PARAMS)
    repeated = jnp.repeat(tokens, 2, axis=0)
    images = pipeline(PARAMS, keys, repeated, tiny.NULL, decoder_scale=3.0)
    index = ranked.order + jnp.array([[0], [2]])
    assert_allclose(ranked.images, images[index], atol=1e-4)
    assert (np.diff(ranked.scores, axis=1) <= 0).all()


def test_keys_must_be_as_many_for_each_caption():
    with pytest.raises(ValueError, match="3 images for 2 captions"):
        best_of.best_of(
            tiny.PIPELINE, PARAMS, tiny.keys_for(3), tiny.TOKENS[:2], tiny.NULL
        )


@pytest.mark.parametrize(
    ("seen", "wanted", "expected"),
    [(4, None, 0), (6, None, 1), (16, None, 2), (32, None, 2), (16, 1, 1)],
)
def test_clip_chooses_before_what_enlarges_beyond_its_sight(seen, wanted, expected):
    """The decoder makes 4 pixels, the upsamplers 8 and 16; CLIP sees so many."""
    image = tiny.TOWERS.image.clone(vision_model=tiny.VISION.clone(image_size=seen))
    towers = dataclasses.replace(tiny.TOWERS, image=image)
    pipeline = dataclasses.replace(tiny.PIPELINE, clip=towers)
    assert best_of.num_before_choice(pipeline, wanted) == expected


def test_probabilities_of_labels_follow_the_cosines():
    labels = jnp.eye(3)
    images = jnp.array([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    table = best_of.label_probabilities(images, 4 * labels, 0.5)
    assert_allclose(table.sum(axis=1), 1.0, rtol=1e-5)
    assert_allclose(jnp.log(table[0, 0] / table[0, 1]), 1 / 0.5, rtol=1e-4)
    assert_allclose(table[1, 0], table[1, 1], rtol=1e-5)
    sharp = best_of.label_probabilities(images, labels, 0.01)
    assert_array_equal(sharp.argmax(axis=1)[:1], [0])
    assert float(sharp[0, 0]) > 0.999
    with pytest.raises(ValueError, match="width 3, label embeddings of 2"):
        best_of.label_probabilities(images, jnp.eye(2), 1.0)
