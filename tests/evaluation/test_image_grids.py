"""Grids: where each image lies, and that nothing covers or clips what belongs to it."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.evaluation import grids

CAPTION = "a small red circle above a large blue square"


def plain(images, **layout):
    return grids.image_grid(images, **layout)


def framed(images, **layout):
    correct = [i % 2 == 0 for i in range(len(images))]
    return grids.image_grid(images, correct=correct, **layout)


def captioned(images, **layout):
    return grids.captioned_grid(images, [CAPTION] * len(images), **layout)


def ticked(images, **layout):
    correct = np.arange(len(images)) % 3 == 0
    captions = [CAPTION] * len(images)
    return grids.captioned_grid(images, captions, correct=correct, **layout)


def strip(images, **layout):
    labels = [f"t = {i}" for i in range(len(images))]
    return grids.trajectory_strip(images, labels, **layout)


LAYOUTS = [plain, framed, captioned, ticked, strip]


def flat_images(count, size=8):
    """Images of one colour each, that nothing else on a grid has."""
    colours = np.array([[30 + i, 255 - i, 60 + 2 * i] for i in range(count)])
    values = (colours / 127.5 - 1).astype(np.float32)
    return np.tile(values[:, None, None], (1, size, size, 1)), colours


def box_of(picture, colour):
    """Left, top, right, bottom of the pixels of a colour, which fill that box."""
    ys, xs = np.nonzero((np.asarray(picture) == colour).all(axis=-1))
    left, top, right, bottom = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
    assert len(xs) == (right - left) * (bottom - top)
    return left, top, right, bottom


def crop(picture, box):
    left, top, right, bottom = box
    return np.asarray(picture)[top:bottom, left:right]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("columns, scale", [(1, 1), (3, 4), (4, 2), (7, 3)])
def test_images_lie_in_reading_order_each_whole(layout, columns, scale):
    images, colours = flat_images(7)
    picture = layout(images, columns=columns, scale=scale)
    boxes = np.array([box_of(picture, colour) for colour in colours])
    assert (boxes[:, 2:] - boxes[:, :2] == 8 * scale).all()
    lefts, tops = np.unique(boxes[:, 0]), np.unique(boxes[:, 1])
    assert len(lefts) == columns and len(tops) == -(-7 // columns)
    # Equal steps from one column to the next, and further than the image is wide.
    assert len(set(np.diff(lefts))) <= 1 and (np.diff(lefts) > 8 * scale).all()
    assert (np.diff(tops) > 8 * scale).all()
    for index, box in enumerate(boxes):
        row, column = divmod(index, columns)
        assert (box[0], box[1]) == (lefts[column], tops[row])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_enlarging_repeats_every_pixel(layout):
    images, colours = flat_images(3, size=6)
    images[1, 1:-1, 1:-1] = np.random.default_rng(0).uniform(-1, 1, (4, 4, 3))
    picture = layout(images, columns=3, scale=5)
    left, top, _, bottom = box_of(picture, colours[0])
    step = box_of(picture, colours[2])[0] - left
    found = crop(picture, (left + step // 2, top, left + step // 2 + 30, bottom))
    expected = np.kron(grids.to_uint8(images[1]), np.ones((5, 5, 1), np.uint8))
    np.testing.assert_array_equal(found, expected)


def test_rows_hold_their_own_images_in_order():
    images, colours = flat_images(8)
    rows = {"original": images[:4], "a rather long name of a row": images[4:]}
    picture = grids.labelled_rows(rows, scale=2)
    boxes = np.array([box_of(picture, colour) for colour in colours]).reshape(2, 4, 4)
    assert (boxes[..., 2:] - boxes[..., :2] == 16).all()
    assert (boxes[0, :, 0] == boxes[1, :, 0]).all()
    assert (boxes[0, :, 3] < boxes[1, :, 1]).all()
    assert (np.diff(boxes[:, :, 0]) > 16).all()
    # Each name is written to the left of its row, and at its height.
    is_ink = (np.asarray(picture) < 128).all(axis=-1)
    assert not is_ink[:, boxes[0, 0, 0] :].any()
    for row in boxes:
        assert is_ink[row[0, 1] : row[0, 3], : row[0, 0]].any()


@pytest.mark.parametrize("size, columns", [(32, 8), (64, 4), (32, 4), (16, 20)])
def test_grids_of_small_images_are_enlarged_but_fit_the_page(size, columns):
    images, _ = flat_images(columns, size=size)
    for layout in LAYOUTS:
        width = layout(images, columns=columns).width
        assert columns * size < width <= grids.WIDTH
    rows = {"original": images, "reconstruction": images}
    assert columns * size < grids.labelled_rows(rows).width <= grids.WIDTH


@pytest.mark.parametrize("caption", [CAPTION, "W" * 40, "x " * 30, "naïve — “été” Ж"])
@pytest.mark.parametrize("layout", [captioned, ticked])
def test_captions_stay_beneath_their_own_image(monkeypatch, layout, caption):
    monkeypatch.setitem(globals(), "CAPTION", caption)
    images, colours = flat_images(4, size=32)
    picture = layout(images, columns=2, scale=3)
    is_ink = (np.asarray(picture) < 200).any(axis=-1)
    boxes = [box_of(picture, colour) for colour in colours]
    rim = 3 if layout is ticked else 1
    for left, top, right, bottom in boxes:
        is_ink[top - rim : bottom + rim, left - rim : right + rim] = False
    for left, _, right, bottom in boxes:
        below = is_ink[bottom : bottom + 12 * 22, left:right]
        assert below.any()
    columns = [slice(boxes[i][0] - 1, boxes[i][2] + 1) for i in (0, 1)]
    for column in columns:
        is_ink[:, column] = False
    assert not is_ink.any()  # nothing to the sides
    assert (np.asarray(picture)[-1] == 255).all()  # and nothing cut off at the bottom


def test_every_word_of_a_caption_is_on_some_line():
    font = grids._font(900, [CAPTION])
    for width in (60, 96, 150, 500):
        lines = grids._wrap(CAPTION, font, width, indent=14)
        assert " ".join(lines) == CAPTION
        widths = [font.getlength(line) for line in lines]
        assert widths[0] <= width - 14 and max(widths) <= width


def test_a_word_wider_than_the_image_is_broken_and_a_novel_is_ended():
    font = grids._font(900, ["W"])
    lines = grids._wrap("a " + "W" * 50 + " b", font, 90)
    assert "".join(lines).replace(" ", "") == "a" + "W" * 50 + "b"
    assert max(font.getlength(line) for line in lines) <= 90
    novel = grids._wrap("word " * 5000, font, 90)
    assert len(novel) == grids.MAX_LINES and novel[-1].endswith("...")


@pytest.mark.parametrize(
    "caption", ["", "\0\n\t", "tab\tand\nline", "emoji 🙂", "مرحبا"]
)
def test_any_text_can_be_a_caption(caption):
    images, _ = flat_images(1)
    grids.captioned_grid(images, [caption], columns=1)


def test_verdicts_are_told_apart_by_colour_and_by_mark():
    images, _ = flat_images(1, size=32)
    draw = [
        np.asarray(
            grids.captioned_grid(images, ["x"], columns=1, scale=3, correct=[verdict])
        )
        for verdict in (True, False)
    ]
    for pixels, own, other in zip(
        draw, [grids.RIGHT, grids.WRONG], [grids.WRONG, grids.RIGHT], strict=True
    ):
        assert (pixels == own).all(axis=-1).any()
        assert not (pixels == other).all(axis=-1).any()
    marked = [(pixels != 255).any(axis=-1) for pixels in draw]
    assert (marked[0] != marked[1]).any()  # not by colour alone


@pytest.mark.parametrize("layout", [framed, ticked])
def test_frames_run_around_their_own_image(layout):
    images, colours = flat_images(6)
    picture = layout(images, columns=3, scale=4)
    every = 2 if layout is framed else 3
    for index, colour in enumerate(colours):
        left, top, right, bottom = box_of(picture, colour)
        around = crop(picture, (left - 3, top - 3, right + 3, bottom + 3)).copy()
        frame = grids.WRONG if index % every else grids.RIGHT
        around[3:-3, 3:-3] = frame
        assert (around == frame).all()


def test_to_uint8_spans_the_range_clips_and_shows_what_is_not_finite():
    ends = np.array([[[[-1.0] * 3, [0.0] * 3, [1.0] * 3, [7.0] * 3]]], np.float32)
    np.testing.assert_array_equal(grids.to_uint8(ends)[0, 0, :, 0], [0, 128, 255, 255])
    broken = np.array([[[0.0, np.nan, 0.0], [np.inf, 0.0, 0.0]]], np.float32)
    np.testing.assert_array_equal(grids.to_uint8(broken), [[[255, 0, 255]] * 2])


def test_all_256_levels_survive_the_round_trip():
    levels = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (1, 1, 3))
    floats = levels.astype(np.float32) / 127.5 - 1
    np.testing.assert_array_equal(grids.to_uint8(floats), levels)


def test_a_grid_does_not_depend_on_the_kind_of_array():
    images, _ = flat_images(3)
    expected = np.asarray(grids.image_grid(images, columns=2))
    for other in (jnp.asarray(images), images.astype(np.float64)):
        found = np.asarray(grids.image_grid(other, columns=2))
        np.testing.assert_array_equal(found, expected)


def test_wrong_arguments_are_named():
    images, _ = flat_images(2)
    with pytest.raises(ValueError, match="2 images, but 1 captions"):
        grids.captioned_grid(images, ["one"], columns=2)
    with pytest.raises(ValueError, match="3 verdicts"):
        grids.image_grid(images, columns=2, correct=[True] * 3)
    with pytest.raises(ValueError, match="0 columns"):
        grids.image_grid(images, columns=0)
    with pytest.raises(ValueError, match="scale 0"):
        grids.image_grid(images, columns=1, scale=0)
    with pytest.raises(ValueError, match="one shape"):
        grids.labelled_rows({"a": images, "b": images[:1]})
