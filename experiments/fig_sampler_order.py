"""Every sampler's error against its number of function evaluations, on exact data.

    python -m experiments.fig_sampler_order

The data are a mixture of three Gaussians on a line, so that the denoiser, the
probability flow and the distribution are all known. Deterministic samplers are measured
by their root mean square distance to the exact flow; stochastic ones and those of a
consistency model, which follow no flow, by the Wasserstein distance of their samples to
the exact quantiles, 0.005 of which is chance. Writes results/sampler_order_SCHEDULE.csv
and, from it alone, the picture beside it.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from diffusion_jax import command
from diffusion_jax.diffusion import mixture, process
from diffusion_jax.diffusion.samplers import SAMPLERS, analytic_dpm
from diffusion_jax.diffusion.schedules import SCHEDULES
from experiments import sampler_figures, tables

DATA = mixture.Mixture(
    weights=np.asarray([0.3, 0.5, 0.2]),
    means=np.asarray([[-1.2], [0.1], [1.5]]),
    stds=np.asarray([[0.15], [0.3], [0.1]]),
)
RATIOS = 12.0, 0.05  # sigma / alpha where sampling starts and ends
STEPS = (5, 10, 20, 40, 80, 160)
NUM = {"flow": 512, "distribution": 2**14}
LABELS = {"flow": "distance to the flow", "distribution": "Wasserstein distance"}


def times(schedule, steps: int) -> jax.Array:
    """Even in log(sigma / alpha), and ending on noise, so that no step is special."""
    ratios = np.geomspace(*RATIOS, steps + 1)
    return schedule.inverse(jnp.asarray(-2 * np.log(ratios)))


def measured_of(family: str) -> str:
    return "flow" if "deterministic" in family else "distribution"


def measure(name: str, steps: int, schedule) -> tuple[str, int, float]:
    """What is measured ("flow" or "distribution"), the evaluations and the error."""
    family = sampler_figures.family_of(name)
    kind = measured_of(family)
    num_calls = []

    def denoise(x, level):
        jax.debug.callback(lambda: num_calls.append(1))
        if "consistency" in family:
            clean = jax.tree.map(jnp.ones_like, level)._replace(sigma=level.sigma * 0)
            return process.from_x0(x, mixture.flow(DATA, x, level, clean), level)
        return mixture.denoise(DATA, x, level)

    ts = times(schedule, steps)
    if "consistency" in family:  # whose jumps end on clean data
        ts = ts.at[-1].set(0.0)
    levels = schedule(ts)
    here, there = (process.NoiseLevel(*(a[i] for a in levels)) for i in (0, -1))
    x, expected = (mixture.quantiles(DATA, NUM[kind], end) for end in (here, there))
    key, options = jax.random.key(0), sampler_figures.OPTIONS.get(name, {})
    if name == "analytic_dpm":
        x0 = mixture.sample(key, DATA, 4096)
        estimate = analytic_dpm.estimate_eps_power
        exact = functools.partial(mixture.denoise, DATA)
        options = {"eps_power": estimate(key, exact, schedule, x0, ts)}
    if name == "adaptive":
        tolerance = 0.05 * (STEPS[0] / steps) ** 3
        options, ts = {"rtol": tolerance, "atol": tolerance}, ts[jnp.asarray([0, -1])]
    sample = jax.jit(
        functools.partial(SAMPLERS[name], **options), static_argnums=(1, 2)
    )
    got, _ = jax.block_until_ready(sample(key, denoise, schedule, x, ts))
    jax.effects_barrier()
    if kind == "flow":
        return kind, len(num_calls), float(np.sqrt(np.mean((got - expected) ** 2)))
    return kind, len(num_calls), float(np.mean(np.abs(np.sort(got, 0) - expected)))


def run(schedule: str, table: pathlib.Path) -> None:
    """Measures what the table does not have yet."""
    for name in sampler_figures.NAMES:
        for steps in STEPS:
            setting = dict(sampler=name, schedule=schedule, steps=steps, seed=0)
            if tables.has_row(tables.read_rows(table), **setting):
                continue
            with jax.enable_x64(True):
                kind, nfe, error = measure(name, steps, SCHEDULES[schedule]())
            row = setting | dict(measured=kind, nfe=nfe, error=f"{error:.4e}")
            tables.append_row(table, row | tables.provenance())
            print(f"{name:20} {nfe:4} evaluations  {kind:12} {error:.1e}", flush=True)


def plot(table: pathlib.Path, picture: pathlib.Path) -> None:
    kinds = {name: measured_of(name) for name in sampler_figures.FAMILIES}
    panels = {"error": {name: LABELS[kind] for name, kind in kinds.items()}}
    rows = tables.read_rows(table)
    sampler_figures.draw(rows, panels, picture, logarithmic=["error"])


def main(_: list[str]) -> None:
    schedule = flags.FLAGS.schedule
    out = pathlib.Path(flags.FLAGS.out)
    table, picture = (out / f"sampler_order_{schedule}.{end}" for end in ("csv", "png"))
    run(schedule, table)
    plot(table, picture)
    print(f"look at {picture}")


if __name__ == "__main__":
    flags.DEFINE_enum("schedule", "discrete", sorted(SCHEDULES), "The noise schedule.")
    flags.DEFINE_string("out", "results", "The directory of the table and the picture.")
    command.run(main)
