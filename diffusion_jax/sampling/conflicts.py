"""Flags that do not go together, and flags that are written in a form of their own."""

from __future__ import annotations

import math
import pathlib

from absl import flags

from diffusion_jax import build
from diffusion_jax.weights import lora_files

ONLY_WEIGHTS = ("variant", "ema", "tokenizer", "prediction_type", "dtype", "refiner")
ONLY_PUBLISHED = ("max_chunks", "no_weighting")
# flag -> the flag without which it means nothing
NEEDS = {
    "mask": "init_image",
    "strength": "init_image",
    "handover": "refiner",
    "frame": "frames",
}
# pairs that exclude each other, and why
EXCLUDES = {
    ("prompt", "from_file"): "either gives the prompts",
    ("refiner", "init_image"): "a refiner goes on with what text alone has begun",
    ("frames", "from_file"): "an interpolation is between two prompts",
    ("frames", "num_images"): "frames are counted by --frames",
    ("frames", "latents"): "the noise of frames is that of two seeds",
    ("frames", "refiner"): "frames are not handed over",
}
INPUTS = ("weights", "refiner", "init_image", "mask", "latents", "from_file")
FRAMES, HANDOVER = 8, 0.8


def check(chosen: flags.FlagValues) -> None:
    """Raises for flags that are missing or do not go together; sets two defaults."""
    if (chosen.weights is None) == (chosen.workdir is None):
        raise build.ConfigError("give one of --weights and --workdir: what to sample")
    if not chosen.prompt and chosen.from_file is None:
        raise build.ConfigError(
            "give a --prompt, or --from_file with one on every line"
        )
    if chosen.frames is None and _given(chosen, "to_prompt", "to_seed"):
        chosen.frames = FRAMES
    for name, needed in NEEDS.items():
        if _given(chosen, name) and not _given(chosen, needed):
            raise build.ConfigError(f"--{name} needs --{needed}")
    if chosen.refiner is not None and chosen.handover is None:
        chosen.handover = HANDOVER
    for (one, other), reason in EXCLUDES.items():
        if _given(chosen, one) and _given(chosen, other):
            raise build.ConfigError(f"--{one} and --{other}: {reason}")
    if chosen.workdir is not None:
        for name in ONLY_WEIGHTS:
            if _given(chosen, name):
                raise build.ConfigError(f"--{name} is for --weights, not for a run")
    elif chosen.step is not None:
        raise build.ConfigError("--step is for --workdir: which checkpoint of a run")
    _check_values(chosen)


def check_reading(chosen: flags.FlagValues) -> None:
    """Raises for flags that a run with text encoders of its own has no use for."""
    for name in ONLY_PUBLISHED:
        if _given(chosen, name):
            raise build.ConfigError(
                f"--{name} is for --weights, and for runs that began with such"
            )


def _given(chosen: flags.FlagValues, *names: str) -> bool:
    values = (chosen[name].value for name in names)
    return any(not (value is None or value is False or value == []) for value in values)


def _check_values(chosen: flags.FlagValues) -> None:
    if chosen.frames is not None:
        if not _given(chosen, "to_prompt", "to_seed"):
            raise build.ConfigError("--frames needs --to_prompt, --to_seed or both")
        if len(chosen.prompt) != 1:
            raise build.ConfigError(
                "an interpolation is between two prompts: one --prompt"
            )
        if chosen.frame is not None and chosen.frame >= chosen.frames:
            raise build.ConfigError(
                f"--frame {chosen.frame} of {chosen.frames}, counted from 0"
            )
    for name in ("guidance", "strength", "handover", "guidance_rescale"):
        value = chosen[name].value
        if value is not None and not math.isfinite(value):
            raise build.ConfigError(f"--{name} {value} is not a finite number")
    interval(chosen.guidance_interval)
    for word in chosen.lora:
        file, scale = lora_files.split(word)
        if not pathlib.Path(file).expanduser().exists():
            raise build.ConfigError(f"no lora {file}")
        if not math.isfinite(scale):
            raise build.ConfigError(f"--lora {word}: {scale} is not a finite number")


def interpolates(chosen: flags.FlagValues) -> bool:
    return chosen.frames is not None


def inputs(chosen: flags.FlagValues) -> list[pathlib.Path]:
    """What the flags name to be read, be it a file or not."""
    names = [chosen[name].value for name in INPUTS]
    names += [lora_files.split(word)[0] for word in chosen.lora]
    return [pathlib.Path(name).expanduser() for name in names if name is not None]


def interval(text: str | None) -> tuple[float, float] | None:
    """LOW,HIGH of sigma / alpha; nothing for LOW is 0, for HIGH infinity."""
    if text is None:
        return None
    low, comma, high = text.partition(",")
    try:
        bounds = float(low or 0), float(high or math.inf)
    except ValueError:
        comma = ""
    if not comma or not 0 <= bounds[0] < bounds[1]:
        raise build.ConfigError(
            f"--guidance_interval {text!r}; two numbers LOW,HIGH of sigma / alpha"
        )
    return bounds
