"""The autoregressive prior against the diffusion prior, and that by Analytic-DPM.

    python -m experiments.scenes_dalle2 && python -m experiments.table_unclip_priors

Section 2.2 of arXiv:2204.06125, with the 64 steps of its table 3. Writes
results/unclip_priors.csv: cosines of the drawn embeddings of unseen captions to their
images, to their texts and to other images (and those of text and mean embedding, which a
prior has to beat), the share of decoded images that show their caption, and the seconds
that all embeddings of a split take; and the bars of it.
"""

import pathlib
import time
from collections.abc import Mapping

import jax
import numpy as np
from absl import flags

from diffusion_jax import command
from diffusion_jax.diffusion.samplers import analytic_dpm
from diffusion_jax.pipelines import priors
from experiments import scenes_measures, scenes_stack, unclip_figures
from experiments.scenes_stack import Subject
from experiments.unclip_figures import Setting

STEPS = 64
FITTED_BATCHES = 4  # training images behind Analytic-DPM's variances, in BATCHes
PANELS = {
    "image_held_in": "cosine\nto the image",
    "image_held_out": "cosine,\nheld-out",
    "accuracy_held_in": "shows\nits caption",
    "accuracy_held_out": "shows it,\nheld-out",
    "seconds": "seconds",
}


def analytic(subject: Subject) -> Subject:
    """By as many steps of Analytic-DPM, whose variances training images tell."""
    subject = subject.with_prior_stage(sampler=analytic_dpm.analytic_dpm, steps=STEPS)
    scenes = subject.scenes("train", FITTED_BATCHES * scenes_stack.BATCH)
    rows = subject.embed_images(scenes.images), subject.tokens(scenes.captions)

    @jax.jit
    def estimate(params, key, image_embed, tokens):
        text = subject.pipeline.encode_text(params, tokens).prior
        prior = subject.pipeline.prior
        return priors.estimate_eps_power(prior, params, key, image_embed, text)

    batches = zip(*(np.split(a, FITTED_BATCHES) for a in rows), strict=True)
    powers = [
        estimate(subject.params, jax.random.key(i), *batch)
        for i, batch in enumerate(batches)
    ]
    return subject.with_params(eps_power=sum(powers) / len(powers))


def subjects(directory: str) -> dict[str, Subject]:
    """By the names of their rows; weights of the first and the last are other ones."""
    diffusion = scenes_stack.load(directory, prior="prior")
    usual = diffusion.stack.configs["prior"].sampling.sampler.name
    return {
        f"diffusion, {usual}, {diffusion.pipeline.prior.stage.steps} steps": diffusion,
        f"diffusion, {usual}, {STEPS} steps": diffusion.with_prior_stage(steps=STEPS),
        f"diffusion, Analytic-DPM, {STEPS} steps": analytic(diffusion),
        "autoregressive": scenes_stack.load(directory, prior="codes_prior"),
    }


def measure(subject: Subject, num_captions: int, mean: np.ndarray) -> dict[str, float]:
    result = {}
    for name, split in scenes_measures.SPLITS.items():
        found = scenes_measures.cosines_of(subject, split, num_captions, mean)
        result |= {f"{key}_{name}": value for key, value in found._asdict().items()}
        captions = subject.scenes(split, num_captions).captions
        start = time.monotonic()
        embed = subject.draw_embedding(captions)  # compiled above
        result["seconds"] = time.monotonic() - start
        images = subject.enlarge(subject.draw(captions, embed=embed))
        result[f"accuracy_{name}"] = scenes_stack.accuracy_of(images, captions).fraction
    return result


def run(named: Mapping[str, Subject], shared: Setting, table: pathlib.Path) -> None:
    """Measures what the table does not have yet."""
    for name, subject in named.items():
        setting = {**shared, "prior": name}
        if not unclip_figures.is_measured(table, setting):
            mean = scenes_measures.mean_embedding(subject)
            measured = measure(subject, shared["num_captions"], mean)
            unclip_figures.add(table, setting, **measured)


def plot(table: pathlib.Path, picture: pathlib.Path, shared: Setting) -> None:
    rows = unclip_figures.rows_of(table, shared)
    unclip_figures.draw_bars(rows, "prior", PANELS, picture)


def main(_: list[str]) -> None:
    command.enable_compilation_cache()
    out = pathlib.Path(flags.FLAGS.out)
    table, picture = out / "unclip_priors.csv", out / "unclip_priors.png"
    named = subjects(flags.FLAGS.stack)
    num = flags.FLAGS.num_captions
    shared = unclip_figures.setting_of(*named.values(), num_captions=num)
    run(named, shared, table)
    plot(table, picture, shared)
    print(f"look at {picture}")


if __name__ == "__main__":
    scenes_stack.define_flags()
    flags.DEFINE_integer("num_captions", 128, "Captions of each split.")
    command.run(main)
