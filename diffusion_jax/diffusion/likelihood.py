"""Exact likelihoods, through the probability-flow ODE (Song et al., 2021, arXiv:2011.13456,
section 4.3 and eq. 39; FFJORD, Grathwohl et al., 2019, arXiv:1810.01367).

On every schedule dx = x0_hat dalpha + eps_hat dsigma. In the variables z = x / r,
r = sqrt(alpha**2 + sigma**2), and the angle phi = atan2(sigma, alpha) this is

    dz/dphi = v(z, phi) = cos(phi) * eps_hat - sin(phi) * x0_hat,

smooth from clean data (phi = 0) to pure noise (phi = pi/2), and the density of z changes
along it by dlog p/dphi = -trace(dv/dz).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.process import NoiseLevel, Real
from diffusion_jax.diffusion.samplers.integrate import (
    Keys,
    integrate,
    normal_like,
    split,
)
from diffusion_jax.diffusion.schedules import Schedule
from diffusion_jax.types import Key


def log_likelihood(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x0: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    num_probes: int | None = 1,
    probe: str = "rademacher",
    data_std: Real = 1,
) -> Float[Array, "B"]:
    """log p(x0), in nats per example, by a fourth-order Runge-Kutta method on a grid.

    The density is that of data with noise of the last positive sigma / alpha of ts, the
    decreasing times of a grid. The trace is Hutchinson's estimate, unbiased, from
    `num_probes` draws for all steps; None is the exact trace, from as many derivatives
    as x0 has elements. Sampling starts from noise as `integrate.prior_sample` draws it.
    """
    levels = schedule(ts[::-1])
    # A first step from clean data, where eps is not defined, becomes one of no length.
    levels = jax.tree.map(
        lambda a: a.at[0].set(jnp.where(levels.sigma[0] > 0, a[0], a[1])), levels
    )
    probes = _basis(x0) if num_probes is None else _draw(key, x0, num_probes, probe)

    def slope(
        state: tuple[Array, Array], level: NoiseLevel
    ) -> tuple[Float[Array, "B *d"], Float[Array, "B"]]:
        """dz/dphi, and minus dlog p/dphi."""
        v, pull_back = jax.vjp(lambda z: _velocity(denoise, z, level), state[0])
        products = jax.vmap(lambda probe: probe * pull_back(probe)[0])(probes)
        trace = jnp.sum(products, axis=(0, *range(2, products.ndim)))
        return v, trace / (num_probes or 1)

    def step(
        state: tuple[Array, Array], key: Keys, here: NoiseLevel, there: NoiseLevel
    ) -> tuple[tuple[Array, Array], None]:
        start, end = _angle(here), _angle(there)
        middle = schedule.at_logsnr(-2 * jnp.log(jnp.tan((start + end) / 2)))
        return _runge_kutta(slope, state, end - start, (here, middle, there)), None

    first = jnp.cos(_angle(_at(levels, 0)))
    state = (first * x0, jnp.zeros(len(x0), x0.dtype))
    (z, gained), _ = integrate(step, state, key, levels)
    return (
        _log_prior(z, _at(levels, -1), data_std) + gained + x0[0].size * jnp.log(first)
    )


def bits_per_dim(
    nats: Float[Array, "*b"], shape: tuple[int, ...], *, bin_width: Real = 1
) -> Float[Array, "*b"]:
    """-log2 of a probability, for each of the dimensions in `shape`; nats is -log.

    For the density of data behind `dequantise`, bin_width is 2 / num_bins: log2(128) = 7
    bits more for bytes (Theis et al., 2016, arXiv:1511.01844).
    """
    return (nats / np.prod(shape) - np.log(bin_width)) / np.log(2)


def dequantise(
    key: Key, x0: Float[Array, "B *d"], *, num_bins: int = 256
) -> Float[Array, "B *d"]:
    """Uniform within the bin of each value; x0 has num_bins values from -1 to 1."""
    index = jnp.round((x0 + 1) / 2 * (num_bins - 1))
    return 2 * (index + jax.random.uniform(key, x0.shape)) / num_bins - 1


# ---- the trace ----------------------------------------------------------------------


def rademacher(key: Keys, x: Float[Array, "B *d"]) -> Float[Array, "B *d"]:
    """Signs: no probe of independent elements has less variance."""
    return jnp.where(normal_like(key, x) > 0, 1.0, -1.0).astype(x.dtype)


PROBES = {"rademacher": rademacher, "gaussian": normal_like}


def _draw(
    key: Keys, x0: Float[Array, "B *d"], num_probes: int, probe: str
) -> Float[Array, "probes B *d"]:
    if probe not in PROBES:
        raise ValueError(f"unknown probe {probe!r}; one of {sorted(PROBES)}")
    keys = split(key, num_probes)
    return jax.vmap(lambda key: PROBES[probe](key, x0))(keys)


def _basis(x0: Float[Array, "B *d"]) -> Float[Array, "D B *d"]:
    size = x0[0].size
    basis = jnp.eye(size, dtype=x0.dtype).reshape(size, 1, *x0.shape[1:])
    return jnp.broadcast_to(basis, (size, *x0.shape))


# ---- the flow -----------------------------------------------------------------------


def _velocity(
    denoise: Denoiser, z: Float[Array, "B *d"], level: NoiseLevel
) -> Float[Array, "B *d"]:
    radius = jnp.hypot(level.alpha, level.sigma)
    pred = denoise(radius * z, level)
    return (level.alpha * pred.eps - level.sigma * pred.x0) / radius


def _runge_kutta(
    slope: Callable[[Any, NoiseLevel], Any],
    state: Any,
    length: Float[Array, ""],
    levels: tuple[NoiseLevel, NoiseLevel, NoiseLevel],
) -> Any:
    """The classical step, with slopes at its start, twice in the middle and at its end."""
    start, middle, end = levels

    def ahead(share: Real, slope: Any) -> Any:
        return jax.tree.map(lambda a, da: a + share * length * da, state, slope)

    first = slope(state, start)
    second = slope(ahead(1 / 2, first), middle)
    third = slope(ahead(1 / 2, second), middle)
    fourth = slope(ahead(1, third), end)
    mean = jax.tree.map(
        lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, first, second, third, fourth
    )
    return ahead(1, mean)


def _log_prior(
    z: Float[Array, "B *d"], level: NoiseLevel, data_std: Real
) -> Float[Array, "B"]:
    variance = level.sigma**2 + (level.alpha * data_std) ** 2
    variance = variance / (level.sigma**2 + level.alpha**2)
    nats = (z**2 / variance + jnp.log(2 * jnp.pi * variance)) / 2
    return -jnp.sum(nats, axis=tuple(range(1, z.ndim)))


def _angle(level: NoiseLevel) -> Float[Array, ""]:
    return jnp.arctan2(level.sigma, level.alpha)


def _at(levels: NoiseLevel, i: int) -> NoiseLevel:
    return jax.tree.map(lambda a: a[i], levels)
