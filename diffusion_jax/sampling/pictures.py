"""Files that sampling starts from: pictures, masks and noise."""

from __future__ import annotations

import pathlib

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps

from diffusion_jax import build

Size = tuple[int, int]  # height, width


def read(path: str | pathlib.Path) -> Image.Image:
    """The picture, upright, in its own mode."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except FileNotFoundError as error:
        raise build.ConfigError(f"no image {path}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise build.ConfigError(
            f"{path} is no image that can be read: {reason}"
        ) from error


def check(path: str | pathlib.Path) -> None:
    """Raises unless it begins as a picture does; the pixels are not read."""
    try:
        Image.open(path).close()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise build.ConfigError(
            f"{path} is no image that can be read: {reason}"
        ) from error


def read_mask(path: str | pathlib.Path, picture: Image.Image) -> Image.Image:
    """A mask, which must be of the picture's size."""
    mask = read(path)
    if size_of(mask) != size_of(picture):
        raise build.ConfigError(
            "the mask is of {} x {} pixels (height x width), the image of {} x {}".format(
                *size_of(mask), *size_of(picture)
            )
        )
    return mask


def check_paints(mask: Float[np.ndarray, "H W 1"], name: str) -> None:
    """Raises for a mask that keeps everything."""
    if not (mask >= 0.5).any():
        raise build.ConfigError(f"{name} is black: white is where to paint")


def square(picture: Image.Image) -> Image.Image:
    """What is in the middle, of the shorter side."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def size_of(image: Image.Image) -> Size:
    return image.height, image.width


def check_fits(path: str, size: Size, unit: int) -> None:
    """Raises unless both sides are multiples of `unit`."""
    if size[0] % unit or size[1] % unit:
        height, width = (max(unit, round(side / unit) * unit) for side in size)
        raise build.ConfigError(
            f"{path} is {size[0]} x {size[1]} pixels (height x width), but sizes are "
            f"multiples of {unit}: --height {height} --width {width} would resize it"
        )


def to_array(
    image: Image.Image,
    size: Size,
    resampling: Image.Resampling = Image.Resampling.LANCZOS,
) -> Float[np.ndarray, "H W 3"]:
    """Float pixels in [-1, 1], resized if need be; transparency is dropped."""
    image = _resized(_eight_bits(image).convert("RGB"), size, resampling)
    return np.asarray(image, np.float32) / 127.5 - 1


def to_mask(image: Image.Image, size: Size) -> Float[np.ndarray, "H W 1"]:
    """1 where the picture is white, 0 where black; resized if need be."""
    image = _resized(_eight_bits(image).convert("L"), size)
    return np.asarray(image, np.float32)[..., None] / 255


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey picture of 16 bits in 8, which `convert` would cut at 255."""
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    grey = np.clip(np.asarray(image, np.float64), 0, 65535)
    return Image.fromarray(np.rint(grey / 257).astype(np.uint8))


def _resized(
    image: Image.Image,
    size: Size,
    resampling: Image.Resampling = Image.Resampling.LANCZOS,
) -> Image.Image:
    if size_of(image) == size:
        return image
    return image.resize((size[1], size[0]), resampling)


def read_noise(
    path: str | pathlib.Path, shape: tuple[int, int, int]
) -> Float[np.ndarray, "N h w c"]:
    """Noise of latents of `shape` (h, w, c), saved as (N, h, w, c) or (N, c, h, w).

    Where both fit, the first is meant. The N may be left out.
    """
    try:
        noise = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise build.ConfigError(f"no array {path}") from error
    except (OSError, ValueError, EOFError) as error:
        raise build.ConfigError(f"{path} is not an array of numpy.save") from error
    if not isinstance(noise, np.ndarray) or noise.dtype.kind != "f":
        kind = getattr(noise, "dtype", "several arrays")
        raise build.ConfigError(f"{path} holds {kind}; noise is of floats")
    noise = noise[None] if noise.ndim == 3 else noise
    height, width, channels = shape
    if noise.shape[1:] == (channels, height, width) != shape:
        noise = noise.transpose(0, 2, 3, 1)
    if noise.shape[1:] != shape or not len(noise):
        raise build.ConfigError(
            f"{path} is of shape {noise.shape}; this model and size take "
            f"(N, {height}, {width}, {channels}) or (N, {channels}, {height}, {width})"
        )
    if not np.isfinite(noise).all():
        raise build.ConfigError(f"{path} has values that are not finite")
    return np.ascontiguousarray(noise, np.float32)
