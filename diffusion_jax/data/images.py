"""Encoded bytes -> square float32 images in [-1, 1], height x width x 3."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from diffusion_jax.data import records

Pixels = Float[np.ndarray, "_ _ C"]  # of any height and width

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
MAX_PIXELS = 2**26  # 8192 x 8192; more is taken for a decompression bomb
CROPS = ("center", "random")


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An upright RGB image; BadRecord if it is broken, cut short or too large.

    Transparency is laid on white; the size is checked before any pixel is decoded.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise records.BadRecord(
                    f"{width} x {height} pixels are more than {max_pixels}"
                )
            return _to_rgb(ImageOps.exif_transpose(image))
    except records.BadRecord:
        raise
    # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ... and
    # its warning about large images arrives here where warnings are errors.
    except Exception as error:
        raise records.BadRecord(f"not a readable image: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's convert would clip
        grey = np.asarray(image).astype(np.float32) / 257
        return Image.fromarray(np.round(grey).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(paper, image).convert("RGB")
    return image.convert("RGB")


def square(
    image: Image.Image, size: int, *, crop: str, rng: np.random.Generator | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """The shorter side resized to `size` (bicubic, antialiased), the longer cropped.

    Crops first, so that a very long image costs no more than a square one.
    """
    if crop not in CROPS:
        raise ValueError(f"unknown crop {crop!r}; one of {', '.join(CROPS)}")
    width, height = image.size
    side = min(width, height)
    if crop == "random" and rng is not None:
        left = int(rng.integers(width - side, endpoint=True))
        top = int(rng.integers(height - side, endpoint=True))
    else:
        left, top = (width - side) // 2, (height - side) // 2
    if (width, height) != (size, size):
        box = (left, top, left + side, top + side)
        image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.asarray(image)


def flip(
    image: UInt8[np.ndarray, "H W 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """Mirrors half of the images left to right."""
    return image[:, ::-1] if rng.random() < 0.5 else image


def to_float(image: UInt8[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """0..255 -> float32 in [-1, 1]."""
    return image.astype(np.float32) * np.float32(1 / 127.5) - np.float32(1)


def to_uint8(image: Float[np.ndarray, "*n"]) -> UInt8[np.ndarray, "*n"]:
    """The nearest of 0..255; inverts `to_float`, and clips what lies outside."""
    return np.round(255 * (np.clip(image, -1, 1) + 1) / 2).astype(np.uint8)


def resize(
    image: Pixels,
    size: tuple[int, int],
    *,
    box: tuple[int, int, int, int] | None = None,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Pixels:
    """To (height, width), antialiased and unrounded; bicubic results may overshoot.

    Of a `box` (left, top, right, bottom) alone, as it is in the resized whole: at its
    border the pixels around it count too.
    """
    channels = np.ascontiguousarray(np.moveaxis(image, -1, 0), np.float32)
    resized = [
        Image.fromarray(channel).resize(size[::-1], resample, box)
        for channel in channels
    ]
    return np.stack(resized, axis=-1)
