"""False captions, and that batches bring them."""

import numpy as np
import pytest

from diffusion_jax.data import hard_negatives


def test_two_words_change_places():
    rng = np.random.default_rng(0)
    caption = "a red cat on a blue mat"
    seen = set()
    for _ in range(50):
        other = hard_negatives.swapped_words(rng, caption)
        assert sorted(other.split()) == sorted(caption.split())
        places = [a != b for a, b in zip(other.split(), caption.split())]
        assert sum(places) == 2
        seen.add(other)
    assert len(seen) > 10


@pytest.mark.parametrize("caption", ["cat", "cat cat", ""])
def test_what_has_no_two_words_stays(caption):
    rng = np.random.default_rng(0)
    assert hard_negatives.swapped_words(rng, caption) == caption
