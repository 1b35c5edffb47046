"""Guidance of the decoder and of the prior: more of the caption, less variety.

    python -m experiments.scenes_dalle2 && python -m experiments.fig_unclip_guidance

Figures 9 and 10 of arXiv:2204.06125: the guidance scale of one stage varies while the
other's stays. Writes results/unclip_guidance.csv, for every scale the share of images
that show their caption, their CLIP score, and the distance of two draws of one caption
(root mean square of pixels); the curves of it, and images at the decoder's scales.
"""

import itertools
import pathlib

import numpy as np
from absl import flags

from diffusion_jax import command
from diffusion_jax.evaluation import grids
from diffusion_jax.pipelines.batched_unclip import Scales
from experiments import scenes_stack, unclip_figures
from experiments.scenes_stack import Subject
from experiments.unclip_figures import Setting

DRAWS = 4  # of each caption
VALUES = {"decoder": (1.0, 1.5, 2.0, 3.0, 4.0, 6.0), "prior": (1.0, 1.5, 2.0, 3.0, 4.0)}
NUM_SHOWN = 8
PANELS = {
    "accuracy": "shows its caption",
    "clip_score": "CLIP score",
    "diversity": "distance of two draws",
}


def scales_of(subject: Subject, stage: str, value: float) -> Scales:
    """Of one stage that value; the decoder's else its own, and the prior's else 1."""
    others = {"prior": 1.0, "decoder": subject.pipeline.decoder.guidance}
    chosen = others | {stage: value}
    return Scales(**{name: np.float32(scale) for name, scale in chosen.items()})


def diversity(images: np.ndarray) -> float:
    """Of draws, "N D H W 3": the mean over captions and pairs of root mean squares."""
    pairs = itertools.combinations(range(images.shape[1]), 2)
    gaps = [
        np.sqrt(np.mean((images[:, i] - images[:, j]) ** 2, axis=(1, 2, 3)))
        for i, j in pairs
    ]
    return float(np.mean(gaps))


def run(subject: Subject, shared: Setting, table: pathlib.Path) -> None:
    """Measures what the table does not have yet, at the size that CLIP sees."""
    captions = subject.scenes("validation", shared["num_captions"]).captions
    repeated = [caption for caption in captions for _ in range(DRAWS)]
    for stage, values in VALUES.items():
        for value in values:
            setting = {**shared, "stage": stage, "scale": value}
            if unclip_figures.is_measured(table, setting):
                continue
            scales = scales_of(subject, stage, value)
            images = subject.draw(repeated, scales=scales)
            images = subject.enlarge(images, last=subject.num_before_clip)
            by_caption = images.reshape(len(captions), DRAWS, *images.shape[1:])
            unclip_figures.add(
                table,
                setting,
                accuracy=scenes_stack.accuracy_of(images, repeated).fraction,
                clip_score=scenes_stack.clip_score(subject, images, repeated),
                diversity=diversity(by_caption),
            )


def draw(subject: Subject, picture: pathlib.Path) -> None:
    """A row for each scale of the decoder: draws of the same captions and noise."""
    captions = subject.scenes("validation", NUM_SHOWN).captions
    rows = {}
    for value in VALUES["decoder"]:
        scales = scales_of(subject, "decoder", value)
        rows[f"guidance {value:g}"] = subject.enlarge(
            subject.draw(captions, scales=scales)
        )
    grids.save_png(grids.labelled_rows(rows, scale=2), picture, metadata={})


def plot(table: pathlib.Path, picture: pathlib.Path, shared: Setting) -> None:
    rows = unclip_figures.rows_of(table, shared)
    x = "scale", "guidance scale"
    unclip_figures.draw_lines(rows, x, PANELS, picture, lines="stage")


def main(_: list[str]) -> None:
    command.enable_compilation_cache()
    out = pathlib.Path(flags.FLAGS.out)
    table, picture = out / "unclip_guidance.csv", out / "unclip_guidance.png"
    subject = scenes_stack.load(flags.FLAGS.stack)
    num = flags.FLAGS.num_captions
    shared = unclip_figures.setting_of(subject, num_captions=num)
    run(subject, shared, table)
    draw(subject, out / "unclip_guidance_samples.png")
    plot(table, picture, shared)
    print(f"look at {picture}")


if __name__ == "__main__":
    scenes_stack.define_flags()
    flags.DEFINE_integer("num_captions", 32, "Captions behind every point.")
    command.run(main)
