"""Every sampler on the quickstart's trained model: error and accuracy against effort.

    python -m experiments.quickstart && python -m experiments.fig_sampler_nfe

Two measures at 6, 12, 24 and 48 evaluations of the network: the root mean square
distance of the latents to a solution in 1000 steps from the same noise (for stochastic
differential equations, along the same Brownian path; blank where a method follows
neither), and the share of samples that show their caption. Writes
results/sampler_nfe.csv and, from it alone, the picture beside it. An interrupted run
goes on where it stopped.
"""

import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from diffusion_jax import command
from diffusion_jax.data import scene_verifier
from diffusion_jax.evaluation import accuracy
from experiments import latent_sampling, sampler_figures, tables

EVALUATIONS = (6, 12, 24, 48)
# What the latents converge to: the flow, or the solution along one Brownian path.
REFERENCES = {"flow": "dpmpp_2m", "path": "dpmpp_2m_sde"}
PATHS = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpm_multistep_sde", "sa_solver")
REFERENCE_STEPS = 1000
PANELS = {"distance": "distance to 1000 steps", "accuracy": "shows its caption"}


def reference_of(name: str) -> str | None:
    if "deterministic" in sampler_figures.family_of(name):
        return REFERENCES["flow"]
    return REFERENCES["path"] if name in PATHS else None


def run(workdir: str, num_images: int, table: pathlib.Path) -> None:
    """Measures what the table does not have yet."""
    subject = latent_sampling.load(workdir, num_images)
    decode = jax.jit(subject.pipeline.decode)
    solve = functools.cache(
        lambda name: latent_sampling.sample(subject, name, REFERENCE_STEPS)[0]
    )
    for name, evaluations in itertools.product(sampler_figures.NAMES, EVALUATIONS):
        setting = dict(sampler=name, budget=evaluations, num_images=num_images, seed=0)
        if tables.has_row(tables.read_rows(table), **setting):
            continue
        steps = evaluations // (2 if name in sampler_figures.TWICE else 1)
        latents, nfe, seconds = latent_sampling.sample(subject, name, steps)
        reference = reference_of(name)
        distance = reference and float(
            jnp.sqrt(jnp.mean((latents - solve(reference)) ** 2))
        )
        images = np.asarray(decode(subject.params, latents))
        share = accuracy.fraction_true(scene_verifier.shows, images, subject.captions)
        row = setting | dict(steps=steps, nfe=nfe, seconds=f"{seconds:.2f}")
        row |= dict(distance="" if distance is None else f"{distance:.4e}")
        row |= dict(accuracy=f"{share.fraction:.4f}", reference=reference or "")
        tables.append_row(table, row | tables.provenance())
        print(
            f"{name:20} {nfe:3} evaluations  {row['distance']:10}  {share.fraction:.2f}"
        )


def plot(table: pathlib.Path, picture: pathlib.Path) -> None:
    rows = tables.read_rows(table)
    sampler_figures.draw(rows, PANELS, picture, logarithmic=["distance"])


def main(_: list[str]) -> None:
    command.enable_compilation_cache()
    out = pathlib.Path(flags.FLAGS.out)
    table, picture = out / "sampler_nfe.csv", out / "sampler_nfe.png"
    run(flags.FLAGS.workdir, flags.FLAGS.num_images, table)
    plot(table, picture)
    print(f"look at {picture}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/quickstart/ldm", "The trained model's run.")
    flags.DEFINE_integer("num_images", 64, "Samples behind every point.")
    flags.DEFINE_string("out", "results", "The directory of the table and the picture.")
    command.run(main)
