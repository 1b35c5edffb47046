"""What a run shows while it trains: numbers for its table, pictures in samples/."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from diffusion_jax import build, frozen_towers, runs
from diffusion_jax.data import batches, captions
from diffusion_jax.data import prompts as texts
from diffusion_jax.evaluation import (
    embedding_cosines,
    grids,
    reconstruction,
    retrieval,
    upsampling,
)
from diffusion_jax.pipelines import batched, priors
from diffusion_jax.tasks import clip as clip_task
from diffusion_jax.tasks import prior as prior_task
from diffusion_jax.training.loop import OnSample
from diffusion_jax.training.state import TrainState
from diffusion_jax.types import Params

NUM_EXAMPLES = 256  # of the evaluation split
NUM_SHOWN = 8


def first_examples(
    config: ConfigDict, tokenizer: captions.AnyTokenizer | None, split: str, count: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The first records of a split as one batch, and their captions."""
    records = build.source(config, split)
    stream = batches.make_batches(
        records,
        build.image_text(config, tokenizer),
        batch_size=min(count, len(records)),
        seed=0,
        shuffle=False,
        num_epochs=1,
    )
    batch = next(stream)
    stream.close()
    return batch, [records[int(i)].caption for i in batch["index"]]


def make_on_sample(
    config: ConfigDict, workdir: epath.Path, tokenizer: captions.AnyTokenizer | None
) -> OnSample | None:
    """The hook of the train loop for the config's task; None if it never samples."""
    if not config.sample_every or jax.process_index() != 0:
        return None
    makers = {
        "clip": _clip_hook,
        "autoencoder": _autoencoder_hook,
        "latent_diffusion": _latent_diffusion_hook,
        "diffusion_prior": _prior_hook,
        "autoregressive_prior": _prior_hook,
        "decoder": _decoder_hook,
        "upsampler": _upsampler_hook,
    }
    return makers[config.task.name](config, workdir / runs.SAMPLES, tokenizer)


def _show(image, directory: epath.Path, step: int) -> np.ndarray:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"step_{step:07d}.png"
    grids.save_png(image, path, metadata={"step": str(step)})
    return np.asarray(image)


def _clip_hook(config, directory, tokenizer) -> OnSample:
    model = build.clip_model(config, tokenizer)
    split = config.data.eval_split
    batch, texts = first_examples(config, tokenizer, split, NUM_EXAMPLES)
    embed = jax.jit(lambda params, x, t: clip_task.embed(model, params, x, t))

    def on_sample(step: int, state: TrainState, frozen: Params) -> dict[str, Any]:
        image, text = embed(state.ema_params, batch["image"], batch["tokens"])
        if len(image) < retrieval.GROUP_SIZE:
            return {}
        found = retrieval.retrieval_accuracy(image, text, texts)
        return {"eval_retrieval": np.float32(found.image_to_text)}

    return on_sample


def _autoencoder_hook(config, directory, tokenizer) -> OnSample:
    model = build.autoencoder(config)
    split = config.data.eval_split
    batch, _ = first_examples(config, tokenizer, split, NUM_EXAMPLES)
    rebuild = jax.jit(lambda params, x: model.apply({"params": params}, x))

    def on_sample(step: int, state: TrainState, frozen: Params) -> dict[str, Any]:
        output = jnp.clip(rebuild(state.ema_params, batch["image"]), -1, 1)
        psnr = reconstruction.psnr(batch["image"], output)
        rows = {"original": batch["image"], "reconstruction": output}
        rows = {name: images[:NUM_SHOWN] for name, images in rows.items()}
        picture = _show(grids.labelled_rows(rows), directory, step)
        return {"eval_psnr": np.float32(psnr), "reconstructions": picture}

    return on_sample


def _latent_diffusion_hook(config, directory, tokenizer) -> OnSample:
    pipeline = build.stable_diffusion(config, tokenizer)
    prompts = list(config.sampling.prompts)
    generate = batched.text_to_image(pipeline, batch_size=len(prompts))
    prompt, negative = texts.plain(prompts, tokenizer), texts.plain([""], tokenizer)

    def on_sample(step: int, state: TrainState, frozen: Params) -> dict[str, Any]:
        params = build.sampling_params(state.ema_params, frozen)
        images = np.concatenate(list(generate(params, prompt, negative)))
        picture = grids.captioned_grid(images, prompts, columns=min(4, len(prompts)))
        return {"samples": _show(picture, directory, step)}

    return on_sample


