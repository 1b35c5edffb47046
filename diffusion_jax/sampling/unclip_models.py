"""DALL·E 2 to sample, found and checked, its weights not read yet."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import safetensors
from etils import epath
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from diffusion_jax import build, published_unclip, runs, unclip_runs
from diffusion_jax.data.captions import AnyTokenizer
from diffusion_jax.pipelines import dalle2, priors, stage
from diffusion_jax.pipelines.dalle2 import Dalle2
from diffusion_jax.pipelines.priors import AutoregressivePrior
from diffusion_jax.pipelines.stage import Stage
from diffusion_jax.sampling import trained_runs
from diffusion_jax.training import checkpoint
from diffusion_jax.types import Conditioning, Params


class Choices(NamedTuple):
    """How to sample one stage; None is as it was trained or published."""

    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    grid: str | None = None


class Chosen(NamedTuple):
    """How to sample every stage; of upsamplers one for all, one for each, or none."""

    prior: Choices = Choices()
    decoder: Choices = Choices()
    upsamplers: tuple[Choices, ...] = ()
    candidates: int | None = None


class Components(NamedTuple):
    """Principal components of image embeddings, those of most variance first."""

    mean: Float[np.ndarray, "P"]
    axes: Float[np.ndarray, "K P"]


class Model(NamedTuple):
    """`load` reads the weights of `pipeline`; the rest says what they are."""

    name: str
    pipeline: Dalle2
    tokenizer: AnyTokenizer
    load: Callable[[], Params]
    facts: Callable[[int, str], dict[str, str]] | None = None  # of (seed, negative)
    components: Components | None = None  # of an autoregressive prior

    def read(self, texts: list[str]) -> Int[np.ndarray, "N L"]:
        return self.tokenizer(texts)

    def num_cut(self, texts: list[str]) -> list[int]:
        """How many tokens of each text are not read."""
        return self.tokenizer.num_cut(texts).tolist()


# ---- a published one -----------------------------------------------------------------


def of_weights(
    name: str,
    chosen: Chosen,
    *,
    image_name: str | None = None,
    variant: str | None = None,
    dtype: str | None = None,
) -> Model:
    """Karlo, or what has its layout."""
    found = published_unclip.find(name, image_name=image_name, variant=variant)
    if len(chosen.upsamplers) > 1:
        raise build.ConfigError(
            f"{len(chosen.upsamplers)} upsamplers are told how to sample; {name} has 1"
        )
    default = published_unclip.Choices()
    stages = dict(prior=chosen.prior, decoder=chosen.decoder)
    stages["super_res"] = (*chosen.upsamplers, Choices())[0]
    options: dict[str, Any] = {
        stage: getattr(default, stage)._replace(**_said(choices))
        for stage, choices in stages.items()
    }
    if chosen.candidates is not None:
        options["candidates"] = chosen.candidates
    if dtype is not None:
        options["dtype"] = dtype
    choices = default._replace(**options)
    pipeline = published_unclip.plan(found, choices)
    return Model(
        pathlib.PurePath(name).name or name,
        pipeline,
        published_unclip.load_tokenizer(found),
        lambda: published_unclip.load_params(found, choices.dtype),
    )


def _said(choices: Choices) -> dict[str, Any]:
    return {k: v for k, v in choices._asdict().items() if v is not None}


# ---- runs of our own -----------------------------------------------------------------


def of_runs(
    directory: str,
    chosen: Chosen,
    *,
    prior: str | None = None,
    wants_codes: bool = False,
) -> Model:
    """The runs in a directory; `prior` names that of one where there are two.

    With `wants_codes`, that is an autoregressive one if there is any.
    """
    found = find_runs(directory)
    if wants_codes and prior is None:
        named = [
            path.name
            for path, config in found.configs.items()
            if config.task.name == build.unclip.AUTOREGRESSIVE
        ]
        prior = named[0] if named else None
    found = find_runs(directory, prior)
    upsamplers = upsampler_configs(found, chosen.upsamplers)
    config = trained_runs.with_choices(
        found.configs[found.decoder], chosen.decoder._asdict()
    )
    tokenizer = runs.load_tokenizer(found.decoder, config)
    codes = read_codes(found)
    configs = {found.decoder.name: config}
    of_prior = None
    if found.prior is not None:
        configs[found.prior.name] = prior_config(found.configs[found.prior], chosen)
        of_prior = (configs[found.prior.name], {"codes": codes})
    pipeline = build.unclip.dalle2(config, tokenizer, of_prior, upsamplers)
    configs |= upsamplers
    components = Components(codes["mean"], codes["axes"].T) if codes else None

    def facts(seed: int, negative: str) -> dict[str, str]:
        steps = {name: newest_step(epath.Path(directory) / name) for name in configs}
        said = {name: config.to_dict() for name, config in configs.items()}
        return {
            "seed": str(seed),
            "checkpoint_steps": json.dumps(steps),
            "configs": json.dumps(said),
        }

    return Model(
        pathlib.PurePath(directory).name,
        pipeline,
        tokenizer,
        functools.partial(_load_runs, directory, found),
        facts,
        components,
    )


def find_runs(directory: str, prior: str | None = None) -> unclip_runs.Found:
    if (epath.Path(directory) / runs.CONFIG_FILE).exists():
        raise build.ConfigError(
            f"{directory} is one run; name the directory that holds the runs of all "
            "stages"
        )
    return unclip_runs.find(directory, prior=prior)


def _load_runs(directory: str, found: unclip_runs.Found) -> Params:
    name = None if found.prior is None else found.prior.name
    return unclip_runs.load(directory, prior=name).params


def upsampler_configs(
    found: unclip_runs.Found, choices: tuple[Choices, ...]
) -> dict[str, ConfigDict]:
    """The configs of upsamplers by the names of their runs, sampled as chosen."""
    num = len(found.upsamplers)
    if len(choices) > 1 and len(choices) != num:
        raise build.ConfigError(
            f"{len(choices)} upsamplers are told how to sample; there are {num}"
        )
    if choices and not num:
        raise build.ConfigError("there is no upsampler to tell how to sample")
    choices = choices * num if len(choices) == 1 else choices or (Choices(),) * num
    return {
        path.name: trained_runs.with_choices(found.configs[path], one._asdict())
        for path, one in zip(found.upsamplers, choices)
    }


def prior_config(config: ConfigDict, chosen: Chosen) -> ConfigDict:
    """The config of a prior's run, sampled as chosen."""
    if config.task.name == build.unclip.DIFFUSION:
        given = chosen.prior._asdict() | {"candidates": chosen.candidates}
        return trained_runs.with_choices(config, given)
    for name in ("steps", "sampler", "grid"):
        if getattr(chosen.prior, name) is not None:
            raise build.ConfigError(
                f"--prior_{name} is for a diffusion prior; this one is autoregressive"
            )
    config = ConfigDict(config.to_dict())
    given = dict(guidance=chosen.prior.guidance, candidates=chosen.candidates)
    config.sampling.update({k: v for k, v in given.items() if v is not None})
    return config


