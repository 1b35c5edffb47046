"""Laws of RePaint: what is known stays, and resampling adapts the rest to it."""

from __future__ import annotations

import functools

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from diffusion_jax.diffusion import grids, process, schedules
from diffusion_jax.diffusion.samplers.repaint import repaint, visits

KEY = jax.random.key(0)
SCHEDULE = schedules.Cosine()
CORRELATION = 0.9
COVARIANCE = np.asarray([[1.0, CORRELATION], [CORRELATION, 1.0]])


def correlated(x, level):
    """E[x0 | x] for pairs from N(0, COVARIANCE)."""
    total = level.alpha**2 * COVARIANCE + level.sigma**2 * jnp.eye(2)
    x0 = level.alpha * x @ jnp.linalg.inv(total) @ COVARIANCE
    return process.from_x0(x, x0, level)


@functools.partial(jax.jit, static_argnames=("num", "length", "samples", "first"))
def inpaint(known, mask, *, eta=1.0, num=4, length=10, samples=1, first=1):
    ts = grids.trailing(SCHEDULE, 40)
    x = jax.random.normal(jax.random.key(1), (num, 2))
    options = dict(jump_length=length, jump_n_sample=samples, first_jump=first, eta=eta)
    return repaint(KEY, correlated, SCHEDULE, x, ts, known=known, mask=mask, **options)


@pytest.mark.parametrize("first", [0, 1])
def test_what_is_known_is_kept_exactly(first):
    known = jnp.asarray([[0.3, -1.2], [0.9, 2.0], [0.0, 0.1], [5.0, -5.0]])
    mask = jnp.asarray([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    x, trace = inpaint(known, mask, length=5, samples=3, first=first)
    assert_array_equal(x * mask, known * mask)
    assert trace.shape == (40, 4, 2)
    assert_allclose(trace[-1] * (1 - mask), x * (1 - mask), atol=1e-6)


def test_nothing_known_and_no_jumps_is_plain_sampling():
    known, mask = jnp.zeros((1, 2)), jnp.zeros((1, 1))
    x, _ = inpaint(known, mask, eta=0.0)
    levels = SCHEDULE(grids.trailing(SCHEDULE, 40))
    start = jax.random.normal(jax.random.key(1), (4, 2))
    expected, _ = exact.run("ddim", correlated, KEY, start, levels)
    assert_allclose(x, expected, atol=1e-4)


def test_jumps_keep_the_marginals_of_a_single_image():
    """Where every step is exact, so is the law of all of them."""

    def constant(x, level):
        return process.from_x0(x, jnp.full_like(x, 0.5), level)

    x = jax.random.normal(jax.random.key(1), (50_000,))
    ts = jnp.linspace(1.0, 0.3, 9)
    none = dict(known=jnp.zeros(1), mask=jnp.zeros(1))
    x, _ = repaint(
        KEY, constant, SCHEDULE, x, ts, **none, jump_length=3, jump_n_sample=3
    )
    last = SCHEDULE(ts[-1])
    assert_allclose((x.mean(), x.std()), (0.5 * last.alpha, last.sigma), atol=0.01)


def test_resampling_brings_the_unknown_to_its_conditional_law():
    known, mask = jnp.asarray([[1.5, 0.0]]), jnp.asarray([[1.0, 0.0]])
    errors = {}
    for samples in (1, 10):
        x, _ = inpaint(known, mask, num=4000, length=5, samples=samples)
        mean, std = x[:, 1].mean(), x[:, 1].std()
        errors[samples] = abs(mean - 1.5 * CORRELATION)
        print(f"{samples} samples: mean {mean:.3f}, std {std:.3f}")
    assert errors[10] < 0.1
    assert errors[10] < errors[1] / 2
    assert_allclose(std, np.sqrt(1 - CORRELATION**2), rtol=0.15)


@pytest.mark.parametrize("steps", [1, 7, 40])
@pytest.mark.parametrize(("length", "samples"), [(5, 3), (10, 1), (3, 4)])
@pytest.mark.parametrize("first", [0, 1])
def test_jumps_go_back_by_their_length_and_only_where_they_may(
    steps, length, samples, first
):
    order = visits(steps, length, samples, first)
    assert (order[0], order[-1]) == (0, steps)
    assert set(order) == set(range(steps + 1))
    moves = order[1:] - order[:-1]
    assert set(moves) <= {1, 1 - length}
    landed = steps - (order[:-1] + 1)[moves < 0 if length > 1 else moves == 0]
    places = range(first, steps - length + first, length)
    assert sorted(landed) == sorted(list(places) * (samples - 1))


def test_gradients_are_finite_from_pure_noise_to_clean_data():
    schedule = schedules.ZeroTerminalSNR()
    ts = grids.trailing(schedule, 4)

    def total(known, x):
        options = dict(mask=jnp.asarray([[1.0, 0.0]]), jump_length=2, jump_n_sample=2)
        return repaint(KEY, correlated, schedule, x, ts, known=known, **options)[
            0
        ].sum()

    slopes = jax.jit(jax.grad(total, (0, 1)))(jnp.ones((2, 2)), jnp.ones((2, 2)))
    assert all(np.all(np.isfinite(slope)) for slope in slopes)
    assert np.all(slopes[0][:, 0] > 1)  # itself, and what correlates with it
