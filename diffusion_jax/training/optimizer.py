"""Optimizers and learning-rate schedules by name.

Weight decay is decoupled (Loshchilov and Hutter, 2019, arXiv:1711.05101), scaled by the
learning rate, and spares norms, biases and scalars: all that has fewer than two axes.
The learning rate of the last update stays in the state, for the metrics to show.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree


def constant(peak: float, num_steps: int) -> optax.Schedule:
    """`peak` for ever."""
    return optax.constant_schedule(peak)


def linear(peak: float, num_steps: int) -> optax.Schedule:
    """From `peak` straight to 0 in `num_steps`."""
    return optax.linear_schedule(peak, 0.0, num_steps)


def cosine(peak: float, num_steps: int) -> optax.Schedule:
    """peak (1 + cos(pi t / num_steps)) / 2 (Loshchilov and Hutter, 2017, eq. 5)."""
    return optax.cosine_decay_schedule(peak, num_steps)


LR_SCHEDULES = {"constant": constant, "linear": linear, "cosine": cosine}


def make_schedule(
    name: str,
    *,
    learning_rate: float,
    warmup_steps: int = 0,
    total_steps: int | None = None,
) -> optax.Schedule:
    """A straight rise from 0 in `warmup_steps`, then the named decay to `total_steps`."""
    if name not in LR_SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}; one of {sorted(LR_SCHEDULES)}")
    if total_steps is None and name != "constant":
        raise ValueError(f"schedule {name!r} needs total_steps")
    if total_steps is not None and not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"warmup_steps is {warmup_steps}; it must lie in 0..{total_steps - 1}"
        )
    decay = LR_SCHEDULES[name](learning_rate, (total_steps or 0) - warmup_steps)
    if not warmup_steps:
        return decay
    rise = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([rise, decay], [warmup_steps])


def is_decayed(params: PyTree) -> PyTree:
    """True for kernels and tables; False for norms, biases and scalars."""
    return jax.tree.map(lambda x: x.ndim >= 2, params)


def adamw(learning_rate, *, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01):
    """AdamW (arXiv:1711.05101)."""
    return optax.adamw(
        learning_rate, b1, b2, eps=eps, weight_decay=weight_decay, mask=is_decayed
    )


def adam(learning_rate, *, b1=0.9, b2=0.999, eps=1e-8):
    """Adam (Kingma and Ba, 2015, arXiv:1412.6980), without weight decay."""
    return optax.adam(learning_rate, b1, b2, eps=eps)


def lion(learning_rate, *, b1=0.9, b2=0.99, weight_decay=0.01):
    """Lion (Chen et al., 2023, arXiv:2302.06675); wants a rate 3 to 10 times smaller."""
    return optax.lion(learning_rate, b1, b2, weight_decay=weight_decay, mask=is_decayed)


def adafactor(learning_rate, *, eps=1e-30, weight_decay=0.0):
    """Adafactor (Shazeer and Stern, 2018, arXiv:1804.04235), rate relative to scale."""
    # optax.adafactor's own weight decay is not scaled by the learning rate.
    decay = optax.add_decayed_weights(-learning_rate * weight_decay, mask=is_decayed)
    return optax.chain(optax.adafactor(learning_rate, eps=eps), decay)


def _matrix_axes(params: PyTree) -> PyTree:
    """Which axes Muon takes for inputs and outputs; None: leave the leaf to AdamW."""

    def axes(path, x):
        if x.ndim < 2 or path[-1].key != "kernel":
            return None
        inputs = tuple(range(x.ndim - 1))
        return optax.contrib.MuonDimensionNumbers(inputs, (x.ndim - 1,))

    return jax.tree_util.tree_map_with_path(axes, params)


def muon(learning_rate, *, b1=0.95, b2=0.999, eps=1e-8, weight_decay=0.01):
    """Muon (Jordan, 2024) on kernels, AdamW on the rest, one rate for both.

    Updates are scaled to the root mean square of Adam's (arXiv:2502.16982, eq. 4);
    a convolution is the matrix from its receptive field to its outputs.
    """
    return optax.contrib.muon(
        learning_rate,
        beta=b1,
        eps=eps,
        weight_decay=weight_decay,
        adam_b2=b2,
        consistent_rms=0.2,  # of the paper
        muon_weight_dimension_numbers=_matrix_axes,
    )


OPTIMIZERS = {
    "adamw": adamw,
    "adam": adam,
    "lion": lion,
    "muon": muon,
    "adafactor": adafactor,
}


def make_optimizer(
    name: str = "adamw",
    *,
    learning_rate: float,
    schedule: str = "constant",
    warmup_steps: int = 0,
    total_steps: int | None = None,
    clip_norm: float | None = None,
    **options: float,
) -> optax.GradientTransformation:
    """Clips the gradient to the global norm `clip_norm`, then the named optimizer.

    `options` are those of the optimizer: b1, b2, eps, weight_decay.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {name!r}; one of {sorted(OPTIMIZERS)}")
    build = OPTIMIZERS[name]
    allowed = list(inspect.signature(build).parameters)[1:]
    for option in options:
        if option not in allowed:
            raise ValueError(f"{name} has no option {option!r}; one of {allowed}")
    rate = make_schedule(
        schedule,
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        total_steps=total_steps,
    )
    clip = optax.identity()
    if clip_norm is not None:
        clip = optax.clip_by_global_norm(clip_norm)

    def clipped(learning_rate):
        return optax.chain(clip, build(learning_rate, **options))

    return optax.inject_hyperparams(clipped)(learning_rate=rate)


def at_most(
    optimizer: optax.GradientTransformation, maxima: Mapping[str, float]
) -> optax.GradientTransformation:
    """The optimizer, but parameters of these names never pass their largest values.

    A name is the last of a parameter's path. The state is that of the optimizer.
    """

    def limited(path, update, value):
        maximum = maxima.get(path[-1].key)
        return update if maximum is None else jnp.minimum(update, maximum - value)

    def update(updates, state, params=None, **extra):
        updates, state = optimizer.update(updates, state, params, **extra)
        return jax.tree_util.tree_map_with_path(limited, updates, params), state

    return optax.GradientTransformation(optimizer.init, update)
