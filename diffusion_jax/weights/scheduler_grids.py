"""Reads which times a scheduler_config.json visits, and what the network hears of them.

The classes that step in sigma / alpha (Euler and its kin) select whole or real steps and
may then respace the ratios between the first and the last of them. The multistep
classes (DPM-Solver, UniPC, DEIS) select steps + 1 and drop the cleanest, or respace the
whole table; the network then hears rounded steps.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.diffusion import grids, schedules
from diffusion_jax.diffusion.grids import Grid
from diffusion_jax.diffusion.process import Real
from diffusion_jax.diffusion.schedules import Schedule
from diffusion_jax.weights.scheduler_fields import Fields, choose, unsupported

CURVES = {
    "use_karras_sigmas": grids.karras,
    "use_exponential_sigmas": grids.exponential,
    "use_beta_sigmas": functools.partial(grids.beta, over="noise"),
    "use_lu_lambdas": grids.uniform_logsnr,
}
# What the network hears of times that are not whole, where it hears whole steps.
ROUNDINGS = {
    "use_karras_sigmas": "nearest",
    "use_lu_lambdas": "nearest",
    "use_exponential_sigmas": "below",
    "use_beta_sigmas": "below",
}
FINAL = {"zero": 0, "sigma_min": 1}


def spacing(
    fields: Fields,
    *,
    rounded: bool,
    end: Real = 0,
    names: tuple[str, ...] = ("leading", "trailing", "linspace"),
) -> Grid:
    """`steps` steps of the table, whole or (of linspace) real ones."""
    offset = fields.pop("steps_offset")
    choices = {
        "leading": functools.partial(grids.leading, offset=offset, end=end),
        "trailing": functools.partial(grids.trailing, end=end),
        "linspace": functools.partial(grids.linspace, rounded=rounded, end=end),
    }
    return choose(fields, "timestep_spacing", {name: choices[name] for name in names})


def even_spacing(fields: Fields, *, end: Real) -> Grid:
    """For classes that step by num_steps // steps whatever comes next: not linspace."""
    offset = fields.pop("steps_offset")
    choices = {
        "leading": functools.partial(grids.leading, offset=offset, end=end),
        "trailing": functools.partial(even_trailing, end=end),
    }
    return choose(fields, "timestep_spacing", choices)


def respaced(fields: Fields, table: Schedule, end: Real = 0) -> tuple[Grid, str | None]:
    """The grid of the classes that step in sigma / alpha, and the curve it follows."""
    selected = spacing(fields, rounded=False, end=end)
    chosen = curve(fields)
    given = ratios(fields, table, chosen)
    if chosen is None:
        return selected, None
    return functools.partial(CURVES[chosen], within=selected, end=end, **given), chosen


def curve(fields: Fields) -> str | None:
    """Which of the switches for a curve is on; they exclude one another."""
    on = [name for name in (*CURVES, "use_flow_sigmas") if fields.pop(name, False)]
    if len(on) > 1:
        raise unsupported(fields, on[1], True, [f"False beside {on[0]}"])
    return on[0] if on else None