def _prior_hook(config, directory, tokenizer) -> OnSample:
    """Cosines of drawn embeddings; the baseline is the mean of the same images."""
    towers = build.unclip.clip_towers(config, tokenizer)
    encoder = build.unclip.own_text(config, tokenizer)
    split = config.data.eval_split
    batch, _ = first_examples(config, tokenizer, split, NUM_EXAMPLES)
    batch = {name: batch[name] for name in ("image", "tokens")}
    null = {"tokens": jnp.asarray(tokenizer([""]))}
    keys = jax.random.split(jax.random.key(0), len(batch["image"]))
    key_pairs = jax.random.key(1)

    @jax.jit
    def measure(trained: Params, frozen: Params, batch: dict[str, Any]) -> Any:
        prior = build.unclip.prior_of(config, tokenizer, frozen)
        text, nothing = (
            prior_task.captions(towers, encoder, trained, frozen, tokens)
            for tokens in (batch, null)
        )
        image = towers.encode_image(frozen, batch["image"])
        params = build.unclip.prior_params(trained, frozen)
        if frozen_towers.PAIRS in frozen:
            pairs = frozen[frozen_towers.PAIRS]
            told = prior_task.captions(towers, encoder, trained, frozen, pairs)
            embed = pairs["image_embed"]
            params = priors.with_eps_power(prior, params, key_pairs, embed, told)
        return prior(params, keys, text, nothing), image, text.embed

    def on_sample(step: int, state: TrainState, frozen: Params) -> dict[str, Any]:
        drawn, image, text = measure(state.ema_params, frozen, batch)
        mean = mean_embedding(frozen)
        found = embedding_cosines.prior_cosines(drawn, image, text, mean)
        return {f"eval_{k}": np.float32(v) for k, v in found._asdict().items()}

    return on_sample


def mean_embedding(frozen: Params) -> np.ndarray:
    """Of images that a prior was trained on."""
    if "codes" in frozen:
        return np.asarray(frozen["codes"]["mean"])
    return np.asarray(frozen[frozen_towers.PAIRS]["image_embed"]).mean(axis=0)


def _decoder_hook(config, directory, tokenizer) -> OnSample:
    """Images decoded of the embeddings of others, with their captions and without."""
    split = config.data.eval_split
    batch, _ = first_examples(config, tokenizer, split, NUM_SHOWN)
    null_tokens = jnp.asarray(tokenizer([""]))
    keys = jax.random.split(jax.random.key(0), len(batch["image"]))
    pipeline = build.unclip.dalle2(config, tokenizer)

    @jax.jit
    def decode(params: Params, image: Any, tokens: Any) -> Any:
        null = pipeline.encode_text(params, null_tokens)
        embed = pipeline.encode_image(params, image)
        texts = {"with caption": pipeline.encode_text(params, tokens), "alone": null}
        return {
            name: pipeline.decode(
                params, keys, pipeline.hear(params, embed, text, null)
            )
            for name, text in texts.items()
        }

    def on_sample(step: int, state: TrainState, frozen: Params) -> dict[str, Any]:
        params = build.unclip.decoder_params(state.ema_params, frozen)
        rows = {"original": batch["image"]}
        rows |= decode(params, batch["image"], batch["tokens"])
        size = config.data.image_size
        rows = {k: upsampling.bicubic(v, size) for k, v in rows.items()}
        return {"samples": _show(grids.labelled_rows(rows), directory, step)}

    return on_sample


def _upsampler_hook(config, directory, tokenizer) -> OnSample:
    upsample = jax.jit(build.upsampler.upsampler(config))
    batch, _ = first_examples(config, tokenizer, config.data.eval_split, NUM_SHOWN)
    originals = batch["image"]
    low_res = upsampling.bicubic(originals, config.upsampler.low_size)
    keys = jax.random.split(jax.random.key(0), len(originals))

    def on_sample(step: int, state: TrainState, frozen: Params) -> dict[str, Any]:
        upsampled = upsample(state.ema_params, keys, low_res)
        found = upsampling.compare(originals, low_res, upsampled)
        smooth = upsampling.bicubic(low_res, config.data.image_size)
        rows = {"original": originals, "upsampled": upsampled, "bicubic": smooth}
        return {
            "eval_psnr": np.float32(found.upsampled.psnr),
            "eval_psnr_bicubic": np.float32(found.bicubic.psnr),
            "upsampled": _show(grids.labelled_rows(rows), directory, step),
        }

    return on_sample
