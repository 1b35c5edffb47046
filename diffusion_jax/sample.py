"""Makes images of prompts with a trained latent diffusion model.

    python -m diffusion_jax.sample --workdir runs/quickstart/ldm \
        --prompt "a small red circle above a large blue square" \
        --sampler dpmpp_2m --steps 20 --guidance 4 --num_images 8 --seed 0 --out grid.png

`--prompt` may be given several times: every prompt gets `--num_images`. Image i of a
seed is the same whatever `--batch` and the number of devices. `--out` ending in .png is
one grid; otherwise a directory, with one file per image beside the grid.
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Mapping

import numpy as np
from absl import flags
from jaxtyping import Float
from ml_collections import ConfigDict

from diffusion_jax import build, command, runs
from diffusion_jax.data import prompts as texts
from diffusion_jax.diffusion import grids as time_grids
from diffusion_jax.diffusion.samplers import SAMPLERS
from diffusion_jax.evaluation import grids
from diffusion_jax.pipelines import batched


def with_choices(config: ConfigDict, choices: Mapping[str, object]) -> ConfigDict:
    """The config with those of its sampling choices replaced that are not None."""
    config = ConfigDict(config.to_dict())
    for name, value in choices.items():
        if value is None:
            continue
        if name in ("sampler", "grid"):
            if config.sampling[name].name == value:
                continue  # keep its options
            value = ConfigDict(dict(name=value))
        if name == "guidance" and isinstance(config.sampling.guidance, ConfigDict):
            config.sampling.guidance.scale = value  # keep its rule
            continue
        config.sampling[name] = value
    return config


def make(
    run: runs.Run,
    prompts: list[str],
    *,
    negative: str = "",
    seed: int = 0,
    batch_size: int = 16,
) -> Float[np.ndarray, "N H W 3"]:
    """One image per prompt, as `run.config.sampling` says, with a line of progress."""
    pipeline = build.stable_diffusion(run.config, run.tokenizer)
    warn_of_cut_tokens(run, [*prompts, negative])
    batch_size = min(batch_size, len(prompts))
    generate = batched.text_to_image(pipeline, batch_size=batch_size)
    params = {**run.frozen, "unet": run.params["unet"]}
    prompt = texts.plain(prompts, run.tokenizer)
    null = texts.plain([negative], run.tokenizer)
    images: list[np.ndarray] = []
    print("compiling ...", end="\r", file=sys.stderr)
    for batch in generate(params, prompt, null, seed=seed):
        images.extend(batch)
        print(f"{len(images)}/{len(prompts)} images", end="\r", file=sys.stderr)
    print(file=sys.stderr)
    return np.stack(images)


def warn_of_cut_tokens(run: runs.Run, prompts: list[str]) -> None:
    for prompt, num_cut in zip(prompts, run.tokenizer.num_cut(prompts), strict=True):
        if num_cut:
            length = run.tokenizer.context_length
            print(
                f"warning: the last {num_cut} tokens of {prompt!r} do not fit the "
                f"{length} that this model reads",
                file=sys.stderr,
            )


def metadata(run: runs.Run, seed: int, negative: str) -> dict[str, str]:
    """What a PNG must say for anyone to make it again, apart from its prompt."""
    sampling = run.config.sampling
    return {
        "seed": str(seed),
        "negative": negative,
        "sampler": json.dumps(sampling.sampler.to_dict()),
        "grid": json.dumps(sampling.grid.to_dict()),
        "steps": str(sampling.steps),
        "guidance": json.dumps(sampling.to_dict()["guidance"]),
        "checkpoint_step": str(run.step),
        "config": json.dumps(run.config.to_dict()),
    }


def write(
    images: Float[np.ndarray, "N H W 3"],
    prompts: list[str],
    out: str,
    facts: Mapping[str, str],
) -> pathlib.Path:
    """The grid, and in a directory each image too; returns where the grid is."""
    path = pathlib.Path(out)
    if path.suffix.lower() != ".png":
        path.mkdir(parents=True, exist_ok=True)
        for i, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
            picture = grids.image_grid(image[None], columns=1, scale=1)
            name = f"{i:05d}-seed{facts['seed']}.png"
            own = {"prompt": prompt, "index": str(i), **facts}
            grids.save_png(picture, path / name, metadata=own)
        path = path / "grid.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = grids.captioned_grid(images, prompts, columns=min(4, len(images)))
    described = json.dumps(list(dict.fromkeys(prompts)), ensure_ascii=False)
    grids.save_png(grid, path, metadata={"prompt": described, **facts})
    return path


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "The run to sample from.")
    flags.DEFINE_integer("step", None, "Its checkpoint; the newest if not given.")
    flags.DEFINE_multi_string("prompt", None, "What to show; may be repeated.")
    flags.DEFINE_string("negative", "", "What to keep away from.")
    flags.DEFINE_enum("sampler", None, sorted(SAMPLERS), "The solver.")
    flags.DEFINE_enum("grid", None, sorted(time_grids.GRIDS), "The times.")
    flags.DEFINE_integer("steps", None, "How many steps.", lower_bound=1)
    flags.DEFINE_float("guidance", None, "The scale of guidance; 1: none.")
    flags.DEFINE_integer("num_images", 8, "Images per prompt.", lower_bound=1)
    flags.DEFINE_integer("batch", 16, "Images at a time.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Fixes every image.", lower_bound=0)
    flags.DEFINE_string("out", "grid.png", "A .png file, or a directory.")
    flags.mark_flags_as_required(["workdir", "prompt"])


def main(_: list[str]) -> None:
    command.enable_compilation_cache()
    chosen = flags.FLAGS
    config = runs.read_config(chosen.workdir)
    if "sampling" not in config:
        raise build.ConfigError(
            f"{chosen.workdir} holds a {config.task.name!r} run, which makes no images "
            "of prompts; give the run of a latent_diffusion"
        )
    run = runs.load(chosen.workdir, step=chosen.step)
    choices = dict(
        sampler=chosen.sampler,
        grid=chosen.grid,
        steps=chosen.steps,
        guidance=chosen.guidance,
    )
    run = run._replace(config=with_choices(run.config, choices))
    prompts = [prompt for prompt in chosen.prompt for _ in range(chosen.num_images)]
    images = make(
        run,
        prompts,
        negative=chosen.negative,
        seed=chosen.seed,
        batch_size=chosen.batch,
    )
    facts = metadata(run, chosen.seed, chosen.negative)
    print(write(images, prompts, chosen.out, facts))


if __name__ == "__main__":
    define_flags()
    command.run(main)
