"""Between two images, colour, shape and place change along one arc of embeddings.

    python -m experiments.scenes_dalle2 && python -m experiments.fig_unclip_interpolation

Figure 4 of arXiv:2204.06125: z_i goes along the arc from one image to the other, while
x_T goes along its own or stays. Writes results/unclip_interpolation.csv, for every share
of the way how many images show the first caption and how many the second, and how near
their embeddings are to the first image's; the curves of it, and the images of some.
"""

import pathlib
from collections.abc import Callable

import numpy as np
from absl import flags

from diffusion_jax import command
from diffusion_jax.evaluation import grids
from diffusion_jax.pipelines import manipulations
from experiments import scenes_stack, unclip_figures
from experiments.scenes_stack import Scenes, Subject
from experiments.unclip_figures import Setting

SHARES = (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0)
PAIRS_AT_ONCE = 8
NUM_SHOWN = 3  # pairs, each with x_T on its arc and fixed
ARC, FIXED = "x_T on its arc", "x_T of the first image"
PANELS = {
    "first": "shows the first caption",
    "second": "shows the second caption",
    "cosine": "cosine to the first image",
}


def interpolator(subject: Subject, is_fixed: bool) -> Callable:
    """(codes of both ends, empty text, shares) -> images at the decoder's size."""

    def interpolate(params, rows, null, shares):
        text = subject.pipeline.encode_text(params, null)
        x = rows[0].x if is_fixed else None
        return manipulations.interpolate(
            subject.pipeline, params, *rows, shares, text, x=x
        )

    return subject.program(interpolate, PAIRS_AT_ONCE)


def ends_of(subject: Subject, num_pairs: int) -> tuple[Scenes, Scenes]:
    """Pairs of images of one object each."""
    single = scenes_stack.single_objects(subject.scenes("validation", 6 * num_pairs))
    return single.take(slice(num_pairs)), single.take(slice(num_pairs, 2 * num_pairs))


def run(subject: Subject, shared: Setting, table: pathlib.Path) -> np.ndarray:
    """Measures what the table does not have yet; the images of the first pairs."""
    ends = ends_of(subject, shared["num_pairs"])
    codes = tuple(subject.encode(scenes.images) for scenes in ends)
    shown = []
    for way, is_fixed in {ARC: False, FIXED: True}.items():
        draw_small = interpolator(subject, is_fixed)
        images = subject.enlarge(draw_small(codes, subject.null, np.float32(SHARES)))
        shown.append(images[:NUM_SHOWN])
        for i, share in enumerate(SHARES):
            setting = {**shared, "way": way, "share": share}
            if not unclip_figures.is_measured(table, setting):
                measured = measure(subject, ends, images[:, i])
                unclip_figures.add(table, setting, **measured)
    return np.stack(shown, axis=1)


def measure(
    subject: Subject, ends: tuple[Scenes, Scenes], images: np.ndarray
) -> dict[str, float]:
    """What one image of each pair shows."""
    first, second = (scenes_stack.accuracy_of(images, e.captions) for e in ends)
    embeds = map(subject.embed_images, (images, ends[0].images))
    cosine = scenes_stack.mean_cosine(*embeds)
    return {"first": first.fraction, "second": second.fraction, "cosine": cosine}


def draw(subject: Subject, images: np.ndarray, picture: pathlib.Path) -> None:
    """Two rows for each pair."""
    shares = [f"{share:g}" for share in SHARES[1:]]
    labels = [ARC, *shares, FIXED, *shares] * len(images)
    frames = images.reshape(-1, *images.shape[3:])
    grid = grids.captioned_grid(frames, labels, columns=len(SHARES), scale=2)
    grids.save_png(grid, picture, metadata={})


def plot(table: pathlib.Path, picture: pathlib.Path, shared: Setting) -> None:
    rows, x = unclip_figures.rows_of(table, shared), ("share", "share of the way")
    unclip_figures.draw_lines(rows, x, PANELS, picture, lines="way")


def main(_: list[str]) -> None:
    command.enable_compilation_cache()
    out = pathlib.Path(flags.FLAGS.out)
    table, picture = (out / f"unclip_interpolation.{kind}" for kind in ("csv", "png"))
    subject = scenes_stack.load(flags.FLAGS.stack)
    shared = unclip_figures.setting_of(subject, num_pairs=flags.FLAGS.num_pairs)
    draw(subject, run(subject, shared, table), picture)
    plot(table, out / "unclip_interpolation_share.png", shared)
    print(f"look at {picture}")


if __name__ == "__main__":
    scenes_stack.define_flags()
    flags.DEFINE_integer("num_pairs", 16, "Pairs of images behind every point.")
    command.run(main)
