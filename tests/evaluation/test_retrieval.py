"""Retrieval: limits, symmetries, and captions that occur twice."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.evaluation import retrieval


def vectors(count, width=32, seed=0):
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def test_equal_embeddings_find_each_other_at_any_length():
    x = vectors(128)
    lengths = np.random.default_rng(1).uniform(0.1, 10, (128, 1)).astype(np.float32)
    found = retrieval.retrieval_accuracy(x, lengths * x, list(range(128)))
    assert found == (1.0, 1.0, 1 / 64, 2)


def test_opposite_embeddings_never_find_each_other():
    x = vectors(64)
    found = retrieval.retrieval_accuracy(x, -x, list(range(64)))
    assert (found.image_to_text, found.text_to_image) == (0.0, 0.0)


@pytest.mark.parametrize("group_size", [4, 16])
def test_random_embeddings_are_right_by_chance(group_size):
    count = 6400
    found = retrieval.retrieval_accuracy(
        vectors(count), vectors(count, seed=1), range(count), group_size=group_size
    )
    assert found.chance == pytest.approx(1 / group_size)
    error = (found.chance * (1 - found.chance) / count) ** 0.5
    for score in found[:2]:
        assert abs(score - found.chance) < 4 * error


def test_exchanging_the_modalities_exchanges_the_scores():
    x = vectors(64)
    y = x + vectors(64, seed=1) + 1
    there = retrieval.retrieval_accuracy(x, y, range(64))
    back = retrieval.retrieval_accuracy(y, x, range(64))
    assert there[:2] == back[1::-1]
    assert there.image_to_text != there.text_to_image  # or the test shows nothing


def test_a_hub_that_attracts_all_images_spoils_one_direction_only():
    images = np.eye(8, dtype=np.float32) + 1
    texts = np.eye(8, dtype=np.float32)
    texts[0] = 1
    found = retrieval.retrieval_accuracy(images, texts, range(8), group_size=8)
    assert found.image_to_text == 1 / 8  # the text in the middle is nearest to all
    assert found.text_to_image == 1  # but each other text still knows its image


def test_pairs_with_equal_captions_are_right_for_each_other():
    x = vectors(64)
    swapped = x.reshape(32, 2, -1)[:, ::-1].reshape(64, -1)  # each finds its neighbour
    ids = np.arange(64)
    assert retrieval.retrieval_accuracy(x, swapped, ids)[:2] == (0.0, 0.0)
    in_twos = retrieval.retrieval_accuracy(x, swapped, ids // 2)
    assert in_twos == (1.0, 1.0, 2 / 64, 1)
    texts = [f"caption {i}" for i in ids // 2]
    assert retrieval.retrieval_accuracy(x, swapped, texts) == in_twos


def test_groups_do_not_see_each_other():
    x = vectors(16)
    x[8:] = x[:8]  # a rival with the same embedding, but in the other group
    found = retrieval.retrieval_accuracy(x, x, range(16), group_size=8)
    assert found == (1.0, 1.0, 1 / 8, 2)


def test_pairs_after_the_last_whole_group_are_left_out():
    x = jnp.asarray(vectors(70))
    y = x.at[64:].multiply(-1)
    assert retrieval.retrieval_accuracy(x, y, range(70)).image_to_text == 1
    with pytest.raises(ValueError, match="70 pairs do not fill a group of 71"):
        retrieval.retrieval_accuracy(x, y, range(70), group_size=71)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_embeddings_without_a_direction_are_refused(value):
    x = vectors(64)
    x[3] = value
    with pytest.raises(ValueError, match="embedding 3"):
        retrieval.retrieval_accuracy(x, vectors(64), range(64))


def test_unequal_counts_are_refused():
    with pytest.raises(ValueError, match="are not pairs"):
        retrieval.retrieval_accuracy(vectors(64), vectors(64), range(63))


def test_a_true_caption_is_right_whoever_it_belongs_to():
    """Swapped pairs are wrong, unless each caption is true of the other image."""
    embeddings = np.eye(4)
    swapped = embeddings[[1, 0, 3, 2]]
    options = dict(captions=["a", "b", "c", "d"], group_size=4)
    wrong = retrieval.retrieval_accuracy(embeddings, swapped, **options)
    assert (wrong.image_to_text, wrong.text_to_image) == (0, 0)

    def is_true(image, text):
        return {image, text} == {0, 1}

    half = retrieval.retrieval_accuracy(embeddings, swapped, is_true=is_true, **options)
    assert (half.image_to_text, half.text_to_image) == (0.5, 0.5)
