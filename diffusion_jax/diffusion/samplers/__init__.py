"""Samplers: (key, denoise, schedule, x, ts, *, options) -> (sample, x0 of every step).

x is noise at ts[0] (`integrate.prior_sample`), ts the decreasing times of a grid.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float

from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.samplers import (
    adaptive,
    analytic_dpm,
    ancestral,
    consistency,
    ddim,
    deis,
    dpm2,
    dpm_solver,
    dpmpp,
    dpmpp_sde,
    edm,
    flow,
    heun,
    integrate,
    lms,
    pndm,
    repaint,
    sa_solver,
    unipc,
)
from diffusion_jax.diffusion.schedules import Schedule


@runtime_checkable
class Sampler(Protocol):
    """What all samplers are; their options are keyword-only."""

    def __call__(
        self,
        key: integrate.Keys,
        denoise: Denoiser,
        schedule: Schedule,
        x: Float[Array, "B *d"],
        ts: Float[Array, "steps_plus_1"],
    ) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
        """Draw samples; the trace holds the predicted x0 of every step."""


SAMPLERS = {
    "ddim": ddim.ddim,
    "ddpm": ddim.ddpm,
    "euler": heun.euler,
    "heun": heun.heun,
    "dpmpp_2m": dpmpp.dpmpp_2m,
    "dpmpp_2s": dpmpp.dpmpp_2s,
    "dpmpp_3m": dpmpp.dpmpp_3m,
    "dpm_solver": dpm_solver.dpm_solver,
    "dpm_multistep": dpm_solver.dpm_multistep,
    "dpm_singlestep": dpm_solver.dpm_singlestep,
    "deis": deis.deis,
    "unipc": unipc.unipc,
    "lms": lms.lms,
    "plms": pndm.plms,
    "pndm": pndm.pndm,
    "ipndm": pndm.ipndm,
    "edm": edm.edm,
    "euler_ancestral": ancestral.euler_ancestral,
    "dpm2": dpm2.dpm2,
    "dpm2_ancestral": dpm2.dpm2_ancestral,
    "dpmpp_2s_ancestral": ancestral.dpmpp_2s_ancestral,
    "dpmpp_sde": dpmpp_sde.dpmpp_sde,
    "dpmpp_2m_sde": dpmpp_sde.dpmpp_2m_sde,
    "dpmpp_3m_sde": dpmpp_sde.dpmpp_3m_sde,
    "dpm_multistep_sde": dpmpp_sde.dpm_multistep_sde,
    "sa_solver": sa_solver.sa_solver,
    "analytic_dpm": analytic_dpm.analytic_dpm,
    "consistency": consistency.consistency,
    "lcm": consistency.lcm,
    "tcd": consistency.tcd,
    "flow_euler": flow.flow_euler,
    "flow_heun": flow.flow_heun,
    "repaint": repaint.repaint,
    "adaptive": adaptive.adaptive,
}
