"""Upsamplers of a config: `config.upsampler` says what they are trained to enlarge.

config.upsampler = dict(low_size=64, crop_fraction=0.25, degradation=dict(name="blur"))
"""

from __future__ import annotations

import functools

from ml_collections import ConfigDict

from diffusion_jax.build import networks, pipelines
from diffusion_jax.build.choices import ConfigError, choose, construct
from diffusion_jax.build.mathematics import objective
from diffusion_jax.data import batches, captions, degradation, upsampling
from diffusion_jax.pipelines.dalle2 import Upsampler
from diffusion_jax.tasks import upsampler as upsampler_task
from diffusion_jax.types import Params, Task


def crop_side(config: ConfigDict) -> int:
    """Pixels a side of the training crops."""
    try:
        return upsampling.crop_side(
            config.data.image_size,
            config.upsampler.low_size,
            config.upsampler.crop_fraction,
        )
    except ValueError as error:
        raise ConfigError(f"upsampler: {error}") from error


def pairs(config: ConfigDict) -> batches.Example:
    """Records -> what the task trains on."""
    options = dict(config.upsampler)
    spec = options.pop("degradation")
    data = config.data
    make = functools.partial(
        upsampling.upsampling_example,
        choose("degradation", degradation.DEGRADATIONS, spec),
        image_size=data.image_size,
        crop=data.crop,
        flip=data.flip,
    )
    crop_side(config)
    return construct("upsampler", make, options)


def task(
    config: ConfigDict,
    tokenizer: captions.AnyTokenizer | None,
    frozen: Params,
    initial: Params | None,
) -> Task:
    """Needs neither captions nor earlier runs."""
    return upsampler_task.upsampler(
        networks.unet(config), objective(config), size=crop_side(config)
    )


def upsampler(config: ConfigDict, name: str = "upsampler") -> Upsampler:
    """What the task trained, as a pipeline's stage whose weights are params[name]."""
    return Upsampler(pipelines.stage(config), config.data.image_size, name)


def check(config: ConfigDict) -> None:
    """Raises a ConfigError for what can be known to be wrong before any work."""
    pairs(config)
    unet = networks.unet(config)
    kinds = {*unet.attention, unet.mid_attention}
    if kinds != {"none"}:
        raise ConfigError(
            "unet: an upsampler has no attention, so that it can be applied to other"
            f" sizes than it is trained on; got {sorted(kinds)}"
        )
    halvings = len(unet.channels) - 1
    side = crop_side(config)
    if unet.resample == "resnet" and side % 2**halvings:
        raise ConfigError(
            f"unet: crops of {side} pixels cannot be halved {halvings} times"
        )
