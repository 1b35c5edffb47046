"""Stable Diffusion: text towers -> latent diffusion -> decoder (arXiv:2112.10752).

All of it is pure functions of (params, keys, prompts, ...), to be jitted by the caller:

    pipeline(params, keys, prompt, negative, 7.5)              text to image
    pipeline.condition(params, prompt)                         what the U-Net is told
    pipeline.latents(params, keys, cond, null, 7.5, start)     sampling alone
    pipeline.encode(params, image), pipeline.decode(params, latents)

edits.py has what starts from an image.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.diffusion import denoiser
from diffusion_jax.diffusion.samplers.integrate import Keys
from diffusion_jax.models import layers, tiling
from diffusion_jax.models.autoencoder import AutoencoderKL
from diffusion_jax.models.text import TextEncoders
from diffusion_jax.pipelines import stage as stages
from diffusion_jax.pipelines.stage import Stage
from diffusion_jax.types import Conditioning, Params, Prompt

AESTHETIC_SCORES = (6.0, 2.5)  # that SDXL's refiner hears of the prompt, the negative


class Start(NamedTuple):
    """Where sampling starts, if not from noise drawn from the keys; all optional."""

    noise: Float[Array, "B h w c"] | None = None  # N(0, 1)
    latents: Float[Array, "B h w c"] | None = None  # the clean image that gets noise
    noisy: Float[Array, "B h w c"] | None = None  # what the first step sees, as it is
    mask: Float[Array, "B h w 1"] | None = None  # 1 where to paint, 0 where to keep
    known: Float[Array, "B h w c"] | None = None  # what to keep; with a mask


FROM_NOISE = Start()


@dataclasses.dataclass(frozen=True)
class StableDiffusion:
    """Holds no weights: `params` has "text_encoder", "unet", "vae", "latent_scale"."""

    text: TextEncoders
    unet: Stage
    vae: AutoencoderKL
    latent_shape: tuple[int, int, int]
    pooled: bool = False  # the U-Net hears the pooled caption too
    num_size_ids: int = 0  # and the sizes of the image; 6: SDXL, 5: its refiner
    size_id_width: int = 256
    inpaints: bool = False  # the U-Net also sees the mask and what it leaves
    latent_shift: float = 0.0
    tile: int | None = None  # latents a side, of the tiles of the autoencoder
    is_sliced: bool = False  # the autoencoder takes one image at a time

    def __call__(
        self,
        params: Params,
        keys: Keys,
        prompt: Prompt,
        negative: Prompt,
        scale: float | Float[Array, "..."] | None = None,
        start: Start = FROM_NOISE,
    ) -> Float[Array, "B H W 3"]:
        """Images in [-1, 1]; `keys` holds one key per image, `negative` may have one row."""
        latents, _ = self.text_to_latents(params, keys, prompt, negative, scale, start)
        return self.decode(params, latents)

    def text_to_latents(
        self,
        params: Params,
        keys: Keys,
        prompt: Prompt,
        negative: Prompt,
        scale: float | Float[Array, "..."] | None = None,
        start: Start = FROM_NOISE,
    ) -> tuple[Float[Array, "B h w c"], Float[Array, "steps B h w c"]]:
        """The final latents, and those that each step predicted as clean."""
        cond = self.condition(params, prompt)
        null = self.condition(params, negative, is_negative=True)
        return self.latents(params, keys, cond, null, scale, start)

    def condition(
        self,
        params: Params,
        prompt: Prompt,
        size_ids: Float[Array, "B N"] | None = None,
        *,
        is_negative: bool = False,
    ) -> Conditioning:
        """What the U-Net is told of prompts; `size_ids` default to an uncropped image."""
        if not is_negative:  # only an empty negative prompt may be zeros
            prompt = prompt._replace(is_empty=jnp.zeros_like(prompt.is_empty))
        hidden, pooled = self.text(params, prompt)
        if not self.num_size_ids:
            return Conditioning(tokens=hidden, vector=pooled if self.pooled else None)
        if size_ids is None:
            size_ids = jnp.asarray([self.default_size_ids(is_negative)])
        if size_ids.shape[-1] != self.num_size_ids:
            raise ValueError(
                f"{size_ids.shape[-1]} size ids; this model has {self.num_size_ids}"
            )
        size_ids = jnp.broadcast_to(size_ids, (len(hidden), self.num_size_ids))
        sinusoids = layers.sinusoid(size_ids.reshape(-1), self.size_id_width)
        sinusoids = sinusoids.reshape(len(hidden), -1)
        return Conditioning(tokens=hidden, vector=jnp.hstack([pooled, sinusoids]))

    def default_size_ids(self, is_negative: bool = False) -> tuple[float, ...]:
        """(height, width, top, left, height, width) of the image (arXiv:2307.01952, 2.2).

        The refiner hears an aesthetic score in place of the last two.
        """
        height, width = (float(side * self.factor) for side in self.latent_shape[:2])
        if self.num_size_ids == 5:
            return height, width, 0.0, 0.0, AESTHETIC_SCORES[is_negative]
        return height, width, 0.0, 0.0, height, width

    @property
    def factor(self) -> int:
        """How many pixels a latent is wide."""
        return self.vae.factor

    def latents(
        self,
        params: Params,
        keys: Keys,
        cond: Conditioning,
        null: Conditioning | None,
        scale: float | Float[Array, "..."] | None = None,
        start: Start = FROM_NOISE,
    ) -> tuple[Float[Array, "B h w c"], Float[Array, "steps B h w c"]]:
        """As `text_to_latents`, of conditions.

        With a mask, an inpainting U-Net is shown it and what is known; any other paints
        by blending (Avrahami et al., 2022, arXiv:2206.02779): in every step what is
        known, with its noise, takes the place of what the network sees and says of it.
        """
        shape, noise, wrap = self.latent_shape, start.noise, None
        if self.inpaints:
            if start.mask is None or start.known is None:
                raise ValueError("an inpainting U-Net needs a mask and what is known")
            seen = jnp.concatenate([start.mask, start.known], axis=-1)
            cond = cond._replace(image=seen)
            null = null if null is None else null._replace(image=seen)
        elif start.mask is not None:
            if noise is None:
                noise = stages.prior_noise(keys, shape)

            def wrap(denoise):
                return denoiser.blended(denoise, start.known, 1 - start.mask, noise)

        x, trace = stages.sample(
            self.unet,
            params["unet"],
            keys,
            shape,
            cond,
            null,
            scale=scale,
            noise=noise,
            x0=start.latents,
            x=start.noisy,
            wrap=wrap,
        )
        if wrap is not None:  # the grid may end with some noise on it
            x = jnp.where(start.mask > 0, x, start.known)
        return x, trace

    def encode(
        self, params: Params, image: Float[Array, "B H W 3"]
    ) -> Float[Array, "B h w c"]:
        """Scaled latents of images in [-1, 1]: the mean of their posterior."""
        mean = self._with_vae("encode", params, image)[0]
        return (mean - self.latent_shift) * params["latent_scale"]

    def decode(
        self, params: Params, latents: Float[Array, "B h w c"]
    ) -> Float[Array, "B H W 3"]:
        """Images in [-1, 1] of scaled latents."""
        z = latents / params["latent_scale"] + self.latent_shift
        image = self._with_vae("decode", params, z)
        return jnp.clip(image, -1.0, 1.0).astype(jnp.float32)

    def _with_vae(self, method: str, params: Params, x: Float[Array, "B ..."]) -> Any:
        def run(x: Float[Array, "B ..."]) -> Any:
            if self.tile is None:
                return self.vae.apply({"params": params["vae"]}, x, method=method)
            tiled = {"encode": tiling.encode, "decode": tiling.decode}[method]
            overlap = self.tile // 4
            return tiled(self.vae, params["vae"], x, size=self.tile, overlap=overlap)

        return tiling.one_by_one(run, x) if self.is_sliced else run(x)
