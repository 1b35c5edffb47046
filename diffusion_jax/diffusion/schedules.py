"""Noise schedules: t -> (alpha, sigma), with x_t = alpha * x0 + sigma * eps.

Each keeps its paper's own units of t; t = 0 is always clean data (alpha 1, sigma 0).
All are written in a form that neither end makes cancel in float32. They are frozen
dataclasses, hence static under jit.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from diffusion_jax.diffusion.process import NoiseLevel, Real


@runtime_checkable
class Schedule(Protocol):
    """What grids, samplers and losses know of a schedule."""

    @property
    def num_steps(self) -> int | None:
        """How many whole steps t counts; None if t is continuous."""

    @property
    def t_min(self) -> Real:
        """The least noise that a network is trained on; below it lies only t = 0."""

    @property
    def t_max(self) -> Real:
        """The most noise, where sampling starts."""

    def __call__(self, t: Float[Array, "*b"]) -> NoiseLevel:
        """The noise level at t."""

    def inverse(self, logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """The t at which log(alpha**2 / sigma**2) is this."""

    def at_logsnr(self, logsnr: Float[Array, "*b"]) -> NoiseLevel:
        """The noise level at which log(alpha**2 / sigma**2) is this."""

    def quantile(self, u: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """Training times that are uniform in this schedule's sense, for u in [0, 1]."""


# ---- schedules of whole steps, from a table -----------------------------------------


