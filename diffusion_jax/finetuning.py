"""A run that starts from a published model: what its config and its directory get.

A config with `weights` (a directory, a file or a hub id) leaves out networks, text and
schedule: they are the published ones, and are written into the run's own config, so
that the run needs nothing else afterwards.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from diffusion_jax import build, published, runs
from diffusion_jax.types import Params
from diffusion_jax.weights import published as weights
from diffusion_jax.weights.published import Published
from diffusion_jax.weights.scheduler_fields import BETA_SCHEDULES, BETAS

PREDICTIONS = {
    "epsilon": "eps",
    "sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "flow",
}


def find(config: ConfigDict) -> Published:
    """The published model that the config names."""
    if not config.weights:
        raise build.ConfigError(
            "weights is empty: name a published model to start from, a directory in "
            "the layout of diffusers, a .safetensors file or a hub id, with "
            "--config.weights"
        )
    tokenizer = config.tokenizer.get("directory", "") or None
    found = published.find(config.weights, tokenizer=tokenizer)
    if found.inpaints:
        raise build.ConfigError(
            f"{config.weights} is an inpainting model; its masks cannot be trained here"
        )
    if found.num_size_ids not in (0, 6):
        raise build.ConfigError(
            f"{config.weights} is a refiner, which hears aesthetic scores; train a base"
        )
    return found


def complete(config: ConfigDict) -> ConfigDict:
    """The config with what the published model says filled in; its own words win."""
    found = find(config)
    config = ConfigDict(config.to_dict())
    given = config.get("unet", ConfigDict()).to_dict()
    config.unet = found.unet | given  # dtype and dropout, say
    config.vae = dict(found.vae)
    config.text_encoders = {name: dict(x) for name, x in found.texts.items()}
    config.zero_empty = found.zero_empty
    config.num_size_ids = found.num_size_ids
    config.size_id_width = found.size_id_width
    config.latent_shift = found.latent_shift
    fields = BETAS | found.scheduler
    config.schedule = config.get("schedule") or dict(
        name="discrete",
        betas=BETA_SCHEDULES[fields["beta_schedule"]],
        beta_start=fields["beta_start"],
        beta_end=fields["beta_end"],
        num_steps=fields["num_train_timesteps"],
    )
    prediction = found.scheduler.get("prediction_type", "epsilon")
    config.parameterization = config.get("parameterization") or dict(
        name=PREDICTIONS[prediction]
    )
    unit = 2 ** (len(found.vae["channels"]) - 1)
    if config.data.image_size % unit:
        raise build.ConfigError(
            f"data.image_size {config.data.image_size} is not a multiple of {unit}, "
            "as this model's autoencoder needs"
        )
    return config


def copy_tokenizers(config: ConfigDict, directory: epath.Path) -> None:
    """One directory for each text encoder."""
    found = find(config)
    published.load_tokenizers(found)  # raises for a broken one
    for name in found.texts:
        name = name.replace("text_encoder", "tokenizer")
        target = directory / name
        target.mkdir(parents=True, exist_ok=True)
        for file in pathlib.Path(found.tokenizers[name]).iterdir():
            if file.is_file():
                (target / file.name).write_bytes(file.read_bytes())


def frozen(config: ConfigDict) -> Params:
    """The towers, and for a low-rank adaptation the U-Net that it adapts."""
    params = weights.load_params(find(config))
    kept = {"vae", "latent_scale", *config.text_encoders}
    if "lora" in config:
        kept.add("unet")
    chosen: dict[str, Any] = {name: params[name] for name in sorted(kept)}
    return chosen | {"latent_scale": jnp.float32(chosen["latent_scale"])}


def initial(config: ConfigDict, workdir: epath.Path) -> Params | None:
    """What training starts from; None where a checkpoint or the frozen U-Net says it."""
    checkpoints = workdir / runs.CHECKPOINTS
    if "lora" in config or (checkpoints.exists() and any(checkpoints.iterdir())):
        return None
    return {"unet": weights.load_params(find(config))["unet"]}
