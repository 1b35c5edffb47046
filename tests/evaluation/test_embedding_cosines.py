"""Cosines of drawn embeddings: each is 1 for what it is the cosine to."""

import numpy as np
import pytest

from diffusion_jax.evaluation.embedding_cosines import prior_cosines

RNG = np.random.default_rng(0)
IMAGE = RNG.standard_normal((50, 12)) + 1
TEXT = RNG.standard_normal((50, 12))
MEAN = IMAGE.mean(axis=0)


def test_each_cosine_is_one_for_what_it_is_to():
    drawn = {
        "image": 5 * IMAGE,
        "text": TEXT,
        "unrelated": np.roll(IMAGE, -1, axis=0),
    }
    for name, embeddings in drawn.items():
        found = prior_cosines(embeddings, IMAGE, TEXT, MEAN)._asdict()
        assert found.pop(name) == pytest.approx(1)
        assert max(found.values()) < 0.9


def test_baselines_are_the_cosines_of_draws_that_ignore_the_prior():
    found = prior_cosines(IMAGE, IMAGE, TEXT, MEAN)
    means = np.broadcast_to(MEAN, IMAGE.shape)
    assert prior_cosines(means, IMAGE, TEXT, MEAN).image == pytest.approx(
        found.mean_baseline
    )
    assert prior_cosines(TEXT, IMAGE, TEXT, MEAN).image == pytest.approx(
        found.text_baseline
    )
    assert found.mean_baseline > found.text_baseline + 0.1


def test_what_are_no_pairs_is_refused():
    with pytest.raises(ValueError, match="embeddings of shapes"):
        prior_cosines(IMAGE[:7], IMAGE, TEXT, MEAN)
    with pytest.raises(ValueError, match="two rows"):
        prior_cosines(IMAGE[:1], IMAGE[:1], TEXT[:1], MEAN)
    with pytest.raises(ValueError, match=r"a mean of shape \(5,\) of .* \(50, 12\)"):
        prior_cosines(IMAGE, IMAGE, TEXT, MEAN[:5])
