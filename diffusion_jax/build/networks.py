"""Networks of a config: their fields are those of the modules."""

from __future__ import annotations

import functools

from ml_collections import ConfigDict

from diffusion_jax.build.choices import construct
from diffusion_jax.build.mathematics import learns_variance
from diffusion_jax.data import captions
from diffusion_jax.models.autoencoder import AutoencoderKL
from diffusion_jax.models.clip import CLIP, CLIPText, CLIPVision
from diffusion_jax.models.unet import UNet
from diffusion_jax.tasks import latent_diffusion


def clip_model(config: ConfigDict, tokenizer: captions.Tokenizer) -> CLIP:
    vision = construct(
        "clip.vision",
        functools.partial(CLIPVision, image_size=config.data.image_size),
        config.clip.vision,
    )
    return CLIP(text_encoder(config, tokenizer), vision, config.clip.projection_dim)


def text_encoder(config: ConfigDict, tokenizer: captions.Tokenizer) -> CLIPText:
    text = functools.partial(
        CLIPText,
        vocab_size=tokenizer.vocab_size,
        context_length=tokenizer.context_length,
        eos_id=tokenizer.eos_id,
    )
    return construct("clip.text", text, config.clip.text)


def autoencoder(config: ConfigDict) -> AutoencoderKL:
    return construct("vae", AutoencoderKL, config.vae)


def towers(
    config: ConfigDict, tokenizer: captions.Tokenizer
) -> latent_diffusion.Towers:
    text = text_encoder(config, tokenizer)
    return latent_diffusion.Towers(autoencoder(config), text, hears_pooled(config))


def hears_pooled(config: ConfigDict) -> bool:
    """Whether the U-Net is told the pooled caption beside its tokens."""
    return config.unet.get("vector", "none") != "none"


def unet(config: ConfigDict) -> UNet:
    """Its output has twice the channels of the latents if it learns a variance too."""
    channels = config.vae.latent_channels * (2 if learns_variance(config) else 1)
    out = functools.partial(UNet, out_channels=channels)
    return construct("unet", out, config.unet)


def latent_shape(config: ConfigDict) -> tuple[int, int, int]:
    factor = 2 ** (len(config.vae.channels) - 1)
    side = config.data.image_size // factor
    return side, side, config.vae.latent_channels
