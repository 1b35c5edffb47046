"""What an upsampler adds to bicubic interpolation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.evaluation import accuracy, reconstruction
from diffusion_jax.evaluation.reconstruction import Images


class Score(NamedTuple):
    """How near images are to the originals, and whether they show their captions."""

    psnr: float  # dB
    accuracy: accuracy.Accuracy | None = None


class Comparison(NamedTuple):
    upsampled: Score
    bicubic: Score


def bicubic(low_res: Images, size: int) -> Float[Array, "B H W C"]:
    """Square images of `size` pixels a side, within [-1, 1]."""
    shape = (len(low_res), size, size, low_res.shape[-1])
    resized = jax.image.resize(jnp.asarray(low_res), shape, "cubic", antialias=True)
    return jnp.clip(resized, -1, 1)


def compare(
    originals: Images,
    low_res: Images,
    upsampled: Images,
    *,
    verify: Callable[..., Any] | None = None,
    captions: Sequence[str] = (),
) -> Comparison:
    """Scores images made of `low_res`, and beside them its bicubic interpolation.

    With `verify(image, caption)`, also the share of images that show their captions.
    """
    counts = {"low_res": len(low_res), "upsampled": len(upsampled)}
    if verify is not None:
        counts["captions"] = len(captions)
    for name, count in counts.items():
        if count != len(originals):
            raise ValueError(f"{count} {name} of {len(originals)} originals")

    def score(images: Images) -> Score:
        images = jnp.clip(jnp.asarray(images), -1, 1)
        psnr = float(reconstruction.psnr(originals, images))
        if verify is None:
            return Score(psnr)
        return Score(psnr, accuracy.fraction_true(verify, images, captions))

    return Comparison(score(upsampled), score(bicubic(low_res, originals.shape[1])))
