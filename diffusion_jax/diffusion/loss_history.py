"""Training times drawn more often where the loss was large, with weights that make up
for it (Nichol and Dhariwal, 2021, section 3.3; arXiv:2102.09672).

What was seen is an explicit state, which the caller carries from step to step:

    times = loss_second_moment(key, batch_size, schedule, history=history)
    loss, _ = diffusion_loss(..., lambda *_: times, ...)
    history = remember(history, times.t, loss / times.weight)
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.diffusion.process import Real
from diffusion_jax.diffusion.schedules import Schedule
from diffusion_jax.diffusion.time_samplers import Times
from diffusion_jax.types import Key


class LossHistory(NamedTuple):
    """The last losses at each whole step, and how many each has seen."""

    losses: Float[Array, "T memory"]
    counts: Int[Array, "T"]


def no_losses(num_steps: int, *, memory: int = 10) -> LossHistory:
    """A history of nothing yet; ten losses of each step as published."""
    return LossHistory(jnp.zeros((num_steps, memory)), jnp.zeros(num_steps, int))


def remember(
    history: LossHistory, t: Float[Array, "B"], loss: Float[Array, "B"]
) -> LossHistory:
    """The history with the losses at whole steps t in place of the oldest."""
    num_steps, memory = history.losses.shape
    step = t.astype(int) - 1
    is_same = step[:, None] == step[None]
    # Losses of one step in one batch are remembered in their order.
    num_before = jnp.sum(jnp.tril(is_same, -1), axis=1)
    num_after = jnp.sum(jnp.triu(is_same, 1), axis=1)
    slot = (history.counts[step] + num_before) % memory
    kept = jnp.where(num_after < memory, step, num_steps)  # the others are dropped
    return LossHistory(
        history.losses.at[kept, slot].set(loss, mode="drop"),
        history.counts.at[step].add(1),
    )


def loss_second_moment(
    key: Key,
    num: int,
    schedule: Schedule,
    *,
    history: LossHistory,
    uniform_share: Real = 0.001,
) -> Times:
    """P(t) proportional to sqrt(E[loss**2]), weights 1 / (T * P(t)).

    Importance sampling of an average over whole steps, eq. 18. Uniform until the memory of every step is full.
    """
    num_steps, memory = history.losses.shape
    if schedule.num_steps != num_steps:
        raise ValueError(f"a history of {num_steps} steps does not fit {schedule!r}")
    root = jnp.sqrt(jnp.mean(history.losses**2, axis=1))
    share = (1 - uniform_share) * root / jnp.sum(root) + uniform_share / num_steps
    is_full = jnp.all(history.counts >= memory)
    share = jnp.where(is_full, share, 1 / num_steps)
    step = jax.random.choice(key, num_steps, (num,), p=share)
    return Times(1.0 + step, 1 / (num_steps * share[step]))
