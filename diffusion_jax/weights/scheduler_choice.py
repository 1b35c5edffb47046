"""Another sampler for a published model, as its own configuration would have it.

Users of diffusers write `X.from_config(pipeline.scheduler.config)`: the fields that are
in the file keep their values, all others take the defaults of X. A sampler named here
is read so, as its class X of diffusers, and gives the same images. A sampler without
such a class takes schedule, parameterization and times of DDIM's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_jax.diffusion import grids
from diffusion_jax.diffusion.samplers import SAMPLERS
from diffusion_jax.weights import scheduler_config
from diffusion_jax.weights.recipe import Recipe

# our name of a sampler -> the class of diffusers, and the fields that make it that
COUNTERPARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "plms": ("PNDMScheduler", dict(skip_prk_steps=True)),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2_ancestral": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmpp_sde": ("DPMSolverSDEScheduler", {}),
    "dpmpp_2m": (
        "DPMSolverMultistepScheduler",
        dict(algorithm_type="dpmsolver++", solver_order=2),
    ),
    "dpmpp_3m": (
        "DPMSolverMultistepScheduler",
        dict(algorithm_type="dpmsolver++", solver_order=3),
    ),
    "dpmpp_2m_sde": (
        "DPMSolverMultistepScheduler",
        dict(algorithm_type="sde-dpmsolver++", solver_order=2),
    ),
    "dpmpp_2s": (
        "DPMSolverSinglestepScheduler",
        dict(algorithm_type="dpmsolver++", solver_order=2),
    ),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "sa_solver": ("SASolverScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}
SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
SPACINGS = ("leading", "trailing", "linspace")


def choose(
    config: Mapping[str, Any], *, sampler: str | None = None, grid: str | None = None
) -> Recipe:
    """The recipe of a scheduler_config.json, with another sampler, grid, or both.

    A grid that the sampler's class has as a field is that field; any other name of
    GRIDS takes its place with default options.
    """
    for kind, name, choices in (
        ("sampler", sampler, SAMPLERS),
        ("grid", grid, grids.GRIDS),
    ):
        if name is not None and name not in choices:
            raise ValueError(f"unknown {kind} {name!r}; one of {sorted(choices)}")
    fields = dict(config)
    name = "ddim" if sampler not in (None, *COUNTERPARTS) else sampler
    if name is not None:
        fields["_class_name"], own = COUNTERPARTS[name]
        fields |= own
    grid_fields = {} if grid is None else fields_of_grid(fields["_class_name"], grid)
    recipe = scheduler_config.read(fields | grid_fields)
    if sampler is not None and name != sampler:
        recipe = recipe._replace(sampler=SAMPLERS[sampler])
    if grid is not None and not grid_fields:
        recipe = recipe._replace(grid=grids.GRIDS[grid])
    return recipe


def fields_of_grid(class_name: str, grid: str) -> dict[str, Any]:
    """The fields by which this class of diffusers has the grid; none if it has it not."""
    known = scheduler_config.CLASSES.get(class_name)
    known = {} if known is None else known.fields
    chosen = f"use_{grid}_sigmas"
    if chosen in SIGMAS and chosen in known:
        others = {field: field == chosen for field in SIGMAS if field in known}
        return others
    if grid in SPACINGS and "timestep_spacing" in known:
        no_sigmas = {field: False for field in SIGMAS if field in known}
        return {"timestep_spacing": grid} | no_sigmas
    return {}
