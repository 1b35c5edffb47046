"""A recipe: all that a published configuration says about how a network is sampled."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.grids import Grid
from diffusion_jax.diffusion.parameterization import Parameterization
from diffusion_jax.diffusion.process import NoiseLevel
from diffusion_jax.diffusion.samplers import Sampler
from diffusion_jax.diffusion.schedules import Schedule


def kept(denoise: Denoiser) -> Denoiser:
    """The denoiser as it is."""
    return denoise


def unit(level: NoiseLevel) -> Float[Array, "*b"]:
    """Sampling starts from N(0, 1)."""
    return jnp.ones_like(level.sigma)


def of_noise(level: NoiseLevel) -> Float[Array, "*b"]:
    """Sampling starts from x_t of x0 = 0."""
    return level.sigma


def of_noisy_data(level: NoiseLevel) -> Float[Array, "*b"]:
    """Sampling starts with the variance of x_t for data of variance 1."""
    return jnp.hypot(level.sigma, level.alpha)


class Recipe(NamedTuple):
    """How to sample a network; static, so it may be closed over by a jitted function.

    denoise = recipe.wrap(guided(from_network(network, recipe.parameterization)))
    ts = recipe.grid(recipe.schedule, steps)
    x = recipe.prior_std(recipe.schedule(ts[0])) * noise
    x, trace = recipe.sampler(key, denoise, recipe.schedule, x, ts)
    """

    schedule: Schedule
    grid: Grid
    parameterization: Parameterization
    sampler: Sampler
    wrap: Callable[[Denoiser], Denoiser] = kept  # after guidance: clips x0, say
    prior_std: Callable[[NoiseLevel], Float[Array, "*b"]] = unit
    learned_variance: bool = False  # the network has twice the channels
    unused: tuple[str, ...] = ()  # fields of the file that its class does not use
