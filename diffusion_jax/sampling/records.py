r"""What a picture says about how it was made, and the command that makes it again.

The text chunk `parameters` is what viewers of such pictures read:

    a red circle
    Negative prompt: blurry
    Steps: 25, Sampler: DPM++ 2M, CFG scale: 7.5, Seed: 0, Size: 512x512, Model: sd15

The chunk `diffusion_jax` is JSON: {"flags": {...}}, the flags that make this picture.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import shlex
from collections.abc import Mapping
from typing import Any

from PIL import Image

import diffusion_jax
from diffusion_jax import build
from diffusion_jax.evaluation import grids

KEY, PARAMETERS = "diffusion_jax", "parameters"
OUT = "remade"  # a directory
COMMAND = "python -m diffusion_jax.sample"
NAMES = {  # of samplers, as others write them
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "deis": "DEIS",
    "dpm2": "DPM2",
    "dpm2_ancestral": "DPM2 a",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2s": "DPM++ 2S",
    "dpmpp_2s_ancestral": "DPM++ 2S a",
    "dpmpp_3m": "DPM++ 3M",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "dpmpp_sde": "DPM++ SDE",
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "lcm": "LCM",
    "lms": "LMS",
    "plms": "PLMS",
    "pndm": "PNDM",
    "unipc": "UniPC",
}
SPACINGS = {  # grids
    "karras": "Karras",
    "exponential": "Exponential",
    "polyexponential": "Polyexponential",
    "align_your_steps": "Align Your Steps",
    "kl_optimal": "KL Optimal",
    "beta": "Beta",
}

Flags = Mapping[str, Any]


def texts(flags: Flags, *, sampler: str, model: str) -> dict[str, str]:
    """The text chunks of the picture that `flags` make."""
    record = {"flags": dict(flags), "version": diffusion_jax.__version__}
    return {PARAMETERS: parameters(flags, sampler, model), KEY: to_json(record)}


def parameters(flags: Flags, sampler: str, model: str) -> str:
    """The text that viewers read; of several prompts, one a line."""
    prompt = flags.get("prompt", "")
    lines = [prompt] if isinstance(prompt, str) else list(prompt)
    if flags.get("negative"):
        lines.append(f"Negative prompt: {flags['negative']}")
    grid = flags.get("grid")
    facts = {
        "Steps": flags["steps"],
        "Sampler": NAMES.get(sampler, sampler),
        "Schedule type": SPACINGS.get(grid, grid),
        "CFG scale": f"{flags['guidance']:g}",
        "Seed": flags["seed"],
        "Size": f"{flags['width']}x{flags['height']}" if "width" in flags else None,
        "Model": model,
        "Denoising strength": flags.get("strength"),
        # There, 1 is to skip no layer.
        "Clip skip": flags["clip_skip"] + 1 if "clip_skip" in flags else None,
        "Version": f"diffusion_jax {diffusion_jax.__version__}",
    }
    said = {name: fact for name, fact in facts.items() if fact is not None}
    lines.append(", ".join(f"{name}: {_quoted(fact)}" for name, fact in said.items()))
    return "\n".join(lines)


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search("[,:\n]", text) else text


def to_json(record: Mapping[str, Any]) -> str:
    r"""JSON that a PNG keeps as it is: nothing in it looks like an absolute path.

    A prompt may have slashes: they are written \/, and a colon before one \u003a.
    """
    return re.sub(r":(?=\\)", r"\\u003a", json.dumps(record).replace("/", r"\/"))


def read(path: str | pathlib.Path) -> dict[str, Any]:
    """The record of a picture; raises where there is none."""
    try:
        told = grids.read_metadata(path)
    except FileNotFoundError as error:
        raise build.ConfigError(f"no image {path}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise build.ConfigError(f"{path} is no PNG that can be read") from error
    if KEY not in told:
        raise build.ConfigError(
            f"{path} has no text {KEY!r}: it was not made by {COMMAND}, or something "
            "saved it again without its texts"
        )
    try:
        record = json.loads(told[KEY])
        if not isinstance(record["flags"], dict):
            raise TypeError
    except (ValueError, KeyError, TypeError) as error:
        raise build.ConfigError(f"the text {KEY!r} of {path} is damaged") from error
    return record


def arguments(flags: Flags) -> list[str]:
    """The words of the command line, not quoted."""
    words = []
    for name, value in flags.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, bool):
                words.append(f"--{name}" if one else f"--no{name}")
            else:
                words += [f"--{name}", str(one)]
    return words


def command(flags: Flags) -> str:
    """A line for a shell that makes the picture again."""
    return f"{COMMAND} {shlex.join(arguments({'out': OUT} | dict(flags)))}"


def shown_path(path: str) -> str:
    """The path as a picture may tell it: nobody's home directory, nothing absolute.

    What is no path here, such as the id of a model, stays as it is.
    """
    if not os.path.isabs(path):
        return path
    home = os.path.expanduser("~")
    here = os.getcwd()
    if _is_under(path, here) or not _is_under(path, home):
        return os.path.relpath(path, here)
    return os.path.join("~", os.path.relpath(path, home))


def _is_under(path: str, directory: str) -> bool:
    return os.path.commonpath([os.path.abspath(path), directory]) == directory
