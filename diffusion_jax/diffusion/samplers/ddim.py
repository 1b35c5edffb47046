"""DDIM (Song et al., 2021; arXiv:2010.02502) and ancestral sampling, its eta = 1.

For any alpha and sigma the posterior q(x_there | x_here, x0) has standard deviation
sigma_there * sqrt(1 - snr_here / snr_there) (Kingma et al., 2021, eq. 25).
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.process import NoiseLevel, Real
from diffusion_jax.diffusion.samplers.integrate import Keys, integrate, normal_like
from diffusion_jax.diffusion.schedules import Schedule


def ddim(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    eta: Real | Float[Array, ""] = 0.0,
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """DDIM, eq. 12 and 16: eta = 0 is deterministic, eta = 1 is ancestral."""

    def step(
        x: Float[Array, "B *d"], key: Keys, here: NoiseLevel, there: NoiseLevel
    ) -> tuple[Float[Array, "B *d"], Float[Array, "B *d"]]:
        pred = denoise(x, here)
        renewed = eta**2 * renewed_share(here, there)  # of the variance of the noise
        kept = jnp.sqrt(jnp.maximum(1 - renewed, 0.0)) * pred.eps
        noise = kept + jnp.sqrt(renewed) * normal_like(key, x)
        return there.alpha * pred.x0 + there.sigma * noise, pred.x0

    return integrate(step, x, key, schedule(ts))


def ddpm(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """Ancestral sampling with the posterior's variance (Ho et al., 2020, eq. 6, 7)."""
    return ddim(key, denoise, schedule, x, ts, eta=1.0)


def renewed_share(here: NoiseLevel, there: NoiseLevel) -> Float[Array, ""]:
    """1 - snr_here / snr_there: how much of sigma_there**2 an ancestral step redraws."""
    kept = (here.alpha * there.sigma) / (there.alpha * here.sigma)
    return (1 - kept) * (1 + kept)
