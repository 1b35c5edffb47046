"""DALL·E 2 to sample, found and checked, its weights not read yet."""

from __future__ import annotations

import functools
import json
import pathlib
import types
from collections.abc import Callable, Mapping
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

EMBEDDINGS, COMPONENTS = "embeddings", "components"  # what a prior is for
KINDS = {  # of priors, the first of which there is any
    None: (),
    EMBEDDINGS: unclip_runs.PRIORS,
    COMPONENTS: (build.unclip.AUTOREGRESSIVE,),
}


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
    keeps_pairs: bool = False  # of data, for a prior's sampler that must know them

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
    usual = published_unclip.Choices()
    (super_res,) = chosen.upsamplers or (Choices(),)
    choices = usual._replace(
        prior=usual.prior._replace(**_said(chosen.prior._asdict())),
        decoder=usual.decoder._replace(**_said(chosen.decoder._asdict())),
        super_res=usual.super_res._replace(**_said(super_res._asdict())),
        **_said(dict(candidates=chosen.candidates, dtype=dtype)),
    )
    pipeline = published_unclip.plan(found, choices)
    return Model(
        pathlib.PurePath(name).name or name,
        pipeline,
        published_unclip.load_tokenizer(found),
        lambda: published_unclip.load_params(found, choices.dtype),
    )


def _said(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in options.items() if value is not None}


# ---- runs of our own -----------------------------------------------------------------


class Parts(NamedTuple):
    """What is read of a directory of runs; None: no prior, every upsampler."""

    prior_for: str | None = EMBEDDINGS
    prior: str | None = None  # its name, where there are several
    num_upsamplers: int | None = None
    checkpoints: Mapping[str, int] = types.MappingProxyType({})  # else the newest


def of_runs(directory: str, chosen: Chosen, parts: Parts = Parts()) -> Model:  # noqa: B008
    """The runs in a directory."""
    found, codes = find_runs(directory, parts)
    unclip_runs.check_steps(found, parts.checkpoints)
    upsamplers = upsampler_configs(found, chosen.upsamplers)
    config = trained_runs.with_choices(
        found.configs[found.decoder], chosen.decoder._asdict()
    )
    tokenizer = runs.load_tokenizer(found.decoder, config)
    configs = {found.decoder.name: config}
    of_prior = None
    if found.prior is not None:
        configs[found.prior.name] = prior_config(found.configs[found.prior], chosen)
        of_prior = (configs[found.prior.name], {"codes": codes})
    pipeline = build.unclip.dalle2(config, tokenizer, of_prior, upsamplers)
    configs |= upsamplers

    @functools.cache
    def read() -> unclip_runs.Stack:
        return unclip_runs.read(found, configs=configs, steps=parts.checkpoints)

    def facts(seed: int, negative: str) -> dict[str, str]:
        said = {name: config.to_dict() for name, config in configs.items()}
        return {
            "seed": str(seed),
            "checkpoint_steps": json.dumps(dict(read().steps)),
            "configs": json.dumps(said),
        }

    return Model(
        pathlib.PurePath(directory).name,
        pipeline,
        tokenizer,
        lambda: read().params,
        facts,
        Components(codes["mean"], codes["axes"].T) if codes else None,
        found.prior is not None and unclip_runs.keeps_pairs(found.prior),
    )


def find_runs(
    directory: str, parts: Parts
) -> tuple[unclip_runs.Found, dict[str, np.ndarray] | None]:
    """Those that are read, and the codes of an autoregressive prior."""
    if (epath.Path(directory) / runs.CONFIG_FILE).exists():
        raise build.ConfigError(
            f"{directory} is one run; name the directory that holds the runs of all "
            "stages"
        )
    kinds = KINDS[parts.prior_for]
    found = unclip_runs.find(directory, prior=parts.prior, kinds=kinds)
    codes = read_codes(found)
    if parts.prior_for != EMBEDDINGS:
        found = found._replace(prior=None)
    wanted = found.upsamplers[: parts.num_upsamplers]
    return found._replace(upsamplers=wanted), codes


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
    config.sampling.update(_said(given))
    return config


def read_codes(found: unclip_runs.Found) -> dict[str, np.ndarray] | None:
    """The codes of an autoregressive prior, which are small; of its run nothing else."""
    path = found.prior
    if path is None or found.configs[path].task.name != build.unclip.AUTOREGRESSIVE:
        return None
    start, file = "codes/", path / runs.FROZEN / checkpoint.PARAMS_FILE
    with safetensors.safe_open(file, framework="numpy") as tensors:
        names = [name for name in tensors.keys() if name.startswith(start)]  # noqa: SIM118
        return {name.removeprefix(start): tensors.get_tensor(name) for name in names}


# ---- what can be wrong with a pipeline -----------------------------------------------


def check(
    pipeline: Dalle2, *, uses_prior: bool, num_upsamplers: int, keeps_pairs: bool
) -> None:
    """Raises for grids that are too long, and samplers that ask for data."""
    unused = {one.name for one in pipeline.upsamplers[num_upsamplers:]}
    if not uses_prior:
        unused.add("prior")
    for name, one in stages_of(pipeline).items():
        if name in unused:
            continue
        stage.times(one)
        knows_data = name == "prior" and keeps_pairs
        if priors.needs_eps_power(one) and not knows_data:
            flag = {"prior": "--prior_sampler", "decoder": "--sampler"}
            raise build.ConfigError(
                f"the sampler of {name} must know the data, of which there is none "
                f"beside its weights: choose another with "
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
