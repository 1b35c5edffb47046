"""The linear multistep method of k-diffusion (Karras et al., 2022; arXiv:2206.00364)."""

from __future__ import annotations

from jaxtyping import Array, Float

from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.samplers import multistep
from diffusion_jax.diffusion.samplers.integrate import Keys
from diffusion_jax.diffusion.schedules import Schedule


def lms(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    order: int = 4,
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """Adams-Bashforth in s = sigma / alpha, with weights for the steps as they come.

    dy/ds = eps is integrated exactly for the polynomial in s through the last `order`
    values of eps, over the step to clean data too.
    """
    levels = schedule(ts)
    allowed = multistep.orders(levels, order, highest=4)
    window = multistep.window(multistep.ratios(levels), allowed)
    weights = multistep.lagrange(window, tilt=0)
    return multistep.multistep(key, denoise, levels, x, weights, "eps")
