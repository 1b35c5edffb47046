"""Readers of diffusers' classes without a table of betas: flows, EDM, consistency."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.diffusion import (
    denoiser,
    grids,
    parameterization,
    process,
    schedules,
)
from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.grids import Grid
from diffusion_jax.diffusion.parameterization import Parameterization
from diffusion_jax.diffusion.process import Real
from diffusion_jax.diffusion.samplers import (
    Sampler,
    consistency,
    flow,
    heun,
    pndm,
)
from diffusion_jax.diffusion.schedules import Schedule
from diffusion_jax.weights import scheduler_fields, scheduler_grids
from diffusion_jax.weights.recipe import Recipe
from diffusion_jax.weights.scheduler_fields import Fields, Wrap, choose, require

# ---- rectified flows ----------------------------------------------------------------


def read_flow(fields: Fields, tokens: int | None, *, renewed: Real) -> Recipe:
    """FlowMatchEulerDiscreteScheduler and FlowMatchLCMScheduler, which renews noise."""
    require(fields, "invert_sigmas", False)
    if fields.pop("stochastic_sampling", False):
        renewed = 1.0
    num_steps = fields.pop("num_train_timesteps")
    shift, terminal = fields.pop("shift"), fields.pop("shift_terminal")
    dynamic = scheduler_grids.dynamic_shift(fields, tokens)
    if dynamic is not None:
        grid = functools.partial(dynamic, of="linspace", terminal=terminal)
    else:
        if terminal:
            choices = ["None without use_dynamic_shifting"]
            raise scheduler_fields.unsupported(
                fields, "shift_terminal", terminal, choices
            )
        grid = functools.partial(grids.sd3, shift=shift, num_steps=num_steps)
    chosen = scheduler_grids.curve(fields)
    if chosen is not None:
        grid = functools.partial(CURVES_IN_TIME[chosen], within=grid, over="time")
    return _rectified(num_steps, grid, flow.flow_euler, renewed=renewed)


def read_flow_lcm(fields: Fields, tokens: int | None) -> Recipe:
    """FlowMatchLCMScheduler at one size."""
    require(fields, "scale_factors", None)
    return read_flow(fields, tokens, renewed=1.0)


def read_flow_heun(fields: Fields) -> Recipe:
    """FlowMatchHeunDiscreteScheduler."""
    num_steps, shift = fields.pop("num_train_timesteps"), fields.pop("shift")
    grid = functools.partial(grids.sd3, shift=shift, num_steps=num_steps)
    return _rectified(num_steps, grid, flow.flow_heun)


CURVES_IN_TIME = {
    "use_karras_sigmas": grids.karras,
    "use_exponential_sigmas": grids.exponential,
    "use_beta_sigmas": grids.beta,
}


def _rectified(num_steps: int, grid: Grid, sampler: Sampler, **options) -> Recipe:
    return Recipe(
        schedules.RectifiedFlow(1 / num_steps, time_scale=float(num_steps)),
        grid,
        parameterization.flow(),
        functools.partial(sampler, **options) if options else sampler,
    )


# ---- EDM ----------------------------------------------------------------------------


def read_edm(fields: Fields, sampler: Sampler) -> Recipe:
    """EDMEulerScheduler; with another sampler EDMDPMSolverMultistepScheduler."""
    fields.pop("num_train_timesteps")  # counts the table of a model that has none
    low, high = fields.pop("sigma_min"), fields.pop("sigma_max")
    return Recipe(
        schedules.VarianceExploding(low, high),
        edm_grid(fields, low, high),
        edm_parameterization(fields),
        sampler,
        scheduler_fields.clipping(fields),
        process.std_of_noisy_data,
    )


def edm_grid(fields: Fields, low: Real, high: Real) -> Grid:
    """Karras et al.'s or an even grid of log(sigma)."""
    ends = dict(sigma_min=low, sigma_max=high)
    rho = fields.pop("rho")
    choices = {
        "karras": functools.partial(grids.karras, rho=rho, **ends),
        "exponential": functools.partial(grids.exponential, **ends),
    }
    grid = choose(fields, "sigma_schedule", choices)
    if choose(fields, "final_sigmas_type", scheduler_grids.FINAL):
        return functools.partial(scheduler_grids.repeating_last, of=grid)
    return grid