def ratios(fields: Fields, table: Schedule, chosen: str | None) -> dict[str, Real]:
    """sigma_min and sigma_max as options of the curve, where the file has them."""
    names = ("sigma_min", "sigma_max")
    given = {name: fields.pop(name, None) for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    if given and chosen in (None, "use_lu_lambdas", "use_flow_sigmas"):
        return {}  # there the class does not look at them
    ends = table(jnp.asarray([table.t_min, table.t_max], float))
    low, high = (float(ratio) for ratio in ends.sigma / ends.alpha)
    for name, value in given.items():
        if not low * (1 - 1e-4) <= value <= high * (1 + 1e-4):
            span = [f"{low:g} .. {high:g}, which the betas span"]
            raise unsupported(fields, name, value, span)
    return given


# ---- multistep classes --------------------------------------------------------------


class Multistep(NamedTuple):
    """What the fields that the multistep classes share come to."""

    schedule: Schedule
    grid: Grid
    is_flow: bool


def multistep(
    fields: Fields,
    table: Schedule,
    tokens: int | None,
    *,
    hears_rounded_cosine: bool = True,
    flow: str = "trailing",
) -> Multistep:
    """Schedule and grid of DPM-Solver, UniPC, DEIS and SA-Solver.

    Those without `final_sigmas_type` stop at the first entry of the table, or where
    their curve does. `flow` is how they space a rectified flow.
    """
    stops = "final_sigmas_type" not in fields
    end = 1 if stops else choose(fields, "final_sigmas_type", FINAL)
    selected = _selected_of_one_more(fields, end)
    shift = _shift(fields, tokens)
    chosen = curve(fields)
    given = ratios(fields, table, chosen)
    if chosen == "use_flow_sigmas":
        num = table.num_steps
        schedule = schedules.RectifiedFlow(1 / num, time_scale=float(num))
        is_trailing = flow == "trailing"
        evenly = functools.partial(short_trailing, num_steps=num)
        grid = functools.partial(shift, of=evenly if is_trailing else flow)
        if end and not stops and is_trailing:
            level = table(jnp.asarray(1.0))
            last = float(level.sigma / level.alpha)
            grid = functools.partial(ending_at, of=grid, end=last)
        elif end:
            grid = functools.partial(repeating_last, of=grid)
        if not is_trailing:
            grid = functools.partial(below_pure_noise, of=grid)
        return Multistep(schedules.WholeTimes(schedule, "down"), grid, True)
    if chosen is None:
        return Multistep(table, selected, False)
    rounding = ROUNDINGS[chosen]
    if not hears_rounded_cosine and _is_cosine(table):
        rounding = "below"
    grid = functools.partial(CURVES[chosen], end=0, **given)
    if end:
        grid = functools.partial(repeating_last, of=grid)
    return Multistep(schedules.WholeTimes(table, rounding), grid, False)


def _selected_of_one_more(fields: Fields, end: Real) -> Grid:
    offset = fields.pop("steps_offset", 0)
    lambda_min = fields.pop("lambda_min_clipped", -np.inf)
    clip = {} if lambda_min == -np.inf else {"logsnr_min": 2 * lambda_min}
    choices = {
        "leading": functools.partial(
            grids.leading_open, offset=offset, end=end, **clip
        ),
        "linspace": functools.partial(grids.linspace_open, end=end, **clip),
        "trailing": functools.partial(grids.trailing, end=end),
    }
    if clip:
        del choices["trailing"]
    if "timestep_spacing" not in fields:  # DPMSolverSinglestepScheduler
        return choices["linspace"]
    return choose(fields, "timestep_spacing", choices)


def _is_cosine(table: Schedule) -> bool:
    return getattr(table, "wrapped", table).betas == "cosine"


# ---- flows --------------------------------------------------------------------------


def _shift(fields: Fields, tokens: int | None) -> Grid:
    """How a flow's times are shifted: by a constant, or by the number of image tokens."""
    shift = fields.pop("flow_shift", 1.0)
    terminal = fields.pop("shift_terminal", None)
    if terminal == 0:  # as None, there
        terminal = None
    dynamic = dynamic_shift(fields, tokens)
    if dynamic is not None:
        return functools.partial(dynamic, terminal=terminal)
    return functools.partial(grids.shifted, shift=shift, terminal=terminal)


def dynamic_shift(fields: Fields, tokens: int | None) -> Grid | None:
    """resolution_shifted if the file asks for it, which takes the number of tokens."""
    fewest, most = (fields.pop(f"{end}_image_seq_len", 0) for end in ("base", "max"))
    least, greatest = (fields.pop(f"{end}_shift", 0) for end in ("base", "max"))
    line = ((fewest, least), (most, greatest))
    kinds = {"exponential": "exponential", "linear": "linear"}
    kind = (
        choose(fields, "time_shift_type", kinds) if "time_shift_type" in fields else ""
    )
    if not fields.pop("use_dynamic_shifting", False):
        return None
    if tokens is None:
        choices = [
            "False, or read(config, tokens=...) with the image's number of tokens"
        ]
        raise unsupported(fields, "use_dynamic_shifting", True, choices)
    return functools.partial(
        grids.resolution_shifted, tokens=tokens, kind=kind, mu_by_tokens=line
    )


def short_trailing(
    schedule: Schedule, steps: int, *, num_steps: int
) -> Float[Array, "steps_plus_1"]:
    """A flow's `trailing` from one num_steps-th below pure noise."""
    return jnp.asarray((1 - 1 / num_steps) * np.linspace(1, 0, steps + 1), float)


def below_pure_noise(
    schedule: Schedule, steps: int, *, of: Grid
) -> Float[Array, "steps_plus_1"]:
    """A flow's grid without t = 1, where lambda is infinite, as UniPC has it."""
    return jnp.minimum(of(schedule, steps), 1 - 1e-6)


# ---- grids that end or step differently ---------------------------------------------


def repeating_last(
    schedule: Schedule, steps: int, *, of: Grid
) -> Float[Array, "steps_plus_1"]:
    """A grid whose end is its last time once more: the last step is of no length."""
    ts = of(schedule, steps)
    return ts.at[-1].set(ts[-2])


def ending_at(
    schedule: Schedule, steps: int, *, of: Grid, end: Real
) -> Float[Array, "steps_plus_1"]:
    """A grid with another end."""
    return of(schedule, steps).at[-1].set(end)


def even_trailing(
    schedule: Schedule, steps: int, *, end: Real
) -> Float[Array, "steps_plus_1"]:
    """`trailing` for a class that steps by num_steps // steps, whatever comes next."""
    if schedule.num_steps % steps:
        raise ValueError(
            f"timestep_spacing = 'trailing' needs a number of steps that divides "
            f"{schedule.num_steps}, got {steps}"
        )
    return grids.trailing(schedule, steps, end=end)
