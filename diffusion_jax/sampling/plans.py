"""From flags to a plan: everything that can be wrong is found before weights are read."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Float

from diffusion_jax import build, published
from diffusion_jax.diffusion import grids
from diffusion_jax.diffusion.interpolation import slerp
from diffusion_jax.diffusion.samplers import SAMPLERS
from diffusion_jax.pipelines import edits
from diffusion_jax.pipelines.stable_diffusion import StableDiffusion
from diffusion_jax.pipelines.stage import image_keys, prior_noise
from diffusion_jax.sampling import (
    conflicts,
    models,
    pictures,
    records,
    trained_runs,
    wanted,
)
from diffusion_jax.sampling.models import Model
from diffusion_jax.sampling.wanted import Wanted
from diffusion_jax.weights import lora_files
from diffusion_jax.weights.lora import Lora

STRENGTH = 0.8  # of the noise on a picture that is changed as a whole


class Start(NamedTuple):
    """What all images start from, or each; None where there is nothing."""

    image: Float[np.ndarray, "H W 3"] | None = None
    mask: Float[np.ndarray, "H W 1"] | None = None
    noise: Float[np.ndarray, "N h w c"] | None = None  # one per position
    from_noise: bool = True  # under the mask


class Plan(NamedTuple):
    """All that is to be done."""

    model: Model
    refiner: Model | None
    images: list[Wanted]
    start: Start
    to_prompt: str | None
    batch_size: int
    loras: list[Lora]
    scales: list[float]
    sampler: str
    flags: dict[str, Any]  # those that all images share, as a record has them
    together: dict[str, Any]  # those that make all images in one go


def make(chosen: flags.FlagValues) -> Plan:
    """Raises a ConfigError in one line for what does not exist or does not fit."""
    conflicts.check(chosen)
    models.check_name("sampler", chosen.sampler, samplers())
    models.check_name("grid", chosen.grid, grids.GRIDS)
    try:
        return _make(chosen)
    except ValueError as error:
        raise build.ConfigError(" ".join(str(error).split())) from error


def samplers() -> dict[str, Any]:
    """Those that need nothing but steps: no clean image, and nothing of the data."""
    return {k: v for k, v in SAMPLERS.items() if k not in ("repaint", "analytic_dpm")}


def sampler_of(model: Model) -> str:
    """The name of its sampler, whatever its options."""
    if model.sampler is not None:
        return model.sampler
    return name_of(model.pipeline.unet.sampler)


def name_of(sampler: Callable) -> str:
    """The key of a sampler among SAMPLERS, whatever its options."""
    while isinstance(sampler, functools.partial):
        sampler = sampler.func
    names = [name for name, one in SAMPLERS.items() if one is sampler]
    return names[0] if names else getattr(sampler, "__name__", "unnamed")


def _make(chosen: flags.FlagValues) -> Plan:
    picture = (
        None if chosen.init_image is None else pictures.read(path(chosen.init_image))
    )
    model = find_model(chosen, picture)
    loras = [lora_files.split(word) for word in chosen.lora]
    like = model.shapes() if loras else {}
    adapted = [lora_files.load(path(file), like) for file, _ in loras]
    lines = _lines(chosen)
    start = _start(chosen, model.pipeline, picture)
    images = _images(chosen, model, lines, start)
    texts = [chosen.to_prompt or "", *(one for image in images for one in image[:2])]
    model.num_tokens(list(dict.fromkeys(texts)))  # raises for what cannot be read
    model, refiner = _steps(chosen, model)
    start = start._replace(noise=_noise(chosen, model.pipeline, images, start))
    batch_size = chosen.batch or (1 if chosen.workdir is None else 16)
    if not chosen.pad_batch:
        batch_size = min(batch_size, len(images))
    return Plan(
        model,
        refiner,
        images,
        start,
        chosen.to_prompt,
        batch_size,
        adapted,
        [scale for _, scale in loras],
        sampler_of(model),
        _flags(chosen, model, batch_size),
        _together(chosen, model, images),
    )


def path(name: str) -> str:
    return os.path.expanduser(name)


# ---- the model -----------------------------------------------------------------------


def find_model(chosen: flags.FlagValues, picture: Any) -> Model:
    """The model at the size of the picture, unless another is chosen."""
    own = None if picture is None else pictures.size_of(picture)
    sizes = chosen.height, chosen.width
    if own is not None:
        sizes = tuple(given or side for given, side in zip(sizes, own))
    if chosen.workdir is not None:
        return _find_run(chosen, own, sizes)
    where = dict(
        variant=chosen.variant,
        ema=chosen.ema,
        tokenizer=_tokenizer(chosen),
        prediction_type=chosen.prediction_type,
    )
    name = path(chosen.weights)
    if sizes == own:
        unit = models.factor_of_weights(name, **where)
        pictures.check_fits(chosen.init_image, own, unit)
    choices = _choices(chosen, *sizes)
    reading = dict(weighted=not chosen.no_weighting, max_chunks=chosen.max_chunks)
    return models.of_weights(name, choices, **reading, **where)


def _tokenizer(chosen: flags.FlagValues) -> str | None:
    return None if chosen.tokenizer is None else path(chosen.tokenizer)


def _find_run(chosen: flags.FlagValues, own: Any, sizes: tuple) -> Model:
    workdir = path(chosen.workdir)
    config = trained_runs.read_config(workdir)
    was_published = "text_encoders" in config
    if not was_published:
        conflicts.check_reading(chosen)
    names = ("sampler", "grid", "steps", "guidance")
    config = trained_runs.with_choices(
        config, {name: chosen[name].value for name in names}
    )
    config = trained_runs.with_guidance(
        config,
        rescale=chosen.guidance_rescale,
        interval=conflicts.interval(chosen.guidance_interval),
    )
    if sizes == own:
        unit = build.autoencoder(config).factor
        pictures.check_fits(chosen.init_image, own, unit)
    model = trained_runs.of_run(
        workdir,
        config,
        step=chosen.step,
        height=sizes[0],
        width=sizes[1],
        clip_skip=chosen.clip_skip or 0,
        tile=chosen.tile,
        is_sliced=chosen.sliced,
    )
    if was_published:
        weighted = not chosen.no_weighting
        model = model._replace(weighted=weighted, max_chunks=chosen.max_chunks)
    return model


def _choices(
    chosen: flags.FlagValues, height: int | None, width: int | None
) -> published.Choices:
    given = dict(
        sampler=chosen.sampler,
        grid=chosen.grid,
        steps=chosen.steps,
        guidance=chosen.guidance,
        rescale=chosen.guidance_rescale,
        interval=conflicts.interval(chosen.guidance_interval),
        height=height,
        width=width,
        clip_skip=chosen.clip_skip,
        dtype=chosen.dtype,
        tile=chosen.tile,
        sliced=chosen.sliced,
    )
    given = {name: value for name, value in given.items() if value is not None}
    return published.Choices(**given)


def _steps(chosen: flags.FlagValues, model: Model) -> tuple[Model, Model | None]:
    """The models with the steps that each of them takes."""
    stage = model.pipeline.unet
    if chosen.init_image is not None and strength(chosen) != 1:
        return _with_stage(model, edits.partial_stage(stage, strength(chosen))), None
    if chosen.refiner is None:
        return model, None
    pipeline = model.pipeline
    height, width = (side * pipeline.factor for side in pipeline.latent_shape[:2])
    name = path(chosen.refiner)
    is_file = os.path.isfile(name) or name.endswith(".safetensors")  # here or of a hub
    refiner = models.of_weights(
        name,
        _choices(chosen, height, width),
        weighted=not chosen.no_weighting,
        max_chunks=chosen.max_chunks,
        variant=chosen.variant,
        tokenizer=_tokenizer(chosen) if is_file else None,
    )
    if refiner.pipeline.latent_shape != pipeline.latent_shape:
        shapes = pipeline.latent_shape, refiner.pipeline.latent_shape
        raise build.ConfigError(f"latents of {shapes[0]} for a refiner of {shapes[1]}")
    own, others = edits.split_stage(stage, refiner.pipeline.unet, chosen.handover)
    return _with_stage(model, own), _with_stage(refiner, others)


def _with_stage(model: Model, stage: Any) -> Model:
    pipeline = dataclasses.replace(model.pipeline, unet=stage)
    return model._replace(pipeline=pipeline)


def strength(chosen: flags.FlagValues) -> float:
    if chosen.strength is not None:
        return chosen.strength
    return STRENGTH if chosen.mask is None else 1.0


# ---- what to make --------------------------------------------------------------------


def _lines(chosen: flags.FlagValues) -> list[wanted.Line]:
    if chosen.from_file is not None:
        return wanted.read_lines(path(chosen.from_file))
    return [wanted.Line(prompt) for prompt in chosen.prompt]


def _images(
    chosen: flags.FlagValues, model: Model, lines: list[wanted.Line], start: Start
) -> list[Wanted]:
    num_images = chosen.num_images
    is_path = conflicts.interpolates(chosen)
    if num_images is None:
        num_images = 8 if chosen.workdir is not None and not is_path else 1
        if start.noise is not None and len(lines) == 1:
            num_images = max(1, len(start.noise) - chosen.first_index)
    if chosen.latents is not None and any(line.seed is not None for line in lines):
        raise build.ConfigError("--latents is in place of the seeds of --from_file")
    images = wanted.images(
        lines,
        negative=chosen.negative,
        seed=chosen.seed,
        guidance=model.pipeline.unet.guidance,
        num_images=num_images,
        first_index=chosen.first_index,
    )
    wanted.check_indices(images)
    if is_path:
        return wanted.frames(images[0], chosen.frames, chosen.frame)
    return images


def _start(chosen: flags.FlagValues, pipeline: StableDiffusion, picture: Any) -> Start:
    """The files to start from; noise is that of the whole file."""
    noise = None
    if chosen.latents is not None:
        noise = pictures.read_noise(path(chosen.latents), pipeline.latent_shape)
    if picture is None:
        if pipeline.inpaints:
            raise build.ConfigError(
                "this model paints what a mask leaves open: give --init_image and --mask"
            )
        return Start(noise=noise)
    size = tuple(side * pipeline.factor for side in pipeline.latent_shape[:2])
    image = pictures.to_array(picture, size)
    if chosen.mask is None:
        if pipeline.inpaints:
            raise build.ConfigError(
                "this model needs a --mask: white is where to paint"
            )
        return Start(image, noise=noise)
    mask = pictures.read_mask(path(chosen.mask), picture)
    mask = pictures.to_mask(mask, size)
    pictures.check_paints(mask, chosen.mask)
    return Start(image, mask, noise, from_noise=strength(chosen) == 1)


def _noise(
    chosen: flags.FlagValues,
    pipeline: StableDiffusion,
    images: list[Wanted],
    start: Start,
) -> Float[np.ndarray, "N h w c"] | None:
    """The noise of every image, where it is not to be drawn from its seed and index."""
    if start.noise is not None:
        first, last = chosen.first_index, chosen.first_index + len(images)
        if last > len(start.noise):
            raise build.ConfigError(
                f"{chosen.latents} has noise for {len(start.noise)} images; images "
                f"{first} to {last - 1} are wanted"
            )
        return start.noise[first:last]
    if chosen.to_seed is None:
        return None
    index = jnp.asarray([chosen.first_index])
    here, there = (
        prior_noise(image_keys(jax.random.key(seed), index), pipeline.latent_shape)[0]
        for seed in (chosen.seed, chosen.to_seed)
    )
    return np.stack([np.asarray(slerp(here, there, one.share)) for one in images])


# ---- the record ----------------------------------------------------------------------

PATHS = ("weights", "workdir", "tokenizer", "refiner", "init_image", "mask", "latents")
SHARED = (
    *("weights", "workdir", "variant", "ema", "tokenizer", "prediction_type"),
    *("sampler", "grid"),
    *("guidance_rescale", "guidance_interval", "init_image", "mask", "clip_skip"),
    *("dtype", "tile", "refiner", "to_prompt", "to_seed", "latents", "max_chunks"),
    *("no_weighting", "sliced"),
)


def _flags(chosen: flags.FlagValues, model: Model, batch_size: int) -> dict[str, Any]:
    """The flags that all images share, in a form that makes the same again."""
    found = {}
    for name in SHARED:
        value = chosen[name].value
        if value is None or value is False:
            continue
        found[name] = records.shown_path(value) if name in PATHS else value
    if chosen.lora:
        found["lora"] = [
            f"{records.shown_path(file)}:{scale!r}"
            for file, scale in map(lora_files.split, chosen.lora)
        ]
    if conflicts.interpolates(chosen):
        found["frames"] = chosen.frames
    if chosen.refiner is not None:
        found["handover"] = chosen.handover
    if chosen.init_image is not None:
        found["strength"] = strength(chosen)
    height, width, _ = model.pipeline.latent_shape
    found |= dict(
        steps=model.pipeline.unet.steps,
        height=height * model.pipeline.factor,
        width=width * model.pipeline.factor,
    )
    if batch_size > 1:  # the same program rounds in the same way
        found |= dict(batch=batch_size, pad_batch=True)
    return found


def _together(
    chosen: flags.FlagValues, model: Model, images: list[Wanted]
) -> dict[str, Any]:
    """The flags of prompts and seeds by which one command makes all images."""
    found: dict[str, Any] = {}
    if chosen.from_file is None:
        found["prompt"] = list(chosen.prompt)
    else:
        found["from_file"] = records.shown_path(chosen.from_file)
    if chosen.negative:
        found["negative"] = chosen.negative
    found |= dict(seed=chosen.seed, first_index=chosen.first_index)
    found["guidance"] = float(model.pipeline.unet.guidance)
    if not conflicts.interpolates(chosen):
        num_lines = len(_lines(chosen))
        found["num_images"] = len(images) // num_lines
    return found
