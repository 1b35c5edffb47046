"""Classes are mean prompts, probabilities a softmax of cosines, ranks follow them."""

import numpy as np
import pytest

from diffusion_jax.evaluation import retrieval, zero_shot

RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def test_every_class_is_told_in_every_template():
    found = zero_shot.prompts(["cat", "d{}g"], ["a {}.", "{}, {}!"])
    assert found == ["a cat.", "cat, cat!", "a d{}g.", "d{}g, d{}g!"]


def test_a_class_is_the_direction_between_its_prompts_whatever_their_length():
    near, far = np.array([[1.0, 0.0], [0.0, 5.0]]), np.array([[-2.0, 0.0], [-1.0, 0]])
    found = zero_shot.class_vectors(np.concatenate([near, far]), 2)
    np.testing.assert_allclose(found, [[0.5**0.5, 0.5**0.5], [-1, 0]], atol=1e-12)


def test_one_template_leaves_the_embeddings_their_direction():
    embeddings = draw(3, 4)
    found = zero_shot.class_vectors(embeddings, 1)
    np.testing.assert_allclose(found, retrieval.unit_vectors(embeddings))


def test_probabilities_are_a_softmax_of_scaled_cosines():
    queries, candidates = draw(3, 4), draw(5, 4)
    shares = zero_shot.probabilities(queries, candidates, 7.0)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    cosines = retrieval.unit_vectors(queries) @ retrieval.unit_vectors(candidates).T
    ratios = np.log(shares / shares[:, :1])
    np.testing.assert_allclose(ratios, 7 * (cosines - cosines[:, :1]), atol=1e-9)
    longer = zero_shot.probabilities(3 * queries, candidates * 2, 7.0)
    np.testing.assert_allclose(longer, shares, rtol=1e-5)


def test_ranks_follow_the_probabilities_and_are_of_the_candidates():
    query, candidates = draw(4), draw(6, 4)
    found = zero_shot.rank(query, candidates, 3.0)
    shares = zero_shot.probabilities(query[None], candidates, 3.0)[0]
    assert sorted(found.order) == list(range(6))
    assert found.probabilities == sorted(shares, reverse=True)
    np.testing.assert_allclose(found.probabilities, shares[found.order])
    turned = zero_shot.rank(query, candidates[::-1], 3.0)
    assert turned.order == [5 - i for i in found.order]


def test_a_large_scale_makes_one_certain_and_none_overflows():
    found = zero_shot.rank(np.array([1.0, 0.0]), np.eye(2), 1e6)
    assert found.order == [0, 1]
    assert found.probabilities == [1.0, 0.0]


def test_accuracy_counts_the_nearest_classes():
    angles = np.array([0.0, 0.1, 0.2, 1.4])
    classes = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    images = classes[[0, 1, 2, 3]]
    # Image 0 is told to be of class 1, its second nearest; image 3 of its farthest.
    found = zero_shot.accuracy(images, classes, [1, 1, 2, 0], ks=(1, 2, 4))
    assert found == {1: 0.5, 2: 0.75, 4: 1.0}


def test_recall_is_one_for_the_same_embeddings_and_grows_with_k():
    images = draw(8, 6)
    assert zero_shot.recall(images, images, ks=(1,)) == ({1: 1.0}, {1: 1.0})
    found = zero_shot.recall(images, draw(8, 6), ks=(1, 3, 8))
    for shares in found:
        assert shares[1] <= shares[3] <= shares[8] == 1.0


def test_recall_agrees_with_top_1_retrieval_in_one_group():
    images = draw(16, 3)
    texts = images + 0.8 * draw(16, 3)
    found = zero_shot.recall(images, texts, ks=(1,))
    other = retrieval.retrieval_accuracy(images, texts, range(16), group_size=16)
    assert 0.1 < found.image_to_text[1] < 1
    assert found.image_to_text[1] == other.image_to_text
    assert found.text_to_image[1] == other.text_to_image


def test_one_of_several_captions_is_enough():
    images = np.eye(3)
    texts = np.array([[1.0, 0, 0], [-0.1, 1, 0], [0, 0, 1], [0, 1, 0.1]])
    found = zero_shot.recall(images, texts, owners=[0, 0, 2, 1], ks=(1, 2))
    assert found.image_to_text == {1: pytest.approx(2 / 3), 2: 1.0}
    assert found.text_to_image == {1: 0.75, 2: 0.75}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: zero_shot.prompts(["cat"], ["a photo"]), "'a photo' has no {}"),
        (lambda: zero_shot.prompts([]), "0 classes in 1 templates"),
        (lambda: zero_shot.class_vectors(draw(5, 2), 2), "5 prompts in 2 templates"),
        (lambda: zero_shot.rank(draw(3), draw(2, 4)), "width 3 and 4"),
        (lambda: zero_shot.rank(draw(2), np.zeros((2, 2))), "embedding 0 is zero"),
        (lambda: zero_shot.accuracy(draw(2, 2), draw(3, 2), [0]), r"labels of shape"),
        (lambda: zero_shot.accuracy(draw(2, 2), draw(3, 2), [0, 3]), "0..3 of 3"),
        (lambda: zero_shot.recall(draw(3, 2), draw(2, 2)), "3 images and 2 texts"),
        (lambda: zero_shot.recall(draw(2, 2), draw(2, 2), [0]), "owners of shape"),
        (lambda: zero_shot.recall(draw(2, 2), draw(2, 2), ks=(0,)), "the 0 nearest"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
