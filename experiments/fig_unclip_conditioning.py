"""What a prior is for: captions alone, text embeddings and drawn image embeddings.

    python -m experiments.scenes_dalle2 && python -m experiments.fig_unclip_conditioning

Figure 8 of arXiv:2204.06125: one decoder is told the caption alone (the embedding
dropped, as in training), the caption and its text embedding as if that were an image's,
or the caption and the embedding that the prior draws; here also that embedding without
a caption, and the true image's. Writes results/unclip_conditioning.csv, the share of
images that show their caption and their CLIP score; the bars of it, and some images.
"""

import functools
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from absl import flags

from diffusion_jax import command
from diffusion_jax.evaluation import grids
from diffusion_jax.pipelines.stage import image_keys
from experiments import scenes_stack, unclip_figures
from experiments.scenes_stack import Scenes, Subject
from experiments.unclip_figures import Setting

SPLITS = {"held_in": "validation", "held_out": "test"}
NUM_SHOWN = 8
PANELS = {
    "held_in": "shows its caption: held-in",
    "held_out": "held-out",
    "clip_score": "CLIP score: held-in",
}


@functools.cache
def decoder(subject: Subject) -> Callable:
    """((tokens, embeddings, which are dropped, indices), empty text) -> small images."""

    def decode(params, rows, null):
        tokens, embed, is_dropped, index = rows
        text, nothing = (
            subject.pipeline.encode_text(params, t) for t in (tokens, null)
        )
        heard = subject.pipeline.hear(params, embed, text, nothing, is_dropped)
        keys = image_keys(jax.random.key(0), index)
        return subject.pipeline.decode(params, keys, heard)

    return subject.program(decode)


def images_of(subject: Subject, scenes: Scenes) -> dict[str, np.ndarray]:
    """By what the decoder is told; all from the same noise."""
    captions = scenes.captions
    text, drawn = subject.embed_texts(captions), subject.draw_embedding(captions)
    true = subject.embed_images(scenes.images)
    nothing = [""] * len(captions)
    told = {
        "caption alone": (captions, np.zeros_like(drawn), True),
        "caption, text embedding": (captions, text, False),
        "caption, prior's embedding": (captions, drawn, False),
        "prior's embedding alone": (nothing, drawn, False),
        "caption, the image's embedding": (captions, true, False),
    }
    made = {}
    for name, (words, embed, is_dropped) in told.items():
        dropped = np.full(len(words), is_dropped)
        rows = subject.tokens(words), embed, dropped, np.arange(len(words))
        made[name] = subject.enlarge(decoder(subject)(rows, subject.null))
    return made


def run(subject: Subject, shared: Setting, out: pathlib.Path) -> None:
    """What the table does not have yet, and the pictures of the first captions."""
    made = {}
    for split, name in SPLITS.items():
        scenes = subject.scenes(name, shared["num_captions"])
        made[split] = images_of(subject, scenes), scenes.captions
    images, captions = made["held_in"]
    table = out / "unclip_conditioning.csv"
    for told in images:
        setting = {**shared, "told": told}
        if unclip_figures.is_measured(table, setting):
            continue
        measured = {
            split: scenes_stack.accuracy_of(images_by[told], texts).fraction
            for split, (images_by, texts) in made.items()
        }
        score = scenes_stack.clip_score(subject, images[told], captions)
        unclip_figures.add(table, setting, **measured, clip_score=score)
    rows = {told: shown[:NUM_SHOWN] for told, shown in images.items()}
    grid = grids.labelled_rows(rows, scale=2)
    grids.save_png(grid, out / "unclip_conditioning.png", metadata={})


def plot(table: pathlib.Path, picture: pathlib.Path, shared: Setting) -> None:
    rows = unclip_figures.rows_of(table, shared)
    unclip_figures.draw_bars(rows, "told", PANELS, picture)


def main(_: list[str]) -> None:
    command.enable_compilation_cache()
    out = pathlib.Path(flags.FLAGS.out)
    subject = scenes_stack.load(flags.FLAGS.stack)
    num = flags.FLAGS.num_captions
    shared = unclip_figures.setting_of(subject, num_captions=num)
    run(subject, shared, out)
    bars = out / "unclip_conditioning_bars.png"
    plot(out / "unclip_conditioning.csv", bars, shared)
    print(f"look at {out / 'unclip_conditioning.png'}")


if __name__ == "__main__":
    scenes_stack.define_flags()
    flags.DEFINE_integer("num_captions", 64, "Captions of each split.")
    command.run(main)
