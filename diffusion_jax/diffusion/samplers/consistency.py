"""Samplers of a few steps, for denoisers that were distilled to jump.

A consistency function takes x at any level to the data on its path of the probability
flow (Song et al., 2023; arXiv:2303.01469). Such a jump, then fresh noise, is one step.
On an ordinary denoiser, whose x0 is a mean, these samplers are too smooth.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.diffusion import process
from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.process import NoiseLevel, Prediction, Real
from diffusion_jax.diffusion.samplers.ddim import renoise
from diffusion_jax.diffusion.samplers.integrate import Keys, integrate, normal_like
from diffusion_jax.diffusion.schedules import Schedule


def consistency(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """Multistep consistency sampling (Song et al., 2023, algorithm 1).

    The denoiser's x0 is the end of the path, at ts[-1]: their epsilon, or 0.
    """
    levels = schedule(ts)
    end = NoiseLevel(*(a[-1] for a in levels))

    def step(
        x: Float[Array, "B *d"], key: Keys, here: NoiseLevel, there: NoiseLevel
    ) -> tuple[Float[Array, "B *d"], Float[Array, "B *d"]]:
        pred = denoise(x, here)
        return renoise(pred.x0, normal_like(key, x), end, there), pred.x0

    return integrate(step, x, key, levels)


def lcm(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    sigma_data: Real = 0.5,
    timestep_scaling: Real = 10.0,
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """Latent consistency models (Luo et al., 2023, algorithm 3; arXiv:2310.04378)."""
    bounded = boundary(
        denoise, sigma_data=sigma_data, timestep_scaling=timestep_scaling
    )
    return consistency(key, bounded, schedule, x, ts)


def tcd(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    gamma: Real | Float[Array, ""] = 0.3,
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """Trajectory consistency (Zheng et al., 2024, algorithm 4; arXiv:2402.19159).

    Each step jumps beyond its end, to (1 - gamma) of that time, and adds noise to come
    back: gamma = 0 is deterministic, 1 jumps to clean data. Whole steps are counted as
    the network hears them and rounded down, so the cleanest is t = 1: let ts end there.
    """
    levels = schedule(ts)
    heard = 0.0 if schedule.num_steps is None else 1.0
    beyond = (1 - gamma) * (ts - heard)
    beyond = beyond if schedule.num_steps is None else jnp.floor(beyond) + heard
    beyond = schedule(jnp.where(ts > heard, beyond, ts))

    def step(
        carry: tuple[Array, Array], key: Keys, here: NoiseLevel, there: NoiseLevel
    ) -> tuple[tuple[Array, Array], Array]:
        x, i = carry
        pred = denoise(x, here)
        jump = NoiseLevel(*(a[i + 1] for a in beyond))
        x = jump.alpha * pred.x0 + jump.sigma * pred.eps
        return (renoise(x, normal_like(key, x), jump, there), i + 1), pred.x0

    (x, _), trace = integrate(step, (x, jnp.zeros((), int)), key, levels)
    return x, trace


# ---- boundary conditions: x0 is x itself where there is no noise --------------------


def boundary(
    denoise: Denoiser, sigma_data: Real = 0.5, timestep_scaling: Real = 10.0
) -> Denoiser:
    """c_skip * x + c_out * x0 in place of x0, by the time that the network hears.

    Luo et al. (2023), section 4.1; with s = timestep_scaling * time,
    c_skip = sigma_data**2 / (s**2 + sigma_data**2), c_out = s / sqrt(the same).
    """

    def bounded(x: Float[Array, "B *d"], level: NoiseLevel) -> Prediction:
        pred = denoise(x, level)
        scaled = process.align(timestep_scaling * level.time, x)
        square = scaled**2 + sigma_data**2
        x0 = sigma_data**2 / square * x + scaled / jnp.sqrt(square) * pred.x0
        return process.from_x0(x, x0, level, pred.variance)

    return bounded


def karras_boundary(
    denoise: Denoiser, sigma_data: Real = 0.5, sigma_min: Real = 0.002
) -> Denoiser:
    """The skip connection of Song et al. (2023), appendix C, for the edm network.

    `denoise` reads the network by `parameterization.edm`, whose x0 is x at sigma = 0;
    this moves that to sigma_min. Needs alpha = 1.
    """

    def bounded(x: Float[Array, "B *d"], level: NoiseLevel) -> Prediction:
        pred = denoise(x, level)
        sigma = process.align(level.sigma, x)
        above = sigma - sigma_min
        without = sigma_data**2 / (sigma**2 + sigma_data**2) * x
        skip = sigma_data**2 / (above**2 + sigma_data**2) * x
        x0 = skip + above / sigma * (pred.x0 - without)
        return process.from_x0(x, x0, level, pred.variance)

    return bounded
