"""Schedules, objectives and guidance of a config."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.build.choices import ConfigError, Spec, choose, nearest
from diffusion_jax.diffusion import (
    guidance,
    guidance_rules,
    losses,
    parameterization,
    schedules,
    time_samplers,
    variational,
    weightings,
)
from diffusion_jax.diffusion.denoiser import CLIPPINGS
from diffusion_jax.diffusion.guidance_scales import CURVES
from diffusion_jax.diffusion.process import Real
from diffusion_jax.tasks.objective import Objective


def schedule(spec: Spec) -> schedules.Schedule:
    options = dict(spec)
    if "wrapped" in options:
        options["wrapped"] = schedule(options["wrapped"])
    return choose("schedule", schedules.SCHEDULES, options)()


def objective(config: ConfigDict) -> Objective:
    made = Objective(
        schedule(config.schedule),
        parameterizer(config.parameterization),
        choose("weighting", weightings.WEIGHTINGS, config.weighting),
        times(config.times),
        choose("loss", losses.LOSSES, config.get("loss", {"name": "diffusion"})),
    )
    return made


def times(spec: Spec) -> time_samplers.TimeSampler:
    """The law of training times by name; `draw` and `over` are those of `drawn`.

    A way to draw, named alone, is of uniform times.
    """
    options = dict(spec)
    if options.get("name") in time_samplers.DRAWS:
        options = {"draw": options["name"]} | options | {"name": "uniform"}
    draw = options.pop("draw", "independent")
    over = options.pop("over", "times")
    if over not in time_samplers.MEASURES:
        measures = nearest(over, time_samplers.MEASURES)
        raise ConfigError(f"unknown measure of times, over={over!r}: {measures}")
    return time_samplers.drawn(
        choose("times", time_samplers.QUANTILES, options),
        draw=choose("draw", time_samplers.DRAWS, {"name": draw}),
        over=over,
    )


def learns_variance(config: ConfigDict) -> bool:
    """Whether the network also outputs the variance of a step."""
    spec = dict(config.get("loss", {}))
    chosen = choose("loss", losses.LOSSES, {"name": "diffusion"} | spec)
    defaults = inspect.signature(chosen).parameters
    return (
        "variance" in defaults and defaults["variance"].default in variational.LEARNED
    )


def guide(
    spec: Spec | Real,
    p: parameterization.Parameterization,
    noise: schedules.Schedule,
) -> dict[str, Any]:
    """The fields of a Stage that say how it is guided.

    `spec` is a scale, or a name of GUIDANCE with its options and any of: `scale`;
    `rescale`, the phi of `guidance_rules.rescale`; `curve`, a name of CURVES with its
    options and those of `guidance_scales.along`; `interval`, the two bounds of
    `guidance.limited`; `space`, a parameterization, for a rule that has one.
    """
    if isinstance(spec, Real):
        return {"guidance": spec}
    options = dict(spec)
    scale, curve = options.pop("scale", 1.0), options.pop("curve", None)
    interval = options.pop("interval", None)
    if "space" in options:
        options["space"] = parameterizer(options["space"])
    if "rescale" in options:
        options["rescale"] = guidance_rules.rescale(p, options["rescale"])
    chosen = choose("guidance", guidance.GUIDANCE, options)
    if curve is not None:
        curve = dict(curve)
        along = {name: curve.pop(name) for name in ("start", "least") if name in curve}
        curve = choose("curve", CURVES, curve)
        chosen = guidance.scheduled(chosen, curve, noise, **along)
    if interval is not None:
        above, up_to = interval
        chosen = guidance.limited(chosen, above=above, up_to=up_to)
    return {"guidance": scale, "guide": chosen, "remembers": "momentum" in options}


def clip(spec: Spec | None) -> Callable | None:
    return None if spec is None else choose("clip", CLIPPINGS, spec)


def parameterizer(spec: Spec | str) -> parameterization.Parameterization:
    spec = {"name": spec} if isinstance(spec, str) else spec
    return choose("parameterization", parameterization.PARAMETERIZATIONS, spec)()
