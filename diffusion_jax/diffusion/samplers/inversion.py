"""Inversion: from clean data to the noise that deterministic sampling starts from.

The same grid as for sampling, visited the other way round. These have the signature of
a sampler but are none: x is data at ts[-1], the result is noise at ts[0], and the trace
runs from data to noise.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.process import NoiseLevel
from diffusion_jax.diffusion.samplers.integrate import Keys, integrate
from diffusion_jax.diffusion.schedules import Schedule


def ddim_inversion(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    corrections: int = 0,
    starts_noisier: bool = False,
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """DDIM with eta = 0 backwards (Song et al., 2021, section 4.3, eq. 14).

    An Euler step: eps is read at the cleaner level, but the network hears the time of
    the noisier one, because none is trained for clean data. Each correction is one more
    evaluation, at the noisier end: a fixed-point iteration for the x from which a DDIM
    step leads back exactly (Pan et al., 2023; arXiv:2309.04907).

    `starts_noisier` reads a step from clean data at its noisier end altogether, for
    networks that predict x0: at sigma = 0 that says nothing of eps.
    """

    def step(
        x: Float[Array, "B *d"], key: Keys, here: NoiseLevel, there: NoiseLevel
    ) -> tuple[Float[Array, "B *d"], Float[Array, "B *d"]]:
        ratio = there.alpha / here.alpha

        def along(eps: Float[Array, "B *d"]) -> Float[Array, "B *d"]:
            return ratio * x + (there.sigma - ratio * here.sigma) * eps

        is_clean = starts_noisier & (here.sigma == 0)
        level = here._replace(time=there.time)
        level = jax.tree.map(lambda a, b: jnp.where(is_clean, b, a), level, there)
        pred = denoise(jnp.where(is_clean, ratio * x, x), level)

        def correct(
            _: Int[Array, ""], noisier: Float[Array, "B *d"]
        ) -> Float[Array, "B *d"]:
            return along(denoise(noisier, there).eps)

        noisier = there.alpha * pred.x0 + there.sigma * pred.eps
        noisier = jnp.where(is_clean, along(pred.eps), noisier)
        return jax.lax.fori_loop(0, corrections, correct, noisier), pred.x0

    return integrate(step, x, key, schedule(ts[::-1]))


def inverted(sampler: Callable) -> Callable:
    """A deterministic sampler of any order run from ts[-1] to ts[0].

    It evaluates at both ends as they are, so ts[-1] should be a level for which the
    network is trained, t_min rather than 0.
    """

    def invert(
        key: Keys,
        denoise: Denoiser,
        schedule: Schedule,
        x: Float[Array, "B *d"],
        ts: Float[Array, "steps_plus_1"],
        **options: object,
    ) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
        return sampler(key, denoise, schedule, x, jnp.flip(ts), **options)

    return invert
