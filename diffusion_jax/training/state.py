"""What training carries from step to step, and how it begins.

`init(key) -> (trainable, frozen)` is only traced here. Arrays that it hands through
unchanged (loaded weights) are taken as they are; what it computes is computed by one
compiled program, placed where its sharding says, and only if it is wanted: a run that
resumes never draws initial parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from diffusion_jax.training import sharding
from diffusion_jax.types import Key, Params

Init = Callable[[Key], tuple[Params, Params]]


class TrainState(NamedTuple):
    """All that a checkpoint must hold for training to go on bit for bit."""

    step: Int[Array, ""]  # batches consumed, skipped steps included
    params: Params
    ema_params: Params
    opt_state: optax.OptState
    num_skipped: Int[Array, ""]  # steps whose loss or gradient was not finite
    num_skipped_in_row: Int[Array, ""]


def init_state(optimizer: optax.GradientTransformation, params: Params) -> TrainState:
    """Step 0, with the average equal to the parameters; shares no buffer with them."""
    return TrainState(
        step=jnp.int32(0),
        params=jax.tree.map(jnp.copy, params),
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        num_skipped=jnp.int32(0),
        num_skipped_in_row=jnp.int32(0),
    )


class TracedInit(NamedTuple):
    """The shapes that `init` returns, and the leaves that it did not compute."""

    init: Init
    key: Key
    shapes: tuple[PyTree, PyTree]
    known: tuple[list, list]  # per leaf: the array itself, or None if computed


def trace_init(init: Init, key: Key) -> TracedInit:
    """Learns what `init` returns without computing any of it."""
    seen = []

    def probe(key: Key) -> tuple[Params, Params]:
        seen.append(init(key))
        return seen[0]

    shapes = jax.eval_shape(probe, key)
    known = tuple(
        [None if isinstance(leaf, jax.core.Tracer) else leaf for leaf in leaves]
        for leaves in map(jax.tree.leaves, seen[0])
    )
    return TracedInit(init, key, shapes, known)


def _place(traced: TracedInit, which: int, shardings: PyTree) -> Params:
    known, places = traced.known[which], jax.tree.leaves(shardings)
    computed = [index for index, leaf in enumerate(known) if leaf is None]

    def compute(key: Key) -> list:
        leaves = jax.tree.leaves(traced.init(key)[which])
        return [leaves[index] for index in computed]

    drawn = {}
    if computed:
        out_shardings = [places[index] for index in computed]
        values = jax.jit(compute, out_shardings=out_shardings)(traced.key)
        drawn = dict(zip(computed, values, strict=True))
    leaves = [
        drawn[index] if leaf is None else sharding.place(leaf, where)
        for index, (leaf, where) in enumerate(zip(known, places, strict=True))
    ]
    return jax.tree.unflatten(jax.tree.structure(traced.shapes[which]), leaves)


def place_trainable(traced: TracedInit, shardings: PyTree) -> Params:
    """The initial trainable parameters on their devices."""
    return _place(traced, 0, shardings)


def place_frozen(traced: TracedInit, shardings: PyTree) -> Params:
    """The frozen parameters on their devices."""
    return _place(traced, 1, shardings)
