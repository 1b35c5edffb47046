"""Trains what a config says; the same command again goes on where it stopped.

    python -m diffusion_jax.train --config configs/small/shapes_ldm.py --workdir runs/x

Any field can be set from the command line: `--config.optimizer.learning_rate=3e-4`.
"""

from __future__ import annotations

from typing import Any

import jax
from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from diffusion_jax import build, command, finetuning, frozen_towers, previews, runs
from diffusion_jax.data import batches, captions
from diffusion_jax.training import loop, sharding

MAX_CAPTIONS = 100_000  # from which a tokenizer is learnt
TOWER_SECTIONS = {"clip": ("clip", "tokenizer"), "vae": ("vae",)}  # of its config


def train(config: ConfigDict, workdir: epath.PathLike) -> runs.Run:
    """One run from its beginning, or from its newest checkpoint, to its end."""
    workdir = epath.Path(workdir)
    config = complete(config, workdir)
    build.check(config)
    optimizer = build.optimizer(config)
    options = build.loop_options(config)
    mesh = sharding.make_mesh(dict(config.mesh))
    runs.write_config(workdir, config)
    records = build.source(config, config.data.train_split)
    tokenizer = prepare_tokenizer(config, workdir, records)
    if config.task.name in build.unclip.TASKS:
        build.unclip.check_lengths(config, tokenizer.context_length)
    frozen = {}
    if config.task.name in frozen_towers.KINDS:
        frozen = frozen_towers.prepare(config, workdir, records, tokenizer)
    initial = finetuning.initial(config, workdir) if "weights" in config else None
    task = build.task(config, tokenizer, frozen, initial)
    stream = training_stream(config, workdir, records, tokenizer, frozen)
    state, frozen = loop.train(
        task,
        stream,
        optimizer,
        workdir,
        options,
        mesh=mesh,
        sharding_rules=config.sharding,
        on_sample=previews.make_on_sample(config, workdir, tokenizer),
    )
    stream.close()
    return runs.Run(config, tokenizer, state.ema_params, frozen, int(state.step))


def complete(config: ConfigDict, workdir: epath.Path) -> ConfigDict:
    """With the towers' own configs filled in, for a task that has frozen towers."""
    if "weights" in config:
        return finetuning.complete(config, workdir)
    if "towers" not in config:
        return config
    config = ConfigDict(config.to_dict())
    family = "shapes" if config.task.name == "latent_diffusion" else "scenes"
    for tower, directory in config.towers.items():
        if not (epath.Path(directory) / runs.CONFIG_FILE).exists():
            raise build.ConfigError(
                f"towers.{tower}: there is no trained run in {directory!r}; train it, "
                "python -m diffusion_jax.train --config configs/small/"
                f"{family}_{tower}.py --workdir {directory}, or name another with "
                f"--config.towers.{tower}"
            )
        found = runs.read_config(directory)
        for section in TOWER_SECTIONS[tower]:
            config[section] = found[section]
        if tower == "clip":
            config.clip_image_size = found.data.image_size
    return config


def prepare_tokenizer(
    config: ConfigDict, workdir: epath.Path, records: Any
) -> captions.AnyTokenizer | None:
    """Copies the tokenizer that the config names, or learns one from the captions."""
    if "tokenizer" not in config:
        return None
    if not (workdir / runs.TOKENIZER).exists():
        unfinished = workdir / "tokenizer.unfinished"
        directory = tokenizer_directory(config)
        if "weights" in config:
            finetuning.copy_tokenizers(config, unfinished)
        elif directory:
            unfinished.mkdir(parents=True, exist_ok=True)
            for file in epath.Path(directory).iterdir():
                file.copy(unfinished / file.name, overwrite=True)
        else:
            count = min(len(records), MAX_CAPTIONS)
            captions.train_tokenizer(
                (records[i].caption for i in range(count)),
                str(unfinished),
                vocab_size=config.tokenizer.vocab_size,
                context_length=config.tokenizer.context_length,
            )
        unfinished.rename(workdir / runs.TOKENIZER)
    return runs.load_tokenizer(workdir, config)


def tokenizer_directory(config: ConfigDict) -> str:
    """Where a ready tokenizer is; empty if one is to be learnt."""
    if "towers" in config:
        return str(epath.Path(config.towers.clip) / runs.TOKENIZER)
    return config.tokenizer.directory


def training_stream(
    config: ConfigDict,
    workdir: epath.Path,
    records: Any,
    tokenizer: captions.AnyTokenizer | None,
    frozen: Params,
) -> batches.Batches:
    """Batches of what the task's loss takes."""
    shards = dict(shard_index=jax.process_index(), shard_count=jax.process_count())
    if config.task.name in frozen_towers.KINDS:
        cache = frozen_towers.cached(config, workdir, records, tokenizer, frozen)
        if cache is not None:
            rows = batches.arrays(cache)
            return build.stream(config, rows, batches.row_example, **shards)
    if config.task.name == "upsampler":
        example = build.upsampler.pairs(config)
    else:
        example = build.image_text(config, tokenizer)
    return build.stream(config, records, example, **shards)


def define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "What to train: a .py file.")
    flags.DEFINE_string("workdir", None, "Where the run is kept.")
    flags.mark_flags_as_required(["config", "workdir"])


def main(_: list[str]) -> None:
    command.enable_compilation_cache()
    train(flags.FLAGS.config, flags.FLAGS.workdir)


if __name__ == "__main__":
    define_flags()
    command.run(main)
