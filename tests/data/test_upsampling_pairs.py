"""Training pairs: the small image of a crop is the crop of the small image."""

import functools
import io
import pickle

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import batches, degradation, images, records, upsampling

SIZE, LOW = 128, 32
TIMES = SIZE // LOW
SHARP = degradation.none
BLURRED = functools.partial(degradation.blur, probability=1.0)


def record(size=SIZE, seed=0):
    """Noise, in which every place differs from every other."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return records.Record(file.getvalue(), "", "noise"), images.to_float(pixels)


def find(crop, whole):
    """Where the crop was taken from."""
    side = len(crop)
    for top in range(len(whole) - side + 1):
        for left in range(len(whole) - side + 1):
            if whole[top, left, 0] == crop[0, 0, 0] and np.array_equal(
                whole[top : top + side, left : left + side], crop
            ):
                return top, left
    raise AssertionError("no crop of it")


@pytest.mark.parametrize("degrade", [SHARP, BLURRED], ids=["sharp", "blurred"])
def test_the_low_resolution_of_a_crop_is_the_crop_of_the_low_resolution(degrade):
    source, pixels = record()
    example = upsampling.upsampling_example(degrade, image_size=SIZE, low_size=LOW)
    whole = images.resize(
        degrade(pixels, TIMES, np.random.default_rng(0)), (SIZE, SIZE)
    )
    corners = set()
    for seed in range(12):
        pair = example(source, np.random.default_rng(seed))
        top, left = find(pair["image"], pixels)
        corners.add((top, left))
        side = SIZE // 4
        expected = whole[top : top + side, left : left + side]
        np.testing.assert_allclose(pair["low_res"], expected, atol=2e-5)
    assert len(corners) > 6


def test_what_lies_beyond_its_reach_does_not_change_a_degraded_crop(monkeypatch):
    """BSR of a part of a larger image: the margin is as good as the whole."""
    # noise, whose draws are as many as there are pixels, would change all that follow
    monkeypatch.setattr(degradation, "add_noise", lambda image, rng, levels: image)
    quiet = functools.partial(degradation.bsr, quality=(95, 95), jpeg=0.0)
    smooth = images.resize(
        np.random.default_rng(0).uniform(-1, 1, (24, 24, 3)), (512, 512)
    )
    reach, start, side = degradation.REACH, 48, 32
    part = slice(4 * (start - reach), 4 * (start + side + reach))
    inner = slice(reach, reach + side)
    worst = []
    for seed in range(6):
        whole = quiet(smooth, 4, np.random.default_rng(seed))
        alone = quiet(smooth[part, part], 4, np.random.default_rng(seed))
        error = whole[start : start + side, start : start + side] - alone[inner, inner]
        worst.append(np.sqrt(np.mean(error**2)))
    # but for the last JPEG, whose blocks are rounded each on its own
    assert max(worst) < 0.03


def test_whole_images_are_a_crop_fraction_of_one():
    source, pixels = record(seed=1)
    example = upsampling.upsampling_example(
        SHARP, image_size=SIZE, low_size=LOW, crop_fraction=1.0
    )
    pair = example(source, np.random.default_rng(0))
    np.testing.assert_array_equal(pair["image"], pixels)
    small = degradation.shrink(pixels, TIMES)
    np.testing.assert_allclose(
        pair["low_res"], images.resize(small, (SIZE, SIZE)), atol=1e-6
    )


def test_both_are_flipped_together():
    source, pixels = record(seed=2)
    options = dict(image_size=SIZE, low_size=LOW, crop_fraction=1.0)
    example = upsampling.upsampling_example(SHARP, flip=True, **options)
    seen = set()
    for seed in range(8):
        pair = example(source, np.random.default_rng(seed))
        is_flipped = not np.array_equal(pair["image"], pixels)
        seen.add(is_flipped)
        small = degradation.shrink(pair["image"], TIMES)
        np.testing.assert_allclose(
            pair["low_res"], images.resize(small, (SIZE, SIZE)), atol=1e-6
        )
    assert seen == {False, True}


def test_batches_are_a_function_of_the_seed():
    sources = [record(seed=seed)[0] for seed in range(4)]
    for name, degrade in degradation.DEGRADATIONS.items():
        example = upsampling.upsampling_example(degrade, image_size=64, low_size=16)
        example = pickle.loads(pickle.dumps(example))  # as worker processes get it
        first, again = (
            next(batches.make_batches(sources, example, batch_size=4, seed=5))
            for _ in range(2)
        )
        assert first["image"].shape == first["low_res"].shape == (4, 16, 16, 3), name
        assert first["image"].dtype == first["low_res"].dtype == np.float32
        for key in ("image", "low_res"):
            np.testing.assert_array_equal(first[key], again[key])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (dict(image_size=64, low_size=24), "low_size 24: image_size 64"),
        (dict(image_size=64, low_size=64), "low_size 64"),
        (
            dict(image_size=64, low_size=16, crop_fraction=0.3),
            "crop_fraction 0.3 of 64",
        ),
        (dict(image_size=64, low_size=16, crop_fraction=1.5), "crop_fraction 1.5"),
        (dict(image_size=64, low_size=16, crop_fraction=0.0), "crop_fraction 0.0"),
        (dict(image_size=64, low_size=16, crop="middle"), "unknown crop 'middle'"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, error):
    with pytest.raises(ValueError, match=error):
        upsampling.upsampling_example(SHARP, **options)
