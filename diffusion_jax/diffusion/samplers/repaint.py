"""RePaint (Lugmayr et al., 2022; arXiv:2201.09865): inpainting with any denoiser.

Each step takes the known pixels from the noised image, the others from the denoiser. So
that the two come to agree, the sample goes back to more noise and is denoised again.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.process import NoiseLevel, Real
from diffusion_jax.diffusion.samplers.ddim import (
    kept_share,
    renewed_share,
    renoise,
)
from diffusion_jax.diffusion.samplers.integrate import (
    Keys,
    integrate,
    normal_like,
    split,
)
from diffusion_jax.diffusion.schedules import Schedule


def repaint(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    known: Float[Array, "#B *d"],
    mask: Float[Array, "#B *#d"],
    jump_length: int = 10,
    jump_n_sample: int = 10,
    first_jump: int = 1,
    eta: Real | Float[Array, ""] = 1.0,
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """Algorithm 1; `known` is the clean image, mask is 1 where it is to be kept.

    The network is evaluated many times per step of the grid (see `visits`); the trace
    holds the last x0 of each. eta is DDIM's, 1 the paper's DDPM. The jumps were chosen
    for 250 steps; jump_n_sample=1 makes none.
    """
    levels = schedule(ts)
    order = visits(len(ts) - 1, jump_length, jump_n_sample, first_jump)
    visited = NoiseLevel(*(a[order] for a in levels))
    reached = NoiseLevel(*(a[order[:-1] + 1] for a in levels))

    def step(
        carry: tuple[Array, Array], key: Keys, here: NoiseLevel, onward: NoiseLevel
    ) -> tuple[tuple[Array, Array], Array]:
        x, i = carry
        there = NoiseLevel(*(a[i] for a in reached))
        step_key, jump_key = split(key, 2)
        # One draw is enough: a pixel is either known or not.
        noise = normal_like(step_key, x)
        pred = denoise(x, here)
        renewed = eta**2 * renewed_share(here, there)
        eps = jnp.sqrt(kept_share(here, there, eta)) * pred.eps
        unknown = there.alpha * pred.x0 + there.sigma * (
            eps + jnp.sqrt(renewed) * noise
        )
        x = mask * (there.alpha * known + there.sigma * noise) + (1 - mask) * unknown
        return (renoise(x, normal_like(jump_key, x), there, onward), i + 1), pred.x0

    (x, _), trace = integrate(step, (x, jnp.zeros((), int)), key, visited)
    return x, trace[_last_of_each(order[:-1])]


def visits(
    steps: int, jump_length: int, jump_n_sample: int, first_jump: int
) -> Int[np.ndarray, "evaluations_plus_1"]:
    """Indices into the grid at which the network is evaluated, then the end.

    The published schedule: first_jump steps before the end, and at every jump_length-th
    step above that, the sample jumps jump_length steps back, jump_n_sample - 1 times.
    """
    starts = range(first_jump, steps - jump_length + first_jump, jump_length)
    jumps = dict.fromkeys(starts, jump_n_sample - 1)
    remaining, order = steps, []
    while remaining > 0:
        order.append(steps - remaining)
        remaining -= 1
        if jumps.get(remaining, 0) > 0:
            jumps[remaining] -= 1
            remaining += jump_length
    return np.asarray([*order, steps])


def _last_of_each(order: Int[np.ndarray, "evaluations"]) -> Int[np.ndarray, "steps"]:
    _, from_the_end = np.unique(order[::-1], return_index=True)
    return len(order) - 1 - from_the_end
