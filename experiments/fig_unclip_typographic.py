"""A word written on an image, what CLIP takes it for then, and what the decoder makes of it.

    python -m experiments.scenes_dalle2 && python -m experiments.fig_unclip_typographic
    python -m experiments.fig_unclip_typographic --published kakaobrain/karlo-v1-alpha \
        --published_images kakaobrain/karlo-v1-alpha-image-variations \
        --image apple.png --word iPod --labels "an apple,an iPod,a pizza"

Figure 6 of arXiv:2204.06125: to a CLIP that has read, an apple with "iPod" on it is an
iPod, but images decoded of its embedding are apples. The CLIP of the small stack has
never seen a letter: for it a word is an unknown object, which blurs its judgement but
cannot talk it into a label. So its bars show no more than a baseline; the second command
is for a CLIP that reads. Writes results/unclip_typographic.csv, the probability of every
label with the word and without; the bars of it, and the images with their variations.
"""

import pathlib

import numpy as np
from absl import flags

from diffusion_jax import command
from diffusion_jax.evaluation import grids, typographic
from diffusion_jax.evaluation import upsampling as upsampling_scores
from diffusion_jax.pipelines import best_of
from experiments import scenes_stack, tables, unclip_figures, written_words
from experiments.scenes_stack import NUM_VARIATIONS, Subject
from experiments.written_words import Cases

OF_OPENAI = 0.01  # temperature: one over the largest scale, which theirs reached
WITHOUT, WITH = "as it is", "with the word"


def run(subject: Subject, temperature: float, cases: Cases, out: pathlib.Path) -> None:
    """The table anew, and a row of pictures for each image."""
    table, shown, texts = out / "unclip_typographic.csv", [], []
    table.unlink(missing_ok=True)
    shared = unclip_figures.setting_of(subject, temperature=f"{temperature:.4g}")
    for number, (image, word, labels) in enumerate(zip(*cases, strict=True), 1):
        center = 0.5, written_words.free_height(image)
        attacked = typographic.write_on(image, word, width=0.6, center=center)
        pair = np.stack([image, attacked])
        embeds = subject.embed_images(pair)
        of_labels = subject.embed_texts(labels)
        shares = best_of.label_probabilities(embeds, of_labels, temperature)
        for kind, row in zip((WITHOUT, WITH), np.asarray(shares), strict=True):
            setting = {**shared, "image": number, "word": word, "kind": kind}
            for label, share in zip(labels, row.tolist(), strict=True):
                named = {**setting, "label": label}
                unclip_figures.add(table, named, probability=share)
            likeliest = int(row.argmax())
            texts.append(f"{labels[likeliest]}: {row[likeliest]:.0%}")
        varied = subject.vary(np.repeat(embeds[1:], NUM_VARIATIONS, axis=0))
        shown += [pair, subject.enlarge(varied)]
        texts += ["variation"] * NUM_VARIATIONS
    size = max(images.shape[1] for images in shown)
    shown = [upsampling_scores.bicubic(images, size) for images in shown]
    grid = grids.captioned_grid(np.concatenate(shown), texts, columns=6)
    grids.save_png(grid, out / "unclip_typographic.png", metadata={})


def plot(table: pathlib.Path, picture: pathlib.Path) -> None:
    """The probabilities of the labels of every image, with the word and without."""
    by_label: dict[tuple[str, str], dict[str, str]] = {}
    for row in tables.read_rows(table):
        name = f"image {row['image']}, {row['word']!r}: {row['label']}"
        both = by_label.setdefault((row["image"], row["label"]), {"label": name})
        both[row["kind"]] = row["probability"]
    panels = {WITHOUT: "as it is", WITH: "with the word"}
    unclip_figures.draw_bars(list(by_label.values()), "label", panels, picture)


def main(_: list[str]) -> None:
    command.enable_compilation_cache()
    options, out = flags.FLAGS, pathlib.Path(flags.FLAGS.out)
    given = options.image, options.word, options.labels
    written_words.check(*given, is_needed=options.published is not None)
    if options.published:
        names = options.published, options.published_images
        subject, temperature = scenes_stack.load_published(*names), OF_OPENAI
    else:
        subject = scenes_stack.load(options.stack)
        temperature = scenes_stack.clip_temperature(options.stack)
    size = subject.pipeline.clip.image.vision_model.image_size
    if options.image:
        cases = written_words.given(*given, size)
    else:
        cases = written_words.scenes_of(subject)
    run(subject, temperature, cases, out)
    plot(out / "unclip_typographic.csv", out / "unclip_typographic_bars.png")
    print(f"look at {out / 'unclip_typographic.png'}")


if __name__ == "__main__":
    scenes_stack.define_flags()
    flags.DEFINE_string("published", None, "A published unCLIP instead of the stack.")
    flags.DEFINE_string("published_images", None, "That which has its image tower.")
    flags.DEFINE_string("image", None, "A picture; else some of the scenes.")
    flags.DEFINE_string("word", None, "What to write on it.")
    flags.DEFINE_list("labels", [], "Captions to choose from.")
    command.run(main)
