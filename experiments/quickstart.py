"""A whole small Stable Diffusion, from nothing to a grid of samples, in one command.

    python -m experiments.quickstart

trains CLIP, the autoencoder and latent diffusion on the embedded captioned scenes
through configs/small, then measures them and draws what they make into runs/quickstart.
A second run goes on where the first stopped, or straight to sampling.
"""

import json
import pathlib
import time

import numpy as np
from absl import flags

from configs.small import shapes_clip, shapes_ldm, shapes_vae
from diffusion_jax import command, evaluate, runs, train
from diffusion_jax.data import scene_captions
from diffusion_jax.evaluation import curves
from experiments import pictures

CONFIGS = {"clip": shapes_clip, "vae": shapes_vae, "ldm": shapes_ldm}
SPLITS = {"held_in": "validation", "held_out": "test"}
NUM_SHOWN = 12  # samples of each split


def train_all(out: pathlib.Path, seconds: dict[str, float]) -> dict[str, runs.Run]:
    """The three trainings in turn; adds what each took to `seconds`."""
    trained = {}
    for name, module in CONFIGS.items():
        config = module.get_config(flags.FLAGS.variant)
        if name == "ldm":
            config.towers = dict(clip=str(out / "clip"), vae=str(out / "vae"))
        start = time.monotonic()
        trained[name] = train.train(config, out / name)
        seconds[name] = round(seconds.get(name, 0) + time.monotonic() - start, 1)
        write(out, {"seconds": seconds})
    return trained


def write(out: pathlib.Path, result: dict) -> None:
    (out / "results.json").write_text(json.dumps(result, indent=2) + "\n")


def read_seconds(out: pathlib.Path) -> dict[str, float]:
    """What the stages took in earlier runs of this command."""
    file = out / "results.json"
    return json.loads(file.read_text())["seconds"] if file.exists() else {}


def shape_of_single_objects(captions: list[str]) -> dict[str, str]:
    claims = {caption: scene_captions.parse(caption).things for caption in captions}
    return {text: things[0].shape for text, things in claims.items() if not things[1:]}


def measure_and_draw(trained: dict[str, runs.Run], out: pathlib.Path) -> dict:
    """The numbers of results.json; the pictures beside it."""
    result = evaluate.evaluate_clip(trained["clip"])
    result["retrieval"] = result["retrieval_held_in"]
    result |= evaluate.evaluate_autoencoder(trained["vae"])
    made = [evaluate.sample_split(trained["ldm"], split) for split in SPLITS.values()]
    for name, part in zip(SPLITS, made, strict=True):
        result[f"accuracy_{name}"] = part.accuracy.fraction
    pictures.draw_samples(
        np.concatenate([part.images[:NUM_SHOWN] for part in made]),
        [text for part in made for text in part.captions[:NUM_SHOWN]],
        out,
        correct=[v for part in made for v in part.accuracy.verdicts[:NUM_SHOWN]],
    )
    pictures.draw_reconstructions(trained["vae"], out)
    pictures.draw_trajectory(trained["ldm"], out)
    texts = evaluate.captions_of(trained["clip"], "validation")
    pictures.draw_latent_space(trained["clip"], out, shape_of_single_objects(texts))
    tables = {name: out / name / "metrics.csv" for name in CONFIGS}
    curves.plot_curves(tables, out / "curves.png")
    return {name: round(value, 4) for name, value in result.items()}


def define_flags() -> None:
    flags.DEFINE_string("out", "runs/quickstart", "Where everything is kept.")
    flags.DEFINE_string("variant", "", "'runlocal': a minute, to see it work.")


def main(_: list[str]) -> None:
    command.enable_compilation_cache()
    out = pathlib.Path(flags.FLAGS.out)
    out.mkdir(parents=True, exist_ok=True)
    seconds = read_seconds(out)
    trained = train_all(out, seconds)
    start = time.monotonic()
    result = measure_and_draw(trained, out)
    seconds["evaluation"] = round(time.monotonic() - start, 1)
    seconds["total"] = round(sum(v for k, v in seconds.items() if k != "total"), 1)
    write(out, result | {"seconds": seconds})
    print(f"look at {out / 'samples.png'}")
    print(json.dumps(result | {"seconds": seconds}))


if __name__ == "__main__":
    define_flags()
    command.run(main)
