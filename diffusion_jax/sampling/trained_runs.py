"""A run of our own training, as a model to sample."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from diffusion_jax import build, runs
from diffusion_jax.data import prompts as texts
from diffusion_jax.models import text
from diffusion_jax.pipelines import batched
from diffusion_jax.pipelines.stable_diffusion import StableDiffusion
from diffusion_jax.sampling.models import Model
from diffusion_jax.types import Params, Prompt


def with_choices(config: ConfigDict, choices: Mapping[str, object]) -> ConfigDict:
    """The config with those of its sampling choices replaced that are not None."""
    config = ConfigDict(config.to_dict())
    for name, value in choices.items():
        if value is None:
            continue
        if name in ("sampler", "grid"):
            if config.sampling[name].name == value:
                continue  # keep its options
            value = ConfigDict(dict(name=value))
        if name == "guidance" and isinstance(config.sampling.guidance, ConfigDict):
            config.sampling.guidance.scale = value  # keep its rule
            continue
        config.sampling[name] = value
    return config


def with_guidance(config: ConfigDict, **options: Any) -> ConfigDict:
    """The config with those options of its guidance replaced that are not None."""
    options = {name: value for name, value in options.items() if value is not None}
    if not options:
        return config
    fields = config.to_dict()
    spec = fields["sampling"]["guidance"]
    if not isinstance(spec, dict):
        spec = dict(name="classifier_free", scale=spec)
    fields["sampling"]["guidance"] = spec | options
    return ConfigDict(fields)


def read_config(workdir: str) -> ConfigDict:
    """The config of a run that makes images of prompts; raises for any other."""
    config = runs.read_config(workdir)
    if "sampling" not in config:
        raise build.ConfigError(
            f"{workdir} holds a {config.task.name!r} run, which makes no images "
            "of prompts; give the run of a latent_diffusion"
        )
    return config


def of_run(
    workdir: str,
    config: ConfigDict,
    *,
    step: int | None = None,
    height: int | None = None,
    width: int | None = None,
    clip_skip: int = 0,
    tile: int | None = None,
    is_sliced: bool = False,
) -> Model:
    """The run in `workdir`, sampled as `config` says.

    Prompts are read as the model was trained on them, or as a published one reads them.
    """
    was_published = "text_encoders" in config
    tokenizer = runs.load_tokenizer(workdir, config)
    pipeline = build.stable_diffusion(config, tokenizer)
    pipeline = dataclasses.replace(
        pipeline,
        latent_shape=_latent_shape(pipeline, height, width),
        text=text.skipping(pipeline.text, clip_skip) if clip_skip else pipeline.text,
        tile=tile,
        is_sliced=is_sliced,
    )
    load_run = functools.cache(lambda: runs.load(workdir, step=step))

    def load() -> Params:
        run = load_run()
        return build.sampling_params(run.params, run.frozen)

    def facts(seed: int, negative: str) -> dict[str, str]:
        return metadata(load_run()._replace(config=config), seed, negative)

    name = str(workdir).rstrip("/").rsplit("/", 1)[-1]
    return Model(
        name,
        pipeline,
        tokenizer.each,
        load,
        lambda: shapes(pipeline),
        lambda: num_bytes(shapes(pipeline)),
        weighted=was_published,
        max_chunks=None if was_published else 1,
        facts=facts,
    )


def shapes(pipeline: StableDiffusion) -> Params:
    """The parameters of a pipeline as shapes, without computing any."""
    length = pipeline.text.towers[0].context_length
    tokens = np.zeros((1, len(pipeline.text.towers), 1, length), np.int32)
    prompt = Prompt(tokens, np.ones(tokens.shape, np.float32), np.zeros(1, bool))
    height, width, channels = pipeline.latent_shape
    factor = pipeline.factor

    def make(key: jax.Array) -> Params:
        params = {
            name: tower.init(key, jnp.asarray(tokens[:, 0, 0]))["params"]
            for tower, name in zip(pipeline.text.towers, pipeline.text.names)
        }
        cond = pipeline.condition(params, prompt)
        if pipeline.inpaints:
            seen = jnp.zeros((1, height, width, channels + 1))
            cond = cond._replace(image=seen)
        latent = jnp.zeros((1, height, width, channels))
        image = jnp.zeros((1, height * factor, width * factor, 3))
        unet = pipeline.unet.network.init(key, latent, jnp.zeros(1), cond)
        vae = pipeline.vae.init(key, image)
        return params | {"unet": unet["params"], "vae": vae["params"]}

    return jax.eval_shape(make, jax.random.key(0))


def num_bytes(like: Params) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(like))


def _latent_shape(
    pipeline: StableDiffusion, height: int | None, width: int | None
) -> tuple[int, int, int]:
    unit, shape = pipeline.factor, pipeline.latent_shape
    for side in (height, width):
        if side is not None and (side < unit or side % unit):
            nearest = max(unit, round(side / unit) * unit)
            raise build.ConfigError(
                f"{side} pixels are not a multiple of {unit}; the nearest is {nearest}"
            )
    rows = shape[0] if height is None else height // unit
    columns = shape[1] if width is None else width // unit
    return rows, columns, shape[2]


def make(
    run: runs.Run,
    prompts: list[str],
    *,
    negative: str = "",
    seed: int = 0,
    batch_size: int = 16,
) -> Float[np.ndarray, "N H W 3"]:
    """One image per prompt, as `run.config.sampling` says, with a line of progress."""
    pipeline = build.stable_diffusion(run.config, run.tokenizer)
    warn_of_cut_tokens(run, [*prompts, negative])
    batch_size = min(batch_size, len(prompts))
    generate = batched.text_to_image(pipeline, batch_size=batch_size)
    params = build.sampling_params(run.params, run.frozen)
    prompt = texts.plain(prompts, run.tokenizer)
    null = texts.plain([negative], run.tokenizer)
    images: list[np.ndarray] = []
    print("compiling ...", end="\r", file=sys.stderr)
    for batch in generate(params, prompt, null, seed=seed):
        images.extend(batch)
        print(f"{len(images)}/{len(prompts)} images", end="\r", file=sys.stderr)
    print(file=sys.stderr)
    return np.stack(images)


def warn_of_cut_tokens(run: runs.Run, prompts: list[str]) -> None:
    for prompt, num_cut in zip(prompts, run.tokenizer.num_cut(prompts), strict=True):
        if num_cut:
            length = run.tokenizer.context_length
            print(
                f"warning: the last {num_cut} tokens of {prompt!r} do not fit the "
                f"{length} that this model reads",
                file=sys.stderr,
            )


def metadata(run: runs.Run, seed: int, negative: str) -> dict[str, str]:
    """What a PNG must say for anyone to make it again, apart from its prompt."""
    sampling = run.config.sampling
    return {
        "seed": str(seed),
        "negative": negative,
        "sampler": json.dumps(sampling.sampler.to_dict()),
        "grid": json.dumps(sampling.grid.to_dict()),
        "steps": str(sampling.steps),
        "guidance": json.dumps(sampling.to_dict()["guidance"]),
        "checkpoint_step": str(run.step),
        "config": json.dumps(run.config.to_dict()),
    }
