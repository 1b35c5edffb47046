"""The grids that Sabour et al. (2024) optimised and published; arXiv:2404.14507."""

from __future__ import annotations

import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.diffusion import visited_times
from diffusion_jax.diffusion.process import Real
from diffusion_jax.diffusion.schedule_protocol import Schedule

# sigma / alpha at the ends of ten steps (the authors' quickstart guide)
SIGMAS = {
    "sd15": (
        *(14.615, 6.475, 3.861, 2.697, 1.886, 1.396),
        *(0.963, 0.652, 0.399, 0.152, 0.029),
    ),
    "sdxl": (
        *(14.615, 6.315, 3.771, 2.181, 1.342, 0.862),
        *(0.555, 0.380, 0.234, 0.113, 0.029),
    ),
    "svd": (
        *(700.0, 54.5, 15.886, 7.977, 4.248, 1.789),
        *(0.981, 0.403, 0.173, 0.034, 0.002),
    ),
}
# the same as whole steps that the network hears
WHOLE = {
    "sd15": (999, 850, 736, 645, 545, 455, 343, 233, 124, 24),
    "sdxl": (999, 845, 730, 587, 443, 310, 193, 116, 53, 13),
}


def align_your_steps(
    schedule: Schedule,
    steps: int,
    *,
    model: str = "sd15",
    whole: bool = False,
    end: Real = 0,
) -> Float[Array, "steps_plus_1"]:
    """The published ten steps; for other counts log(sigma / alpha) is interpolated.

    `whole` takes them as the whole steps of the tables, of which there are ten only.
    The authors end at the first whole step (`end=1`), later libraries at clean data.
    """
    visited_times.check_steps(steps)
    tables = WHOLE if whole else SIGMAS
    if model not in tables:
        raise ValueError(f"unknown model {model!r}; one of {sorted(tables)}")
    if whole:
        visited_times.check_whole_steps(schedule, "align_your_steps as whole steps")
        if steps != len(WHOLE[model]):
            raise ValueError(f"whole steps are published for 10 only, got {steps}")
        return visited_times.finish(schedule, 1.0 + np.asarray(WHOLE[model]), end)
    logs = np.log(SIGMAS[model])
    evenly = np.linspace(0, len(logs) - 1, steps + 1)[:-1]
    ratios = np.exp(np.interp(evenly, np.arange(len(logs)), logs))
    times = visited_times.times_at_ratio(schedule, ratios)
    return visited_times.finish(schedule, times, end)
