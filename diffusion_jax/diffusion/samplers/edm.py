"""The stochastic sampler of Karras et al. (2022), algorithm 2; arXiv:2206.00364.

Each step first adds fresh noise ("churn"), to a level somewhat noisier than the last.
Theirs is written for alpha = 1; here the churn acts on sigma / alpha, so that y = x /
alpha makes the same moves on any schedule.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.process import NoiseLevel, Real
from diffusion_jax.diffusion.samplers.integrate import Keys, integrate, normal_like
from diffusion_jax.diffusion.schedules import Schedule

MAX_GROWTH = 2**0.5 - 1  # of sigma in one churn: never more new noise than there is


def edm(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    s_churn: Real | Float[Array, ""] = 0.0,
    s_min: Real | Float[Array, ""] = 0.0,
    s_max: Real | Float[Array, ""] = float("inf"),
    s_noise: Real | Float[Array, ""] = 1.0,
    second_order: bool = True,
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """Algorithm 2, which without churn is `heun`; s_min and s_max bound sigma / alpha.

    The defaults are deterministic; the paper's ImageNet-64 was sampled with (40, 0.05,
    50, 1.003). On schedules of whole steps churn ends at the last. A step to clean data,
    or from pure noise, is an Euler step; all are without `second_order`.
    """
    growth = jnp.minimum(s_churn / (len(ts) - 1), MAX_GROWTH)

    def step(
        x: Float[Array, "B *d"], key: Keys, here: NoiseLevel, there: NoiseLevel
    ) -> tuple[Float[Array, "B *d"], Float[Array, "B *d"]]:
        ratio = _ratio(here)
        is_churned = (s_min <= ratio) & (ratio <= s_max) & (here.alpha > 0)
        hat = _noisier(schedule, here, jnp.where(is_churned, growth, 0.0))
        gap = jnp.maximum(_ratio(hat) - ratio, 0.0)  # exactly 0 without churn
        added = jnp.sqrt(gap * (gap + 2 * ratio))
        scale = hat.alpha / jnp.where(here.alpha > 0, here.alpha, 1.0)
        scale = jnp.where(here.alpha > 0, scale, 1.0)
        x = scale * x + hat.alpha * added * s_noise * normal_like(key, x)
        pred = denoise(x, hat)
        euler = there.alpha * pred.x0 + there.sigma * pred.eps
        if not second_order:
            return euler, pred.x0

        def correct(euler: Float[Array, "B *d"]) -> Float[Array, "B *d"]:
            change = denoise(euler, there).eps - pred.eps
            return euler + 0.5 * (there.sigma - there.alpha * _ratio(hat)) * change

        is_interior = (there.sigma > 0) & (here.alpha > 0)
        return jax.lax.cond(is_interior, correct, lambda euler: euler, euler), pred.x0

    return integrate(step, x, key, schedule(ts))


def _ratio(level: NoiseLevel) -> Float[Array, ""]:
    """sigma / alpha, and 0 where that would be infinite."""
    has_signal = level.alpha > 0
    return jnp.where(
        has_signal, level.sigma / jnp.where(has_signal, level.alpha, 1.0), 0.0
    )


def _noisier(
    schedule: Schedule, here: NoiseLevel, growth: Float[Array, ""]
) -> NoiseLevel:
    """The level whose sigma / alpha is (1 + growth) times larger; `here` itself at 0."""
    ratio = jnp.where(growth > 0, _ratio(here), 1.0)
    hat = schedule.at_logsnr(-2 * (jnp.log(ratio) + jnp.log1p(growth)))
    return jax.tree.map(lambda a, b: jnp.where(growth > 0, a, b), hat, here)