def edm_parameterization(fields: Fields) -> Parameterization:
    """EDM's F, whose sign is turned where the file says v_prediction."""
    sigma_data = fields.pop("sigma_data")
    choices = {"epsilon": parameterization.edm, "v_prediction": negated_edm}
    return choose(fields, "prediction_type", choices)(sigma_data)


@functools.cache
def negated_edm(sigma_data: Real) -> Parameterization:
    """-F of `parameterization.edm`; with sigma_data = 1 the v of x0 and eps over s."""
    p = parameterization.edm(sigma_data)
    return p._replace(
        coefficients=lambda level: tuple(-c for c in p.coefficients(level))
    )


def read_euler_continuous(fields: Fields) -> Recipe:
    """EulerDiscreteScheduler for a v-predicting network that hears log(sigma) / 4.

    Stable Video Diffusion and CosXL, whose sigma_max is beyond any table of betas.
    """
    leading = require(fields, "timestep_spacing", "leading", "trailing", "linspace")
    for name in scheduler_fields.BETAS:
        fields.pop(name)
    require(fields, "rescale_betas_zero_snr", False)
    require(fields, "final_sigmas_type", "zero")
    fields.pop("steps_offset"), fields.pop("prediction_type")
    ends = {name: fields.pop(name) for name in ("sigma_min", "sigma_max")}
    for name, value in ends.items():
        if value is None:
            raise scheduler_fields.unsupported(fields, name, value, ["a number"])
    chosen = scheduler_grids.curve(fields)
    if chosen is None:
        choices = ["discrete, or one of use_*_sigmas beside it"]
        raise scheduler_fields.unsupported(
            fields, "timestep_type", "continuous", choices
        )
    return Recipe(
        schedules.VarianceExploding(ends["sigma_min"], ends["sigma_max"]),
        functools.partial(scheduler_grids.CURVES[chosen], **ends),
        negated_edm(1.0),
        heun.euler,
        prior_std=process.std_of_noisy_data
        if leading == "leading"
        else process.std_of_noise,
    )


# ---- consistency models, iPNDM ------------------------------------------------------


def read_consistency(fields: Fields) -> Recipe:
    """CMStochasticIterativeScheduler, with Song et al.'s boundary at sigma_min."""
    require(fields, "s_noise", 1.0)
    low, high = fields.pop("sigma_min"), fields.pop("sigma_max")
    sigma_data = fields.pop("sigma_data")
    wrap = functools.partial(
        consistency.karras_boundary, sigma_data=sigma_data, sigma_min=low
    )
    if fields.pop("clip_denoised"):
        wrap = functools.partial(clipped_after, wrap=wrap)
    grid = functools.partial(
        consistency_times,
        num_steps=fields.pop("num_train_timesteps"),
        rho=fields.pop("rho"),
    )
    return Recipe(
        schedules.VarianceExploding(low, high, time_scale=1000.0),
        grid,
        parameterization.edm(sigma_data),
        consistency.consistency,
        wrap,
        process.std_of_noise,
    )


def clipped_after(denoise: Denoiser, *, wrap: Wrap) -> Denoiser:
    """Clips x0 to [-1, 1] once it is wrapped."""
    return denoiser.clipped(wrap(denoise))


def consistency_times(
    schedule: Schedule, steps: int, *, num_steps: int, rho: Real
) -> Float[Array, "steps_plus_1"]:
    """Every (num_steps // steps)-th of the sigmas of training, from the noisy end."""
    if not 1 <= steps <= num_steps:
        raise ValueError(f"steps must be in 1 .. {num_steps}, got {steps}")
    share = np.arange(steps) * (num_steps // steps) / (num_steps - 1)
    low, high = schedule.t_min ** (1 / rho), schedule.t_max ** (1 / rho)
    sigmas = (high + share * (low - high)) ** rho
    return jnp.asarray([*sigmas, schedule.t_min], float)


def read_ipndm(fields: Fields) -> Recipe:
    """IPNDMScheduler: alpha = cos, sigma = sin, of a network that predicts v."""
    fields.pop("num_train_timesteps")  # only how many times it starts with
    require(fields, "trained_betas", None)
    return Recipe(
        schedules.Cosine(s=0.0), grids.crash, parameterization.v(), pndm.ipndm
    )
