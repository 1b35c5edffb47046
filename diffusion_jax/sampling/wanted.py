"""What is to be made: one Wanted per image, of flags or of a file of prompts.

A line of such a file is a prompt, or JSON: {"prompt": ..., "negative": ..., "seed": ...,
"guidance": ...}, of which only the prompt must be there.
"""

from __future__ import annotations

import collections
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from diffusion_jax import build
from diffusion_jax.diffusion.process import Real

MAX_SEED = 2**31 - 1  # seeds are traced as 32-bit integers
TYPES = {"prompt": str, "negative": str, "seed": int, "guidance": Real}


class Line(NamedTuple):
    """One prompt; what is None is as the flags say."""

    prompt: str | None  # None: of images that are made of no text
    negative: str | None = None
    seed: int | None = None
    guidance: Real | None = None


class Wanted(NamedTuple):
    """One image: all that makes it another one than those made with it."""

    prompt: str | None
    negative: str
    seed: int
    guidance: float
    index: int  # with the seed, this fixes the noise
    position: int  # among all images of a call
    frame: int | None = None  # of an interpolation
    share: float = 0.0  # of the way to its other end
    own: Mapping[str, Any] | None = None  # the flags that make this frame alone

    @property
    def stem(self) -> str:
        """The name of its file."""
        frame = "" if self.frame is None else f"-frame{self.frame:03d}"
        return f"{self.index:05d}-seed{self.seed}{frame}"


def read_lines(path: str | pathlib.Path) -> list[Line]:
    """The lines of a file of prompts; empty ones are skipped."""
    try:
        texts = pathlib.Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise build.ConfigError(
            f"no file of prompts {path}: {error.strerror}"
        ) from error
    except UnicodeDecodeError as error:
        raise build.ConfigError(f"{path} is not text in UTF-8") from error
    lines = [
        _parse(text.strip(), f"{path}, line {number}")
        for number, text in enumerate(texts, 1)
        if text.strip()
    ]
    if not lines:
        raise build.ConfigError(f"{path} holds no prompt")
    return lines


def _parse(text: str, place: str) -> Line:
    # Some prompts have braces of their own: {red|blue}.
    if not text.replace(" ", "").startswith(('{"', "{}")):
        return Line(text)
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise build.ConfigError(f"{place} is not JSON: {error}") from error
    for name, value in fields.items():
        if name not in TYPES:
            raise build.ConfigError(
                f"{place} has an unknown {name!r}: {build.nearest(name, TYPES)}"
            )
        if not isinstance(value, TYPES[name]) or isinstance(value, bool):
            raise build.ConfigError(f"{place} has {name} {value!r}")
    if "prompt" not in fields:
        raise build.ConfigError(f"{place} has no prompt")
    if not 0 <= fields.get("seed", 0) <= MAX_SEED:
        raise build.ConfigError(
            f"{place} has seed {fields['seed']}; seeds are from 0 to {MAX_SEED}"
        )
    return Line(**fields)


def images(
    lines: Sequence[Line],
    *,
    negative: str,
    seed: int,
    guidance: Real,
    num_images: int = 1,
    first_index: int = 0,
) -> list[Wanted]:
    """`num_images` of every line; the index counts the images of a seed."""
    made: collections.Counter[int] = collections.Counter()
    wanted = []
    for line in lines:
        own_seed = seed if line.seed is None else line.seed
        for _ in range(num_images):
            one = Wanted(
                line.prompt,
                negative if line.negative is None else line.negative,
                own_seed,
                float(guidance if line.guidance is None else line.guidance),
                first_index + made[own_seed],
                len(wanted),
            )
            made[own_seed] += 1
            wanted.append(one)
    return wanted


def check_indices(images: Sequence[Wanted], num_candidates: int = 1) -> None:
    """Raises where the last image, or candidate for one, has no index of 32 bits."""
    last = (max(one.index for one in images) + 1) * num_candidates - 1
    if last > MAX_SEED:
        each = f" of {num_candidates} candidates each" if num_candidates > 1 else ""
        raise build.ConfigError(
            f"the last of these images{each} would have index {last}; indices are up "
            f"to {MAX_SEED}"
        )


def frames(first: Wanted, num_frames: int, only: int | None = None) -> list[Wanted]:
    """The frames of an interpolation, evenly spaced, or one of them."""
    chosen = range(num_frames) if only is None else [only]
    return [
        first._replace(position=i, frame=frame, share=frame / (num_frames - 1))
        for i, frame in enumerate(chosen)
    ]
