"""What a run freezes: the towers of earlier runs, and what is derived of their outputs.

latent_diffusion       vae, text_encoder, latent_scale
diffusion_prior        text_encoder, image_encoder, embedding (the scale), pairs
autoregressive_prior   text_encoder, image_encoder, codes
decoder                text_encoder, image_encoder

Their outputs for all records are computed once where the config says `cache_latents` or
`cache_embeddings`, and training reads those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from diffusion_jax import build, finetuning, runs
from diffusion_jax.data import batches, captions
from diffusion_jax.models import clip_towers, embedding_codes, embedding_scale
from diffusion_jax.tasks import clip_batches, latent_diffusion, tower_cache
from diffusion_jax.training import checkpoint
from diffusion_jax.types import Batch, Params

CACHES = ("cache_latents", "cache_embeddings")  # options of a config
ENCODING_BATCH = 256
NUM_FITTED = 100_000  # embeddings from which a scale or codes are made
PAIRS = "pairs"  # of captions and embeddings, kept for samplers that must know the data
NUM_PAIRS = 256

Arrays = Mapping[str, np.ndarray]


class Kind(NamedTuple):
    """How a task's frozen parameters come about, and what they make of a batch."""

    load: Callable[[ConfigDict], Params]
    encode: Callable[[ConfigDict, Any], Callable[[Params, Batch], Batch]]
    derive: Callable[[ConfigDict, Arrays], Params] | None = None
    num_fitted: Callable[[ConfigDict], int] = lambda config: 1  # records, at least


# ---- latent diffusion ----------------------------------------------------------------


def _load_latent_towers(config: ConfigDict) -> Params:
    return {
        "vae": runs.load(config.towers.vae).params,
        "text_encoder": runs.load(config.towers.clip).params["text_model"],
    }


def _encode_latents(config: ConfigDict, tokenizer: captions.AnyTokenizer) -> Callable:
    towers = build.towers(config, tokenizer)

    def encode(frozen: Params, batch: Batch) -> Batch:
        posterior = latent_diffusion.encode_images(towers, frozen, batch["image"])
        return posterior | latent_diffusion.encode_text(towers, frozen, batch["tokens"])

    return encode


def _latent_scale(config: ConfigDict, latents: Arrays) -> Params:
    scale = tower_cache.latent_scale(latents["latent_mean"], latents["latent_std"])
    return {"latent_scale": jnp.float32(scale)}


# ---- unCLIP --------------------------------------------------------------------------


def _load_clip(config: ConfigDict) -> Params:
    return build.unclip.clip_params(runs.load(config.towers.clip).params)


def _encode_pairs(config: ConfigDict, tokenizer: captions.AnyTokenizer) -> Callable:
    """Embeddings and captions, and the decoder's images."""
    towers = build.unclip.clip_towers(config, tokenizer)

    def encode(frozen: Params, batch: Batch) -> Batch:
        made = {"image_embed": towers.encode_image(frozen, batch["image"])}
        text = clip_batches.as_batch(towers.encode_text(frozen, batch["tokens"]))
        if "text" in config:  # an own encoder reads the tokens
            text = {"text_embed": text["text_embed"]}
        made |= text
        if "decoder_size" in config:
            size = config.decoder_size
            made["image"] = clip_towers.resized(batch["image"], size)
        return made | {"tokens": batch["tokens"]}

    return encode


def _embedding_scale(config: ConfigDict, encoded: Arrays) -> Params:
    scale = build.choose(
        "embedding_scale", embedding_scale.EMBEDDING_SCALES, config.embedding_scale
    )
    image = _float(encoded["image_embed"])
    tokens = jnp.asarray(encoded["tokens"][:NUM_PAIRS])
    pairs = {"image_embed": jnp.asarray(image[:NUM_PAIRS]), "tokens": tokens}
    return {"embedding": scale(image), PAIRS: pairs}


def _num_scaled(config: ConfigDict) -> int:
    return NUM_FITTED if config.embedding_scale.name == "statistics" else NUM_PAIRS


