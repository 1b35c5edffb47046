"""Noise schedules of continuous time: t -> (alpha, sigma).

Frozen dataclasses, hence static under jit.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.diffusion import schedule_protocol
from diffusion_jax.diffusion.process import NoiseLevel, Real


@dataclasses.dataclass(frozen=True)
class Cosine:
    """alpha = cos(u(t)) / cos(u(0)), u = pi/2 * (t + s) / (1 + s), alpha**2 + sigma**2 = 1.

    Nichol and Dhariwal (2021), eq. 17, without discretisation; arXiv:2102.09672.
    t in [0, 1], alpha = 0 at t = 1. The network hears time_scale * t: 1000 suits a
    U-Net with DDPM's sinusoids, pi / 2 (with s = 0) is the angle of TrigFlow (Lu and
    Song, 2024; arXiv:2410.11081).
    """

    s: Real = 0.008
    t_min: Real = 1e-3
    t_max: Real = 1.0
    time_scale: Real = 1.0
    num_steps = None

    def __call__(self, t: Float[Array, "*b"]) -> NoiseLevel:
        t = schedule_protocol.real(t)
        quarter = np.pi / 2 / (1 + self.s)
        start = np.cos(quarter * self.s)
        # cos(u) is sin(pi/2 - u), and cos(u0)**2 - cos(u)**2 a product of sines.
        alpha = jnp.sin(quarter * (1 - t)) / start
        square = jnp.sin(quarter * t) * jnp.sin(quarter * (t + 2 * self.s))
        sigma = _root(square) / start
        return NoiseLevel(jnp.where(t > 0, alpha, 1.0), sigma, self.time_scale * t)

    def inverse(self, logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        logsnr = schedule_protocol.real(logsnr)
        quarter = np.pi / 2 / (1 + self.s)
        start = np.cos(quarter * self.s)
        cosine = start * jnp.sqrt(jax.nn.sigmoid(logsnr))
        square = np.sin(quarter * self.s) ** 2 + start**2 * jax.nn.sigmoid(-logsnr)
        return jnp.arctan2(jnp.sqrt(square), cosine) / quarter - self.s

    def at_logsnr(self, logsnr: Float[Array, "*b"]) -> NoiseLevel:
        return self(self.inverse(logsnr))

    def quantile(self, u: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """Uniform in t."""
        return self.t_min + u * (self.t_max - self.t_min)


@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """1 - alpha**2 is sigmoid(u / tau), u from start to end, scaled onto [0, 1].

    Jabri et al. (2022), section 3.1 (arXiv:2212.11972), with the ends of Chen (2023),
    algorithm 1; arXiv:2301.10972. alpha**2 + sigma**2 = 1, t in [0, 1], alpha = 0 at
    t = 1. The network hears time_scale * t.
    """

    start: Real = -3.0
    end: Real = 3.0
    tau: Real = 1.0
    t_min: Real = 1e-3
    t_max: Real = 1.0
    time_scale: Real = 1.0
    num_steps = None

    def __post_init__(self):
        if not self.start < self.end or not self.tau > 0:
            raise ValueError(
                f"Sigmoid needs start < end and tau > 0, got {self.start}, "
                f"{self.end} and {self.tau}"
            )

    def __call__(self, t: Float[Array, "*b"]) -> NoiseLevel:
        t = schedule_protocol.real(t)
        half = (self.end - self.start) / self.tau / 2
        low, high = self.start / self.tau / 2, self.end / self.tau / 2
        # sigmoid(a) - sigmoid(b) = sinh((a - b) / 2) / (2 cosh(a / 2) cosh(b / 2)).
        cosh = jnp.cosh(low + half * t) * np.sinh(half)
        alpha = _root(jnp.sinh(half * (1 - t)) * np.cosh(low) / cosh)
        sigma = _root(jnp.sinh(half * t) * np.cosh(high) / cosh)
        return NoiseLevel(alpha, sigma, self.time_scale * t)

    def inverse(self, logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        logsnr = schedule_protocol.real(logsnr)
        first, last = self.start / self.tau, self.end / self.tau
        height = 1 / (1 + np.exp(-last)) - 1 / (1 + np.exp(-first))
        # logit(p + d) - logit(p), counted from the end that is near: d is then exact.
        above = height * jax.nn.sigmoid(-logsnr)
        rise = jnp.log1p(above * (1 + np.exp(-first)))
        rise = rise - jnp.log1p(-above * (1 + np.exp(first)))
        below = height * jax.nn.sigmoid(logsnr)
        fall = jnp.log1p(below * (1 + np.exp(last)))
        fall = fall - jnp.log1p(-below * (1 + np.exp(-last)))
        length = last - first
        return jnp.where(logsnr > 0, rise / length, 1 - fall / length)

    def at_logsnr(self, logsnr: Float[Array, "*b"]) -> NoiseLevel:
        return self(self.inverse(logsnr))

    def quantile(self, u: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """Uniform in t."""
        return self.t_min + u * (self.t_max - self.t_min)


@dataclasses.dataclass(frozen=True)
class Laplace:
    """logsnr = mu - b * sign(1/2 - t) * log(1 - |1 - 2 t|): Laplace if t is uniform.

    Hang et al. (2024), table 1; arXiv:2407.03297. alpha**2 + sigma**2 = 1, t in
    [0, 1], clean data at 0 and alpha = 0 at 1. logsnr falls so fast at the ends that
    t_min is tiny; even times are for training, to sample take a grid that is even in
    noise. The network hears time_scale * t.
    """

    mu: Real = 0.0
    b: Real = 0.5
    t_min: Real = 1e-6
    t_max: Real = 1.0
    time_scale: Real = 1.0
    num_steps = None

    def __call__(self, t: Float[Array, "*b"]) -> NoiseLevel:
        t = schedule_protocol.real(t)
        from_end = jnp.minimum(t, 1 - t)
        inside = (t > 0) & (t < 1)
        exponent = self.b / 2 * jnp.log(2 * jnp.where(inside, from_end, 0.5))
        log_ratio = jnp.where(t < 0.5, exponent, -exponent) - self.mu / 2
        log_ratio = jnp.where(t > 0, log_ratio, -jnp.inf)
        log_ratio = jnp.where(t < 1, log_ratio, jnp.inf)
        return schedule_protocol.variance_preserving(log_ratio, self.time_scale * t)

    def inverse(self, logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        scaled = (schedule_protocol.real(logsnr) - self.mu) / self.b
        tail = 0.5 * jnp.exp(-jnp.abs(scaled))
        return jnp.where(scaled > 0, tail, 1 - tail)

    def at_logsnr(self, logsnr: Float[Array, "*b"]) -> NoiseLevel:
        return self(self.inverse(logsnr))

    def quantile(self, u: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """Uniform in t."""
        return self.t_min + u * (self.t_max - self.t_min)


@dataclasses.dataclass(frozen=True)
class VariancePreserving:
    """The VP SDE: log(alpha) = -t**2 / 4 * (beta_max - beta_min) - t / 2 * beta_min.

    Song et al. (2021), eq. 33; arXiv:2011.13456. alpha**2 + sigma**2 = 1, t in [0, 1];
    alpha is 0.0066 at t = 1. The network hears time_scale * t.
    """

    beta_min: Real = 0.1
    beta_max: Real = 20.0
    t_min: Real = 1e-3
    t_max: Real = 1.0
    time_scale: Real = 999.0
    num_steps = None

    def __call__(self, t: Float[Array, "*b"]) -> NoiseLevel:
        t = schedule_protocol.real(t)
        log_alpha = _log_alpha(self, t)
        sigma = _root(-jnp.expm1(2 * log_alpha))
        return NoiseLevel(jnp.exp(log_alpha), sigma, self.time_scale * t)

    def inverse(self, logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        logsnr = schedule_protocol.real(logsnr)
        return _time_of_log_alpha(self, -0.5 * jax.nn.softplus(-logsnr))

    def at_logsnr(self, logsnr: Float[Array, "*b"]) -> NoiseLevel:
        return self(self.inverse(logsnr))

    def quantile(self, u: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """Uniform in t."""
        return self.t_min + u * (self.t_max - self.t_min)


@dataclasses.dataclass(frozen=True)
class SubVariancePreserving:
    """The sub-VP SDE: alpha of `VariancePreserving`, sigma = 1 - alpha**2.

    Song et al. (2021), eq. 29; arXiv:2011.13456.
    """

    beta_min: Real = 0.1
    beta_max: Real = 20.0
    t_min: Real = 1e-3
    t_max: Real = 1.0
    time_scale: Real = 999.0
    num_steps = None

    def __call__(self, t: Float[Array, "*b"]) -> NoiseLevel:
        t = schedule_protocol.real(t)
        log_alpha = _log_alpha(self, t)
        sigma = -jnp.expm1(2 * log_alpha)
        return NoiseLevel(jnp.exp(log_alpha), sigma, self.time_scale * t)

    def inverse(self, logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        # sigma / alpha = 1 / alpha - alpha = 2 sinh(-log(alpha)).
        ratio = jnp.exp(-schedule_protocol.real(logsnr) / 2)
        return _time_of_log_alpha(self, -jnp.arcsinh(ratio / 2))

    def at_logsnr(self, logsnr: Float[Array, "*b"]) -> NoiseLevel:
        return self(self.inverse(logsnr))

    def quantile(self, u: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """Uniform in t."""
        return self.t_min + u * (self.t_max - self.t_min)


@dataclasses.dataclass(frozen=True)
class VarianceExploding:
    """alpha = 1 and t = sigma, as in EDM (Karras et al., 2022, table 1; arXiv:2206.00364).

    The network hears time_scale * log(sigma) / 4. The VE SDE of Song et al. (2021) is
    t_min = 0.01, t_max = 50 and time_scale = 4: its time is log(sigma), scaled.
    """

    t_min: Real = 0.002
    t_max: Real = 80.0
    time_scale: Real = 1.0
    num_steps = None

    def __call__(self, t: Float[Array, "*b"]) -> NoiseLevel:
        t = schedule_protocol.real(t)
        # No network is called at t = 0, but what it would hear must be finite.
        time = jnp.log(jnp.maximum(t, 1e-10)) / 4
        return NoiseLevel(jnp.ones_like(t), t, self.time_scale * time)

    def inverse(self, logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        return jnp.exp(-schedule_protocol.real(logsnr) / 2)

    def at_logsnr(self, logsnr: Float[Array, "*b"]) -> NoiseLevel:
        return self(self.inverse(logsnr))

    def quantile(self, u: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """Uniform in log(sigma), as the VE SDE of Song et al. (2021) is in time."""
        return self.t_min * (self.t_max / self.t_min) ** u


@dataclasses.dataclass(frozen=True)
class RectifiedFlow:
    """alpha = 1 - t, sigma = t, t in [0, 1] (Liu et al., 2022; arXiv:2209.03003).

    The network hears time_scale * t: 1000 for Stable Diffusion 3.
    """

    t_min: Real = 1e-3
    t_max: Real = 1.0
    time_scale: Real = 1.0
    num_steps = None

    def __call__(self, t: Float[Array, "*b"]) -> NoiseLevel:
        t = schedule_protocol.real(t)
        return NoiseLevel(1 - t, t, self.time_scale * t)

    def inverse(self, logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        return jax.nn.sigmoid(-schedule_protocol.real(logsnr) / 2)

    def at_logsnr(self, logsnr: Float[Array, "*b"]) -> NoiseLevel:
        return self(self.inverse(logsnr))

    def quantile(self, u: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """Uniform in t."""
        return self.t_min + u * (self.t_max - self.t_min)


def _root(square: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """The square root, 0 where there is none, with a finite slope at 0."""
    positive = jnp.where(square > 0, square, 1.0)
    return jnp.where(square > 0, jnp.sqrt(positive), 0.0)


def _log_alpha(
    schedule: VariancePreserving | SubVariancePreserving, t: Float[Array, "*b"]
) -> Float[Array, "*b"]:
    rise = schedule.beta_max - schedule.beta_min
    return -t / 2 * (rise * t / 2 + schedule.beta_min)


def _time_of_log_alpha(
    schedule: VariancePreserving | SubVariancePreserving,
    log_alpha: Float[Array, "*b"],
) -> Float[Array, "*b"]:
    """The root of rise / 2 * t**2 + beta_min * t + 2 log(alpha), in full precision."""
    rise = schedule.beta_max - schedule.beta_min
    root = jnp.sqrt(schedule.beta_min**2 - 4 * rise * log_alpha)
    return -4 * log_alpha / (schedule.beta_min + root)
