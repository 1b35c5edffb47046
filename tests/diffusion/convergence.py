"""Measured orders of convergence, on the flow of Gaussian data, which is known."""

from __future__ import annotations

import dataclasses
import functools

import exact
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion import schedules

SCHEDULES = [
    schedules.Discrete(),
    schedules.Cosine(),
    schedules.VarianceExploding(),
    schedules.RectifiedFlow(),
]
COARSE, FINE = 96, 384


@dataclasses.dataclass
class Chosen(schedules.Schedule):
    """One of SCHEDULES, by a traced index: one compiled program serves them all."""

    which: jax.Array
    num_steps = t_min = t_max = None

    def __call__(self, t):
        return jax.lax.switch(self.which, SCHEDULES, t)

    def inverse(self, logsnr):
        return jax.lax.switch(self.which, [s.inverse for s in SCHEDULES], logsnr)

    def at_logsnr(self, logsnr):
        return jax.lax.switch(self.which, [s.at_logsnr for s in SCHEDULES], logsnr)


def in_lambda(steps):
    """Even in lambda, but for a start that doubles up to the steps' length.

    A multistep method begins with a step of first order, whose error is that of the
    square of its length, so that this length is all that it adds to the order.
    """
    length = 1 / steps
    start = length * 2.0 ** -np.arange(2 * int(np.log2(steps)), 0, -1)
    shares = np.concatenate([[0], start, np.linspace(length, 1, steps)])
    return 2 * (shares * (np.log(10) - np.log(0.2)) + np.log(0.2))


def in_ratio(steps):
    """Even in sigma / alpha, as Adams and Bashforth assume, from 3 to 1."""
    return -2 * np.log(np.linspace(3, 1, steps + 1))


def measured_orders(sampler, logsnrs=in_lambda, *, knows_time=False):
    """The order on each of SCHEDULES, in float64.

    Both grids are of one length, by steps of no length at their ends, at the first of
    which a corrector looks once more; 16 dimensions of different spread, so that errors
    of opposite sign do not cancel.
    Only with `knows_time` can the sampler ask for the level at another time.
    """
    grids = [logsnrs(steps) for steps in (COARSE, FINE)]
    length = len(grids[1]) + 1
    grids = [np.pad(grid, (0, length - len(grid)), mode="edge") for grid in grids]

    @jax.jit
    def error(which, ts, levels):
        schedule = Chosen(which) if knows_time else exact.Visited(levels)
        here, there = exact.at(levels, 0), exact.at(levels, -1)
        x = here.alpha * 0.2 + here.sigma * jnp.linspace(-2, 2, len(exact.STDS))
        got, _ = sampler(jax.random.key(0), exact.anisotropic, schedule, x, ts)
        expected = exact.anisotropic_flow(x, here, there)
        return jnp.sqrt(jnp.mean((got - expected) ** 2))

    errors = np.zeros((len(SCHEDULES), len(grids)))
    with jax.enable_x64(True):
        for (which, i), _ in np.ndenumerate(errors):
            ts = _times(which, tuple(grids[i]))
            errors[which, i] = error(which, *ts)
    return np.log(errors[:, 0] / errors[:, 1]) / np.log(FINE / COARSE)


@functools.cache
def _times(which, logsnr):
    ts = SCHEDULES[which].inverse(jnp.asarray(logsnr))
    return ts, SCHEDULES[which](ts)
