"""Laws of the training times that follow the losses."""

from __future__ import annotations

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.diffusion import loss_history, schedules

STEPS, MEMORY = 5, 3
SCHEDULE = schedules.Discrete(num_steps=STEPS)


def remembered(batches):
    history = loss_history.no_losses(STEPS, memory=MEMORY)
    for t, loss in batches:
        history = jax.jit(loss_history.remember)(history, t, loss)
    return history


def batches(num, size, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(num):
        t = rng.integers(1, STEPS + 1, size).astype(np.float32)
        yield jnp.asarray(t), jnp.asarray(rng.random(size, np.float32))


def test_each_step_remembers_its_last_losses_also_of_one_batch():
    last = [collections.deque(maxlen=MEMORY) for _ in range(STEPS)]
    history = remembered(batches(4, 16))
    for t, loss in batches(4, 16):
        for step, value in zip(t, loss):
            last[int(step) - 1].append(float(value))
    for row, expected in zip(history.losses, last):
        assert_allclose(sorted(row), sorted(expected))
    assert history.counts.sum() == 64


def test_times_follow_the_root_of_the_second_moment_without_bias():
    history = remembered(batches(8, 16))
    t, weight = loss_history.loss_second_moment(
        jax.random.key(0), 40_000, SCHEDULE, history=history, uniform_share=0.1
    )
    root = np.sqrt(np.mean(np.square(history.losses), axis=1))
    share = 0.9 * root / root.sum() + 0.1 / STEPS
    counts = np.bincount(np.asarray(t, int), minlength=STEPS + 1)
    assert counts[0] == 0
    assert_allclose(counts[1:] / 40_000, share, atol=0.01)
    # The average over times drawn so is the average over uniform ones.
    assert_allclose(
        np.mean(weight * t**2), np.mean(np.arange(1, STEPS + 1) ** 2), rtol=0.03
    )


def test_times_are_uniform_until_every_memory_is_full():
    history = remembered([(jnp.full(50, 1.0), jnp.full(50, 9.0))])
    t, weight = loss_history.loss_second_moment(
        jax.random.key(0), 20_000, SCHEDULE, history=history
    )
    assert_allclose(weight, 1, rtol=1e-6)
    counts = np.bincount(np.asarray(t, int), minlength=STEPS + 1)[1:]
    assert_allclose(counts, 4000, rtol=0.06)


def test_a_history_of_another_schedule_is_refused():
    with pytest.raises(ValueError, match="5 steps"):
        loss_history.loss_second_moment(
            jax.random.key(0), 4, schedules.Discrete(), history=remembered([])
        )
