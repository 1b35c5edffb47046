"""A recipe: all that a published configuration says about how a network is sampled."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float

from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.grids import Grid
from diffusion_jax.diffusion.parameterization import Parameterization
from diffusion_jax.diffusion.process import NoiseLevel, unit_std
from diffusion_jax.diffusion.samplers import Sampler
from diffusion_jax.diffusion.schedules import Schedule


def kept(denoise: Denoiser) -> Denoiser:
    """The denoiser as it is."""
    return denoise


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
    prior_std: Callable[[NoiseLevel], Float[Array, "*b"]] = unit_std
    learned_variance: bool = False  # the network has twice the channels
    unused: tuple[str, ...] = ()  # fields of the file that its class does not use
