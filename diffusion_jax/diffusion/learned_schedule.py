"""A noise schedule that is trained with the network (Kingma et al., 2021, appendix H).

gamma(t) = -logsnr(t) rises from gamma_0 at t_min to gamma_1 at 1 along a monotone
function of s = (t - t_min) / (1 - t_min): share(s), from 0 to 1. That is either
[m(s) - m(0)] / [m(1) - m(0)] with the monotone network

    m(s) = l1(s) + l3(sigmoid(l2(l1(s)))),     all weights positive,

or linear between knots. alpha**2 + sigma**2 = 1; arXiv:2107.00630.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.diffusion import schedule_protocol
from diffusion_jax.diffusion.process import NoiseLevel, Real
from diffusion_jax.types import Key, Params

_T_MIN = 1e-3
_BISECTIONS = 26  # a float32 has 24 bits


def init(
    key: Key, *, gamma_0: Real = -13.3, gamma_1: Real = 5.0, num_units: int = 1024
) -> Params:
    """Weights of the monotone network: at first nearly linear in s."""
    _check_ends(gamma_0, gamma_1)
    inner, outer = jax.random.split(key)
    return {
        "ends": jnp.asarray([gamma_0, gamma_1], float),
        "l1": {"kernel": jnp.ones(()), "bias": jnp.zeros(())},
        "l2": {
            "kernel": jax.random.normal(inner, (num_units,)),
            "bias": jnp.zeros((num_units,)),
        },
        "l3": {"kernel": jax.random.normal(outer, (num_units,))},
    }


def init_knots(
    *, gamma_0: Real = -13.3, gamma_1: Real = 5.0, num_pieces: int = 100
) -> Params:
    """Heights between even knots: at first linear in s."""
    _check_ends(gamma_0, gamma_1)
    if num_pieces < 1:
        raise ValueError(f"num_pieces must be at least 1, got {num_pieces}")
    return {
        "ends": jnp.asarray([gamma_0, gamma_1], float),
        "heights": jnp.zeros((num_pieces,)),
    }


def _check_ends(gamma_0: Real, gamma_1: Real) -> None:
    if not gamma_0 < gamma_1:
        raise ValueError(f"gamma_0 must lie below gamma_1, got {gamma_0}, {gamma_1}")


class LearnedSchedule(NamedTuple):
    """The schedule of `params`; crosses jit, and gradients reach the params.

    t = 0 is clean data: below t_min, where VDM's time is 0, sigma / alpha is linear in
    t. The network hears time_scale * share, hence the noise whatever t stands for it.
    """

    params: Params
    time_scale: Real | Float[Array, ""] = 1.0

    num_steps = None
    t_min = _T_MIN
    t_max = 1.0

    def __call__(self, t: Float[Array, "*b"]) -> NoiseLevel:
        t = schedule_protocol.real(t)
        share = _share(self.params, jnp.clip((t - _T_MIN) / (1 - _T_MIN), 0, 1))
        low, high = self.params["ends"]
        gamma = low + (high - low) * share
        below = (t > 0) & (t < _T_MIN)
        gamma = gamma + 2 * jnp.log(jnp.where(below, t / _T_MIN, 1.0))
        log_ratio = jnp.where(t > 0, gamma / 2, -jnp.inf)
        time = self.time_scale * (share + jnp.minimum(t - _T_MIN, 0))
        return schedule_protocol.variance_preserving(log_ratio, time)

    def inverse(self, logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """By bisection; its derivatives are those of the implicit function."""
        gamma = -schedule_protocol.real(logsnr)
        low, high = self.params["ends"]
        share = (gamma - low) / (high - low)
        s = _inverse_share(self.params, jnp.clip(share, 0, 1))
        beneath = jnp.exp(jnp.minimum(gamma - low, 0) / 2)
        return jnp.where(gamma < low, _T_MIN * beneath, _T_MIN + (1 - _T_MIN) * s)

    def at_logsnr(self, logsnr: Float[Array, "*b"]) -> NoiseLevel:
        return self(self.inverse(logsnr))

    def quantile(self, u: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """Uniform in t."""
        return _T_MIN + u * (1 - _T_MIN)


def from_params(
    params: Params, *, fixed_ends: bool = False, time_scale: Real = 1.0
) -> LearnedSchedule:
    """`fixed_ends` keeps gamma_0 and gamma_1 out of what is trained."""
    ends = params["ends"]
    ends = jax.lax.stop_gradient(ends) if fixed_ends else ends
    return LearnedSchedule(params | {"ends": ends}, time_scale)


def _share(params: Params, s: Float[Array, "*b"]) -> Float[Array, "*b"]:
    if "heights" in params:
        pieces = jax.nn.softmax(params["heights"])
        levels = jnp.concatenate([jnp.zeros(1), jnp.cumsum(pieces)])
        return jnp.interp(s, jnp.linspace(0, 1, len(levels)), levels / levels[-1])
    low, high = _monotone(params, jnp.arange(2.0))
    return (_monotone(params, s) - low) / (high - low)


def _monotone(params: Params, s: Float[Array, "*b"]) -> Float[Array, "*b"]:
    l1, l2, l3 = params["l1"], params["l2"], params["l3"]
    first = jax.nn.softplus(l1["kernel"]) * s + l1["bias"]
    hidden = jax.nn.softplus(l2["kernel"]) * (first[..., None] - 0.5) + l2["bias"]
    hidden = jax.nn.sigmoid(hidden) * jax.nn.softplus(l3["kernel"])
    return first + jnp.mean(hidden, axis=-1)


def _inverse_share(params: Params, share: Float[Array, "*b"]) -> Float[Array, "*b"]:
    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        is_below = _share(params, middle) < share
        return jnp.where(is_below, middle, low), jnp.where(is_below, high, middle)

    bracket = jnp.zeros_like(share), jnp.ones_like(share)
    low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, bracket)
    s = jax.lax.stop_gradient((low + high) / 2)
    # One step of Newton's method: no change in value, the derivatives of the inverse.
    found, slope = jax.jvp(lambda s: _share(params, s), (s,), (jnp.ones_like(s),))
    return jnp.clip(s - (found - share) / jax.lax.stop_gradient(slope), 0, 1)
