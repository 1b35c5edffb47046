"""One step of training: mean gradient, update, exponential moving average.

    g = (1/A) sum_a grad loss(params, frozen, fold_in(fold_in(key, step), a), batch_a)
    params <- params + optimizer(g)
    ema    <- d ema + (1 - d) params,   d = min(ema_decay, (1 + step) / (10 + step))

The ramp of `d` is that of TensorFlow's ExponentialMovingAverage(num_updates=step): it
lets the average forget the random start. A loss or gradient that is not finite changes
nothing but the counters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from diffusion_jax.training.state import TrainState
from diffusion_jax.types import Batch, Key, LossFn, Metrics, Params

TrainStep = Callable[[TrainState, Params, Key, Batch], tuple[TrainState, Metrics]]

RESERVED = ("loss", "grad_norm", "learning_rate")


def ema_decay_at(
    step: Int[Array, ""], ema_decay: float, *, warmup: bool = True
) -> Float[Array, ""]:
    """The decay `d` of this file's docstring; `ema_decay` itself without `warmup`."""
    if not warmup:
        return jnp.asarray(ema_decay, jnp.float32)
    return jnp.minimum(ema_decay, (1.0 + step) / (10.0 + step))


def split_batch(batch: Batch, accumulate: int) -> Batch:
    """Leading axis B -> (accumulate, B / accumulate), examples dealt out in turn.

    Dealing in turn leaves each example on its device when B is sharded.
    """

    def split(path, x):
        if len(x) % accumulate:
            name = jax.tree_util.keystr(path, simple=True)
            raise ValueError(
                f"a batch of {len(x)} ({name!r}) does not divide into "
                f"{accumulate} micro-batches"
            )
        parts = x.reshape(len(x) // accumulate, accumulate, *x.shape[1:])
        return jnp.swapaxes(parts, 0, 1)

    return jax.tree_util.tree_map_with_path(split, batch)


def _mean_gradient(
    loss: LossFn,
    accumulate: int,
    params: Params,
    frozen: Params,
    key: Key,
    batch: Batch,
) -> tuple[Float[Array, ""], Metrics, Params]:
    gradient = jax.value_and_grad(loss, has_aux=True)
    if accumulate == 1:
        (value, metrics), grads = gradient(params, frozen, key, batch)
        return value, metrics, grads

    def one(index_and_part):
        index, part = index_and_part
        key_part = jax.random.fold_in(key, index)
        (value, metrics), grads = gradient(params, frozen, key_part, part)
        return value, metrics, grads

    def add(total, index_and_part):
        return jax.tree.map(jnp.add, total, one(index_and_part)), None

    one = jax.jit(one)  # traced once for its shapes and the loop
    parts = (jnp.arange(accumulate), split_batch(batch, accumulate))
    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda x: x / accumulate, total)


def learning_rate(opt_state: optax.OptState) -> Metrics:
    """{"learning_rate": that of the last update} if `inject_hyperparams` kept it."""

    def is_value(path, value):
        return isinstance(value, jax.Array)

    rate = optax.tree.get(opt_state, "learning_rate", filtering=is_value)
    return {} if rate is None else {"learning_rate": rate}


def make_train_step(
    loss: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float,
    ema_warmup: bool = True,
    accumulate: int = 1,
) -> TrainStep:
    """A pure function of (state, frozen, key, batch), not yet compiled.

    `key` is the run's: each step folds its number in. The metrics are those of the
    loss, "loss", "grad_norm" (before clipping) and, where the optimizer's state has
    one, "learning_rate".
    """

    def train_step(
        state: TrainState, frozen: Params, key: Key, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(key, state.step)
        value, metrics, grads = _mean_gradient(
            loss, accumulate, state.params, frozen, key, batch
        )
        if taken := sorted(set(metrics) & set(RESERVED)):
            raise ValueError(f"the loss may not name a metric {taken[0]!r}")
        norm = optax.tree.norm(grads)
        is_good = jnp.isfinite(value) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = ema_decay_at(state.step, ema_decay, warmup=ema_warmup)
        ema_params = optax.incremental_update(params, state.ema_params, 1 - decay)

        metrics = {**metrics, "loss": value, "grad_norm": norm}
        metrics |= learning_rate(opt_state)
        new = (params, ema_params, opt_state)
        old = (state.params, state.ema_params, state.opt_state)
        kept = jax.tree.map(lambda a, b: jnp.where(is_good, a, b), new, old)
        return TrainState(
            state.step + 1,
            *kept,
            num_skipped=state.num_skipped + ~is_good,
            num_skipped_in_row=jnp.where(is_good, 0, state.num_skipped_in_row + 1),
        ), metrics

    return train_step


class MetricSums(NamedTuple):
    """Metrics summed on the device since the last row was written."""

    total: Metrics
    count: Int[Array, ""]  # steps that were not skipped


class Health(NamedTuple):
    """What the host looks at while later steps already run."""

    loss: Float[Array, ""]
    num_skipped: Int[Array, ""]
    num_skipped_in_row: Int[Array, ""]


Program = Callable[
    [TrainState, MetricSums, Params, Key, Batch], tuple[TrainState, MetricSums, Health]
]


def metric_names(
    train_step: TrainStep, state: PyTree, frozen: PyTree, key: Key, batch: PyTree
) -> list[str]:
    """The names of the metrics that `train_step` returns; computes nothing."""
    _, metrics = jax.eval_shape(train_step, state, frozen, key, batch)
    for name, shape in metrics.items():
        if shape.shape != ():
            raise ValueError(f"metric {name!r} has shape {shape.shape}; average it")
    return list(metrics)


def compile_step(
    train_step: TrainStep, state: TrainState, frozen: Params, key: Key, batch: Batch
) -> Program:
    """The step and the running sums as one program that reuses the state's memory.

    It is compiled at its first call, for arrays placed as those given here are.
    """

    def program(state, sums, frozen, key, batch):
        new, metrics = train_step(state, frozen, key, batch)
        is_good = new.num_skipped == state.num_skipped
        total = {
            name: sums.total[name] + jnp.where(is_good, value, 0)
            for name, value in metrics.items()
        }
        health = Health(metrics["loss"], new.num_skipped, new.num_skipped_in_row)
        return new, MetricSums(total, sums.count + is_good), health

    def place(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x.sharding, tree)

    replicated = state.step.sharding
    return jax.jit(
        program,
        in_shardings=(
            place(state),
            replicated,
            place(frozen),
            replicated,
            place(batch),
        ),
        out_shardings=(place(state), replicated, replicated),
        donate_argnums=(0, 1),
    )
