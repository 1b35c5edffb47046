"""DPM-Solver++ (Lu et al., 2022; arXiv:2211.01095), in lambda = log(alpha / sigma)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.diffusion import process
from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.process import NoiseLevel
from diffusion_jax.diffusion.samplers.integrate import Keys, integrate
from diffusion_jax.diffusion.schedules import Schedule


def dpmpp_2m(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """DPM-Solver++(2M), algorithm 2: a DDIM step with x0 extrapolated from the last two.

    The first and the last step are of first order, and so is one whose lambda is
    infinite at either end.
    """
    levels = schedule(ts)

    def step(
        carry: tuple[Array, Array, Array],
        key: Keys,
        here: NoiseLevel,
        there: NoiseLevel,
    ) -> tuple[tuple[Array, Array, Array], Array]:
        x, x0_before, lambda_before = carry
        pred = denoise(x, here)
        lambda_here, lambda_there = (
            process.logsnr(level) / 2 for level in (here, there)
        )
        # Half the step ahead over the step before; 0 leaves first order.
        is_last = there.sigma == levels.sigma[-1]
        reach = 0.5 * (lambda_there - lambda_here) / (lambda_here - lambda_before)
        is_finite = jnp.isfinite(lambda_there) & jnp.isfinite(lambda_before)
        reach = jnp.where(is_finite & ~is_last, reach, 0.0)
        middle = process.from_x0(x, pred.x0 + reach * (pred.x0 - x0_before), here)
        x = there.alpha * middle.x0 + there.sigma * middle.eps
        return (x, pred.x0, lambda_here), pred.x0

    # As if the step before the first had come from pure noise: nothing to remember.
    carry = (x, jnp.zeros_like(x), jnp.full_like(levels.alpha[0], -jnp.inf))
    (x, _, _), trace = integrate(step, carry, key, levels)
    return x, trace
