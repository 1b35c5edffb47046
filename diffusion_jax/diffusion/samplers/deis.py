"""DEIS (Zhang and Chen, 2023; arXiv:2204.13902), with polynomials in log(rho)."""

from __future__ import annotations

from jaxtyping import Array, Float

from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.process import Real
from diffusion_jax.diffusion.samplers import multistep
from diffusion_jax.diffusion.samplers.integrate import Keys
from diffusion_jax.diffusion.schedules import Schedule


def deis(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    order: int = 3,
    lower_order_final_below: Real = 15,
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """AB-DEIS with eps a polynomial in log(rho), rho = sigma / alpha.

    Its integral against d(rho) is exact; in t, as first published, it is a quadrature.
    """
    levels = schedule(ts)
    allowed = multistep.orders(
        levels, order, lower_order_final_below=lower_order_final_below
    )
    window = multistep.window(multistep.lambdas(levels), allowed)
    weights = multistep.lagrange(window, multistep.tilt_of("eps"))
    return multistep.multistep(key, denoise, levels, x, weights, "eps")
