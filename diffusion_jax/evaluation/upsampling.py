"""What an upsampler adds to bicubic interpolation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.evaluation import accuracy, reconstruction
from diffusion_jax.evaluation.reconstruction import Images

LowRes = Float[Array | np.ndarray, "B h w C"]


class Score(NamedTuple):
    """How near images are to the originals, and whether they show their captions."""

    psnr: float  # dB
    accuracy: accuracy.Accuracy | None = None


class Comparison(NamedTuple):
    """An upsampler and the interpolation that it must beat, of the same small images."""

    upsampled: Score
    bicubic: Score


def bicubic(low_res: LowRes, size: int) -> Float[Array, "B H W C"]:
    """Square images of `size` pixels a side, larger or smaller, within [-1, 1]."""
    shape = (len(low_res), size, size, low_res.shape[-1])
    resized = jax.image.resize(jnp.asarray(low_res), shape, "cubic", antialias=True)
    return jnp.clip(resized, -1, 1)


def compare(
    originals: Images,
    low_res: LowRes,
    upsampled: Images,
    *,
    verify: Callable[..., Any] | None = None,
    captions: Sequence[str] = (),
) -> Comparison:
    """Scores images made of `low_res`, and beside them its bicubic interpolation.

    With `verify(image, caption)`, also the share of images that show their captions.
    """

    def score(images: Images) -> Score:
        images = jnp.clip(jnp.asarray(images), -1, 1)
        psnr = float(reconstruction.psnr(originals, images))
        if verify is None:
            return Score(psnr)
        return Score(psnr, accuracy.fraction_true(verify, images, captions))

    return Comparison(score(upsampled), score(bicubic(low_res, originals.shape[1])))
