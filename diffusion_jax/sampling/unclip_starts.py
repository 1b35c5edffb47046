"""The pictures that DALL·E 2 starts from: squares, since CLIP sees nothing else."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from jaxtyping import Float
from PIL import Image

from diffusion_jax import build
from diffusion_jax.sampling import pictures, plans

Picture = Float[np.ndarray, "s s 3"]
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class Start(NamedTuple):
    """What images start from; None where there is nothing."""

    image: Picture | None = None
    other: Picture | None = None  # the other end of an interpolation
    mask: Float[np.ndarray, "s s 1"] | None = None
    others: list[pathlib.Path] | None = None  # that have principal components
    cropped: tuple[str, ...] = ()  # files of which the central square is taken


def read(chosen: flags.FlagValues, side: int | None) -> Start:
    """The files to start from, of each its central square, of `side` if that is given."""
    found: dict[str, Any] = {}
    cropped = []
    for flag, name in {"init_image": "image", "to_image": "other"}.items():
        if chosen[flag].value is None:
            continue
        picture = pictures.read(plans.path(chosen[flag].value))
        if picture.width != picture.height:
            cropped.append(chosen[flag].value)
        found[name] = _to_array(picture, side)
        if name == "image" and chosen.mask is not None:
            mask = pictures.read_mask(plans.path(chosen.mask), picture)
            found["mask"] = _to_mask(mask, side, chosen.mask)
    if chosen.components is not None:
        found["others"] = find_others(plans.path(chosen.components))
    return Start(**found, cropped=tuple(cropped))


def _to_array(picture: Image.Image, side: int | None = None) -> Picture:
    middle = pictures.square(picture)
    return pictures.to_array(middle, (side or middle.width,) * 2)


def _to_mask(
    mask: Image.Image, side: int | None, name: str
) -> Float[np.ndarray, "s s 1"]:
    middle = pictures.square(mask)
    found = pictures.to_mask(middle, (side or middle.width,) * 2)
    pictures.check_paints(found, name)
    return found


def find_others(directory: str) -> list[pathlib.Path]:
    """All pictures of a directory, whose pixels are not read yet."""
    root = pathlib.Path(directory)
    if not root.is_dir():
        raise build.ConfigError(f"--components {directory} is not a directory")
    paths = [p for p in sorted(root.iterdir()) if p.suffix.lower() in SUFFIXES]
    if len(paths) < 2:
        raise build.ConfigError(
            f"{directory} has {len(paths)} pictures; components need 2 at least"
        )
    for path in paths:
        pictures.check(path)
    return paths


def read_small(
    paths: Sequence[pathlib.Path], side: int
) -> Float[np.ndarray, "N side side 3"]:
    """The middles of pictures at the size that CLIP sees, resized as that does it."""
    middles = (pictures.square(pictures.read(path)) for path in paths)
    bicubic = Image.Resampling.BICUBIC
    return np.stack([pictures.to_array(m, (side, side), bicubic) for m in middles])
