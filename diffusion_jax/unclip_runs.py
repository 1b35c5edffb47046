"""DALL·E 2 of our own training: one directory that holds a run of every stage.

runs/scenes/clip/  prior/  decoder/  upsampler_32/  upsampler_64/  ...

A run's task says which stage it is, whatever its name; upsamplers go from small to
large. All but the decoder may be missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
from etils import epath
from ml_collections import ConfigDict

from diffusion_jax import build, runs
from diffusion_jax.data import captions
from diffusion_jax.frozen_towers import PAIRS
from diffusion_jax.pipelines import priors
from diffusion_jax.pipelines.dalle2 import Dalle2
from diffusion_jax.pipelines.priors import AutoregressivePrior, DiffusionPrior
from diffusion_jax.tasks import prior as prior_task
from diffusion_jax.training import checkpoint
from diffusion_jax.types import Params

PRIORS = (build.unclip.DIFFUSION, build.unclip.AUTOREGRESSIVE)


class Found(NamedTuple):
    """The runs of a directory by their stage; weights are not read yet."""

    decoder: epath.Path
    prior: epath.Path | None
    upsamplers: tuple[epath.Path, ...]  # from small to large
    configs: dict[epath.Path, ConfigDict]


class Stack(NamedTuple):
    """The pipeline is static; a function of `params` is all that there is to jit."""

    pipeline: Dalle2
    params: Params
    tokenizer: captions.AnyTokenizer
    configs: dict[str, ConfigDict]  # "decoder", "prior" and the names of upsamplers


def find(directory: epath.PathLike, *, prior: str | None = None) -> Found:
    """The runs in a directory; `prior` is the name of one's run where there are two.

    Without it, the diffusion prior is taken rather than the autoregressive one.
    """
    directory = epath.Path(directory)
    if not directory.is_dir():
        raise build.ConfigError(f"there is no directory {directory}")
    paths = [p for p in directory.iterdir() if (p / runs.CONFIG_FILE).exists()]
    configs = {path: runs.read_config(path) for path in sorted(paths)}
    by_task: dict[str, list[epath.Path]] = {}
    for path, config in configs.items():
        by_task.setdefault(config.task.name, []).append(path)
    decoders = by_task.get(build.unclip.DECODER, [])
    if len(decoders) != 1:
        names = [path.name for path in decoders]
        raise build.ConfigError(
            f"{directory} needs one run of a decoder; it holds {names or 'none'}, and "
            f"runs of {sorted(by_task)}"
        )
    priors = [path for task in PRIORS for path in by_task.get(task, [])]
    if prior is not None:
        names = [path.name for path in priors]
        if prior not in names:
            raise build.ConfigError(
                f"no prior {prior!r} in {directory}: {build.nearest(prior, names)}"
            )
        priors = [path for path in priors if path.name == prior]
    upsamplers = sorted(
        by_task.get("upsampler", []), key=lambda path: configs[path].data.image_size
    )
    _check_sizes(configs, decoders[0], upsamplers)
    return Found(decoders[0], priors[0] if priors else None, tuple(upsamplers), configs)


def _check_sizes(
    configs: Mapping[epath.Path, ConfigDict],
    decoder: epath.Path,
    upsamplers: list[epath.Path],
) -> None:
    """Raises unless every upsampler enlarges what the stage before it makes."""
    size, before = configs[decoder].decoder_size, decoder.name
    for path in upsamplers:
        wanted = configs[path].upsampler.low_size
        if wanted != size:
            raise build.ConfigError(
                f"{path} enlarges images of {wanted} pixels; {before} makes {size}"
            )
        size, before = configs[path].data.image_size, path.name


def load(directory: epath.PathLike, *, prior: str | None = None) -> Stack:
    """The pipeline of the runs in a directory, with their averaged parameters."""
    found = find(directory, prior=prior)
    decoder = runs.load(found.decoder)
    params = build.unclip.decoder_params(decoder.params, decoder.frozen)
    configs = {"decoder": decoder.config}
    of_prior = None
    if found.prior is not None:
        run = runs.load(found.prior)
        _check_clip(found, run.frozen, decoder.frozen)
        params |= build.unclip.prior_params(run.params, run.frozen)
        of_prior = (run.config, run.frozen)
        configs["prior"] = run.config
        params = know_data(
            run, params, build.unclip.prior_of(run.config, run.tokenizer, run.frozen)
        )
    upsamplers = {}
    for path in found.upsamplers:
        run = runs.load(path)
        params[path.name] = run.params["upsampler"]
        upsamplers[path.name] = run.config
    pipeline = build.unclip.dalle2(
        decoder.config, decoder.tokenizer, of_prior, upsamplers
    )
    return Stack(pipeline, params, decoder.tokenizer, configs | upsamplers)


def know_data(
    run: runs.Run, params: Params, prior: DiffusionPrior | AutoregressivePrior
) -> Params:
    """The params with what Analytic-DPM must know of the data, if the prior asks for it.

    It is estimated on the pairs of training data that the prior's run keeps; `prior` is
    how it is to be sampled.
    """
    if isinstance(prior, AutoregressivePrior):
        return params
    if not priors.needs_eps_power(prior.stage):
        return params
    if PAIRS not in run.frozen:
        raise build.ConfigError(
            "the sampler of the prior must know the data, and this run keeps none: "
            "choose another sampler"
        )
    towers = build.unclip.clip_towers(run.config, run.tokenizer)
    encoder = build.unclip.own_text(run.config, run.tokenizer)

    @jax.jit
    def estimate(trained: Params, frozen: Params, params: Params) -> Params:
        pairs = frozen[PAIRS]
        text = prior_task.captions(towers, encoder, trained, frozen, pairs)
        return priors.with_eps_power(
            prior, params, jax.random.key(0), pairs["image_embed"], text
        )

    return params | {"eps_power": estimate(run.params, run.frozen, params)["eps_power"]}


def _check_clip(found: Found, of_prior: Params, of_decoder: Params) -> None:
    prints = [
        checkpoint.fingerprint(build.unclip.clip_part(frozen))
        for frozen in (of_prior, of_decoder)
    ]
    if prints[0] != prints[1]:
        raise build.ConfigError(
            f"{found.prior} and {found.decoder} were trained with different CLIPs"
        )