@dataclasses.dataclass(frozen=True)
class Discrete:
    """Betas of DDPM (Ho et al., 2020), Stable Diffusion or Nichol and Dhariwal (2021).

    alpha(t)**2 = prod_{s <= t} (1 - beta_s) for t = 1 .. num_steps; the network hears
    t - 1. Real t are allowed: log(sigma / alpha) is linear in t between entries, and
    below the first one sigma / alpha itself is, down to 0 at t = 0. `linear` was
    published with (1e-4, 0.02), `scaled_linear` (linear in sqrt(beta)) with
    (0.00085, 0.012); `cosine` (eq. 17, s = 0.008, beta <= 0.999) takes no ends.
    """

    betas: str = "scaled_linear"
    beta_start: Real = 0.00085
    beta_end: Real = 0.012
    num_steps: int = 1000

    def __post_init__(self):
        if self.betas not in BETAS:
            raise ValueError(f"unknown betas {self.betas!r}; one of {sorted(BETAS)}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            ends = (self.beta_start, self.beta_end)
            raise ValueError(f"betas must rise within (0, 1), got {ends}")
        if self.num_steps < 3:
            raise ValueError(f"num_steps must be at least 3, got {self.num_steps}")

    @property
    def t_min(self) -> Real:
        return 1.0

    @property
    def t_max(self) -> Real:
        return float(self.num_steps)

    @property
    def log_ratios(self) -> Float64[np.ndarray, "num_steps"]:
        """log(sigma / alpha) at t = 1 .. num_steps."""
        return _log_ratios(self)

    def __call__(self, t: Float[Array, "*b"]) -> NoiseLevel:
        return _table_level(self.log_ratios, t)

    def inverse(self, logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """Real t; beyond the last entry, the last."""
        return _table_inverse(self.log_ratios, logsnr)

    def at_logsnr(self, logsnr: Float[Array, "*b"]) -> NoiseLevel:
        return self(self.inverse(logsnr))

    def quantile(self, u: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """Uniform over the whole steps 1 .. num_steps."""
        return jnp.minimum(1 + jnp.floor(u * self.num_steps), self.num_steps)


@dataclasses.dataclass(frozen=True)
class ZeroTerminalSNR:
    """The wrapped schedule with alpha = 0 at its last step, its first step unchanged.

    Lin et al. (2023), algorithm 1; arXiv:2305.08891. Between the last two entries
    alpha / sigma is linear in t. An eps-predicting network cannot be sampled at
    alpha = 0 (`parameterization.check` says so): use v.
    """

    wrapped: Discrete = dataclasses.field(default_factory=Discrete)

    def __post_init__(self):
        if not isinstance(self.wrapped, Discrete):
            raise TypeError(
                f"ZeroTerminalSNR wraps a Discrete schedule, got {self.wrapped!r}"
            )

    @property
    def num_steps(self) -> int:
        return self.wrapped.num_steps

    @property
    def t_min(self) -> Real:
        return self.wrapped.t_min

    @property
    def t_max(self) -> Real:
        return self.wrapped.t_max

    @property
    def log_ratios(self) -> Float64[np.ndarray, "num_steps"]:
        """log(sigma / alpha) at t = 1 .. num_steps; the last is inf."""
        return _zero_terminal_log_ratios(self.wrapped)

    def __call__(self, t: Float[Array, "*b"]) -> NoiseLevel:
        return _table_level(self.log_ratios, t)

    def inverse(self, logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        return _table_inverse(self.log_ratios, logsnr)

    def at_logsnr(self, logsnr: Float[Array, "*b"]) -> NoiseLevel:
        return self(self.inverse(logsnr))

    def quantile(self, u: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """Uniform over the whole steps 1 .. num_steps."""
        return self.wrapped.quantile(u)


# ---- continuous schedules -----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Cosine:
    """alpha = cos(u(t)) / cos(u(0)), u = pi/2 * (t + s) / (1 + s), alpha**2 + sigma**2 = 1.

    Nichol and Dhariwal (2021), eq. 17, without discretisation; arXiv:2102.09672.
    t in [0, 1], alpha = 0 at t = 1. The network hears time_scale * t: 1000 suits a
    U-Net with DDPM's sinusoids.
    """

    s: Real = 0.008
    t_min: Real = 1e-3
    t_max: Real = 1.0
    time_scale: Real = 1.0
    num_steps = None

    def __call__(self, t: Float[Array, "*b"]) -> NoiseLevel:
        t = _real(t)
        quarter = np.pi / 2 / (1 + self.s)
        start = np.cos(quarter * self.s)
        # cos(u) is sin(pi/2 - u), and cos(u0)**2 - cos(u)**2 a product of sines.
        alpha = jnp.sin(quarter * (1 - t)) / start
        square = jnp.sin(quarter * t) * jnp.sin(quarter * (t + 2 * self.s))
        positive = jnp.where(t > 0, square, 1.0)
        sigma = jnp.where(t > 0, jnp.sqrt(positive) / start, 0.0)
        return NoiseLevel(jnp.where(t > 0, alpha, 1.0), sigma, self.time_scale * t)

    def inverse(self, logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        logsnr = _real(logsnr)
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
class VarianceExploding:
    """alpha = 1 and t = sigma, as in EDM (Karras et al., 2022, table 1; arXiv:2206.00364).

    The network hears time_scale * log(sigma) / 4.
    """

    t_min: Real = 0.002
    t_max: Real = 80.0
    time_scale: Real = 1.0
    num_steps = None

    def __call__(self, t: Float[Array, "*b"]) -> NoiseLevel:
        t = _real(t)
        # No network is called at t = 0, but what it would hear must be finite.
        time = jnp.log(jnp.maximum(t, 1e-10)) / 4
        return NoiseLevel(jnp.ones_like(t), t, self.time_scale * time)

    def inverse(self, logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        return jnp.exp(-_real(logsnr) / 2)

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
        t = _real(t)
        return NoiseLevel(1 - t, t, self.time_scale * t)

    def inverse(self, logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        return jax.nn.sigmoid(-_real(logsnr) / 2)

    def at_logsnr(self, logsnr: Float[Array, "*b"]) -> NoiseLevel:
        return self(self.inverse(logsnr))

    def quantile(self, u: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """Uniform in t."""
        return self.t_min + u * (self.t_max - self.t_min)


SCHEDULES = {
    "discrete": Discrete,
    "zero_terminal_snr": ZeroTerminalSNR,
    "cosine": Cosine,
    "variance_exploding": VarianceExploding,
    "rectified_flow": RectifiedFlow,
}


# ---- tables -------------------------------------------------------------------------


def _real(t: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """At least float32: a schedule in half precision rounds alpha to 1 near t = 0."""
    return t.astype(jnp.promote_types(t.dtype, jnp.float32))


def _linear(start: float, end: float, num_steps: int) -> np.ndarray:
    return np.linspace(start, end, num_steps)


def _scaled_linear(start: float, end: float, num_steps: int) -> np.ndarray:
    return np.linspace(start**0.5, end**0.5, num_steps) ** 2


def _cosine(_start: float, _end: float, num_steps: int) -> np.ndarray:
    t = np.arange(num_steps + 1) / num_steps
    alpha2 = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha2[1:] / alpha2[:-1], 0.999)


BETAS = {"linear": _linear, "scaled_linear": _scaled_linear, "cosine": _cosine}


@functools.cache
def _log_ratios(schedule: Discrete) -> Float64[np.ndarray, "num_steps"]:
    ends = (schedule.beta_start, schedule.beta_end)
    betas = BETAS[schedule.betas](*ends, schedule.num_steps)
    log_alpha2 = np.cumsum(np.log1p(-betas))
    return 0.5 * (np.log(-np.expm1(log_alpha2)) - log_alpha2)


@functools.cache
def _zero_terminal_log_ratios(schedule: Discrete) -> Float64[np.ndarray, "num_steps"]:
    ratios = schedule.log_ratios
    alpha = np.exp(-0.5 * np.logaddexp(0, 2 * ratios))
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    with np.errstate(divide="ignore"):
        return 0.5 * np.log1p(-(alpha**2)) - np.log(alpha)


def _table_level(ratios: Float64[np.ndarray, "T"], t: Float[Array, "*b"]) -> NoiseLevel:
    t = _real(t)
    num_steps = len(ratios)
    finite = jnp.asarray(ratios[np.isfinite(ratios)], t.dtype)
    before = jnp.clip(jnp.floor(t), 1, len(finite) - 1)
    share = jnp.clip(t - before, 0, 1)
    index = before.astype(int) - 1
    ratio = (1 - share) * finite[index] + share * finite[index + 1]
    # Below the first entry sigma / alpha is linear in t; where the last entry is pure
    # noise, alpha / sigma is beyond the one before it.
    ratio = ratio + jnp.log(jnp.where((t > 0) & (t < 1), t, 1.0))
    ratio = jnp.where(t > 0, ratio, -jnp.inf)
    if len(finite) < num_steps:
        beyond = (t > len(finite)) & (t < num_steps)
        ratio = ratio - jnp.log(jnp.where(beyond, num_steps - t, 1.0))
        ratio = jnp.where(t < num_steps, ratio, jnp.inf)
    alpha = jnp.exp(-0.5 * jax.nn.softplus(2 * ratio))
    sigma = jnp.exp(-0.5 * jax.nn.softplus(-2 * ratio))
    return NoiseLevel(alpha, sigma, t - 1)


def _table_inverse(
    ratios: Float64[np.ndarray, "T"], logsnr: Float[Array, "*b"]
) -> Float[Array, "*b"]:
    ratio = -_real(logsnr) / 2
    num_steps = len(ratios)
    finite = jnp.asarray(ratios[np.isfinite(ratios)], ratio.dtype)
    entries = jnp.arange(1, len(finite) + 1, dtype=ratio.dtype)
    t = jnp.interp(ratio, finite, entries)
    t = jnp.where(ratio < finite[0], jnp.exp(ratio - finite[0]), t)
    if len(finite) < num_steps:
        t = jnp.where(ratio > finite[-1], num_steps - jnp.exp(finite[-1] - ratio), t)
    return t
