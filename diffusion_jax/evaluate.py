"""Measures a trained run on the splits that its config names.

    python -m diffusion_jax.evaluate --workdir runs/quickstart/ldm

prints one JSON line: PSNR and SSIM of an autoencoder, retrieval of a CLIP, and of a
latent diffusion model on the captioned scenes how many samples show their caption.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Float

from diffusion_jax import build, command, previews, runs
from diffusion_jax.data import prompts, scene_verifier
from diffusion_jax.evaluation import accuracy, reconstruction, retrieval
from diffusion_jax.pipelines import batched
from diffusion_jax.tasks import clip as clip_task

NUM_EXAMPLES = 1024
NUM_SAMPLES = 128
SAMPLING_BATCH = 64


class Samples(NamedTuple):
    """Images made for the captions of a split, and which of them show theirs."""

    images: Float[np.ndarray, "N H W 3"]
    captions: list[str]
    accuracy: accuracy.Accuracy


def evaluate_autoencoder(run: runs.Run) -> dict[str, float]:
    """PSNR and SSIM on the test split, from the mean of the posterior."""
    model = build.autoencoder(run.config)
    split = run.config.data.test_split
    batch, _ = previews.first_examples(run.config, run.tokenizer, split, NUM_EXAMPLES)
    rebuild = jax.jit(lambda params, x: model.apply({"params": params}, x))
    output = jnp.clip(rebuild(run.params, batch["image"]), -1, 1)
    psnr = float(reconstruction.psnr(batch["image"], output))
    return {"psnr": psnr, "ssim": float(reconstruction.ssim(batch["image"], output))}


def evaluate_clip(run: runs.Run) -> dict[str, float]:
    """The right caption among 64 of unseen pairs, on both held-back splits.

    On the scenes another caption of the 64 may be as true of an image as its own ("a
    large black cross", "there is a large black cross"): the verifier tells.
    """
    model = build.clip_model(run.config, run.tokenizer)
    embed = jax.jit(lambda params, x, t: clip_task.embed(model, params, x, t))
    data, result = run.config.data, {}
    for name, split in (("held_in", data.eval_split), ("held_out", data.test_split)):
        batch, texts = previews.first_examples(
            run.config, run.tokenizer, split, NUM_EXAMPLES
        )
        image, text = embed(run.params, batch["image"], batch["tokens"])

        def is_true(i, j, images=batch["image"], texts=texts):
            return scene_verifier.shows(images[i], texts[j])

        is_scenes = data.source.name == "scenes"
        found = retrieval.retrieval_accuracy(
            image, text, texts, is_true=is_true if is_scenes else None
        )
        result[f"retrieval_{name}"] = found.image_to_text
    return result


def captions_of(run: runs.Run, split: str) -> list[str]:
    """The captions that the measurements on this split use, in their order."""
    records = build.source(run.config, split)
    return [records[i].caption for i in range(min(NUM_EXAMPLES, len(records)))]


def sample_split(run: runs.Run, split: str, *, seed: int = 0) -> Samples:
    """Samples for the first captions of a split of the scenes, each verified."""
    _, texts = previews.first_examples(run.config, run.tokenizer, split, NUM_SAMPLES)
    pipeline = build.stable_diffusion(run.config, run.tokenizer)
    generate = batched.text_to_image(pipeline, batch_size=SAMPLING_BATCH)
    params = build.sampling_params(run.params, run.frozen)
    prompt = prompts.plain(texts, run.tokenizer)
    negative = prompts.plain([""], run.tokenizer)
    images = generate(params, prompt, negative, seed=seed)
    images = np.concatenate(list(images))
    verdict = accuracy.fraction_true(scene_verifier.shows, images, texts)
    return Samples(images, texts, verdict)


def evaluate_latent_diffusion(run: runs.Run) -> dict[str, float]:
    """How many samples show their caption; needs data that has a verifier."""
    data = run.config.data
    if data.source.name != "scenes":
        raise build.ConfigError(
            f"only samples of the source 'scenes' can be verified, not of "
            f"{data.source.name!r}"
        )
    return {
        "accuracy_held_in": sample_split(run, data.eval_split).accuracy.fraction,
        "accuracy_held_out": sample_split(run, data.test_split).accuracy.fraction,
    }


EVALUATORS = {
    "autoencoder": evaluate_autoencoder,
    "clip": evaluate_clip,
    "latent_diffusion": evaluate_latent_diffusion,
}


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "The run to measure.")
    flags.DEFINE_integer("step", None, "Its checkpoint; the newest if not given.")
    flags.mark_flags_as_required(["workdir"])


def main(_: list[str]) -> None:
    command.enable_compilation_cache()
    run = runs.load(flags.FLAGS.workdir, step=flags.FLAGS.step)
    result = EVALUATORS[run.config.task.name](run)
    print(json.dumps({"step": run.step} | result))


if __name__ == "__main__":
    define_flags()
    command.run(main)
