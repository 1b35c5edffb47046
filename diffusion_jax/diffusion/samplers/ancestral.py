"""Ancestral sampling: a deterministic step to a cleaner level, then noise on top.

As in k-diffusion (Crowson, 2022), which knows alpha = 1 only. There is no such level on
the schedule; it has the alpha of the next one and less sigma.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.diffusion import process
from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.process import NoiseLevel, Real
from diffusion_jax.diffusion.samplers.ddim import kept_share, renewed_share
from diffusion_jax.diffusion.samplers.integrate import Keys, integrate, normal_like
from diffusion_jax.diffusion.schedules import Schedule


def split(
    here: NoiseLevel, there: NoiseLevel, eta: Real | Float[Array, ""]
) -> tuple[NoiseLevel, Float[Array, ""]]:
    """The level `down` to step to and the std `up` of what is added to be at `there`.

    down.sigma**2 + up**2 = there.sigma**2. No network hears `down`.
    """
    renewed = jnp.minimum(eta**2 * renewed_share(here, there), 1.0)
    kept = jnp.sqrt(kept_share(here, there, eta))
    down = there._replace(sigma=there.sigma * kept)
    return down, there.sigma * jnp.sqrt(renewed)


def hold_x0(
    x: Float[Array, "B *d"],
    x0: Float[Array, "B *d"],
    here: NoiseLevel,
    there: NoiseLevel,
) -> Float[Array, "B *d"]:
    """The probability flow from x while the prediction of x0 stays as it is."""
    ratio = there.sigma / here.sigma
    return ratio * x + (there.alpha - ratio * here.alpha) * x0


def euler_ancestral(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    eta: Real | Float[Array, ""] = 1.0,
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """Euler ancestral ("Euler a"); the same map as `ddim` with that eta."""

    def step(
        x: Float[Array, "B *d"], key: Keys, here: NoiseLevel, there: NoiseLevel
    ) -> tuple[Float[Array, "B *d"], Float[Array, "B *d"]]:
        pred = denoise(x, here)
        down, up = split(here, there, eta)
        x = down.alpha * pred.x0 + down.sigma * pred.eps
        return x + up * normal_like(key, x), pred.x0

    return integrate(step, x, key, schedule(ts))


def dpmpp_2s_ancestral(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    eta: Real | Float[Array, ""] = 1.0,
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """DPM-Solver++(2S) (Lu et al., 2022, algorithm 1, r = 1/2) to `down`, then noise.

    Two evaluations a step; one, and first order, where lambda is infinite at either end.
    """

    def step(
        x: Float[Array, "B *d"], key: Keys, here: NoiseLevel, there: NoiseLevel
    ) -> tuple[Float[Array, "B *d"], Float[Array, "B *d"]]:
        pred = denoise(x, here)
        down, up = split(here, there, eta)

        def midpoint(x: Float[Array, "B *d"]) -> Float[Array, "B *d"]:
            # The mean of the two lambdas: half the sum of the two logsnr, halved.
            logsnr = (process.logsnr(here) + process.logsnr(down)) / 2
            middle = schedule.at_logsnr(logsnr)
            return denoise(hold_x0(x, pred.x0, here, middle), middle).x0

        is_interior = (down.sigma > 0) & (here.alpha > 0)
        x0 = jax.lax.cond(is_interior, midpoint, lambda x: pred.x0, x)
        x = hold_x0(x, x0, here, down)
        return x + up * normal_like(key, x), pred.x0

    return integrate(step, x, key, schedule(ts))
