"""The midpoint method in sigma / alpha, with the midpoint taken in its logarithm.

DPM-Solver-2 (Lu et al., 2022, algorithm 1; arXiv:2206.00927) as k-diffusion samples
with it: the state is advanced in sigma / alpha, as Heun's is, not in lambda.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.diffusion import process
from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.process import NoiseLevel, Real
from diffusion_jax.diffusion.samplers import ancestral
from diffusion_jax.diffusion.samplers.integrate import Keys, integrate, normal_like
from diffusion_jax.diffusion.schedules import Schedule


def dpm2(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """DPM2 of k-diffusion: second order, two evaluations a step.

    A step to clean data, or from pure noise, is an Euler step.
    """

    def step(
        x: Float[Array, "B *d"], key: Keys, here: NoiseLevel, there: NoiseLevel
    ) -> tuple[Float[Array, "B *d"], Float[Array, "B *d"]]:
        return _midpoint_step(denoise, schedule, x, here, there)

    return integrate(step, x, key, schedule(ts))


def dpm2_ancestral(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    eta: Real | Float[Array, ""] = 1.0,
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """`dpm2` to a level cleaner than the next, then noise ("DPM2 a")."""

    def step(
        x: Float[Array, "B *d"], key: Keys, here: NoiseLevel, there: NoiseLevel
    ) -> tuple[Float[Array, "B *d"], Float[Array, "B *d"]]:
        down, up = ancestral.split(here, there, eta)
        x, x0 = _midpoint_step(denoise, schedule, x, here, down)
        return x + up * normal_like(key, x), x0

    return integrate(step, x, key, schedule(ts))


def _midpoint_step(
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    here: NoiseLevel,
    there: NoiseLevel,
) -> tuple[Float[Array, "B *d"], Float[Array, "B *d"]]:
    """x at `there`, and the x0 predicted at `here`."""
    pred = denoise(x, here)
    euler = there.alpha * pred.x0 + there.sigma * pred.eps
    ratio = here.sigma / jnp.where(here.alpha > 0, here.alpha, 1.0)

    def correct(euler: Float[Array, "B *d"]) -> Float[Array, "B *d"]:
        middle = schedule.at_logsnr((process.logsnr(here) + process.logsnr(there)) / 2)
        halfway = middle.alpha * pred.x0 + middle.sigma * pred.eps
        change = denoise(halfway, middle).eps - pred.eps
        return euler + (there.sigma - there.alpha * ratio) * change

    is_interior = (there.sigma > 0) & (here.alpha > 0)
    return jax.lax.cond(is_interior, correct, lambda euler: euler, euler), pred.x0
