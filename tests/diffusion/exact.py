"""Data whose denoiser and probability flow are known exactly, and runs on them."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion import process, schedules
from diffusion_jax.diffusion.samplers import SAMPLERS

MEAN, STD = 0.7, 0.35  # of the Gaussian
STDS = np.geomspace(0.1, 2, 16)  # of one with as many dimensions
IMAGE = jnp.asarray([[0.3, -1.2, 0.9]])
# They need options of their own, or a denoiser that was distilled to jump.
SPECIAL = {"analytic_dpm", "consistency", "lcm", "repaint", "tcd"}
GENERAL = [name for name in SAMPLERS if name not in SPECIAL]


def gaussian(x, level, mean=MEAN, std=STD):
    """E[x0 | x] and E[eps | x] for data from N(mean, std**2)."""
    alpha, sigma = (process.align(a, x) for a in (level.alpha, level.sigma))
    variance = (alpha * std) ** 2 + sigma**2
    residual = x - alpha * mean
    x0 = mean + alpha * std**2 / variance * residual
    return process.Prediction(x0, sigma / variance * residual)


def anisotropic(x, level):
    """The same, with one standard deviation for each dimension."""
    return gaussian(x, level, MEAN, jnp.asarray(STDS, x.dtype))


def anisotropic_flow(x, here, there):
    """Where the probability-flow ODE of that data takes x from one level to another."""
    before, after = (
        jnp.hypot(level.alpha * STDS, level.sigma) for level in (here, there)
    )
    return there.alpha * MEAN + after / before * (x - here.alpha * MEAN)


def image(x, level):
    """The denoiser of data that is always IMAGE."""
    return process.from_x0(x, IMAGE, level)


@dataclasses.dataclass
class Visited(schedules.Schedule):
    """A schedule of which only the levels of one grid are known, and may be traced.

    One compiled sampler then serves all schedules.
    """

    levels: process.NoiseLevel
    num_steps = t_min = t_max = None

    def __call__(self, t):
        return self.levels

    def at_logsnr(self, logsnr):
        """On that of the usual three curves on which the levels lie."""
        alpha, sigma, _ = self.levels
        away = [alpha**2 + sigma**2 - 1, alpha + sigma - 1, alpha - 1]
        ratio = jnp.exp(-logsnr / 2)
        alphas = jnp.stack([1 / jnp.hypot(1, ratio), 1 / (1 + ratio), 1 + 0 * ratio])
        alpha = alphas[jnp.argmin(jnp.sum(jnp.abs(jnp.stack(away)), axis=1))]
        return process.NoiseLevel(alpha, ratio * alpha, ratio)


@functools.partial(jax.jit, static_argnames=("name", "denoise"))
def run(name, denoise, key, x, levels):
    ts = jnp.zeros_like(levels.time)
    return SAMPLERS[name](key, denoise, Visited(levels), x, ts)


def at(levels, i):
    return process.NoiseLevel(*(a[i] for a in levels))
