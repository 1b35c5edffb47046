"""Readers of diffusers' multistep classes: DPM-Solver, UniPC, DEIS, SA-Solver."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.diffusion import grids, process, schedules
from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.parameterization import Parameterization
from diffusion_jax.diffusion.samplers import (
    Sampler,
    ddim,
    deis,
    dpm_solver,
    dpmpp_sde,
    inversion,
    sa_solver,
    unipc,
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
from diffusion_jax.weights.scheduler_grids import Multistep

FORMS = {"dpmsolver": "eps", "dpmsolver++": "x0", "deis": "x0"}
NOISY = ("sde-dpmsolver", "sde-dpmsolver++")
# What is said of the solver of another class means the default.
SOLVER_TYPES = {
    "midpoint": "midpoint",
    "heun": "heun",
    "logrho": "midpoint",
    "bh1": "midpoint",
    "bh2": "midpoint",
}
SHORT = 15  # fewer steps than this end in lower orders


def read_dpm_multistep(fields: Fields, tokens: int | None) -> Recipe:
    """DPMSolverMultistepScheduler."""
    table = scheduler_fields.schedule(fields, terminal_alpha2=2.0**-24)
    final, algorithm = fields["final_sigmas_type"], fields["algorithm_type"]
    if final == "zero" and algorithm in ("dpmsolver", "sde-dpmsolver"):
        raise scheduler_fields.unsupported(
            fields, "final_sigmas_type", final, ["sigma_min"]
        )
    made = scheduler_grids.multistep(fields, table, tokens, hears_rounded_cosine=False)
    return _recipe(fields, made, dpm_sampler(fields, (*FORMS, *NOISY)))


def read_dpm_multistep_inverse(fields: Fields) -> Recipe:
    """DPMSolverMultistepInverseScheduler, from data to noise, so that `x` is data."""
    schedule = scheduler_fields.schedule(fields)
    for name in (*scheduler_grids.CURVES, "use_flow_sigmas"):
        require(fields, name, False) if name in fields else None
    require(fields, "lambda_min_clipped", -math.inf)
    for name in ("sigma_min", "sigma_max", "flow_shift"):
        fields.pop(name)  # of the switches above
    spacings = {"leading": "leading", "trailing": "trailing", "linspace": "linspace"}
    grid = functools.partial(
        up_to_the_noisiest,
        spacing=choose(fields, "timestep_spacing", spacings),
        offset=fields.pop("steps_offset"),
    )
    sampler = functools.partial(run_backwards, sampler=dpm_sampler(fields, FORMS))
    return _recipe(fields, Multistep(schedule, grid, False), sampler)


def read_dpm_singlestep(fields: Fields, tokens: int | None) -> Recipe:
    """DPMSolverSinglestepScheduler."""
    table = scheduler_fields.schedule(fields)
    final, algorithm = fields["final_sigmas_type"], fields["algorithm_type"]
    if final == "zero" and algorithm == "dpmsolver":
        raise scheduler_fields.unsupported(
            fields, "final_sigmas_type", final, ["sigma_min"]
        )
    made = scheduler_grids.multistep(fields, table, tokens)
    sampler = functools.partial(
        dpm_solver.dpm_singlestep,
        order=require(fields, "solver_order", 1, 2, 3),
        form=choose(fields, "algorithm_type", FORMS),
        solver_type=choose(fields, "solver_type", SOLVER_TYPES),
        lower_order_final=fields.pop("lower_order_final"),
    )
    return _recipe(fields, made, sampler)


def dpm_sampler(fields: Fields, algorithms: Collection[str]) -> Sampler:
    """DPM-Solver and DPM-Solver++ of several steps, as ODE or as SDE."""
    order = require(fields, "solver_order", 1, 2, 3)
    options = dict(
        solver_type=choose(fields, "solver_type", SOLVER_TYPES),
        lower_order_final_below=SHORT if fields.pop("lower_order_final") else 0,
        euler_at_final=fields.pop("euler_at_final"),
    )
    algorithm = require(fields, "algorithm_type", *algorithms)
    if algorithm not in NOISY:
        return functools.partial(
            dpm_solver.dpm_multistep,
            order=order,
            form=FORMS[algorithm],
            half_curvature=True,
            **options,
        )
    if algorithm == "sde-dpmsolver":
        if order == 3:
            raise scheduler_fields.unsupported(fields, "solver_order", 3, [1, 2])
        return functools.partial(dpmpp_sde.dpm_multistep_sde, order=order, **options)
    if order == 1:
        return ddim.ddpm
    if order == 2:
        return functools.partial(dpmpp_sde.dpmpp_2m_sde, **options)
    return functools.partial(dpmpp_sde.dpmpp_3m_sde, curvature="diffusers", **options)


def read_unipc(fields: Fields, tokens: int | None) -> Recipe:
    """UniPCMultistepScheduler."""
    table = scheduler_fields.schedule(fields, terminal_alpha2=2.0**-24)
    made = scheduler_grids.multistep(fields, table, tokens, flow="linspace_open")
    require(fields, "solver_p", None)
    predicts_x0 = fields.pop("predict_x0")
    if not predicts_x0:
        # There it would not reach eps.
        require(fields, "thresholding", False)
        fields["thresholding"] = False
    variants = dict.fromkeys(SOLVER_TYPES, "bh2") | {"bh1": "bh1"}
    sampler = functools.partial(
        unipc.unipc,
        order=require(fields, "solver_order", 1, 2, 3),
        variant=choose(fields, "solver_type", variants),
        form="x0" if predicts_x0 else "eps",
        uncorrected=tuple(fields.pop("disable_corrector")),
        lower_order_final_below=math.inf if fields.pop("lower_order_final") else 0,
    )
    return _recipe(fields, made, sampler)


def read_deis(fields: Fields, tokens: int | None) -> Recipe:
    """DEISMultistepScheduler."""
    table = scheduler_fields.schedule(fields)
    made = scheduler_grids.multistep(fields, table, tokens)
    require(fields, "algorithm_type", "deis", "dpmsolver", "dpmsolver++")
    choose(fields, "solver_type", SOLVER_TYPES)  # all of them mean logrho
    sampler = functools.partial(
        deis.deis,
        order=require(fields, "solver_order", 1, 2, 3),
        lower_order_final_below=SHORT if fields.pop("lower_order_final") else 0,
    )
    return _recipe(fields, made, sampler)


def read_sa_solver(fields: Fields) -> Recipe:
    """SASolverScheduler with its own tau: 1 where the network hears 200 to 800."""
    table = scheduler_fields.schedule(fields)
    made = scheduler_grids.multistep(fields, table, None)
    require(fields, "tau_func", None)
    predicts = {"data_prediction": "x0", "noise_prediction": "eps"}
    sampler = functools.partial(
        sa_solver.sa_solver,
        predictor_order=require(fields, "predictor_order", 1, 2, 3, 4),
        corrector_order=require(fields, "corrector_order", 1, 2, 3, 4),
        tau_interval=_ratios_heard(made.schedule, 200, 800),
        form=choose(fields, "algorithm_type", predicts),
        lower_order_final=fields.pop("lower_order_final"),
    )
    return _recipe(fields, made, sampler)


def _ratios_heard(schedule: Schedule, low: int, high: int) -> tuple[float, float]:
    """sigma / alpha between which the network hears whole steps from low to high."""
    down = getattr(schedule, "rounding", "nearest") == "down"
    heard = np.asarray([low, high + 1]) - (1e-3 if down else 0.5)
    if schedule.num_steps is None:  # a flow hears 1000 * t
        ts = heard / schedule.wrapped.time_scale
    else:
        ts = heard + 1
    level = schedule(jnp.asarray(ts, float))
    return tuple(float(ratio) for ratio in level.sigma / level.alpha)


def read_edm_dpm(fields: Fields) -> Recipe:
    """EDMDPMSolverMultistepScheduler (Playground v2.5)."""
    sampler = dpm_sampler(fields, ("dpmsolver++", "deis", "sde-dpmsolver++"))
    return scheduler_flows.read_edm(fields, sampler)


def read_cosine_dpm(fields: Fields) -> Recipe:
    """CosineDPMSolverMultistepScheduler (Stable Audio): 2M SDE; hears 2 atan(sigma) / pi."""
    fields["algorithm_type"] = "sde-dpmsolver++"
    if fields["solver_order"] == 3:
        raise scheduler_fields.unsupported(fields, "solver_order", 3, [1, 2])
    sampler = dpm_sampler(fields, NOISY)
    fields.pop("num_train_timesteps")
    low, high = fields.pop("sigma_min"), fields.pop("sigma_max")
    return Recipe(
        schedules.Cosine(s=0.0),
        scheduler_flows.edm_grid(fields, low, high),
        scheduler_flows.edm_parameterization(fields),
        sampler,
        prior_std=process.std_of_noisy_data,
    )


def _recipe(fields: Fields, made: Multistep, sampler: Sampler) -> Recipe:
    learned = (
        require(fields, "variance_type", None, "learned", "learned_range")
        if "variance_type" in fields
        else None
    )
    return Recipe(
        made.schedule,
        made.grid,
        _prediction(fields, made.is_flow),
        sampler,
        scheduler_fields.clipping(fields),
        learned_variance=learned is not None,
    )


def _prediction(fields: Fields, is_flow: bool) -> Parameterization:
    # Their v and their flow are each a rotation of x0 and eps on one kind of schedule.
    own = "flow_prediction" if is_flow else "v_prediction"
    return scheduler_fields.prediction(fields, "epsilon", "sample", own)


def run_backwards(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    sampler: Sampler,
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """The sampler from data to noise; named, so that equal recipes read alike."""
    return inversion.inverted(sampler)(key, denoise, schedule, x, ts)


def up_to_the_noisiest(
    schedule: Schedule, steps: int, *, spacing: str, offset: int
) -> Float[Array, "steps_plus_1"]:
    """The grid of an inversion: where the network is evaluated, from t_max down."""
    num = schedule.num_steps
    if spacing == "linspace":
        return grids.linspace_open(schedule, steps, end=1)
    if spacing == "trailing":
        heard = np.asarray(grids.trailing(schedule, steps))[:-1] - 1
    else:
        heard = np.arange(steps)[::-1] * (num // (steps + 1)) + offset
    return jnp.asarray([num, *(heard + 1)], float)
