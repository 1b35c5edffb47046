"""What the principal components of CLIP's embeddings hold, in the order of variance.

    python -m experiments.scenes_dalle2 && python -m experiments.fig_unclip_pca

Figure 7 of arXiv:2204.06125: images decoded of the first components of their z_i alone,
with x_T fixed. Writes results/unclip_pca.csv, for every number of components the share
of variance that they explain and how many images still show their caption; the curves
of it, and the images of some.
"""

import pathlib
from collections.abc import Callable

import numpy as np
from absl import flags

from diffusion_jax import command
from diffusion_jax.evaluation import grids
from diffusion_jax.models import embedding_codes
from diffusion_jax.pipelines import manipulations
from experiments import scenes_stack, unclip_figures
from experiments.scenes_stack import Subject
from experiments.unclip_figures import Setting

NUM_FITTED = 4096  # training images
IMAGES_AT_ONCE = 8
NUM_SHOWN = 8
PANELS = {
    "explained": "share of the variance",
    "accuracy": "shows its caption",
}


def counts_of(width: int) -> tuple[int, ...]:
    """Powers of two, and all components."""
    powers = (2**i for i in range(width.bit_length()))
    return (*(count for count in powers if count < width), width)


def reconstructor(subject: Subject, counts: tuple[int, ...]) -> Callable:
    """(codes, components, empty text) -> images of each number of components."""

    def reconstruct(params, code, mean, components, null):
        text = subject.pipeline.encode_text(params, null)
        return manipulations.pca_reconstructions(
            subject.pipeline, params, code, mean, components, counts, text
        )

    return subject.program(reconstruct, IMAGES_AT_ONCE)


def run(subject: Subject, shared: Setting, out: pathlib.Path) -> None:
    """What the table does not have yet, and the pictures of the first images."""
    num_images = shared["num_images"]
    scenes = subject.scenes("validation", num_images)
    fitted = subject.embed_images(subject.scenes("train", NUM_FITTED).images)
    variances, axes = embedding_codes.principal_components(fitted.astype(np.float64))
    counts = counts_of(len(variances))
    mean, components = (np.float32(a) for a in (fitted.mean(axis=0), axes.T))
    draw_small = reconstructor(subject, counts)
    code = subject.encode(scenes.images)
    images = subject.enlarge(draw_small(code, mean, components, subject.null))
    table = out / "unclip_pca.csv"
    for i, count in enumerate(counts):
        setting = {**shared, "components": count}
        if unclip_figures.is_measured(table, setting):
            continue
        found = scenes_stack.accuracy_of(images[:, i], scenes.captions)
        explained = float(variances[:count].sum() / variances.sum())
        unclip_figures.add(table, setting, explained=explained, accuracy=found.fraction)
    last = subject.pipeline.upsamplers[-1].name
    num_shown = min(NUM_SHOWN, num_images)
    rows = {"original": subject.scenes("validation", num_shown, last).images}
    for i, count in reversed(list(enumerate(counts))):
        rows[f"first {count}"] = images[:num_shown, i]
    grid = grids.labelled_rows(rows, scale=2)
    grids.save_png(grid, out / "unclip_pca.png", metadata={})


def plot(table: pathlib.Path, picture: pathlib.Path, shared: Setting) -> None:
    rows = unclip_figures.rows_of(table, shared)
    x = "components", "principal components"
    unclip_figures.draw_lines(rows, x, PANELS, picture, logarithmic=True)


def main(_: list[str]) -> None:
    command.enable_compilation_cache()
    out = pathlib.Path(flags.FLAGS.out)
    subject = scenes_stack.load(flags.FLAGS.stack)
    shared = unclip_figures.setting_of(subject, num_images=flags.FLAGS.num_images)
    run(subject, shared, out)
    plot(out / "unclip_pca.csv", out / "unclip_pca_components.png", shared)
    print(f"look at {out / 'unclip_pca.png'}")


if __name__ == "__main__":
    scenes_stack.define_flags()
    flags.DEFINE_integer("num_images", 48, "Images behind every point.")
    command.run(main)
