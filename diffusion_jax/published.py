"""A published model, ready to sample: a pipeline without weights, its parameters, tokenizers.

    model = published.load("stable-diffusion-v1-5", Choices(sampler="dpmpp_2m", steps=25))
    prompt = model.read(["a photograph of an astronaut riding a horse"])
    keys = image_keys(jax.random.key(0), jnp.arange(1))
    images = jax.jit(model.pipeline)(model.params, keys, prompt, model.read([""]), 7.5)

Everything that can be wrong with a choice is an error before any tensor is read.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from diffusion_jax import build
from diffusion_jax.data import captions, prompts
from diffusion_jax.models import text
from diffusion_jax.pipelines import stage as stages
from diffusion_jax.pipelines.stable_diffusion import StableDiffusion
from diffusion_jax.pipelines.stage import Stage
from diffusion_jax.types import Params, Prompt
from diffusion_jax.weights import directory, hub, scheduler_choice, single_file
from diffusion_jax.weights import published as weights
from diffusion_jax.weights.published import Published
from diffusion_jax.weights.recipe import Recipe, kept

CONTEXT_LENGTH = 77
DTYPES = ("float32", "bfloat16", "float16")


GUIDANCE = {False: 7.5, True: 5.0}  # by whether it is an XL
STEPS = 50


class Choices(NamedTuple):
    """How to sample; None is as the model was published."""

    sampler: str | None = None
    grid: str | None = None
    steps: int = STEPS
    guidance: float | None = None  # the scale; below 1 it counts as 1, no guidance
    rescale: float = 0.0  # phi of `guidance_rules.rescale`
    interval: tuple[float, float] | None = None  # of sigma / alpha; see limited
    height: int | None = None  # pixels
    width: int | None = None
    clip_skip: int = 0
    dtype: str = "float32"
    tile: int | None = None  # latents a side: the autoencoder works in tiles
    sliced: bool = False  # the autoencoder takes one image at a time


class Model(NamedTuple):
    """`pipeline` is static; a function of `params` is all that there is to jit."""

    pipeline: StableDiffusion
    params: Params
    tokenizers: tuple[captions.Tokenizer, ...]

    def read(self, texts: Sequence[str], **options) -> Prompt:
        """The texts with (emphasis:1.3), as `prompts.make_prompts` reads them."""
        return prompts.make_prompts(texts, self.tokenizers, **options)


def load(
    name: str | pathlib.Path,
    choices: Choices = Choices(),  # noqa: B008  a constant
    *,
    variant: str | None = None,
    ema: bool = False,
    tokenizer: str | pathlib.Path | None = None,
    prediction_type: str | None = None,
) -> Model:
    """The model in a directory, a single file, or of a hub id; see `find`."""
    found = find(
        name,
        variant=variant,
        ema=ema,
        tokenizer=tokenizer,
        prediction_type=prediction_type,
    )
    pipeline = plan(found, choices)
    tokenizers = load_tokenizers(found)
    return Model(pipeline, load_params(found, choices.dtype), tokenizers)


def find(
    name: str | pathlib.Path,
    *,
    variant: str | None = None,
    ema: bool = False,
    tokenizer: str | pathlib.Path | None = None,
    prediction_type: str | None = None,
) -> Published:
    """What there is under a name; tensors are not read yet.

    `variant`: "fp16", say, of a directory. The others are of single files: their
    averaged copy; where tokenizer/ (and tokenizer_2/) are, since the file has none; and
    whether the network predicts "epsilon" or "v_prediction", if it does not say.
    """
    path = hub.find(str(name), variant=variant)
    if path.is_dir():
        if ema or tokenizer is not None or prediction_type is not None:
            raise build.ConfigError(
                f"{path} is a directory: ema, tokenizer and prediction_type are for "
                "single files"
            )
        return directory.read(path, variant=variant)
    if variant is not None:
        raise build.ConfigError(f"{path} is a file: variants are of directories")
    return single_file.read(
        path,
        ema=ema,
        tokenizers=tokenizers_near(path, tokenizer),
        prediction_type=prediction_type,
    )


def tokenizers_near(
    path: pathlib.Path, chosen: str | pathlib.Path | None
) -> dict[str, pathlib.Path]:
    """The tokenizer directories for a single file: the chosen one, or those beside it.

    `chosen` is one tokenizer, which serves for both, or holds tokenizer/, tokenizer_2/.
    """
    root = path.parent if chosen is None else hub.find(str(chosen))
    found = {
        name: root / name
        for name in ("tokenizer", "tokenizer_2")
        if (root / name).is_dir()
    }
    if not found and (root / captions.VOCAB_FILE).is_file():
        found = {"tokenizer": root, "tokenizer_2": root}
    return found


def load_tokenizers(published: Published) -> tuple[captions.Tokenizer, ...]:
    """One for each text encoder, in their order."""
    names = [name.replace("text_encoder", "tokenizer") for name in published.texts]
    for name in names:
        if name not in published.tokenizers:
            raise build.ConfigError(
                f"this model needs {name}/, which was not found; name the directory of "
                "a CLIP tokenizer (vocab.json, merges.txt), such as that of "
                "openai/clip-vit-large-patch14, with --tokenizer"
            )
    return tuple(
        captions.load_tokenizer(
            published.tokenizers[name], context_length=CONTEXT_LENGTH
        )
        for name in names
    )


def load_params(published: Published, dtype: str = "float32") -> Params:
    """Every tensor on the default device, in `dtype`; raises unless all fit."""
    return weights.load_params(published, dtype=dtype)


def plan(published: Published, choices: Choices) -> StableDiffusion:
    """The pipeline that samples as chosen; holds no weights and reads none."""
    check(published, choices)
    modules = weights.modules(published, dtype=choices.dtype)
    names = tuple(published.texts)
    encoders = text.TextEncoders(
        tuple(modules[name] for name in names), names, published.zero_empty
    )
    recipe = scheduler_choice.choose(
        published.scheduler, sampler=choices.sampler, grid=choices.grid
    )
    default = GUIDANCE[published.num_size_ids > 0]
    scale = default if choices.guidance is None else max(1.0, choices.guidance)
    stage = stage_of(modules["unet"], recipe, choices._replace(guidance=scale))
    pipeline = StableDiffusion(
        text.skipping(encoders, choices.clip_skip),
        stage,
        modules["vae"],
        latent_shape=(0, 0, modules["vae"].latent_channels),
        num_size_ids=published.num_size_ids,
        size_id_width=published.size_id_width,
        inpaints=published.inpaints,
        latent_shift=published.latent_shift,
        tile=choices.tile,
        is_sliced=choices.sliced,
    )
    height, width = (
        published.sample_size if side is None else side // pipeline.factor
        for side in (choices.height, choices.width)
    )
    shape = (height, width, modules["vae"].latent_channels)
    return dataclasses.replace(pipeline, latent_shape=shape)


def stage_of(network, recipe: Recipe, choices: Choices) -> Stage:
    """The published network with its recipe, guided as chosen."""
    spec = dict(name="classifier_free", scale=choices.guidance)
    if choices.rescale:
        spec["rescale"] = choices.rescale
    if choices.interval is not None:
        spec["interval"] = choices.interval
    stage = Stage(
        network,
        recipe.schedule,
        recipe.parameterization,
        recipe.sampler,
        recipe.grid,
        choices.steps,
        **build.guide(spec, recipe.parameterization, recipe.schedule),
        clip=None if recipe.wrap is kept else recipe.wrap,
        learned_variance=recipe.learned_variance,
        prior_std=recipe.prior_std,
    )
    stages.grid_of(stage)  # raises if the schedule has not so many steps
    return stage


def check(published: Published, choices: Choices) -> None:
    """Raises a ConfigError for a choice that no model has."""
    if choices.dtype not in DTYPES:
        raise build.ConfigError(f"unknown dtype {choices.dtype!r}; one of {DTYPES}")
    if choices.steps < 1:
        raise build.ConfigError(f"{choices.steps} steps; at least 1")
    unit = published.factor
    for name in ("height", "width"):
        side = getattr(choices, name)
        if side is not None and (side < unit or side % unit):
            nearest = max(unit, round(side / unit) * unit)
            raise build.ConfigError(
                f"{name} {side} is not a multiple of {unit}; the nearest is {nearest}"
            )
