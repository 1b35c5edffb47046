"""Two captions that differ in a colour change the colour of an image, and nothing else.

    python -m experiments.scenes_dalle2 && python -m experiments.fig_unclip_text_diff

Figure 5 of arXiv:2204.06125: z_i is turned by theta towards the difference of the text
embeddings of "a small red cross" and "a small blue cross"; x_T stays. Writes
results/unclip_text_diff.csv, for every theta and guidance scale the share of images that
show the new colour on the same shape, of the same size and at the same place; the
curves of it, and the images of some, with the guidance that `scenes_dalle2` chose on
others.
"""

import pathlib

import numpy as np
from absl import flags

from diffusion_jax import build, command
from diffusion_jax.evaluation import grids
from experiments import (
    colour_edits,
    scenes_dalle2,
    scenes_measures,
    scenes_stack,
    unclip_figures,
)
from experiments.scenes_stack import Subject
from experiments.unclip_figures import Setting

THETAS = (0.0, 0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
SCALES = (1.0, 2.0)
SHOWN_THETAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
NUM_SHOWN = 4
PANELS = {"success": "new colour; shape, size and place kept"}


def edits_of(subject: Subject, num_images: int) -> colour_edits.Edits:
    """Of images that no theta of `scenes_dalle2` was chosen on: the last ones."""
    examples = subject.scenes("validation", 1000)
    made = colour_edits.edits(examples)
    last = slice(-num_images, None)
    return colour_edits.Edits(made.scenes.take(last), made.after[last])


def run(subject: Subject, shared: Setting, table: pathlib.Path) -> None:
    """Measures what the table does not have yet."""
    made = edits_of(subject, shared["num_images"])
    for scale in SCALES:
        for theta in THETAS:
            setting = {**shared, "scale": f"guidance {scale:g}", "theta": theta}
            if unclip_figures.is_measured(table, setting):
                continue
            shares = colour_edits.sweep(subject, made, [theta], [scale])
            unclip_figures.add(table, setting, success=shares[theta, scale])


def chosen_scale(directory: pathlib.Path) -> float:
    """The guidance that succeeded most on images that are not shown."""
    kept = scenes_dalle2.read(directory)
    if scenes_measures.SCALE not in kept:
        raise build.ConfigError(
            f"{directory / scenes_dalle2.RESULTS} has no {scenes_measures.SCALE}: "
            f"python -m experiments.scenes_dalle2 --out {directory}"
        )
    return kept[scenes_measures.SCALE]


def draw(subject: Subject, scale: float, picture: pathlib.Path) -> None:
    """A row for each image: the original, then further and further edited."""
    made = edits_of(subject, NUM_SHOWN)
    code = subject.encode(made.scenes.images)
    columns = [
        subject.enlarge(subject.redraw(moved, scale=scale))
        for moved in colour_edits.codes(subject, code, made, SHOWN_THETAS)
    ]
    images, labels, verdicts = [], [], []
    for i, original in enumerate(made.scenes.images):
        for theta, edited in zip(SHOWN_THETAS, columns, strict=True):
            ends = {0.0: made.scenes.captions[i], SHOWN_THETAS[-1]: made.after[i]}
            images.append(edited[i])
            text = f"{theta:g}"
            labels.append(f"{text}: {ends[theta]}" if theta in ends else text)
            verdicts.append(colour_edits.succeeds(edited[i], original, made.after[i]))
    grid = grids.captioned_grid(
        np.stack(images), labels, columns=len(SHOWN_THETAS), correct=verdicts
    )
    grids.save_png(grid, picture, metadata={})


def plot(table: pathlib.Path, picture: pathlib.Path, shared: Setting) -> None:
    rows = unclip_figures.rows_of(table, shared)
    unclip_figures.draw_lines(rows, ("theta", "theta"), PANELS, picture, lines="scale")


def main(_: list[str]) -> None:
    command.enable_compilation_cache()
    out = pathlib.Path(flags.FLAGS.out)
    table, picture = out / "unclip_text_diff.csv", out / "unclip_text_diff.png"
    scale = chosen_scale(pathlib.Path(flags.FLAGS.stack))
    subject = scenes_stack.load(flags.FLAGS.stack)
    shared = unclip_figures.setting_of(subject, num_images=flags.FLAGS.num_images)
    run(subject, shared, table)
    draw(subject, scale, picture)
    plot(table, out / "unclip_text_diff_theta.png", shared)
    print(f"look at {picture}")


if __name__ == "__main__":
    scenes_stack.define_flags()
    flags.DEFINE_integer("num_images", 64, "Images behind every point.")
    command.run(main)
