"""Words written on images."""

import numpy as np
import pytest

from diffusion_jax.evaluation import typographic

GREY = np.zeros((64, 96, 3), np.float32)


def test_a_paper_with_ink_covers_the_middle_and_nothing_else():
    written = typographic.write_on(GREY, "iPod", width=0.5)
    changed = (written != GREY).any(axis=-1)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert 40 <= len(columns) <= 50
    assert abs(columns.mean() - 47.5) <= 1 and abs(rows.mean() - 31.5) <= 1
    paper = written[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert paper.max() == pytest.approx(1) and paper.min() < -0.5
    assert 0.05 < (paper < 0).mean() < 0.6
    assert not GREY.any()  # the image that was given is as it was


def test_different_words_look_different_and_long_ones_fit():
    words = [typographic.write_on(GREY, w) for w in ("iPod", "pizza", "a" * 60)]
    assert np.abs(words[0] - words[1]).max() > 1
    assert all(word.shape == GREY.shape for word in words)


@pytest.mark.parametrize("center", [(0.0, 0.0), (1.0, 1.0)])
def test_a_paper_at_the_edge_stays_within_the_image(center):
    written = typographic.write_on(GREY, "cat", width=0.3, center=center)
    rows, columns = np.nonzero((written != 0).any(axis=-1))
    at_edge = (0, 0) if center == (0.0, 0.0) else (63, 95)
    corner = (
        (rows.min(), columns.min()) if not center[0] else (rows.max(), columns.max())
    )
    assert corner == at_edge


def test_a_tiny_image_can_be_written_on():
    written = typographic.write_on(np.full((8, 8, 3), -1, np.float32), "x", width=1.0)
    assert written.max() > 0


def test_nothing_to_write_and_impossible_papers_are_refused():
    with pytest.raises(ValueError, match="nothing to write"):
        typographic.write_on(GREY, " ")
    for width in (0.0, 1.5):
        with pytest.raises(ValueError, match=rf"width {width:g} .*; in \(0, 1\]"):
            typographic.write_on(GREY, "cat", width=width)
