"""What all samplers share: the loop over noise levels, and where random numbers come from.

A sampler takes either one key or one key per example. With one per example, image i gets
the same draws whatever batch it is in: split, draw and start only with these functions.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from jaxtyping import Key as TypedKey

from diffusion_jax.diffusion.process import NoiseLevel, Real
from diffusion_jax.diffusion.schedules import Schedule

Keys = TypedKey[Array, "..."]  # one, or one per example
Step = Callable[[Any, Keys, NoiseLevel, NoiseLevel], tuple[Any, Any]]
Loop = Callable[..., tuple[Any, Any]]  # (body, carry, xs), as jax.lax.scan

_LOOP: contextvars.ContextVar[Loop] = contextvars.ContextVar(
    "loop", default=jax.lax.scan
)


@contextlib.contextmanager
def looped_by(loop: Loop) -> Iterator[None]:
    """What is traced inside runs its loop over steps by `loop`, not by `jax.lax.scan`.

    So that whoever holds the loop can stop between steps: see pipelines/stepwise.py.
    """
    token = _LOOP.set(loop)
    try:
        yield
    finally:
        _LOOP.reset(token)


def integrate(step: Step, carry: Any, key: Keys, levels: NoiseLevel) -> tuple[Any, Any]:
    """Fold `step(carry, key, here, there) -> (carry, output)` over successive levels.

    The only loop over steps. `carry` is x, with whatever memory the solver keeps; the
    outputs come back stacked. An output that is not used costs nothing under jit.
    """
    here = jax.tree.map(lambda a: a[:-1], levels)
    there = jax.tree.map(lambda a: a[1:], levels)
    keys = split(key, len(levels.time) - 1)
    return _LOOP.get()(
        lambda carry, args: step(carry, *args),
        jax.tree.map(_solver_precision, carry),
        (keys, here, there),
    )


def split(key: Keys, num: int) -> Keys:
    """`num` keys from one, [num]; or `num` for each example, [num, B]."""
    if key.ndim == 0:
        return jax.random.split(key, num)
    return jax.vmap(lambda one: jax.random.split(one, num), out_axes=1)(key)


def normal_like(key: Keys, x: Float[Array, "B *d"]) -> Float[Array, "B *d"]:
    """Standard normal noise of the shape and dtype of x."""
    return _normal(key, x.shape, x.dtype)


def prior_sample(
    key: Keys,
    schedule: Schedule,
    t: Float[Array, ""],
    shape: tuple[int, ...],
    *,
    data_std: Real = 0,
) -> Float[Array, "B *d"]:
    """Where sampling starts: noise of variance sigma**2 + (alpha * data_std)**2 at t.

    t is the first time of the grid. With 0 this is x_t for x0 = 0; with 1 and
    alpha**2 + sigma**2 = 1 it is the N(0, 1) of DDPM and Stable Diffusion.
    """
    level = schedule(t)
    std = jnp.hypot(level.sigma, level.alpha * data_std)
    return std * _normal(key, shape, std.dtype)


def _normal(key: Keys, shape: tuple[int, ...], dtype: Any) -> Array:
    if key.ndim == 0:
        return jax.random.normal(key, shape, dtype)
    if key.shape != shape[:1]:
        raise ValueError(f"{key.shape} keys for a batch of {shape[0]}")
    return jax.vmap(lambda one: jax.random.normal(one, shape[1:], dtype))(key)


def _solver_precision(a: Array) -> Array:
    """Solvers compute in float32 at least, so what they carry must start so."""
    if not jnp.issubdtype(a.dtype, jnp.floating):
        return a
    return a.astype(jnp.promote_types(a.dtype, jnp.float32))
