"""The corrupted low-resolution images that an upsampler is trained to look past.

Ramesh et al. (2022, arXiv:2204.06125, section 2.1) blur the condition of the first
upsampler and give that of the second the degradation "BSR" of

    K. Zhang, J. Liang, L. Van Gool, R. Timofte, "Designing a practical degradation
    model for deep blind image super-resolution", 2021, arXiv:2103.14006, section 3:

two blurs, downsampling, noise and JPEG in a random order, then JPEG once more. The
noise of a camera's sensor, a network of theirs, is left out. Images are float32 in
[-1, 1]. A degradation is a function (image, times, rng) -> the image `times` smaller,
and never moves what the image shows.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from PIL import Image
from scipy import signal

from diffusion_jax.data import images
from diffusion_jax.data.images import Pixels

Degradation = Callable[[Pixels, int, np.random.Generator], Pixels]

KERNEL_SIZES = (7, 9, 11, 13, 15, 17, 19, 21)
REACH = 24  # low-resolution pixels; what lies farther away has no influence
HALVED_FIRST = 0.25  # how often what shrinks four times does so in two steps
GREY, INDEPENDENT = 0.4, 0.4  # how often noise is so; else it correlates the channels
FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)


def none(image: Pixels, times: int, rng: np.random.Generator, /) -> Pixels:
    """Bicubic downsampling alone."""
    return shrink(image, times)


def blur(
    image: Pixels,
    times: int,
    rng: np.random.Generator,
    /,
    *,
    probability: float = 0.5,
    size: int = 3,
    sigma: float = 0.6,
) -> Pixels:
    """Bicubic downsampling, then in a share `probability` of the images a Gaussian blur.

    `size` and `sigma` are in pixels of the small image.
    """
    small = shrink(image, times)
    if rng.random() >= probability:
        return small
    return convolve(small, gaussian(size, sigma**2 * np.eye(2)))


def bsr(
    image: Pixels,
    times: int,
    rng: np.random.Generator,
    /,
    *,
    width: float = 1.0,
    noise: tuple[int, int] = (2, 25),
    quality: tuple[int, int] = (30, 95),
    jpeg: float = 0.9,
) -> Pixels:
    """Degrades in a random order, by random amounts.

    `width` is a factor on the blurs, `noise` the range of its standard deviation in
    255ths of white, `quality` that of JPEG, `jpeg` how often there is one before the
    last. Milder ranges that have been used are width=0.25, noise=(2, 8),
    quality=(80, 95) (Rombach et al., 2022, arXiv:2112.10752, appendix D.6.1).
    """
    check_sides(image, times)
    if times == 4 and rng.random() < HALVED_FIRST:
        image, times = downsample(image, 2, rng), 2
    steps = [
        functools.partial(blur_isotropic, most=width * (2 + 0.2 * times)),
        functools.partial(blur_anisotropic, most=width * (4 + times)),
        lambda image, rng: downsample(image, times, rng),
        functools.partial(add_noise, levels=noise),
    ]
    if rng.random() < jpeg:
        steps.append(functools.partial(compress, quality=quality))
    for index in rng.permutation(len(steps)):
        image = np.clip(steps[index](image, rng), -1, 1)
    return compress(image, rng, quality=quality)


DEGRADATIONS: dict[str, Callable[..., Pixels]] = {
    "none": none,
    "blur": blur,
    "bsr": bsr,
}


# ---- what BSR is made of ------------------------------------------------------------


def blur_isotropic(image: Pixels, rng: np.random.Generator, *, most: float) -> Pixels:
    """By a Gaussian of standard deviation up to `most` pixels."""
    sigma = rng.uniform(min(0.1, most), most)
    return convolve(image, gaussian(_kernel_size(rng), sigma**2 * np.eye(2)))


def blur_anisotropic(image: Pixels, rng: np.random.Generator, *, most: float) -> Pixels:
    """By a turned Gaussian of variances up to `most` along its axes."""
    angle = rng.uniform(0, np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]])
    variances = rng.uniform(min(0.5, most), most, 2)
    return convolve(image, gaussian(_kernel_size(rng), turn * variances @ turn.T))


def _kernel_size(rng: np.random.Generator) -> int:
    return KERNEL_SIZES[rng.integers(len(KERNEL_SIZES))]


def downsample(image: Pixels, times: int, rng: np.random.Generator) -> Pixels:
    """By nearest neighbour, bilinear, bicubic, or through another size between.

    That size lies between an enlargement of two and the final size.
    """
    kind = rng.integers(4)
    if kind == 0:
        return nearest(image, times)
    if kind in (1, 2):
        return shrink(image, times, resample=FILTERS[kind - 1])
    between = rng.uniform(0.5, times)
    size = tuple(max(1, round(side / between)) for side in image.shape[:2])
    final = tuple(side // times for side in image.shape[:2])
    for next_size in (size, final):
        image = images.resize(image, next_size, resample=FILTERS[rng.integers(2)])
    return np.clip(image, -1, 1)


def nearest(image: Pixels, times: int) -> Pixels:
    """What is in the centre of each block; between four pixels, their mean."""
    first, second = (times - 1) // 2, times // 2
    rows = image[first::times] + image[second::times]
    return (rows[:, first::times] + rows[:, second::times]) / 4


def add_noise(
    image: Pixels, rng: np.random.Generator, *, levels: tuple[int, int]
) -> Pixels:
    """Gaussian: grey, in each channel of its own, or with a random covariance."""
    std = rng.integers(*levels, endpoint=True) / 127.5
    kind = rng.random()
    is_grey = kind < GREY
    noise = rng.normal(size=(*image.shape[:2], 1 if is_grey else 3))
    if kind >= GREY + INDEPENDENT:
        directions, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        noise = noise * np.sqrt(rng.random(3)) @ directions.T
    return (image + std * noise).astype(np.float32)


def compress(
    image: Pixels, rng: np.random.Generator, *, quality: tuple[int, int]
) -> Pixels:
    """What JPEG leaves of the image."""
    file = io.BytesIO()
    level = int(rng.integers(*quality, endpoint=True))
    Image.fromarray(images.to_uint8(image)).save(file, "JPEG", quality=level)
    return images.to_float(np.asarray(Image.open(file)))


# ---- filters ------------------------------------------------------------------------


def shrink(
    image: Pixels,
    times: int,
    *,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Pixels:
    """A `times`-th of both sides, within [-1, 1]."""
    check_sides(image, times)
    size = tuple(side // times for side in image.shape[:2])
    return np.clip(images.resize(image, size, resample=resample), -1, 1)


def check_sides(image: Pixels, times: int) -> None:
    """Raises unless both sides are a multiple of `times`."""
    height, width = image.shape[:2]
    if height % times or width % times:
        raise ValueError(f"{height} x {width} pixels do not shrink {times} times")


def gaussian(
    size: int, covariance: Float[np.ndarray, "2 2"]
) -> Float[np.ndarray, "size size"]:
    """A Gaussian at the pixels around its mean, of sum 1."""
    axis = np.arange(size) - (size - 1) / 2
    offsets = np.stack(np.meshgrid(axis, axis), axis=-1)
    precision = np.linalg.inv(covariance)
    kernel = np.exp(-0.5 * np.einsum("yxi,ij,yxj->yx", offsets, precision, offsets))
    return kernel / kernel.sum()


def convolve(image: Pixels, kernel: Float[np.ndarray, "K K"]) -> Pixels:
    """Each channel on its own; the image is mirrored at its border."""
    margin = (kernel.shape[0] // 2,) * 2
    padded = np.pad(image, (margin, margin, (0, 0)), mode="reflect")
    kernel = kernel.astype(np.float32)[..., None]
    return signal.oaconvolve(padded, kernel, mode="valid", axes=(0, 1))
