"""Readers of diffusers' classes on a table of betas: DDPM, DDIM, PNDM, Euler and its kin.

Each turns the fields of one class into a recipe and leaves none behind.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.diffusion import grids, process, schedules
from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.process import NoiseLevel, Real
from diffusion_jax.diffusion.samplers import (
    Sampler,
    consistency,
    ddim,
    dpmpp_sde,
    heun,
    integrate,
    inversion,
    pndm,
    repaint,
)
from diffusion_jax.diffusion.samplers.integrate import Keys
from diffusion_jax.diffusion.schedules import Schedule
from diffusion_jax.weights import (
    scheduler_fields,
    scheduler_flows,
    scheduler_grids,
)
from diffusion_jax.weights.recipe import Recipe
from diffusion_jax.weights.scheduler_fields import Fields, choose, require

DDPM_BETAS = (*scheduler_fields.USUAL_BETAS, "sigmoid", "laplace")
USUAL_PREDICTIONS = ("epsilon", "sample", "v_prediction")
VARIANCES = {
    "fixed_small": "posterior",
    "fixed_small_log": "posterior",
    "fixed_large": "beta",
    "learned": "learned",
    "learned_range": "learned_range",
}


def read_ddpm(fields: Fields) -> Recipe:
    """DDPMScheduler. Its last step is without noise only where that begins at t = 1."""
    schedule = scheduler_fields.schedule(fields, DDPM_BETAS)
    offset, spacing = fields["steps_offset"], fields["timestep_spacing"]
    grid = scheduler_grids.spacing(fields, rounded=True)
    kinds = dict(VARIANCES)
    if spacing == "trailing" or (spacing == "leading" and offset > 0):
        # There it would add noise to clean data, were the variance not that of q.
        kinds = {name: kind for name, kind in kinds.items() if kind == "posterior"}
    variance = choose(fields, "variance_type", kinds)
    return Recipe(
        schedule,
        grid,
        scheduler_fields.prediction(fields, *USUAL_PREDICTIONS),
        functools.partial(ddim.ddpm, variance=variance),
        scheduler_fields.clipping(fields),
        learned_variance=variance.startswith("learned"),
    )


def read_unclip(fields: Fields) -> Recipe:
    """UnCLIPScheduler: the 1000 steps respaced as in guided-diffusion.

    The last step lands on x0; diffusers, rounding 1 - alphas_cumprod, on 0.99947 of it.
    """
    num_steps = fields.pop("num_train_timesteps")
    require(fields, "beta_schedule", "squaredcos_cap_v2")
    kinds = {name: VARIANCES[name] for name in ("fixed_small_log", "learned_range")}
    variance = choose(fields, "variance_type", kinds)
    return Recipe(
        schedules.Discrete(betas="cosine", num_steps=num_steps),
        functools.partial(grids.linspace, rounded=True),
        scheduler_fields.prediction(fields, "epsilon", "sample"),
        functools.partial(ddim.ddpm, variance=variance),
        scheduler_fields.clipping(fields),
        learned_variance=variance.startswith("learned"),
    )


def read_ddim(fields: Fields) -> Recipe:
    """DDIMScheduler; eta is an argument of its step, so an option of the sampler here."""
    schedule = scheduler_fields.schedule(fields)
    end = 0 if fields.pop("set_alpha_to_one") else 1
    return Recipe(
        schedule,
        scheduler_grids.spacing(fields, rounded=True, end=end),
        scheduler_fields.prediction(fields, *USUAL_PREDICTIONS),
        ddim_by_stride,
        scheduler_fields.clipping(fields, rederive_eps=False),
    )


def read_ddim_inverse(fields: Fields) -> Recipe:
    """DDIMInverseScheduler, from data to noise, so that `x` is data."""
    schedule = scheduler_fields.schedule(fields)
    end = 0 if fields.pop("set_alpha_to_one") else 1
    names = ("leading", "trailing")
    # There is no eps in x0 and clean data.
    predictions = USUAL_PREDICTIONS if end else ("epsilon", "v_prediction")
    return Recipe(
        schedule,
        scheduler_grids.spacing(fields, rounded=True, end=end, names=names),
        scheduler_fields.prediction(fields, *predictions),
        inversion.ddim_inversion,
        scheduler_fields.clipping(fields, rederive_eps=False),
    )


def read_cogvideox_ddim(fields: Fields) -> Recipe:
    """CogVideoXDDIMScheduler: DDIM on a table whose snr is divided by a constant."""
    schedule = _shifted_table(fields)
    end = 0 if fields.pop("set_alpha_to_one") else 1
    return Recipe(
        schedule,
        scheduler_grids.spacing(fields, rounded=True, end=end),
        scheduler_fields.prediction(fields, *USUAL_PREDICTIONS),
        ddim_by_stride,
    )


def read_cogvideox_dpm(fields: Fields) -> Recipe:
    """CogVideoXDPMScheduler: 2M SDE, of which the step to clean data is of first order."""
    schedule = _shifted_table(fields)
    require(fields, "set_alpha_to_one", True)
    return Recipe(
        schedule,
        scheduler_grids.even_spacing(fields, end=0),
        scheduler_fields.prediction(fields, *USUAL_PREDICTIONS),
        functools.partial(dpmpp_sde.dpmpp_2m_sde, lower_order_final_below=0),
    )


def _shifted_table(fields: Fields) -> Schedule:
    is_rescaled = fields.pop("rescale_betas_zero_snr")
    table = scheduler_fields.schedule(fields)
    betas = scheduler_fields.betas_of_snr(table, fields.pop("snr_shift_scale"))
    table = schedules.Discrete(num_steps=table.num_steps, trained_betas=betas)
    return schedules.ZeroTerminalSNR(table) if is_rescaled else table


def read_pndm(fields: Fields) -> Recipe:
    """PNDMScheduler: F-PNDM, or PLMS with `skip_prk_steps`, of the network's output."""
    schedule = scheduler_fields.schedule(fields)
    end = 0 if fields.pop("set_alpha_to_one") else 1
    grid = scheduler_grids.even_spacing(fields, end=end)
    sampler = pndm.plms if fields.pop("skip_prk_steps") else pndm.pndm
    forms = {"epsilon": "eps", "v_prediction": "v"}
    form = forms.get(fields["prediction_type"], "eps")
    p = scheduler_fields.prediction(fields, *forms)
    return Recipe(schedule, grid, p, functools.partial(sampler, form=form))


