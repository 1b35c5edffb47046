"""Pseudo numerical methods: Adams-Bashforth with the weights of equal steps.

PNDM and PLMS (Liu et al., 2022; arXiv:2202.09778) and iPNDM (Zhang and Chen, 2023;
arXiv:2204.13902) differ only in how they start.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.process import NoiseLevel, Prediction
from diffusion_jax.diffusion.samplers import multistep
from diffusion_jax.diffusion.samplers.integrate import Keys
from diffusion_jax.diffusion.samplers.multistep import land, output, revise
from diffusion_jax.diffusion.schedules import Schedule

# Newest first; row k - 1 is that of order k.
_ADAMS_BASHFORTH = (
    (1, 0, 0, 0),
    (3 / 2, -1 / 2, 0, 0),
    (23 / 12, -16 / 12, 5 / 12, 0),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def ipndm(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    order: int = 4,
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """iPNDM: orders 1, 2, 3 while eps is gathered, one evaluation a step."""
    levels = schedule(ts)
    weights = _adams_bashforth(levels, order)
    return multistep.multistep(key, denoise, levels, x, weights, "eps")


def plms(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    form: str = "eps",
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """PLMS, as Stable Diffusion was released with: iPNDM whose first step is Heun's.

    One evaluation more than steps. `form` is what is averaged: the published code
    averages the outputs of a v-predicting network as they are, which is "v" and, since
    v turns along even a path of known x0 and eps, of order 1 (eps: 2).
    """
    levels = schedule(ts)
    p = multistep.named(form)

    def start(
        pred: Prediction, here: NoiseLevel, there: NoiseLevel, i: Int[Array, ""]
    ) -> Float[Array, "B *d"]:
        end = denoise(land(pred, there), there)
        return 0.5 * (output(p, end, there) - output(p, pred, here))

    weights = _adams_bashforth(levels, 4)
    options = dict(start=start, num_start=min(1, len(weights) - 1))
    return multistep.multistep(key, denoise, levels, x, weights, form, **options)


def pndm(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    form: str = "eps",
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """F-PNDM, algorithm 2: three pseudo Runge-Kutta steps (eq. 13), then eq. 12.

    Nine evaluations more than steps. The middle of a step is its middle in t; `form`
    is as in `plms`.
    """
    levels = schedule(ts)
    p = multistep.named(form)
    weights = _adams_bashforth(levels, 4)
    num_start = min(3, len(weights) - 1)
    if num_start == 0:
        return multistep.multistep(key, denoise, levels, x, weights, form)
    middles = schedule((ts[:num_start] + ts[1 : num_start + 1]) / 2)

    def start(
        pred: Prediction, here: NoiseLevel, there: NoiseLevel, i: Int[Array, ""]
    ) -> Float[Array, "B *d"]:
        first = output(p, pred, here)
        middle = jax.tree.map(lambda a: a[i], middles)

        def change_at(
            level: NoiseLevel, change: Float[Array, "B *d"]
        ) -> Float[Array, "B *d"]:
            there = denoise(land(revise(p, pred, here, change), level), level)
            return output(p, there, level) - first

        second = change_at(middle, jnp.zeros_like(first))
        third = change_at(middle, second)
        fourth = change_at(there, third)
        return (2 * second + 2 * third + fourth) / 6

    options = dict(start=start, num_start=num_start)
    return multistep.multistep(key, denoise, levels, x, weights, form, **options)


def _adams_bashforth(levels: NoiseLevel, order: int) -> Float[Array, "steps num"]:
    allowed = multistep.orders(levels, order, highest=4)
    # Fixed weights need no finite node: eps of pure noise, if known, is remembered.
    angles = jnp.arctan2(levels.sigma, levels.alpha)
    used = multistep.window(angles, allowed).used
    table = jnp.asarray(_ADAMS_BASHFORTH, levels.alpha.dtype)
    return table[used - 1, : allowed.max()]
