"""The only translator from ConfigDict to objects.

A config names each choice and its options, `dict(name="min_snr", gamma=5.0)`; the names
are the keys of the dicts beside the functions (SAMPLERS, SCHEDULES, ...). What is
unknown raises a ConfigError that names the nearest choice.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from diffusion_jax.data import batches, captions, records, sources
from diffusion_jax.diffusion import (
    grids,
    guidance,
    guidance_rules,
    losses,
    parameterization,
    schedules,
    time_samplers,
    variational,
    weightings,
)
from diffusion_jax.diffusion.denoiser import CLIPPINGS
from diffusion_jax.diffusion.guidance_scales import CURVES
from diffusion_jax.diffusion.process import Real
from diffusion_jax.diffusion.samplers import SAMPLERS
from diffusion_jax.models.autoencoder import AutoencoderKL
from diffusion_jax.models.clip import CLIP, CLIPText, CLIPVision
from diffusion_jax.models.unet import UNet
from diffusion_jax.pipelines.stable_diffusion import StableDiffusion
from diffusion_jax.pipelines.stage import Stage
from diffusion_jax.tasks import autoencoder as autoencoder_task
from diffusion_jax.tasks import clip as clip_task
from diffusion_jax.tasks import latent_diffusion
from diffusion_jax.training import optimizer as optimizers
from diffusion_jax.training.loop import LoopOptions
from diffusion_jax.types import Params, Task

Spec = Mapping[str, Any] | ConfigDict  # a name and options, or options alone


class ConfigError(ValueError):
    """The config asks for something that does not exist or does not fit."""


# ---- choices -------------------------------------------------------------------------


def nearest(word: str, choices: Iterable[str]) -> str:
    """The end of an error: the closest choice if one is close, and all of them."""
    choices = sorted(choices)
    close = difflib.get_close_matches(word, choices, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}One of {choices}"


def check_options(kind: str, target: Callable, options: Spec) -> None:
    """Raises unless `target` takes every one of the options by keyword."""
    parameters = inspect.signature(target).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    allowed = [p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY]
    for option in options:
        if option not in allowed:
            raise ConfigError(
                f"{kind} has no option {option!r}: {nearest(option, allowed)}"
            )


def choose(kind: str, choices: Mapping[str, Callable], spec: Spec) -> Callable:
    """The function that `spec["name"]` names, with the other entries as options."""
    options = dict(spec)
    name = options.pop("name", None)
    if name not in choices:
        raise ConfigError(f"unknown {kind} {name!r}: {nearest(str(name), choices)}")
    check_options(f"{kind} {name!r}", choices[name], options)
    return functools.partial(choices[name], **options) if options else choices[name]


def construct(kind: str, target: Callable, options: Spec) -> Any:
    """`target(**options)`, with a clear error for a wrong option."""
    check_options(kind, target, options)
    return target(**options)


# ---- networks ------------------------------------------------------------------------


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


# ---- mathematics ---------------------------------------------------------------------


def schedule(spec: Spec) -> schedules.Schedule:
    options = dict(spec)
    if "wrapped" in options:
        options["wrapped"] = schedule(options["wrapped"])
    return choose("schedule", schedules.SCHEDULES, options)()


def objective(config: ConfigDict) -> latent_diffusion.Objective:
    made = latent_diffusion.Objective(
        schedule(config.schedule),
        parameterizer(config.parameterization),
        choose("weighting", weightings.WEIGHTINGS, config.weighting),
        times(config.times),
        choose("loss", losses.LOSSES, config.get("loss", {"name": "diffusion"})),
    )
    return made


def times(spec: Spec) -> time_samplers.TimeSampler:
    """The law of training times by name; `draw` and `over` are those of `drawn`.

    A way to draw, named alone, is of uniform times.
    """
    options = dict(spec)
    if options.get("name") in time_samplers.DRAWS:
        options = {"draw": options["name"]} | options | {"name": "uniform"}
    draw = options.pop("draw", "independent")
    over = options.pop("over", "times")
    if over not in time_samplers.MEASURES:
        measures = nearest(over, time_samplers.MEASURES)
        raise ConfigError(f"unknown measure of times, over={over!r}: {measures}")
    return time_samplers.drawn(
        choose("times", time_samplers.QUANTILES, options),
        draw=choose("draw", time_samplers.DRAWS, {"name": draw}),
        over=over,
    )


def learns_variance(config: ConfigDict) -> bool:
    """Whether the network also outputs the variance of a step."""
    spec = dict(config.get("loss", {}))
    chosen = choose("loss", losses.LOSSES, {"name": "diffusion"} | spec)
    defaults = inspect.signature(chosen).parameters
    return (
        "variance" in defaults and defaults["variance"].default in variational.LEARNED
    )


def stage(config: ConfigDict) -> Stage:
    sampling = config.sampling
    made = objective(config)
    parameterization.check(made.parameterization, made.schedule)
    return Stage(
        unet(config),
        made.schedule,
        made.parameterization,
        choose("sampler", SAMPLERS, sampling.sampler),
        choose("grid", grids.GRIDS, sampling.grid),
        sampling.steps,
        **guide(sampling.guidance, made.parameterization, made.schedule),
        clip=clip(sampling.get("clip")),
        learned_variance=learns_variance(config),
    )


def guide(
    spec: Spec | Real,
    p: parameterization.Parameterization,
    noise: schedules.Schedule,
) -> dict[str, Any]:
    """The fields of a Stage that say how it is guided.

    `spec` is a scale, or a name of GUIDANCE with its options and any of: `scale`;
    `rescale`, the phi of `guidance_rules.rescale`; `curve`, a name of CURVES with its
    options and those of `guidance_scales.along`; `interval`, the two bounds of
    `guidance.limited`; `space`, a parameterization, for a rule that has one.
    """
    if isinstance(spec, Real):
        return {"guidance": spec}
    options = dict(spec)
    scale, curve = options.pop("scale", 1.0), options.pop("curve", None)
    interval = options.pop("interval", None)
    if "space" in options:
        options["space"] = parameterizer(options["space"])
    if "rescale" in options:
        options["rescale"] = guidance_rules.rescale(p, options["rescale"])
    chosen = choose("guidance", guidance.GUIDANCE, options)
    if curve is not None:
        curve = dict(curve)
        along = {name: curve.pop(name) for name in ("start", "least") if name in curve}
        curve = choose("curve", CURVES, curve)
        chosen = guidance.scheduled(chosen, curve, noise, **along)
    if interval is not None:
        above, up_to = interval
        chosen = guidance.limited(chosen, above=above, up_to=up_to)
    return {"guidance": scale, "guide": chosen, "remembers": "momentum" in options}


def clip(spec: Spec | None) -> Callable | None:
    return None if spec is None else choose("clip", CLIPPINGS, spec)


def parameterizer(spec: Spec | str) -> parameterization.Parameterization:
    spec = {"name": spec} if isinstance(spec, str) else spec
    return choose("parameterization", parameterization.PARAMETERIZATIONS, spec)()


def stable_diffusion(
    config: ConfigDict, tokenizer: captions.Tokenizer
) -> StableDiffusion:
    return StableDiffusion(
        text_encoder(config, tokenizer),
        stage(config),
        autoencoder(config),
        latent_shape(config),
        pooled=hears_pooled(config),
    )


# ---- data ----------------------------------------------------------------------------


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
    config: ConfigDict, tokenizer: captions.Tokenizer | None
) -> batches.Example:
    data = config.data
    return batches.image_text_example(
        tokenizer, image_size=data.image_size, crop=data.crop, flip=data.flip
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


# ---- training ------------------------------------------------------------------------


def optimizer(config: ConfigDict) -> optax.GradientTransformation:
    options = dict(config.optimizer)
    name = options.pop("name")
    try:
        return optimizers.make_optimizer(name, total_steps=config.num_steps, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer: {error}") from error


def loop_options(config: ConfigDict) -> LoopOptions:
    fields = {field.name for field in dataclasses.fields(LoopOptions)} - {"name"}
    values = {name: config[name] for name in fields if name in config}
    return LoopOptions(name=config.task.name, **values)


def _clip_task(config, tokenizer, frozen) -> Task:
    return clip_task.clip(
        clip_model(config, tokenizer),
        image_size=config.data.image_size,
        context_length=tokenizer.context_length,
    )


def _autoencoder_task(config, tokenizer, frozen) -> Task:
    options = {name: value for name, value in config.task.items() if name != "name"}
    make = functools.partial(
        autoencoder_task.autoencoder,
        autoencoder(config),
        image_size=config.data.image_size,
    )
    return construct("task", make, options)


def _latent_diffusion_task(config, tokenizer, frozen) -> Task:
    return latent_diffusion.latent_diffusion(
        unet(config),
        towers(config, tokenizer),
        objective(config),
        frozen,
        jnp.asarray(tokenizer([""])),
        latent_shape=latent_shape(config),
        caption_dropout=config.task.caption_dropout,
    )


TASKS = {
    "clip": _clip_task,
    "autoencoder": _autoencoder_task,
    "latent_diffusion": _latent_diffusion_task,
}


def task(
    config: ConfigDict,
    tokenizer: captions.Tokenizer | None,
    frozen: Params | None = None,
) -> Task:
    """What the config trains; `frozen` is what earlier runs trained, if it needs any."""
    name = config.task.name
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}: {nearest(name, TASKS)}")
    return TASKS[name](config, tokenizer, frozen or {})


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
    if "clip" in config:
        check_options("clip.text", CLIPText, config.clip.text)
        check_options("clip.vision", CLIPVision, config.clip.vision)
    if "vae" in config:
        autoencoder(config)
    if "unet" in config:
        stage(config)
