"""A run that starts from a published model: what its config and its directory get.

A config with `weights` (a directory, a file or a hub id) leaves out networks, text and
schedule: they are the published ones, and are written into the run's own config, so
that the run needs nothing else afterwards.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from diffusion_jax import build, published, runs
from diffusion_jax.diffusion import parameterization, schedules
from diffusion_jax.types import Params
from diffusion_jax.weights import published as weights
from diffusion_jax.weights import scheduler_config, writing_directory
from diffusion_jax.weights.published import Published
from diffusion_jax.weights.recipe import Recipe

# sections of a run's config that a published model gives
WORDS = (
    *("unet", "vae", "text_encoders", "zero_empty", "num_size_ids", "size_id_width"),
    *("latent_shift", "schedule", "parameterization"),
)


def find(config: ConfigDict) -> Published:
    """The published model that the config names."""
    if not config.weights:
        raise build.ConfigError(
            "weights is empty: name a published model to start from, a directory in "
            "the layout of diffusers, a .safetensors file or a hub id, with "
            "--config.weights"
        )
    tokenizer = config.tokenizer.get("directory", "") or None
    with one_line():
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


def complete(config: ConfigDict, workdir: epath.Path) -> ConfigDict:
    """The config with what the published model says filled in; its own words win.

    A run that was begun says it itself, so the model need not be there any more.
    """
    said = own_words(workdir, config) or words(find(config))
    config = ConfigDict(config.to_dict())
    for name, value in said.items():
        if name == "unet":
            value = value | config.get("unet", ConfigDict()).to_dict()
        elif name in config:
            continue
        config[name] = value
    unit = build.autoencoder(config).factor
    if config.data.image_size % unit:
        raise build.ConfigError(
            f"data.image_size {config.data.image_size} is not a multiple of {unit}, "
            "as this model's autoencoder needs"
        )
    return config


def words(found: Published) -> dict[str, Any]:
    """The sections of a run's config that a published model gives."""
    with one_line():
        recipe = scheduler_config.read(found.scheduler)
    return dict(
        unet=found.unet,
        vae=found.vae,
        text_encoders=found.texts,
        zero_empty=found.zero_empty,
        num_size_ids=found.num_size_ids,
        size_id_width=found.size_id_width,
        latent_shift=found.latent_shift,
        schedule=schedule_spec(recipe.schedule),
        parameterization=dict(name=parameterization_name(recipe)),
    )


def own_words(workdir: epath.Path, config: ConfigDict) -> dict[str, Any] | None:
    """The same sections, of the config of a run that was begun with these weights."""
    if not (workdir / runs.CONFIG_FILE).exists():
        return None
    begun = runs.read_config(workdir).to_dict()
    if begun.get("weights") != config.weights:
        return None
    return {name: begun[name] for name in WORDS}


def schedule_spec(schedule: Any) -> dict[str, Any]:
    """The schedule as a config names it, wrapped ones within."""
    names = {kind: name for name, kind in reversed(schedules.SCHEDULES.items())}
    if type(schedule) not in names:
        raise build.ConfigError(f"no config says the schedule {schedule}")
    spec = {"name": names[type(schedule)]}
    for field in dataclasses.fields(schedule):
        value = getattr(schedule, field.name)
        spec[field.name] = schedule_spec(value) if field.name == "wrapped" else value
    return spec


def parameterization_name(recipe: Recipe) -> str:
    """Of the parameterizations, the one with the recipe's coefficients."""
    level = recipe.schedule(jnp.asarray(0.4 * recipe.schedule.t_max))
    wanted = np.asarray(recipe.parameterization.coefficients(level))
    for name in ("eps", "x0", "v", "flow"):
        made = parameterization.PARAMETERIZATIONS[name]()
        if np.allclose(np.asarray(made.coefficients(level)), wanted):
            return name
    raise build.ConfigError("the scheduler's prediction has no name in a config")


def copy_tokenizers(config: ConfigDict, directory: epath.Path) -> None:
    """One directory for each text encoder."""
    found = find(config)
    with one_line():
        published.load_tokenizers(found)  # raises for a broken one
    for name in found.texts:
        name = name.replace("text_encoder", "tokenizer")
        target = pathlib.Path(directory) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)  # of an attempt that was stopped
        writing_directory.copy_tokenizer(found.tokenizers[name], target)


def frozen(config: ConfigDict) -> Params:
    """The towers, and for a low-rank adaptation the U-Net that it adapts."""
    names = ["vae", *config.text_encoders, *(["unet"] if "lora" in config else [])]
    with one_line():
        return weights.load_params(find(config), names=names)


def initial(config: ConfigDict, workdir: epath.Path) -> Params | None:
    """What training starts from; None where a checkpoint or the frozen U-Net says it."""
    checkpoints = workdir / runs.CHECKPOINTS
    steps = checkpoints.iterdir() if checkpoints.exists() else ()
    if "lora" in config or any(path.name.isdigit() for path in steps):
        return None
    with one_line():
        params = weights.load_params(find(config), names=("unet",))
    return {"unet": params["unet"]}


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """What is wrong with the files, as an error of the config that names them."""
    try:
        yield
    except ValueError as error:
        raise build.ConfigError(f"weights: {error}") from error
