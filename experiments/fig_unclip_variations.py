"""Variations of an image keep what its caption says of it, and change the rest.

    python -m experiments.scenes_dalle2 && python -m experiments.fig_unclip_variations

Figure 3 of arXiv:2204.06125: an image is encoded as z_i and x_T, and decoded by DDIM
with more and more noise, eta. Writes results/unclip_variations.csv, for every eta the
share of images that still show the caption of theirs, how far their pixels are from the
original's and from one another's; the curves of it, and the images of some.
"""

import pathlib

import numpy as np
from absl import flags

from diffusion_jax import command
from diffusion_jax.evaluation import grids
from experiments import scenes_stack, unclip_figures
from experiments.scenes_stack import Subject
from experiments.unclip_figures import Setting

ETAS = (0.0, 0.25, 0.5, 0.75, 1.0)
NUM_SHOWN = 8
DRAWS = 3  # of eta = 1 that are shown
PANELS = {
    "accuracy": "shows the caption",
    "difference": "distance to the original",
    "spread": "distance of two variations",
}


def run(subject: Subject, shared: Setting, table: pathlib.Path) -> None:
    """Measures what the table does not have yet."""
    num_images = shared["num_images"]
    scenes = subject.scenes("validation", num_images)
    last = subject.pipeline.upsamplers[-1].name
    originals = subject.scenes("validation", num_images, last).images
    code = subject.encode(scenes.images)
    scale = subject.pipeline.decoder.guidance
    for eta in ETAS:
        setting = {**shared, "eta": eta}
        if unclip_figures.is_measured(table, setting):
            continue
        one, other = (
            subject.enlarge(subject.redraw(code, scale=scale, eta=eta, seed=seed))
            for seed in range(2)
        )
        unclip_figures.add(
            table,
            setting,
            accuracy=scenes_stack.accuracy_of(one, scenes.captions).fraction,
            difference=float(np.abs(one - originals).mean()),
            spread=float(np.abs(one - other).mean()),
        )


def draw(subject: Subject, picture: pathlib.Path) -> None:
    last = subject.pipeline.upsamplers[-1].name
    rows = {"original": subject.scenes("validation", NUM_SHOWN, last).images}
    code = subject.encode(subject.scenes("validation", NUM_SHOWN).images)
    scale = subject.pipeline.decoder.guidance
    settings = [(eta, 0) for eta in ETAS] + [(1.0, seed) for seed in range(1, DRAWS)]
    for eta, seed in settings:
        images = subject.redraw(code, scale=scale, eta=eta, seed=seed)
        name = f"eta = {eta:g}" + f", draw {seed + 1}" * (seed > 0)
        rows[name] = subject.enlarge(images)
    grids.save_png(grids.labelled_rows(rows, scale=2), picture, metadata={})


def plot(table: pathlib.Path, picture: pathlib.Path, shared: Setting) -> None:
    rows = unclip_figures.rows_of(table, shared)
    unclip_figures.draw_lines(rows, ("eta", "eta"), PANELS, picture)


def main(_: list[str]) -> None:
    command.enable_compilation_cache()
    out = pathlib.Path(flags.FLAGS.out)
    table, picture = out / "unclip_variations.csv", out / "unclip_variations.png"
    subject = scenes_stack.load(flags.FLAGS.stack)
    shared = unclip_figures.setting_of(subject, num_images=flags.FLAGS.num_images)
    run(subject, shared, table)
    draw(subject, picture)
    plot(table, out / "unclip_variations_eta.png", shared)
    print(f"look at {picture}")


if __name__ == "__main__":
    scenes_stack.define_flags()
    flags.DEFINE_integer("num_images", 64, "Images behind every point.")
    command.run(main)
