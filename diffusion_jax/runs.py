"""A run's directory: what training leaves there, and how it is read back.

config.json     the whole config        checkpoints/   Orbax, one per saved step
tokenizer/      vocab.json, merges.txt  frozen/        the towers (latent diffusion)
metrics.csv     one row per log step    samples/       pictures made while training
cache/          the towers' outputs     events.*       TensorBoard
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import jax
from etils import epath
from ml_collections import ConfigDict

from diffusion_jax import build
from diffusion_jax.data import captions
from diffusion_jax.training import checkpoint, sharding
from diffusion_jax.training.state import init_state
from diffusion_jax.types import Params

CONFIG_FILE, TOKENIZER, FROZEN = "config.json", "tokenizer", "frozen"
CHECKPOINTS, CACHE, SAMPLES = "checkpoints", "cache", "samples"

# What may change when a run goes on: how long and how often, never what is trained.
CHANGEABLE = {
    "accumulate",
    "cache_embeddings",
    "cache_latents",
    "checkpoint_every",
    "keep",
    "log_every",
    "mesh",
    "num_workers",
    "sample_every",
    "sampling",
    "sharding",
    "towers",
}


class Run(NamedTuple):
    """A trained model: `params` are the averaged ones, `step` is theirs."""

    config: ConfigDict
    tokenizer: captions.AnyTokenizer | None
    params: Params
    frozen: Params
    step: int


def _to_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _to_tuples(entry) for name, entry in value.items()}
    return tuple(map(_to_tuples, value)) if isinstance(value, list) else value


def read_config(workdir: epath.PathLike) -> ConfigDict:
    """The config with which `workdir` was trained."""
    path = epath.Path(workdir) / CONFIG_FILE
    if not path.exists():
        raise build.ConfigError(f"{workdir} holds no run: there is no {path}")
    return ConfigDict(_to_tuples(json.loads(path.read_text())))


def write_config(workdir: epath.PathLike, config: ConfigDict) -> None:
    """Writes the config; raises if the directory belongs to a run of another one."""
    workdir = epath.Path(workdir)
    wanted = json.loads(json.dumps(config.to_dict()))
    path = workdir / CONFIG_FILE
    if path.exists():
        found = json.loads(path.read_text())
        different = [
            f"{name} (there {found.get(name)}, here {wanted.get(name)})"
            for name in sorted(found.keys() | wanted.keys())
            if found.get(name) != wanted.get(name) and name not in CHANGEABLE
        ]
        if different:
            raise build.ConfigError(
                f"{workdir} was begun with another config: {'; '.join(different)}. "
                "Use another --workdir, or the settings it was begun with"
            )
    workdir.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(wanted, indent=2) + "\n")


def load_tokenizer(
    workdir: epath.PathLike, config: ConfigDict
) -> captions.AnyTokenizer | None:
    """The run's own copy of its tokenizer; None for a task without text."""
    if "tokenizer" not in config:
        return None
    directory = epath.Path(workdir) / TOKENIZER
    length = config.tokenizer.context_length
    names = [name.replace("text_encoder", "tokenizer") for name in _encoders(config)]
    if not names:
        return captions.load_tokenizer(str(directory), context_length=length)
    each = (
        captions.load_tokenizer(str(directory / name), context_length=length)
        for name in names
    )
    return captions.Tokenizers(tuple(each))


def _encoders(config: ConfigDict) -> list[str]:
    """The names of a published model's text encoders; none if the run has its own."""
    return sorted(config.get("text_encoders", {}))


def load(workdir: epath.PathLike, *, step: int | None = None) -> Run:
    """The averaged parameters of the newest checkpoint, or of that of `step`."""
    workdir = epath.Path(workdir)
    config = read_config(workdir)
    tokenizer = load_tokenizer(workdir, config)
    frozen = {}
    if (workdir / FROZEN).exists():
        frozen = checkpoint.load_params(workdir / FROZEN)
    task = build.task(config, tokenizer, frozen)
    optimizer = build.optimizer(config)

    def make(key):
        return init_state(optimizer, task.init(key)[0])

    shapes = jax.eval_shape(make, jax.random.key(0))
    places = sharding.infer_shardings(shapes, (), sharding.make_mesh())
    target = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        shapes,
        places,
    )
    restored = checkpoint.read(workdir / CHECKPOINTS, target, step=step)
    return Run(config, tokenizer, restored.state.ema_params, frozen, restored.step)
