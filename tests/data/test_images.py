"""Images: any encoding becomes upright RGB in [-1, 1], and bombs are refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import images, records

RNG = np.random.default_rng(0)


def encoded(array_or_image, form="png", **options):
    image = array_or_image
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def pixels(data):
    return np.asarray(images.decode(data))


def test_rgb_survives_a_lossless_file():
    array = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for form, options in (("png", {}), ("webp", {"lossless": True}), ("bmp", {})):
        np.testing.assert_array_equal(pixels(encoded(array, form, **options)), array)


def test_transparency_is_laid_on_white():
    array = np.zeros((4, 4, 4), np.uint8)
    array[:2] = (200, 0, 0, 255)
    array[2, :] = (0, 0, 0, 51)
    decoded = pixels(encoded(array))
    np.testing.assert_array_equal(decoded[0], np.broadcast_to((200, 0, 0), (4, 3)))
    np.testing.assert_array_equal(decoded[2], 204)
    np.testing.assert_array_equal(decoded[3], 255)
    palette = Image.fromarray(array).convert("P")
    assert pixels(encoded(palette, transparency=0)).shape == (4, 4, 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(mode):
    image = Image.fromarray(np.full((8, 8, 3), 255, np.uint8)).convert(mode)
    form = "jpeg" if mode in ("CMYK", "YCbCr") else "png"
    np.testing.assert_allclose(pixels(encoded(image, form)), 255, atol=2)


def test_sixteen_bit_grey_keeps_its_range():
    levels = np.array([[0, 257 * 100, 257 * 255]], np.uint16)
    decoded = pixels(encoded(levels))
    np.testing.assert_array_equal(decoded[0, :, 0], [0, 100, 255])


def test_rotation_in_the_metadata_is_applied():
    array = np.zeros((4, 8, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(array, "jpeg", exif=exif)
    assert images.decode(data).size == (4, 8)


def bomb(width, height):
    """A PNG that claims a size it does not hold."""

    def chunk(kind, body):
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


@pytest.mark.parametrize("side", [9_000, 12_000, 100_000])
def test_decompression_bombs_are_refused_before_they_are_decoded(side):
    with pytest.raises(records.BadRecord, match="pixels"):
        images.decode(bomb(side, side))


def test_broken_files_are_bad_records():
    whole = encoded(RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8), "jpeg")
    for data in (b"", b"no image", whole[: len(whole) // 2], bomb(8, 8), whole[:30]):
        with pytest.raises(records.BadRecord):
            images.decode(data)


def test_formats_that_run_programs_are_not_opened():
    with pytest.raises(records.BadRecord):
        images.decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")


def test_a_square_of_the_right_size_is_left_alone():
    array = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = Image.fromarray(array)
    np.testing.assert_array_equal(images.square(image, 32, crop="center"), array)


def test_the_centre_crop_is_in_the_centre():
    array = RNG.integers(0, 256, (32, 52, 3), dtype=np.uint8)
    cut = images.square(Image.fromarray(array), 32, crop="center")
    np.testing.assert_array_equal(cut, array[:, 10:42])


def test_a_random_crop_is_a_window_and_reaches_both_ends():
    array = RNG.integers(0, 256, (35, 32, 3), dtype=np.uint8)
    rng = np.random.default_rng(0)
    tops = set()
    for _ in range(60):
        cut = images.square(Image.fromarray(array), 32, crop="random", rng=rng)
        (top,) = (t for t in range(4) if (cut == array[t : t + 32]).all())
        tops.add(top)
    assert tops == {0, 1, 2, 3}


def test_resizing_keeps_a_constant_and_does_not_alias():
    flat = Image.fromarray(np.full((100, 150, 3), 77, np.uint8))
    assert (images.square(flat, 32, crop="center") == 77).all()
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 255
    shrunk = images.square(Image.fromarray(stripes), 32, crop="center")
    assert np.abs(shrunk[:, 2:-2].astype(int) - 128).max() < 8


def test_a_very_long_image_costs_no_more_than_its_crop():
    long = Image.new("RGB", (1, 60_000), "red")
    cut = images.square(long, 64, crop="center")
    assert cut.shape == (64, 64, 3)


def test_flip_mirrors_half_of_the_images():
    array = RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    rng = np.random.default_rng(0)
    flipped = [not (images.flip(array, rng) == array).all() for _ in range(400)]
    assert 0.4 < np.mean(flipped) < 0.6


def test_float_and_back_is_the_identity():
    every = np.arange(256, dtype=np.uint8)
    floats = images.to_float(every)
    assert floats.dtype == np.float32
    assert floats.min() == -1
    assert floats.max() == 1
    np.testing.assert_array_equal(images.to_uint8(floats), every)
    np.testing.assert_array_equal(images.to_uint8(np.array([-3.0, 3.0])), [0, 255])


def test_an_unknown_crop_names_the_choices():
    with pytest.raises(ValueError, match="center, random"):
        images.square(Image.new("RGB", (4, 4)), 4, crop="left")
