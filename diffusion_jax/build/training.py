"""Data and training of a config: records, batches, optimizer, tasks."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from diffusion_jax.build import networks, pipelines, unclip, upsampler
from diffusion_jax.build.choices import (
    ConfigError,
    check_options,
    choose,
    construct,
    nearest,
)
from diffusion_jax.build.mathematics import objective
from diffusion_jax.data import batches, captions, records, sources
from diffusion_jax.data.hard_negatives import NEGATIVES
from diffusion_jax.models.clip import CLIPText, CLIPVision
from diffusion_jax.tasks import autoencoder as autoencoder_task
from diffusion_jax.tasks import clip as clip_task
from diffusion_jax.tasks import latent_diffusion
from diffusion_jax.training import optimizer as optimizers
from diffusion_jax.training.loop import LoopOptions
from diffusion_jax.types import Params, Task


def source(config: ConfigDict, split: str) -> records.Source:
    """The records of a split: its name, or for tar shards a pattern of paths.

    A TFDS data set is `dict(name="tfds", dataset="oxford_flowers102", ...)`.
    """
    spec = dict(config.data.source)
    if not spec.get("data_dir", True):
        del spec["data_dir"]
    arguments = {"paths" if spec["name"] == "tar_shards" else "split": split}
    if "dataset" in spec:
        arguments["name"] = spec.pop("dataset")
    return choose("source", sources.SOURCES, spec)(**arguments)


def image_text(
    config: ConfigDict, tokenizer: captions.AnyTokenizer | None
) -> batches.Example:
    data = config.data
    confuse = data.get("hard_negatives")
    if confuse is not None:
        confuse = choose("hard negatives", NEGATIVES, {"name": confuse})
    return batches.image_text_example(
        tokenizer,
        image_size=data.image_size,
        crop=data.crop,
        flip=data.flip,
        confuse=confuse,
    )


def stream(
    config: ConfigDict, rows: Any, example: batches.Example, **options
) -> batches.Batches:
    """The endless training batches of this host."""
    return batches.make_batches(
        rows,
        example,
        batch_size=config.batch_size,
        seed=config.seed,
        num_workers=config.num_workers,
        **options,
    )


def optimizer(config: ConfigDict) -> optax.GradientTransformation:
    options = dict(config.optimizer)
    name = options.pop("name")
    try:
        made = optimizers.make_optimizer(name, total_steps=config.num_steps, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer: {error}") from error
    if config.task.name == "clip":
        return optimizers.at_most(made, clip_task.MAXIMA)
    return made


def loop_options(config: ConfigDict) -> LoopOptions:
    fields = {field.name for field in dataclasses.fields(LoopOptions)} - {"name"}
    values = {name: config[name] for name in fields if name in config}
    return LoopOptions(name=config.task.name, **values)


def _clip_task(config, tokenizer, frozen, initial) -> Task:
    return clip_task.clip(
        networks.clip_model(config, tokenizer),
        image_size=config.data.image_size,
        context_length=tokenizer.context_length,
        **_clip_options(config),
    )


def _clip_options(config: ConfigDict) -> dict[str, Any]:
    options = {name: value for name, value in config.task.items() if name != "name"}
    batch_size = config.batch_size // config.accumulate
    check_batch = functools.partial(clip_task.check_batch, batch_size)
    check_options("task", check_batch, options)
    try:
        check_batch(**options)
    except ValueError as error:
        raise ConfigError(f"task: {error}") from error
    return options


def _autoencoder_task(config, tokenizer, frozen, initial) -> Task:
    options = {name: value for name, value in config.task.items() if name != "name"}
    make = functools.partial(
        autoencoder_task.autoencoder,
        networks.autoencoder(config),
        image_size=config.data.image_size,
    )
    return construct("task", make, options)


def _latent_diffusion_task(config, tokenizer, frozen, initial) -> Task:
    return latent_diffusion.latent_diffusion(
        networks.trained(config, initial),
        networks.towers(config, tokenizer),
        objective(config),
        frozen,
        jnp.asarray(tokenizer([""])),
        latent_shape=networks.latent_shape(config),
        caption_dropout=config.task.caption_dropout,
    )


TASKS = {
    "clip": _clip_task,
    "autoencoder": _autoencoder_task,
    "latent_diffusion": _latent_diffusion_task,
    "diffusion_prior": unclip.diffusion_prior_task,
    "autoregressive_prior": unclip.autoregressive_prior_task,
    "decoder": unclip.decoder_task,
    "upsampler": upsampler.task,
}


def task(
    config: ConfigDict,
    tokenizer: captions.AnyTokenizer | None,
    frozen: Params | None = None,
    initial: Params | None = None,
) -> Task:
    """What the config trains; `frozen` is what earlier runs trained, if it needs any.

    `initial` is what it starts from, if not at random.
    """
    name = config.task.name
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}: {nearest(name, TASKS)}")
    return TASKS[name](config, tokenizer, frozen or {}, initial)


def check(config: ConfigDict) -> None:
    """Raises a ConfigError for what can be known to be wrong before any work."""
    name = config.task.name
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}: {nearest(name, TASKS)}")
    optimizer(config)
    loop_options(config)
    source_name = config.data.source.name
    if source_name not in sources.SOURCES:
        choices = nearest(source_name, sources.SOURCES)
        raise ConfigError(f"unknown source {source_name!r}: {choices}")
    if name == "clip":
        _clip_options(config)
    if "clip" in config:
        check_options("clip.text", CLIPText, config.clip.text)
        check_options("clip.vision", CLIPVision, config.clip.vision)
    if "vae" in config:
        networks.autoencoder(config)
    if "unet" in config:
        pipelines.stage(config)
    if name == "upsampler":
        upsampler.check(config)
    if name in unclip.TASKS:
        unclip.check(config)