def read_codes(found: unclip_runs.Found) -> dict[str, np.ndarray] | None:
    """The codes of an autoregressive prior, which are small; of its run nothing else."""
    path = found.prior
    if path is None or found.configs[path].task.name != build.unclip.AUTOREGRESSIVE:
        return None
    start = "codes/"
    file = path / runs.FROZEN / checkpoint.PARAMS_FILE
    if not file.exists():
        raise build.ConfigError(f"there is no {file}: {path} was not trained")
    with safetensors.safe_open(file, framework="numpy") as tensors:
        names = [name for name in tensors.keys() if name.startswith(start)]  # noqa: SIM118
        return {name.removeprefix(start): tensors.get_tensor(name) for name in names}


def newest_step(run: epath.Path) -> int | None:
    """Of its checkpoints, that which is read."""
    directory = run / runs.CHECKPOINTS
    steps = [int(path.name) for path in directory.iterdir() if path.name.isdigit()]
    return max(steps, default=None)


# ---- what can be wrong with a pipeline -----------------------------------------------


def check(pipeline: Dalle2, *, uses_prior: bool) -> None:
    """Raises for grids that are too long, and samplers that ask for data."""
    for name, one in stages_of(pipeline).items():
        if name == "prior" and not uses_prior:
            continue
        stage.times(one)
        if priors.needs_eps_power(one):
            flag = {"prior": "--prior_sampler", "decoder": "--sampler"}
            raise build.ConfigError(
                f"the sampler of {name} must know the data: choose another with "
                f"{flag.get(name, '--upsampler_sampler')}"
            )


def stages_of(pipeline: Dalle2) -> dict[str, Stage]:
    """Those that take steps, by name; an autoregressive prior takes none."""
    found = {}
    if pipeline.prior is not None and not isinstance(
        pipeline.prior, AutoregressivePrior
    ):
        found["prior"] = pipeline.prior.stage
    found["decoder"] = pipeline.decoder
    return found | {one.name: one.stage for one in pipeline.upsamplers}


def prior_guidance(pipeline: Dalle2) -> float | None:
    """What scales the guidance of its prior, if there is one."""
    prior = pipeline.prior
    if prior is None:
        return None
    is_autoregressive = isinstance(prior, AutoregressivePrior)
    return float(prior.guidance if is_autoregressive else prior.stage.guidance)


def check_two_scales(pipeline: Dalle2) -> None:
    """Raises unless the decoder's guidance can have a scale of the embedding alone."""
    dalle2.two_way(pipeline.decoder, Conditioning(), 1.0)
