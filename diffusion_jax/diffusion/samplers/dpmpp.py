"""DPM-Solver++ (Lu et al., 2022; arXiv:2211.01095): its solvers by their usual names."""

from __future__ import annotations

from jaxtyping import Array, Float

from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.process import Real
from diffusion_jax.diffusion.samplers.dpm_solver import dpm_multistep, dpm_solver
from diffusion_jax.diffusion.samplers.integrate import Keys
from diffusion_jax.diffusion.schedules import Schedule


def dpmpp_2m(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    solver_type: str = "midpoint",
    lower_order_final_below: Real = 15,
    euler_at_final: bool = False,
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """DPM-Solver++(2M), algorithm 2: a DDIM step with x0 extrapolated from the last two.

    The first step is of first order, and so is one whose lambda is infinite at either
    end; the last one too in fewer than `lower_order_final_below` steps.
    """
    return dpm_multistep(
        key,
        denoise,
        schedule,
        x,
        ts,
        form="x0",
        solver_type=solver_type,
        lower_order_final_below=lower_order_final_below,
        euler_at_final=euler_at_final,
    )


def dpmpp_3m(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    solver_type: str = "midpoint",
    half_curvature: bool = False,
    lower_order_final_below: Real = 15,
    euler_at_final: bool = False,
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """DPM-Solver++, multistep, of order 3: x0 is a parabola in lambda.

    `half_curvature` is the published code's, of order 2: see `dpm_multistep`.
    """
    return dpm_multistep(
        key,
        denoise,
        schedule,
        x,
        ts,
        order=3,
        form="x0",
        solver_type=solver_type,
        half_curvature=half_curvature,
        lower_order_final_below=lower_order_final_below,
        euler_at_final=euler_at_final,
    )


def dpmpp_2s(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """DPM-Solver++(2S), algorithm 1 with r = 1/2: x0 is that of the middle in lambda."""
    return dpm_solver(key, denoise, schedule, x, ts, order=2, form="x0")
