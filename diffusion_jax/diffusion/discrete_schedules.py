"""Noise schedules of whole steps, from a table of betas.

alpha(t)**2 = prod_{s <= t} (1 - beta_s) for t = 1 .. num_steps (Ho et al., 2020, eq. 4;
arXiv:2006.11239). Tables are float64 and cast once. The dataclasses are frozen, hence
static under jit.
"""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from diffusion_jax.diffusion import schedule_protocol
from diffusion_jax.diffusion.process import NoiseLevel, Real
from diffusion_jax.diffusion.schedule_protocol import Schedule


@dataclasses.dataclass(frozen=True)
class Discrete:
    """Betas of DDPM (Ho et al., 2020), Stable Diffusion or Nichol and Dhariwal (2021).

    The network hears t - 1. Real t are allowed: log(sigma / alpha) is linear in t
    between entries, and below the first one sigma / alpha itself is, down to 0 at
    t = 0. `linear` was published with (1e-4, 0.02), `scaled_linear` (linear in
    sqrt(beta)) with (0.00085, 0.012), `sigmoid` (GeoDiff: Xu et al., 2022;
    arXiv:2203.02923) with (1e-7, 2e-3); `cosine` (eq. 17 of Nichol and Dhariwal,
    beta <= 0.999), `laplace` and `exp` take no ends. `trained_betas`, one for each
    step, overrule all of these.
    """

    betas: str = "scaled_linear"
    beta_start: Real = 0.00085
    beta_end: Real = 0.012
    num_steps: int = 1000
    trained_betas: tuple[Real, ...] | None = None

    def __post_init__(self):
        if self.betas not in BETAS:
            raise ValueError(f"unknown betas {self.betas!r}; one of {sorted(BETAS)}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            ends = (self.beta_start, self.beta_end)
            raise ValueError(f"betas must rise within (0, 1), got {ends}")
        if self.num_steps < 3:
            raise ValueError(f"num_steps must be at least 3, got {self.num_steps}")
        if self.trained_betas is not None:
            _check_trained(self.trained_betas, self.num_steps)

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
    alpha = 0 (`parameterization.check` says so): use v. Where solvers must divide by
    alpha, implementations end at `terminal_alpha2` = 2**-24 in place of 0.
    """

    wrapped: Schedule = dataclasses.field(default_factory=Discrete)
    terminal_alpha2: Real = 0.0

    def __post_init__(self):
        if self.wrapped.num_steps is None:
            raise TypeError(
                "ZeroTerminalSNR wraps a schedule of whole steps, Discrete or a "
                f"wrapper of it, got {self.wrapped!r}"
            )
        if np.isinf(self.wrapped.log_ratios[-1]):
            raise ValueError(f"{self.wrapped!r} ends in pure noise already")
        if not np.all(np.diff(self.log_ratios) > 0) or self.terminal_alpha2 < 0:
            raise ValueError(
                "terminal_alpha2 must be at least 0 and below alpha**2 of the last "
                f"step but one, got {self.terminal_alpha2}"
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
        """log(sigma / alpha) at t = 1 .. num_steps; the last is inf by default."""
        return _zero_terminal_log_ratios(self.wrapped, self.terminal_alpha2)

    def __call__(self, t: Float[Array, "*b"]) -> NoiseLevel:
        return _table_level(self.log_ratios, t)

    def inverse(self, logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        return _table_inverse(self.log_ratios, logsnr)

    def at_logsnr(self, logsnr: Float[Array, "*b"]) -> NoiseLevel:
        return self(self.inverse(logsnr))

    def quantile(self, u: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """Uniform over the whole steps 1 .. num_steps."""
        return self.wrapped.quantile(u)


# ---- betas --------------------------------------------------------------------------


def _linear(start: float, end: float, num_steps: int) -> np.ndarray:
    return np.linspace(start, end, num_steps)


def _scaled_linear(start: float, end: float, num_steps: int) -> np.ndarray:
    return np.linspace(start**0.5, end**0.5, num_steps) ** 2


def _sigmoid(start: float, end: float, num_steps: int) -> np.ndarray:
    return start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, num_steps)))


def _from_alpha2(alpha2: np.ndarray) -> np.ndarray:
    """1 - alpha(t)**2 / alpha(t - 1)**2, at most 0.999 (Nichol and Dhariwal, 2021)."""
    return np.minimum(1 - alpha2[1:] / alpha2[:-1], 0.999)


def _cosine(_start: float, _end: float, num_steps: int) -> np.ndarray:
    t = np.arange(num_steps + 1) / num_steps
    return _from_alpha2(np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2)


def _exp(_start: float, _end: float, num_steps: int) -> np.ndarray:
    return _from_alpha2(np.exp(-12 * np.arange(num_steps + 1) / num_steps))


def _laplace(_start: float, _end: float, num_steps: int) -> np.ndarray:
    """As published implementations have it: alpha**2 is a root of sigmoid(logsnr).

    Hence unlike `continuous_schedules.Laplace`, which is the paper's. The ends of the
    distribution are cut off at 1e-6, so t = 0 is not quite clean.
    """
    from_middle = 0.5 - np.arange(num_steps + 1) / num_steps
    logsnr = -0.5 * np.sign(from_middle) * np.log1p(1e-6 - 2 * np.abs(from_middle))
    return _from_alpha2(np.sqrt(1 / (1 + np.exp(-logsnr))))


BETAS = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "sigmoid": _sigmoid,
    "cosine": _cosine,
    "laplace": _laplace,
    "exp": _exp,
}


def _check_trained(betas: tuple[Real, ...], num_steps: int) -> None:
    if len(betas) != num_steps:
        raise ValueError(f"{len(betas)} trained_betas for num_steps = {num_steps}")
    if not all(0 < beta < 1 for beta in betas[:-1]) or not 0 < betas[-1] <= 1:
        raise ValueError("trained_betas must lie in (0, 1); only the last may be 1")


# ---- tables -------------------------------------------------------------------------


@functools.cache
def _log_ratios(schedule: Discrete) -> Float64[np.ndarray, "num_steps"]:
    betas = schedule.trained_betas
    if betas is None:
        ends = (schedule.beta_start, schedule.beta_end)
        betas = BETAS[schedule.betas](*ends, schedule.num_steps)
    with np.errstate(divide="ignore"):
        log_alpha2 = np.cumsum(np.log1p(-np.asarray(betas, float)))
    return 0.5 * (np.log(-np.expm1(log_alpha2)) - log_alpha2)


@functools.cache
def _zero_terminal_log_ratios(
    schedule: Schedule, terminal_alpha2: Real
) -> Float64[np.ndarray, "num_steps"]:
    ratios = schedule.log_ratios
    alpha = np.exp(-0.5 * np.logaddexp(0, 2 * ratios))
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    alpha[-1] = np.sqrt(terminal_alpha2)
    with np.errstate(divide="ignore"):
        return 0.5 * np.log1p(-(alpha**2)) - np.log(alpha)


def _table_level(ratios: Float64[np.ndarray, "T"], t: Float[Array, "*b"]) -> NoiseLevel:
    t = schedule_protocol.real(t)
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
    return schedule_protocol.variance_preserving(ratio, t - 1)


def _table_inverse(
    ratios: Float64[np.ndarray, "T"], logsnr: Float[Array, "*b"]
) -> Float[Array, "*b"]:
    ratio = -schedule_protocol.real(logsnr) / 2
    num_steps = len(ratios)
    finite = jnp.asarray(ratios[np.isfinite(ratios)], ratio.dtype)
    entries = jnp.arange(1, len(finite) + 1, dtype=ratio.dtype)
    t = jnp.interp(ratio, finite, entries)
    t = jnp.where(ratio < finite[0], jnp.exp(ratio - finite[0]), t)
    if len(finite) < num_steps:
        t = jnp.where(ratio > finite[-1], num_steps - jnp.exp(finite[-1] - ratio), t)
    return t
