"""Inpainting with the decoder of DALL·E 2: what is kept stays what it is to the pixel.

In every step of the decoder what is known, with its noise, takes the place of what the
network sees and says of it (Avrahami et al., 2022, arXiv:2206.02779).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.diffusion import denoiser
from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.samplers.integrate import Keys
from diffusion_jax.models import clip_towers
from diffusion_jax.pipelines import dalle2
from diffusion_jax.pipelines import stage as stages
from diffusion_jax.pipelines.dalle2 import Dalle2, Heard, Scale
from diffusion_jax.types import Params


def inpaint(
    pipeline: Dalle2,
    params: Params,
    keys: Keys,
    heard: Heard,
    images: Float[Array, "B H W 3"],
    mask: Float[Array, "B _ _ 1"],
    scale: Scale | None = None,
    *,
    image_scale: Scale | None = None,
    num_upsamplers: int | None = None,
) -> Float[Array, "B S S 3"]:
    """Images in [-1, 1] painted where `mask`, in [0, 1], is at least a half.

    `heard` says what to paint. The result has the pipeline's size; given images of that
    size, what is kept is theirs bit for bit.
    """
    if mask.shape != (*images.shape[:3], 1):
        raise ValueError(
            f"a mask of {mask.shape} for images of {images.shape}; "
            f"it must be {(*images.shape[:3], 1)}"
        )
    mask = (mask >= 0.5).astype(jnp.float32)
    size = pipeline.size
    known, kept = _linear(images, size), 1 - shrunk(mask, size)
    shape = (size, size, 3)
    noise = stages.prior_noise(dalle2.keys_of(keys, dalle2.DECODER), shape)

    def around(denoise: Denoiser) -> Denoiser:
        return denoiser.blended(denoise, known, kept, noise)

    painted = pipeline.decode(
        params, keys, heard, scale, image_scale=image_scale, noise=noise, wrap=around
    )
    painted = jnp.where(kept > 0, known, painted)
    painted = pipeline.upsample(params, keys, painted, num_upsamplers)
    size = painted.shape[1]
    kept = shrunk(mask, size) == 0
    return jnp.where(kept, clip_towers.resized(images, size), painted)


def shrunk(mask: Float[Array, "B H W 1"], size: int) -> Float[Array, "B h w 1"]:
    """A mask of zeros and ones at another size: 1 wherever any of what is painted is."""
    return (_linear(mask, size) > 1e-6).astype(jnp.float32)


def _linear(x: Float[Array, "B H W C"], size: int) -> Float[Array, "B h w C"]:
    """By one kernel for mask and image: what is kept sees nothing of what is not."""
    if x.shape[1:3] == (size, size):
        return x
    shape = (len(x), size, size, x.shape[-1])
    return jax.image.resize(x, shape, "linear", antialias=True)
