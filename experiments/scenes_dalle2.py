"""A whole small DALL·E 2, from nothing to pictures and figures, in one command.

    python -m experiments.scenes_dalle2

trains CLIP, both priors, the decoder and two upsamplers on the embedded captioned
scenes through configs/small, then measures what arXiv:2204.06125 does with them, into
runs/scenes: results.json, samples.png, reconstructions.png. A second run goes on where
the first stopped, or straight to measuring. "seconds" in results.json are of the runs
that are there: what went into each, however often it was interrupted.
"""

import json
import pathlib
import time

from absl import flags

from configs.small import (
    scenes_clip,
    scenes_codes_prior,
    scenes_decoder,
    scenes_prior,
    scenes_upsampler_32,
    scenes_upsampler_64,
)
from diffusion_jax import command, runs, train
from diffusion_jax.evaluation import curves
from experiments import scenes_measures, scenes_stack

CONFIGS = {
    "clip": scenes_clip,
    "prior": scenes_prior,
    "codes_prior": scenes_codes_prior,
    "decoder": scenes_decoder,
    "upsampler_32": scenes_upsampler_32,
    "upsampler_64": scenes_upsampler_64,
}
RESULTS = "results.json"


def train_all(out: pathlib.Path, variant: str, seconds: dict[str, float]) -> None:
    """The trainings in turn; `seconds` says what the run of each took, and is kept."""
    for name, module in CONFIGS.items():
        config = module.get_config(variant)
        if "towers" in config:
            config.towers.clip = str(out / "clip")
        before, start = newest_step(out / name), time.monotonic()
        if before is None:
            seconds.pop(name, None)  # of a run that was here and is no more
        try:
            train.train(config, out / name)
        finally:
            if newest_step(out / name) != before:
                taken = seconds.get(name, 0) + time.monotonic() - start
                keep_seconds(out, seconds, name, taken)


def newest_step(run: pathlib.Path) -> int | None:
    """Of its checkpoints."""
    names = [path.name for path in (run / runs.CHECKPOINTS).glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=None)


def keep_seconds(
    out: pathlib.Path, seconds: dict[str, float], name: str, taken: float
) -> None:
    seconds[name] = round(taken, 1)
    seconds["total"] = round(sum(v for k, v in seconds.items() if k != "total"), 1)
    write(out, read(out) | {"seconds": seconds})


def write(out: pathlib.Path, result: dict) -> None:
    (out / RESULTS).write_text(json.dumps(result, indent=2) + "\n")


def read(out: pathlib.Path) -> dict:
    """What earlier runs of this command kept."""
    file = out / RESULTS
    return json.loads(file.read_text()) if file.exists() else {}


def measure(out: pathlib.Path, num: int) -> dict:
    """The numbers of results.json, kept after each group; the pictures beside it."""
    subject = scenes_stack.load(out, prior="prior")
    result: dict[str, float] = {}
    for name, measured in scenes_measures.GROUPS.items():
        start = time.monotonic()
        result |= measured(subject, out, num)
        taken = round(time.monotonic() - start, 1)
        print(f"{name}: {taken} s", flush=True)
        rounded = {key: round(value, 4) for key, value in result.items()}
        write(out, rounded | {"seconds": read(out).get("seconds", {})})
    tables = {name: out / name / "metrics.csv" for name in CONFIGS}
    curves.plot_curves(tables, out / "curves.png")
    return rounded


def define_flags() -> None:
    flags.DEFINE_string("out", "runs/scenes", "Where everything is kept.")
    flags.DEFINE_string("variant", "", "'runlocal': some minutes, to see it work.")
    flags.DEFINE_integer("num", 96, "Captions of each split that are drawn.")


def main(_: list[str]) -> None:
    command.enable_compilation_cache()
    out = pathlib.Path(flags.FLAGS.out)
    out.mkdir(parents=True, exist_ok=True)
    seconds = read(out).get("seconds", {})
    train_all(out, flags.FLAGS.variant, seconds)
    start = time.monotonic()
    result = measure(out, flags.FLAGS.num)
    keep_seconds(out, seconds, "evaluation", time.monotonic() - start)
    print(f"look at {out / 'samples.png'}")
    print(json.dumps(result | {"seconds": seconds}))


if __name__ == "__main__":
    define_flags()
    command.run(main)
