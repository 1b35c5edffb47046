"""Grids of some steps of a longer one, as improved DDPM and consistency models take them.

Formulae count whole steps from 0, as networks hear them; the times are one more.
"""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.diffusion import noise_grids, visited_times
from diffusion_jax.diffusion.process import Real
from diffusion_jax.diffusion.schedule_protocol import Schedule
from diffusion_jax.diffusion.visited_times import Grid

PRESETS = {"fast27": (10, 10, 3, 2, 2)}  # GLIDE (Nichol et al., 2022; arXiv:2112.10741)


def respaced(
    schedule: Schedule,
    steps: int,
    *,
    sections: str | tuple[int, ...] | None = None,
    end: Real = 0,
) -> Float[Array, "steps_plus_1"]:
    """So many evenly from each of equal sections (Nichol and Dhariwal, 2021, section 4).

    `sections` has the counts, the cleanest section first: (10, 5), "10,5", or "fast27".
    By default all is one section. "ddim" (or "ddim25") is the least whole stride from
    step 0 that takes `steps` of them. arXiv:2102.09672.
    """
    visited_times.check_steps(steps)
    num_steps = visited_times.check_whole_steps(schedule, "respaced")
    if isinstance(sections, str) and sections.startswith("ddim"):
        _check_total(sections, int(sections.removeprefix("ddim") or steps), steps)
        heard = _strided(num_steps, steps)
    else:
        counts = _counts(steps if sections is None else sections)
        _check_total(str(sections), sum(counts), steps)
        heard = _of_sections(num_steps, counts)
    return visited_times.finish(schedule, 1.0 + heard[::-1], end)


def distilled(
    schedule: Schedule,
    steps: int,
    *,
    original_steps: int = 50,
    strength: Real = 1.0,
    end: Real = 0,
) -> Float[Array, "steps_plus_1"]:
    """Evenly among the `original_steps` that a consistency model was distilled on.

    Luo et al. (2023), section 4.3 (arXiv:2310.04378): those are every k-th step, the
    noisiest among them. `strength` below 1 keeps its share of the clean ones.
    """
    visited_times.check_steps(steps)
    num_steps = visited_times.check_whole_steps(schedule, "distilled")
    if not 1 <= original_steps <= num_steps:
        raise ValueError(
            f"original_steps must be 1 .. {num_steps}, got {original_steps}"
        )
    kept = int(original_steps * strength)
    if steps > kept:
        raise ValueError(
            f"{steps} steps of the {kept} that strength {strength} leaves of "
            f"{original_steps} original_steps"
        )
    originals = np.arange(kept, 0, -1) * (num_steps // original_steps)
    chosen = np.floor(np.linspace(0, kept, steps, endpoint=False)).astype(int)
    return visited_times.finish(schedule, originals[chosen].astype(float), end)


def thinned(
    schedule: Schedule,
    steps: int,
    *,
    original_steps: int = 40,
    of: Grid = noise_grids.karras,
    end: Real = 0,
) -> Float[Array, "steps_plus_1"]:
    """Every (original_steps // steps)-th time of the grid `of`, from the noisiest.

    How consistency models (Song et al., 2023, algorithm 1; arXiv:2303.01469) visit the
    grid that they were trained on. The published code has `end=schedule.t_min`.
    """
    visited_times.check_steps(steps)
    if steps > original_steps:
        raise ValueError(f"{steps} steps of original_steps = {original_steps}")
    with jax.ensure_compile_time_eval():
        times = np.asarray(of(schedule, original_steps), float)[:-1]
    times = times[:: original_steps // steps][:steps]
    return visited_times.finish(schedule, times, end)


def _counts(sections: int | str | tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(sections, int):
        return (sections,)
    if not isinstance(sections, str):
        return tuple(sections)
    if sections in PRESETS:
        return PRESETS[sections]
    try:
        return tuple(int(count) for count in sections.split(","))
    except ValueError:
        raise ValueError(
            f"sections must be counts, ddim or one of {sorted(PRESETS)}, "
            f"got {sections!r}"
        ) from None


def _check_total(sections: str, total: int, steps: int) -> None:
    if total != steps:
        raise ValueError(f"sections {sections!r} make {total} steps, not {steps}")


def _strided(num_steps: int, steps: int) -> np.ndarray:
    for stride in range(1, num_steps + 1):
        heard = np.arange(0, num_steps, stride)
        if len(heard) == steps:
            return heard
    raise ValueError(f"no whole stride takes {steps} of {num_steps} steps")


def _of_sections(num_steps: int, counts: tuple[int, ...]) -> np.ndarray:
    size, more = divmod(num_steps, len(counts))
    start, heard = 0, []
    for i, count in enumerate(counts):
        length = size + (i < more)
        if not 1 <= count <= length:
            raise ValueError(f"a section of {length} steps cannot give {count} of them")
        stride = (length - 1) / max(count - 1, 1)
        heard.append(start + np.round(np.arange(count) * stride))
        start += length
    return np.concatenate(heard)