def read_in_ratio(
    fields: Fields,
    *,
    sampler: Sampler,
    predictions: tuple[str, ...] = ("epsilon", "v_prediction"),
    betas: tuple[str, ...] = scheduler_fields.USUAL_BETAS,
    rounds_karras: bool = False,
) -> Recipe:
    """The classes that step in sigma / alpha: Euler, Heun, LMS, KDPM2 and their kin."""
    schedule = scheduler_fields.schedule(fields, betas, terminal_alpha2=2.0**-24)
    starts_with_data = fields["timestep_spacing"] == "leading"
    end = 0
    if "final_sigmas_type" in fields:
        end = choose(fields, "final_sigmas_type", scheduler_grids.FINAL)
    grid, curve = scheduler_grids.respaced(fields, schedule, end=end)
    if rounds_karras and curve == "use_karras_sigmas":
        schedule = schedules.WholeTimes(schedule)
    return Recipe(
        schedule,
        grid,
        scheduler_fields.prediction(fields, *predictions),
        sampler,
        scheduler_fields.clipping(fields),
        process.std_of_noisy_data if starts_with_data else process.std_of_noise,
    )


def read_euler(fields: Fields) -> Recipe:
    """EulerDiscreteScheduler, which also samples EDM's networks ("continuous")."""
    require(fields, "interpolation_type", "linear")
    kind = require(fields, "timestep_type", "discrete", "continuous")
    if kind == "continuous" and fields["prediction_type"] == "v_prediction":
        return scheduler_flows.read_euler_continuous(fields)
    predictions = ("epsilon", "v_prediction", "sample")
    if fields["prediction_type"] == "original_sample":
        fields["prediction_type"] = "sample"
    return read_in_ratio(fields, sampler=heun.euler, predictions=predictions)


def read_lcm(fields: Fields) -> Recipe:
    """LCMScheduler: clipping first, then the boundary condition."""
    scaling = fields.pop("timestep_scaling")
    return Recipe(
        scheduler_fields.schedule(fields),
        functools.partial(
            grids.distilled, original_steps=fields.pop("original_inference_steps")
        ),
        scheduler_fields.prediction(fields, *USUAL_PREDICTIONS),
        functools.partial(consistency.lcm, timestep_scaling=scaling),
        scheduler_fields.clipping(fields),
    )


def read_tcd(fields: Fields) -> Recipe:
    """TCDScheduler, which ends at t = 1."""
    original = fields.pop("original_inference_steps")
    return Recipe(
        scheduler_fields.schedule(fields),
        functools.partial(grids.distilled, original_steps=original, end=1),
        scheduler_fields.prediction(fields, *USUAL_PREDICTIONS),
        consistency.tcd,
    )


def read_repaint(fields: Fields) -> Recipe:
    """RePaintScheduler; the sampler still takes `known` and `mask`."""
    schedule = scheduler_fields.schedule(
        fields, (*scheduler_fields.USUAL_BETAS, "sigmoid")
    )
    return Recipe(
        schedule,
        functools.partial(grids.leading, offset=0, end=0),
        scheduler_fields.PREDICTIONS["epsilon"](),
        functools.partial(repaint.repaint, eta=fields.pop("eta"), first_jump=0),
        scheduler_fields.clipping(fields, rederive_eps=False),
    )


def ddim_by_stride(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    eta: Real | Float[Array, ""] = 0.0,
    whole_steps: int | None = None,
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """DDIM as diffusers has it: every step spans num_steps // steps, even where the next
    time of the grid is another, as with linspace or if `steps` does not divide.

    `whole_steps` is that number where ts is a part of a grid.
    """
    stride = schedule.num_steps // (whole_steps or len(ts) - 1)
    landings = jnp.where(ts - stride >= schedule.t_min, ts - stride, ts[-1])

    def step(
        carry: tuple[Array, Array], key: Keys, here: NoiseLevel, there: NoiseLevel
    ) -> tuple[tuple[Array, Array], Array]:
        x, i = carry
        pair = jnp.stack([ts[i], landings[i]])
        x, trace = ddim.ddim(key, denoise, schedule, x, pair, eta=eta)
        return (x, i + 1), trace[0]

    carry = (x, jnp.zeros((), int))
    (x, _), trace = integrate.integrate(step, carry, key, schedule(ts))
    return x, trace
