"""A sampler one step at a time, so that someone can watch, or stop it, in between.

The sampler stays the pure function that it is; only its loop over steps is taken from
it. Three programs do what it does in one: the first carry, a step, the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from diffusion_jax.diffusion.samplers import integrate

Run = Callable[..., tuple[Array, Any]]  # (...) -> (sample, trace), by one `integrate`


def first_carry(run: Run, *args: Any) -> Any:
    """What the sampler called by `run(*args)` carries into its first step."""
    kept = []

    def loop(body, carry, xs):
        kept.append(carry)
        return carry, _no_outputs(body, carry, xs)

    _run_once(run, loop, args, kept)
    return kept[0]


def one_step(run: Run, carry: Any, i: Int[Array, ""], *args: Any) -> tuple[Any, Any]:
    """(carry, output) of step i."""
    kept = []

    def loop(body, first, xs):
        x = jax.tree.map(lambda a: a[i], xs)
        kept.append(body(carry, x))
        return first, _no_outputs(body, first, xs)

    _run_once(run, loop, args, kept)
    return kept[0]


def last_sample(run: Run, carry: Any, *args: Any) -> Array:
    """The sample, of what the last step carried out."""
    kept = []

    def loop(body, first, xs):
        kept.append(None)
        return carry, _no_outputs(body, first, xs)

    return _run_once(run, loop, args, kept)[0]


def num_steps(run: Run, *args: Any) -> int | None:
    """How many steps the sampler takes; None if they cannot be taken one at a time."""
    lengths = []

    def loop(body, carry, xs):
        lengths.append(len(jax.tree.leaves(xs)[0]))
        return jax.lax.scan(body, carry, xs)

    def traced(*args):
        with integrate.looped_by(_outermost(loop)):
            return run(*args)[0]

    jax.eval_shape(traced, *args)
    return lengths[0] if len(lengths) == 1 else None


def _run_once(run: Run, loop: Callable, args: tuple, kept: list) -> tuple[Array, Any]:
    with integrate.looped_by(_outermost(loop)):
        result = run(*args)
    if len(kept) != 1:
        raise ValueError(f"a sampler of {len(kept)} loops cannot be run step by step")
    return result


def _outermost(loop: integrate.Loop) -> integrate.Loop:
    """`loop`, but loops within a step stay loops: some steps are samplers themselves."""

    def once(body, carry, xs):
        with integrate.looped_by(jax.lax.scan):
            return loop(body, carry, xs)

    return once


def _no_outputs(body: Callable, carry: Any, xs: Any) -> Any:
    """Zeros in place of the stacked outputs, which nobody looks at."""
    outputs = jax.eval_shape(lambda: jax.lax.scan(body, carry, xs)[1])
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), outputs)
