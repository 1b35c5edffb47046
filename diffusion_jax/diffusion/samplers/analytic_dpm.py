"""Analytic-DPM (Bao et al., 2022; arXiv:2201.06503): the optimal reverse variance.

A reverse step loses the spread of x0 given x_here. For the optimal network it is, on
average and per dimension,

    Var(x0 | x_here) = sigma**2 / alpha**2 * (1 - E|eps|**2 / d),

so the mean square of the predicted eps, once estimated on data, gives it back.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.diffusion import process
from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.process import NoiseLevel, Real
from diffusion_jax.diffusion.samplers.ddim import kept_share, renewed_share
from diffusion_jax.diffusion.samplers.integrate import Keys, integrate, normal_like
from diffusion_jax.diffusion.schedules import Schedule


def analytic_dpm(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    eps_power: Float[Array, "steps"],
    eta: Real | Float[Array, ""] = 1.0,
    bound: Real | Float[Array, ""] = np.inf,
    last_pixels: Real | Float[Array, ""] = np.inf,
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """DDIM with the variance of theorem 1: eta = 1 is Analytic-DDPM, 0 Analytic-DDIM.

    `eps_power` comes from `estimate_eps_power` on the same grid. Data within
    [-bound, bound] bound the variance (theorem 2): 1 for images, none for latents.
    `last_pixels` limits the mean size of the last noise added, in 1/255ths of [-1, 1]
    (theirs were 1 and 2). The step to clean data adds no noise, and one from pure
    noise only that of the posterior, because eps says nothing of x0 there.
    """
    levels = schedule(ts)
    here, there = (NoiseLevel(*(a[ends] for a in levels)) for ends in _ENDS)
    renewed = eta**2 * renewed_share(here, there)
    kept = there.sigma * jnp.sqrt(kept_share(here, there, eta))
    ratio = here.sigma / jnp.where(here.alpha > 0, here.alpha, 1.0)
    spread = jnp.clip(ratio**2 * (1 - eps_power), 0, bound**2)  # Var(x0 | x_here)
    lost = (there.alpha - kept * here.alpha / here.sigma) ** 2 * spread
    lost = jnp.where(here.alpha > 0, lost, 0.0)
    std = jnp.sqrt(there.sigma**2 * renewed + lost)
    std = jnp.where(there.sigma > 0, std, 0.0)
    is_last = (there.sigma > 0) & (jnp.append(there.sigma[1:], 0.0) == 0)
    # The mean of |N(0, std**2)| is std * sqrt(2 / pi).
    largest = last_pixels * 2 / 255 * np.sqrt(np.pi / 2)
    std = jnp.where(is_last, jnp.minimum(std, largest), std)

    def step(
        carry: tuple[Array, Array], key: Keys, here: NoiseLevel, there: NoiseLevel
    ) -> tuple[tuple[Array, Array], Array]:
        x, i = carry
        pred = denoise(x, here)
        x = there.alpha * pred.x0 + kept[i] * pred.eps + std[i] * normal_like(key, x)
        return (x, i + 1), pred.x0

    (x, _), trace = integrate(step, (x, jnp.zeros((), int)), key, levels)
    return x, trace


def estimate_eps_power(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x0: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
) -> Float[Array, "steps"]:
    """E|eps|**2 / d at each time but the last, from a batch of data.

    One draw of noise per time and example; average several batches for more.
    """

    def step(
        x0: Float[Array, "B *d"], key: Keys, here: NoiseLevel, there: NoiseLevel
    ) -> tuple[Float[Array, "B *d"], Float[Array, ""]]:
        x = process.add_noise(x0, normal_like(key, x0), here)
        return x0, jnp.mean(denoise(x, here).eps ** 2)

    return integrate(step, x0, key, schedule(ts))[1]


_ENDS = (slice(None, -1), slice(1, None))
