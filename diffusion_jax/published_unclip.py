"""A published unCLIP (Karlo), ready to sample: a pipeline without weights, its parameters.

    model = published_unclip.load("kakaobrain/karlo-v1-alpha")
    tokens, null = model.read(["a portrait of a fox"]), model.read([""])
    keys = image_keys(jax.random.key(0), jnp.arange(1))
    images = jax.jit(model.pipeline)(model.params, keys, tokens, null)

Without a prior (the image-variation repository), `manipulations.fresh_variations` makes
images of `pipeline.encode_image`. Everything that can be wrong with a choice is an error
before any tensor is read.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import numpy as np
from jaxtyping import Int

from diffusion_jax import build, published
from diffusion_jax.data import captions
from diffusion_jax.models import clip
from diffusion_jax.models.clip_towers import ClipTowers
from diffusion_jax.pipelines.dalle2 import Dalle2, Upsampler
from diffusion_jax.pipelines.priors import DiffusionPrior
from diffusion_jax.pipelines.stage import Stage
from diffusion_jax.types import Params
from diffusion_jax.weights import hub, karlo, scheduler_choice
from diffusion_jax.weights import published_unclip as weights
from diffusion_jax.weights.published_unclip import PublishedUnclip

UPSAMPLERS = ("super_res_first", "super_res_last")  # the latter takes the last step


class StageChoices(NamedTuple):
    """How to sample one stage."""

    steps: int
    guidance: float = 1.0  # the scale; below 1 it counts as 1, no guidance
    sampler: str | None = None  # None: as the model was published
    grid: str | None = None


class Choices(NamedTuple):
    """How to sample; as diffusers does if nothing is chosen."""

    prior: StageChoices = StageChoices(25, 4.0)
    decoder: StageChoices = StageChoices(25, 8.0)
    super_res: StageChoices = StageChoices(7)
    candidates: int = 1  # embeddings that the prior draws, of which it keeps the best
    dtype: str = "float32"


class Model(NamedTuple):
    """`pipeline` is static; a function of `params` is all that there is to jit."""

    pipeline: Dalle2
    params: Params
    tokenizer: captions.Tokenizer

    def read(self, texts: Sequence[str]) -> Int[np.ndarray, "N L"]:
        """Token ids; those of "" are what guidance compares with."""
        return self.tokenizer(texts)


def load(
    name: str | pathlib.Path,
    choices: Choices = Choices(),  # noqa: B008  a constant
    *,
    image_name: str | pathlib.Path | None = None,
    variant: str | None = None,
) -> Model:
    """The model in a directory or of a hub id; see `find`."""
    found = find(name, image_name=image_name, variant=variant)
    pipeline, tokenizer = plan(found, choices), load_tokenizer(found)
    return Model(pipeline, load_params(found, choices.dtype), tokenizer)


def find(
    name: str | pathlib.Path,
    *,
    image_name: str | pathlib.Path | None = None,
    variant: str | None = None,
) -> PublishedUnclip:
    """What there is under a name; tensors are not read yet.

    With the directory of the other kind as `image_name`, text to image and image
    variation in one model; of that nothing is downloaded but what the first lacks.
    """
    for each in (name, image_name):
        kind = None if each is None else hub.class_name(str(each))
        if kind not in (None, *karlo.PIPELINES):
            raise build.ConfigError(
                f"{each} is of a {kind}, which is no unCLIP; one of "
                f"{', '.join(karlo.PIPELINES)}"
            )
    path, other = hub.find(str(name), variant=variant), None
    if image_name is not None:
        other = hub.find(str(image_name), variant=variant, modules=karlo.LENT)
    for each in (path, other):
        if each is not None and not each.is_dir():
            raise build.ConfigError(f"{each} is a file; an unCLIP is a directory")
    return karlo.read(path, image_directory=other, variant=variant)


def load_tokenizer(found: PublishedUnclip) -> captions.Tokenizer:
    """The tokenizer, if it ends texts where the text encoder looks for their end."""
    tokenizer = captions.load_tokenizer(
        found.tokenizer, context_length=found.text["context_length"]
    )
    eos_id = found.text["eos_id"]
    expected = tokenizer.vocab_size - 1 if eos_id == clip.LEGACY_EOS else eos_id
    if tokenizer.eos_id != expected:
        raise build.ConfigError(
            f"{found.tokenizer} ends texts with {tokenizer.eos_id}, the text encoder "
            f"looks for {expected}"
        )
    if tokenizer.vocab_size > found.text["vocab_size"]:
        raise build.ConfigError(
            f"{found.tokenizer} has {tokenizer.vocab_size} tokens, the text encoder "
            f"{found.text['vocab_size']}"
        )
    return tokenizer


def load_params(found: PublishedUnclip, dtype: str = "float32") -> Params:
    """Every tensor on the default device, in `dtype`; raises unless all fit."""
    return weights.load_params(found, dtype=dtype)


def plan(found: PublishedUnclip, choices: Choices) -> Dalle2:
    """The pipeline that samples as chosen; holds no weights and reads none."""
    check(choices)
    modules = weights.modules(found, dtype=choices.dtype)
    towers = ClipTowers(
        modules["text_encoder"],
        modules.get("image_encoder"),
        unit_norm=False,
        image_mean=found.image_mean,
        image_std=found.image_std,
    )
    prior = None
    if "prior" in modules:
        config = found.schedulers["prior_scheduler"]
        stage = stage_of(modules["prior"], config, choices.prior)
        prior = DiffusionPrior(stage, choices.candidates)
    decoder = stage_of(
        modules["decoder"], found.schedulers["decoder_scheduler"], choices.decoder
    )
    first, last = (
        stage_of(
            modules[name], found.schedulers["super_res_scheduler"], choices.super_res
        )
        for name in UPSAMPLERS
    )
    upsampler = Upsampler(
        first, found.super_res_size, UPSAMPLERS[0], last, UPSAMPLERS[1]
    )
    return Dalle2(
        towers,
        prior,
        modules["text_proj"],
        dataclasses.replace(decoder, learned_variance=True),
        found.size,
        (upsampler,),
    )


def stage_of(network: nn.Module, scheduler: dict, choices: StageChoices) -> Stage:
    """A published network with its scheduler_config.json, sampled as chosen."""
    recipe = scheduler_choice.choose(
        scheduler, sampler=choices.sampler, grid=choices.grid
    )
    scale = max(1.0, choices.guidance)
    chosen = published.Choices(steps=choices.steps, guidance=scale)
    return published.stage_of(network, recipe, chosen)


def check(choices: Choices) -> None:
    """Raises a ConfigError for a choice that no model has."""
    if choices.dtype not in published.DTYPES:
        raise build.ConfigError(
            f"unknown dtype {choices.dtype!r}; one of {published.DTYPES}"
        )
    if choices.candidates < 1:
        raise build.ConfigError(f"{choices.candidates} candidates; at least 1")
    # Of the steps of super resolution the last is another network's.
    for name, least in {"prior": 1, "decoder": 1, "super_res": 2}.items():
        steps = getattr(choices, name).steps
        if steps < least:
            raise build.ConfigError(f"{steps} steps of {name}; at least {least}")
    if choices.super_res.guidance > 1:
        raise build.ConfigError(
            f"guidance {choices.super_res.guidance} of super_res, which hears no caption"
        )
