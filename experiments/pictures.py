"""The pictures that the experiments draw of trained runs."""

import json
import pathlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import build, previews, runs
from diffusion_jax.data import prompts
from diffusion_jax.evaluation import grids, latent_space
from diffusion_jax.pipelines.stage import image_keys
from diffusion_jax.tasks import clip as clip_task

NUM_SHOWN, NUM_POINTS = 8, 512


def draw_reconstructions(run: runs.Run, out: pathlib.Path) -> None:
    """Images of the test split above what the autoencoder makes of them."""
    split = run.config.data.test_split
    batch, _ = previews.first_examples(run.config, run.tokenizer, split, NUM_SHOWN)
    model = build.autoencoder(run.config)
    output = jax.jit(model.apply)({"params": run.params}, batch["image"])
    rows = {"original": batch["image"], "reconstruction": jnp.clip(output, -1, 1)}
    picture = grids.labelled_rows(rows)
    grids.save_png(picture, out / "reconstructions.png", metadata={})


def draw_samples(
    images: np.ndarray,
    captions: Sequence[str],
    out: pathlib.Path,
    *,
    correct: Sequence[bool] | None = None,
) -> None:
    """Samples with their prompts beneath; `correct` ticks those that show theirs."""
    picture = grids.captioned_grid(images, captions, columns=6, correct=correct)
    metadata = {"prompts": json.dumps(list(captions))}
    grids.save_png(picture, out / "samples.png", metadata=metadata)


def draw_trajectory(run: runs.Run, out: pathlib.Path) -> None:
    """What each step of one sampling predicts as the clean image."""
    pipeline = build.stable_diffusion(run.config, run.tokenizer)
    params = build.sampling_params(run.params, run.frozen)
    prompt = run.config.sampling.prompts[0]

    @jax.jit
    def frames(params, shown, negative):
        keys = image_keys(jax.random.key(0), jnp.arange(1))
        _, trace = pipeline.text_to_latents(params, keys, shown, negative)
        return pipeline.decode(params, trace[:, 0])

    shown = frames(
        params,
        prompts.plain([prompt], run.tokenizer),
        prompts.plain([""], run.tokenizer),
    )
    chosen = np.unique(np.linspace(0, len(shown) - 1, 10).round().astype(int))
    labels = [f"step {step + 1}" for step in chosen]
    strip = grids.trajectory_strip(np.asarray(shown)[chosen], labels)
    grids.save_png(strip, out / "trajectory.png", metadata={"prompt": prompt})


def draw_latent_space(
    run: runs.Run, out: pathlib.Path, attribute: Mapping[str, str] | None = None
) -> None:
    """PCA of image and caption embeddings; `attribute` colours captions that it has."""
    split = run.config.data.eval_split
    batch, captions = previews.first_examples(
        run.config, run.tokenizer, split, NUM_POINTS
    )
    model = build.clip_model(run.config, run.tokenizer)
    embed = jax.jit(lambda params, x, t: clip_task.embed(model, params, x, t))
    image, text = embed(run.params, batch["image"], batch["tokens"])
    if attribute is None:
        attribute = {caption: caption for caption in captions}
    kept = [i for i, caption in enumerate(captions) if caption in attribute]
    view = latent_space.joint_view(np.asarray(image)[kept], np.asarray(text)[kept])
    captions = [captions[i] for i in kept]
    names = [attribute[caption] for caption in captions]
    latent_space.plot_latent_space(view, captions, names, out / "latent_space.png")
