"""Trains what a config says; the same command again goes on where it stopped.

    python -m diffusion_jax.train --config configs/small/shapes_ldm.py --workdir runs/x

Any field can be set from the command line: `--config.optimizer.learning_rate=3e-4`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from etils import epath
from ml_collections import ConfigDict, config_flags

from diffusion_jax import build, command, finetuning, previews, runs
from diffusion_jax.data import batches, captions
from diffusion_jax.tasks import latent_diffusion, tower_cache
from diffusion_jax.training import checkpoint, loop, sharding
from diffusion_jax.types import Params

MAX_CAPTIONS = 100_000  # from which a tokenizer is learnt
ENCODING_BATCH = 256


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
    frozen = {}
    if config.task.name == "latent_diffusion":
        frozen = prepare_frozen(config, workdir, records, tokenizer)
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
    for tower, sections in (("clip", ("clip", "tokenizer")), ("vae", ("vae",))):
        directory = config.towers[tower]
        if not (epath.Path(directory) / runs.CONFIG_FILE).exists():
            raise build.ConfigError(
                f"towers.{tower}: there is no trained run in {directory!r}; train it, "
                f"python -m diffusion_jax.train --config configs/small/shapes_{tower}.py"
                f" --workdir {directory}, or name another with --config.towers.{tower}"
            )
        for section in sections:
            config[section] = runs.read_config(directory)[section]
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


def prepare_frozen(
    config: ConfigDict,
    workdir: epath.Path,
    records: Any,
    tokenizer: captions.AnyTokenizer,
) -> Params:
    """The towers, kept in the run's own directory with the latent scale they need."""
    directory = workdir / runs.FROZEN
    if not directory.exists() and "weights" in config:
        checkpoint.save_params(directory, finetuning.frozen(config))
    if not directory.exists():
        frozen = {
            "vae": runs.load(config.towers.vae).params,
            "text_encoder": runs.load(config.towers.clip).params["text_model"],
        }
        latents = cached_latents(config, workdir, records, tokenizer, frozen)
        if latents is None:
            latents = first_latents(config, records, tokenizer, frozen)
        scale = tower_cache.latent_scale(latents["latent_mean"], latents["latent_std"])
        checkpoint.save_params(directory, frozen | {"latent_scale": jnp.float32(scale)})
    return checkpoint.load_params(directory)


def encode(config: ConfigDict, tokenizer: captions.AnyTokenizer, frozen: Params):
    """A compiled function: images and tokens -> what the towers make of them."""
    towers = build.towers(config, tokenizer)

    @jax.jit
    def encode_batch(frozen, image, tokens):
        posterior = latent_diffusion.encode_images(towers, frozen, image)
        return posterior | latent_diffusion.encode_text(towers, frozen, tokens)

    return lambda batch: encode_batch(frozen, batch["image"], batch["tokens"])


def first_latents(
    config: ConfigDict, records: Any, tokenizer: captions.AnyTokenizer, frozen: Params
) -> Mapping[str, np.ndarray]:
    """The latents of one batch, as the paper takes them to find their scale."""
    example = build.image_text(config, tokenizer)
    stream = build.stream(config, records, example)
    latents = jax.device_get(encode(config, tokenizer, frozen)(next(stream)))
    stream.close()
    return latents


def cached_latents(
    config: ConfigDict,
    workdir: epath.Path,
    records: Any,
    tokenizer: captions.AnyTokenizer,
    frozen: Params,
) -> Mapping[str, np.ndarray] | None:
    """The towers' outputs for all records; None if the config wants none kept."""
    if not config.cache_latents:
        return None
    if config.data.flip or config.data.crop == "random":
        raise build.ConfigError(
            "cache_latents keeps one view of each image: set data.flip=False and "
            "data.crop='center', or cache_latents=False"
        )
    if jax.process_count() > 1:
        raise build.ConfigError("cache_latents works on one host; set it to False")
    towers = {
        name: params
        for name, params in frozen.items()
        if name not in ("unet", "latent_scale")
    }
    data = config.data.to_dict()
    origin = {"towers": checkpoint.fingerprint(towers), "data": data}
    directory = workdir / runs.CACHE
    found = tower_cache.read(directory, origin)
    if found is None:
        logging.info("encoding %d images and captions once", len(records))
        stream = batches.make_batches(
            records,
            build.image_text(config, tokenizer),
            batch_size=ENCODING_BATCH,
            seed=config.seed,
            shuffle=False,
            num_epochs=1,
            drop_remainder=False,
        )
        function = encode(config, tokenizer, frozen)
        found = tower_cache.write(directory, origin, stream, function, len(records))
    return found


def training_stream(
    config: ConfigDict,
    workdir: epath.Path,
    records: Any,
    tokenizer: captions.AnyTokenizer | None,
    frozen: Params,
) -> batches.Batches:
    """Batches of what the task's loss takes."""
    shards = dict(shard_index=jax.process_index(), shard_count=jax.process_count())
    if config.task.name == "latent_diffusion":
        cache = cached_latents(config, workdir, records, tokenizer, frozen)
        if cache is not None:
            rows = batches.arrays(cache)
            return build.stream(config, rows, batches.row_example, **shards)
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
