"""Euler's and Heun's methods in sigma / alpha (Karras et al., 2022; arXiv:2206.00364).

In the variables y = x / alpha and s = sigma / alpha the probability-flow ODE is
dy/ds = eps(y, s), for every schedule; an Euler step lands on alpha * x0 + sigma * eps.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.process import NoiseLevel
from diffusion_jax.diffusion.samplers.integrate import Keys, integrate
from diffusion_jax.diffusion.schedules import Schedule


def euler(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """Euler's method; the same map as DDIM with eta = 0, and as Euler in t for flows."""

    def step(
        x: Float[Array, "B *d"], key: Keys, here: NoiseLevel, there: NoiseLevel
    ) -> tuple[Float[Array, "B *d"], Float[Array, "B *d"]]:
        pred = denoise(x, here)
        return there.alpha * pred.x0 + there.sigma * pred.eps, pred.x0

    return integrate(step, x, key, schedule(ts))


def heun(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """Heun's second-order method, algorithm 1; two evaluations a step.

    A step to clean data, or from pure noise (s = inf), is an Euler step.
    """

    def step(
        x: Float[Array, "B *d"], key: Keys, here: NoiseLevel, there: NoiseLevel
    ) -> tuple[Float[Array, "B *d"], Float[Array, "B *d"]]:
        pred = denoise(x, here)
        euler = there.alpha * pred.x0 + there.sigma * pred.eps
        is_interior = (there.sigma > 0) & (here.alpha > 0)
        ratio = here.sigma / jnp.where(here.alpha > 0, here.alpha, 1.0)

        def correct(euler: Float[Array, "B *d"]) -> Float[Array, "B *d"]:
            change = denoise(euler, there).eps - pred.eps
            return euler + 0.5 * (there.sigma - there.alpha * ratio) * change

        return jax.lax.cond(is_interior, correct, lambda euler: euler, euler), pred.x0

    return integrate(step, x, key, schedule(ts))
