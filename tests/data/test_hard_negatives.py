"""False captions, and that batches bring them."""

import functools
import io

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import batches, captions, hard_negatives, records


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


def test_an_example_brings_the_tokens_of_a_false_caption_beside_the_true_ones(tmp_path):
    caption = "a red cat on a blue mat"
    tokenizer = captions.train_tokenizer(
        [caption] * 4, tmp_path, vocab_size=600, context_length=40
    )
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    record = records.Record(file.getvalue(), caption, "one")
    make = functools.partial(batches.image_text_example, tokenizer, image_size=8)
    plain = make()(record, np.random.default_rng(0))
    assert set(plain) == {"image", "tokens"}
    confuse = hard_negatives.NEGATIVES["swapped_words"]
    made = make(confuse=confuse)(record, np.random.default_rng(0))
    false = confuse(np.random.default_rng(0), caption)
    np.testing.assert_array_equal(made["tokens"], plain["tokens"])
    np.testing.assert_array_equal(made["false_tokens"], tokenizer([false])[0])
    assert (made["false_tokens"] != made["tokens"]).any()
