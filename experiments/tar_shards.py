"""The quickstart's three trainings on your own images: tar shards of jpg + txt.

    python -m experiments.tar_shards --train 'data/train-*.tar' --test 'data/test-*.tar'

Shards are as img2dataset writes them, at any size; they are resized to 32 pixels. Loss
curves, reconstructions, samples of captions of the test shards and a view of CLIP's
space are drawn into runs/tar_shards. The same command goes on where it stopped.
"""

import pathlib

import numpy as np
from absl import flags

from configs import common
from configs.small import shapes_clip, shapes_ldm, shapes_vae
from diffusion_jax import command, evaluate, runs, train
from diffusion_jax.evaluation import curves
from diffusion_jax.sampling import trained_runs
from experiments import pictures

CONFIGS = {"clip": shapes_clip, "vae": shapes_vae, "ldm": shapes_ldm}


def train_one(name: str, out: pathlib.Path) -> runs.Run:
    """One of the three trainings, on the shards."""
    config = CONFIGS[name].get_config()
    config.data = common.tar_shards(flags.FLAGS.train, flags.FLAGS.test)
    config.num_steps = flags.FLAGS.num_steps
    if name == "ldm":
        config.towers = dict(clip=str(out / "clip"), vae=str(out / "vae"))
    return train.train(config, out / name)


def define_flags() -> None:
    flags.DEFINE_string("train", None, "Shards to train on, a pattern.")
    flags.DEFINE_string("test", None, "Shards to look at.")
    flags.DEFINE_string("out", "runs/tar_shards", "Where everything is kept.")
    flags.DEFINE_integer("num_steps", 400, "Of each training.", lower_bound=50)
    flags.mark_flags_as_required(["train", "test"])


def main(_: list[str]) -> None:
    command.enable_compilation_cache()
    out = pathlib.Path(flags.FLAGS.out)
    trained = {name: train_one(name, out) for name in CONFIGS}
    texts = sorted(set(evaluate.captions_of(trained["clip"], flags.FLAGS.test)))[:24]
    images = trained_runs.make(trained["ldm"], texts, seed=0)
    pictures.draw_samples(np.asarray(images), texts, out)
    pictures.draw_reconstructions(trained["vae"], out)
    pictures.draw_trajectory(trained["ldm"], out)
    if len(texts) <= 12:  # one colour each
        pictures.draw_latent_space(trained["clip"], out)
    tables = {name: out / name / "metrics.csv" for name in CONFIGS}
    curves.plot_curves(tables, out / "curves.png")
    print(f"look at {out / 'samples.png'}")


if __name__ == "__main__":
    define_flags()
    command.run(main)
