"""Pairs of an image and a degraded smaller one, for upsamplers.

Upsamplers are trained on crops of a quarter of the side and applied to whole images
(Ramesh et al., 2022, arXiv:2204.06125, section 2.1). The small image is that of the
whole, cut where the crop is: no border of a crop is in it that the whole has not.
"""

from __future__ import annotations

import functools

from diffusion_jax.data import degradation, images
from diffusion_jax.data.batches import Example, Row


def crop_side(image_size: int, low_size: int, crop_fraction: float) -> int:
    """Pixels a side of the crops; raises unless they are whole ones of both images."""
    if not 0 < low_size < image_size or image_size % low_size:
        raise ValueError(
            f"low_size {low_size}: image_size {image_size} must be a multiple of it"
        )
    side = round(image_size * crop_fraction)
    if not 0 < crop_fraction <= 1 or side == 0 or side % (image_size // low_size):
        raise ValueError(
            f"crop_fraction {crop_fraction} of {image_size} and of {low_size} pixels:"
            " both must be whole numbers of pixels"
        )
    return side


def upsampling_example(
    degrade: degradation.Degradation,
    *,
    image_size: int,
    low_size: int,
    crop_fraction: float = 0.25,
    crop: str = "center",
    flip: bool = False,
) -> Example:
    """Records -> `image` and `low_res`, float32 in about [-1, 1] and of equal size.

    `low_res` is the small image, enlarged bicubically. `crop` is that which makes the
    image square, before a `crop_fraction` of its side is taken at random.
    """
    if crop not in images.CROPS:
        raise ValueError(f"unknown crop {crop!r}; one of {', '.join(images.CROPS)}")
    return functools.partial(
        _pair,
        degrade=degrade,
        image_size=image_size,
        times=image_size // low_size,
        side=crop_side(image_size, low_size, crop_fraction) * low_size // image_size,
        crop=crop,
        flip=flip,
    )


def _pair(record, rng, *, degrade, image_size, times, side, crop, flip) -> Row:
    image = images.decode(record.image)
    image = images.square(image, image_size, crop=crop, rng=rng)
    if flip:
        image = images.flip(image, rng)
    low_size = image_size // times
    top, left = rng.integers(low_size - side, endpoint=True, size=2).tolist()
    image = images.to_float(image)
    low_res = _low_res(image, degrade, (top, left), side, times, rng)
    rows = slice(times * top, times * (top + side))
    columns = slice(times * left, times * (left + side))
    return {"image": image[rows, columns], "low_res": low_res}


def _low_res(image, degrade, corner, side, times, rng) -> images.Pixels:
    """The degraded small image where the crop is, `times` enlarged.

    Only what can have an influence on it is degraded.
    """
    reach = degradation.REACH
    starts = [max(0, at - reach) for at in corner]
    rows, columns = (
        slice(times * start, times * (at + side + reach))
        for start, at in zip(starts, corner)
    )
    low = degrade(image[rows, columns], times, rng)
    top, left = (at - start for start, at in zip(starts, corner))
    box = (left, top, left + side, top + side)
    return images.resize(low, (times * side, times * side), box=box)
