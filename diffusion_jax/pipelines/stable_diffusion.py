"""Stable Diffusion: text tower -> latent diffusion -> decoder (arXiv:2112.10752)."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.diffusion.samplers.integrate import Keys
from diffusion_jax.models.autoencoder import AutoencoderKL
from diffusion_jax.models.clip import CLIPText
from diffusion_jax.pipelines.stage import Stage, sample
from diffusion_jax.types import Conditioning, Params


@dataclasses.dataclass(frozen=True)
class StableDiffusion:
    """Holds no weights: `params` has "text_encoder", "unet", "vae", "latent_scale"."""

    text_encoder: CLIPText
    unet: Stage
    vae: AutoencoderKL
    latent_shape: tuple[int, int, int]
    pooled: bool = False  # the U-Net hears the pooled caption too

    def __call__(
        self,
        params: Params,
        keys: Keys,
        tokens: Int[Array, "B L"],
        null_tokens: Int[Array, "1 L"],
        scale: float | Float[Array, ""] | None = None,
    ) -> Float[Array, "B H W 3"]:
        """Images in [-1, 1]; `keys` holds one key per image."""
        latents, _ = self.latents(params, keys, tokens, null_tokens, scale)
        return self.decode(params, latents)

    def latents(
        self,
        params: Params,
        keys: Keys,
        tokens: Int[Array, "B L"],
        null_tokens: Int[Array, "1 L"],
        scale: float | Float[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B h w c"], Float[Array, "steps B h w c"]]:
        """The final latents, and those that each step predicted as clean."""
        cond = self._condition(params, tokens)
        null = self._condition(params, null_tokens)
        shape = self.latent_shape
        return sample(self.unet, params["unet"], keys, shape, cond, null, scale=scale)

    def decode(
        self, params: Params, latents: Float[Array, "B h w c"]
    ) -> Float[Array, "B H W 3"]:
        """Images in [-1, 1] of scaled latents."""
        z = latents / params["latent_scale"]
        image = self.vae.apply({"params": params["vae"]}, z, method="decode")
        return jnp.clip(image, -1.0, 1.0).astype(jnp.float32)

    def _condition(self, params: Params, tokens: Int[Array, "B L"]) -> Conditioning:
        variables = {"params": params["text_encoder"]}
        hidden, pooled = self.text_encoder.apply(variables, tokens)
        return Conditioning(tokens=hidden, vector=pooled if self.pooled else None)
