"""What samples: a stage of a config, and the pipeline around it."""

from __future__ import annotations

import flax.linen as nn
from ml_collections import ConfigDict

from diffusion_jax.build import networks
from diffusion_jax.build.choices import choose
from diffusion_jax.build.mathematics import (
    clip,
    guide,
    learns_variance,
    objective,
)
from diffusion_jax.data import captions
from diffusion_jax.diffusion import grids, parameterization
from diffusion_jax.diffusion.samplers import SAMPLERS
from diffusion_jax.pipelines.stable_diffusion import StableDiffusion
from diffusion_jax.pipelines.stage import Stage


def stage(config: ConfigDict, network: nn.Module | None = None) -> Stage:
    """The config's U-Net, or another network, as its `sampling` says."""
    sampling = config.sampling
    made = objective(config)
    parameterization.check(made.parameterization, made.schedule)
    return Stage(
        networks.unet(config) if network is None else network,
        made.schedule,
        made.parameterization,
        choose("sampler", SAMPLERS, sampling.sampler),
        choose("grid", grids.GRIDS, sampling.grid),
        sampling.steps,
        **guide(sampling.guidance, made.parameterization, made.schedule),
        clip=clip(sampling.get("clip")),
        learned_variance=learns_variance(config),
    )


def stable_diffusion(
    config: ConfigDict, tokenizer: captions.AnyTokenizer
) -> StableDiffusion:
    return StableDiffusion(
        networks.text_encoders(config, tokenizer),
        stage(config),
        networks.autoencoder(config),
        networks.latent_shape(config),
        pooled=networks.hears_pooled(config),
        num_size_ids=config.get("num_size_ids", 0),
        size_id_width=config.get("size_id_width", 256),
        latent_shift=config.get("latent_shift", 0.0),
    )
