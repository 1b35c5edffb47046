"""DALL·E 2 of our own training: one directory that holds a run of every stage.

runs/scenes/clip/  prior/  decoder/  upsampler_32/  upsampler_64/  ...

A run's task says which stage it is, whatever its name; upsamplers go from small to
large. All but the decoder may be missing.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
from etils import epath
from jaxtyping import Array
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

CLIP = ("text_encoder/", "image_encoder/")  # of what a run froze
PRIORS = (build.unclip.DIFFUSION, build.unclip.AUTOREGRESSIVE)


class Found(NamedTuple):
    """The runs of a directory by their stage; weights are not read yet."""

    decoder: epath.Path
    prior: epath.Path | None
    upsamplers: tuple[epath.Path, ...]  # from small to large
    configs: dict[epath.Path, ConfigDict]

    @property
    def wanted(self) -> tuple[epath.Path, ...]:
        """Those whose weights are wanted."""
        prior = () if self.prior is None else (self.prior,)
        return (self.decoder, *prior, *self.upsamplers)


class Stack(NamedTuple):
    """The pipeline is static; a function of `params` is all that there is to jit."""

    pipeline: Dalle2
    params: Params
    tokenizer: captions.AnyTokenizer
    configs: dict[str, ConfigDict]  # "decoder", "prior" and the names of upsamplers
    steps: Mapping[str, int] = types.MappingProxyType({})  # by the names of runs


def find(
    directory: epath.PathLike,
    *,
    prior: str | None = None,
    kinds: Sequence[str] = PRIORS,
) -> Found:
    """The runs in a directory; `prior` is the name of one's run where there are two.

    Without it, the prior is of the first of `kinds` of which there is any.
    """
    directory = epath.Path(directory)
    if not directory.is_dir():
        raise build.ConfigError(f"there is no directory {directory}")
    configs = read_configs(directory)
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
    chosen = _choose_prior(directory, by_task, prior, kinds)
    if chosen is not None:
        _check_clip(chosen, decoders[0])
    upsamplers = sorted(
        by_task.get("upsampler", []), key=lambda path: configs[path].data.image_size
    )
    _check_sizes(configs, decoders[0], upsamplers)
    return Found(decoders[0], chosen, tuple(upsamplers), configs)


def read_configs(directory: epath.PathLike) -> dict[epath.Path, ConfigDict]:
    """Those of the runs in a directory; modules of a published model are none."""
    paths = epath.Path(directory).glob(f"*/{runs.CONFIG_FILE}")
    configs = {path.parent: runs.read_config(path.parent) for path in sorted(paths)}
    return {path: config for path, config in configs.items() if "task" in config}


def _choose_prior(
    directory: epath.Path,
    by_task: Mapping[str, list[epath.Path]],
    prior: str | None,
    kinds: Sequence[str],
) -> epath.Path | None:
    if prior is not None:
        named = {path.name: path for kind in PRIORS for path in by_task.get(kind, [])}
        if prior not in named:
            raise build.ConfigError(
                f"no prior {prior!r} in {directory}: {build.nearest(prior, named)}"
            )
        return named[prior]
    for kind in kinds:
        paths = by_task.get(kind, [])
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            raise build.ConfigError(
                f"{directory} has several runs of a {kind}, {names}: name one as prior"
            )
        if paths:
            return paths[0]
    return None


def _check_clip(prior: epath.Path, decoder: epath.Path) -> None:
    """By the headers of what the runs froze."""
    prints = []
    for path in (prior, decoder):
        stored = checkpoint.stored_fingerprint(path / runs.FROZEN)
        prints.append({k: v for k, v in stored.items() if k.startswith(CLIP)})
    if prints[0] != prints[1]:
        raise build.ConfigError(
            f"{prior} and {decoder} were trained with different CLIPs"
        )


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
    return read(find(directory, prior=prior))


def read(
    found: Found,
    *,
    configs: Mapping[str, ConfigDict] | None = None,
    steps: Mapping[str, int] | None = None,
) -> Stack:
    """The pipeline of some runs, with their averaged parameters.

    By the names of runs: `configs` that say how to sample instead of their own, and
    `steps` of the checkpoints to read instead of the newest.
    """
    configs, steps = configs or {}, steps or {}
    check_steps(found, steps)

    def load_run(path: epath.Path) -> runs.Run:
        run = runs.load(path, step=steps.get(path.name))
        loaded[path.name] = run.step
        return run._replace(config=configs.get(path.name, run.config))

    loaded: dict[str, int] = {}
    decoder = load_run(found.decoder)
    params = build.unclip.decoder_params(decoder.params, decoder.frozen)
    said = {"decoder": decoder.config}
    of_prior = None
    if found.prior is not None:
        run = load_run(found.prior)
        params |= build.unclip.prior_params(run.params, run.frozen)
        of_prior = (run.config, run.frozen)
        said["prior"] = run.config
        prior = build.unclip.prior_of(run.config, run.tokenizer, run.frozen)
        params = know_data(run, params, prior)
    upsamplers = {}
    for path in found.upsamplers:
        run = load_run(path)
        params[path.name] = run.params["upsampler"]
        upsamplers[path.name] = run.config
    pipeline = build.unclip.dalle2(
        decoder.config, decoder.tokenizer, of_prior, upsamplers
    )
    return Stack(pipeline, params, decoder.tokenizer, said | upsamplers, loaded)


def check_steps(found: Found, steps: Mapping[str, int]) -> None:
    """Raises for a run that is not read, or a step of which it has no checkpoint."""
    paths = {path.name: path for path in found.wanted}
    for name, step in steps.items():
        if name not in paths:
            raise build.ConfigError(
                f"the checkpoint of {name!r}, no run that is read: "
                f"{build.nearest(name, paths)}"
            )
        directory = paths[name] / runs.CHECKPOINTS
        known = [p.name for p in directory.iterdir()] if directory.exists() else []
        known = sorted(int(word) for word in known if word.isdigit())
        if step not in known:
            raise build.ConfigError(f"no step {step} in {directory}; one of {known}")


def keeps_pairs(run: epath.Path) -> bool:
    """Whether a prior's run has what `know_data` needs."""
    stored = checkpoint.stored_fingerprint(run / runs.FROZEN)
    return any(name.startswith(f"{PAIRS}/") for name in stored)


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
    def estimate(trained: Params, frozen: Params, params: Params) -> Array:
        pairs = frozen[PAIRS]
        text = prior_task.captions(towers, encoder, trained, frozen, pairs)
        return priors.estimate_eps_power(
            prior, params, jax.random.key(0), pairs["image_embed"], text
        )

    return params | {"eps_power": estimate(run.params, run.frozen, params)}
