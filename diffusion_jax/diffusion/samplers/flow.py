"""Euler's and Heun's methods along the chord from (alpha, sigma) to (alpha, sigma).

The probability-flow ODE is dx = x0 dalpha + eps dsigma, in whatever variable. On a
rectified flow, alpha = 1 - t and sigma = t, these are the methods in t for the velocity
eps - x0 (Liu et al., 2022; arXiv:2209.03003). Pure noise is no exception here, as it is
for solvers in sigma / alpha.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.process import NoiseLevel, Real
from diffusion_jax.diffusion.samplers.integrate import Keys, integrate, normal_like
from diffusion_jax.diffusion.schedules import Schedule


def flow_euler(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    renewed: Real | Float[Array, ""] = 0.0,
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """Euler's method; `renewed` is the share of the noise's variance drawn anew.

    With 0 it lands where `euler` does; with 1 every step adds fresh noise to the
    predicted x0, as few-step distilled flows are sampled.
    """

    def step(
        x: Float[Array, "B *d"], key: Keys, here: NoiseLevel, there: NoiseLevel
    ) -> tuple[Float[Array, "B *d"], Float[Array, "B *d"]]:
        pred = denoise(x, here)
        noise = jnp.sqrt(1.0 - renewed) * pred.eps
        noise = noise + jnp.sqrt(1.0 * renewed) * normal_like(key, x)
        return there.alpha * pred.x0 + there.sigma * noise, pred.x0

    return integrate(step, x, key, schedule(ts))


def flow_heun(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """Heun's second-order method: both predictions are averaged over the chord.

    Two evaluations a step, but one for a step to clean data, which is an Euler step.
    """

    def step(
        x: Float[Array, "B *d"], key: Keys, here: NoiseLevel, there: NoiseLevel
    ) -> tuple[Float[Array, "B *d"], Float[Array, "B *d"]]:
        pred = denoise(x, here)
        euler = there.alpha * pred.x0 + there.sigma * pred.eps

        def correct(euler: Float[Array, "B *d"]) -> Float[Array, "B *d"]:
            ahead = denoise(euler, there)
            change = (there.alpha - here.alpha) * (ahead.x0 - pred.x0)
            change = change + (there.sigma - here.sigma) * (ahead.eps - pred.eps)
            return euler + 0.5 * change

        is_noisy = there.sigma > 0
        return jax.lax.cond(is_noisy, correct, lambda euler: euler, euler), pred.x0

    return integrate(step, x, key, schedule(ts))