def _codes(config: ConfigDict, encoded: Arrays) -> Params:
    image, text = (_float(encoded[name]) for name in ("image_embed", "text_embed"))
    return {"codes": embedding_codes.fit(image, text, **config.codes)}


def _float(array: np.ndarray) -> np.ndarray:
    return np.asarray(array[:NUM_FITTED], np.float32)


KINDS = {
    "latent_diffusion": Kind(_load_latent_towers, _encode_latents, _latent_scale),
    "diffusion_prior": Kind(_load_clip, _encode_pairs, _embedding_scale, _num_scaled),
    "autoregressive_prior": Kind(
        _load_clip, _encode_pairs, _codes, lambda config: NUM_FITTED
    ),
    "decoder": Kind(_load_clip, _encode_pairs),
}


def prepare(
    config: ConfigDict,
    workdir: epath.Path,
    records: Any,
    tokenizer: captions.AnyTokenizer,
) -> Params:
    """The frozen parameters, kept in the run's own directory."""
    directory = workdir / runs.FROZEN
    if directory.exists():
        return checkpoint.load_params(directory)
    if "weights" in config:
        checkpoint.save_params(directory, finetuning.frozen(config))
        return checkpoint.load_params(directory)
    kind = KINDS[config.task.name]
    frozen = kind.load(config)
    if kind.derive is not None:
        encoded = cached(config, workdir, records, tokenizer, frozen)
        if encoded is None:
            encoded = _first(
                config, records, tokenizer, frozen, kind.num_fitted(config)
            )
        frozen |= kind.derive(config, encoded)
    checkpoint.save_params(directory, frozen)
    return checkpoint.load_params(directory)


def _encode(
    config: ConfigDict, tokenizer: captions.AnyTokenizer, frozen: Params
) -> Callable[[Arrays], Batch]:
    """A compiled function: images and tokens -> what the towers make of them."""
    compiled = jax.jit(KINDS[config.task.name].encode(config, tokenizer))

    def encode(batch: Arrays) -> Batch:
        wanted = {name: batch[name] for name in ("image", "tokens")}
        return compiled(frozen, wanted)

    return encode


def _first(
    config: ConfigDict,
    records: Any,
    tokenizer: captions.AnyTokenizer,
    frozen: Params,
    num_records: int,
) -> Arrays:
    """The encodings of one batch, as the paper takes them to find the latents' scale.

    Of more, where so many records are wanted; every host reads the same ones.
    """
    example = build.image_text(config, tokenizer)
    stream = build.stream(config, records, example)
    encode = _encode(config, tokenizer, frozen)
    num_batches = -(-min(num_records, len(records)) // config.batch_size)
    parts = [jax.device_get(encode(next(stream))) for _ in range(num_batches)]
    stream.close()
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def cached(
    config: ConfigDict,
    workdir: epath.Path,
    records: Any,
    tokenizer: captions.AnyTokenizer,
    frozen: Params,
) -> Arrays | None:
    """The towers' outputs for all records; None if the config wants none kept."""
    wanted = [name for name in CACHES if config.get(name, False)]
    if not wanted:
        return None
    name = wanted[0]
    if config.data.flip or config.data.crop == "random":
        raise build.ConfigError(
            f"{name} keeps one view of each image: set data.flip=False and "
            f"data.crop='center', or {name}=False"
        )
    if jax.process_count() > 1:
        raise build.ConfigError(f"{name} works on one host; set it to False")
    derived = ("unet", "latent_scale", "embedding", "codes", PAIRS)
    towers = {name: params for name, params in frozen.items() if name not in derived}
    origin = {
        "towers": checkpoint.fingerprint(towers),
        "data": config.data.to_dict(),
    }
    if "decoder_size" in config:
        origin["decoder_size"] = config.decoder_size
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
        encode = _encode(config, tokenizer, frozen)
        found = tower_cache.write(directory, origin, stream, encode, len(records))
    return found
