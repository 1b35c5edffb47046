"""Laws of the Brownian path that stochastic samplers are driven by."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from diffusion_jax.diffusion import process
from diffusion_jax.diffusion.samplers import brownian

KEY = jax.random.key(0)
NUM, POINTS = 10_000, 9  # of all calls, so that they share one program


@pytest.fixture(autouse=True, scope="module")
def _quick_compilation():
    """Here the draws take longer than the compilation."""


def levels(lambdas):
    lambdas = jnp.asarray(lambdas, float)
    alpha, sigma = (jnp.sqrt(jax.nn.sigmoid(a * lambdas)) for a in (2, -2))
    return process.NoiseLevel(alpha, sigma, lambdas)


@jax.jit
def between(key, here, there):
    along = jax.vmap(brownian.increment, (None, None, 0, 0))
    return along(key, jnp.zeros(NUM), here, there)


def increments(lambdas, key=KEY):
    """Those between successive lambdas; steps of no length fill up the batch."""
    missing = POINTS - len(lambdas)
    filled = [*lambdas, *[lambdas[-1]] * missing]
    draws = between(key, levels(filled[:-1]), levels(filled[1:]))
    return np.asarray(draws)[: len(lambdas) - 1]


def changes(lambdas):
    """W(there) - W(here), in units of the largest snr."""
    snr = np.exp(2 * (np.asarray(lambdas) - np.max(lambdas)))
    return np.sqrt(np.diff(snr))[:, None] * increments(lambdas)


def test_disjoint_increments_are_independent_and_of_unit_variance():
    draws = increments([-np.inf, -6, -2.3, -2.2, 0, 0.013, 1.5, 5, np.inf])
    assert_allclose(draws.mean(1), 0, atol=0.04)
    assert_allclose(np.cov(draws), np.eye(len(draws)), atol=0.05)
    assert_allclose((draws**4).mean(1), 3, atol=0.3)  # normal


@pytest.mark.parametrize("start", [-np.inf, -3.0])
@pytest.mark.parametrize("num", [1, 3, 7])
def test_the_parts_of_an_increment_add_up_to_it(start, num):
    fine = [start, *np.linspace(-2.9, 1.7, num), 2.0]
    parts, whole = changes(fine).sum(0), changes([start, 2.0])[0]
    assert_allclose(parts, whole, atol=1e-5)
    assert_allclose(whole.std(), 1, rtol=0.03)


def test_steps_within_a_cell_still_add_up():
    fine = 1 + np.linspace(0, 2.5 * brownian.CELL, POINTS)
    assert_allclose(changes(fine).sum(0), changes(fine[[0, -1]])[0], atol=1e-4)


def test_short_steps_are_still_independent():
    length = 2.1 * brownian.CELL
    starts = -2 + (POINTS - 1) * length * np.arange(10)
    found = [increments(start + length * np.arange(POINTS)) for start in starts]
    draws = np.concatenate(found)
    assert_allclose(draws.std(1), 1, atol=0.04)
    assert_allclose(np.cov(draws), np.eye(len(draws)), atol=0.06)


def test_elements_and_examples_are_independent():
    keys = jax.random.split(KEY, NUM)
    x = jnp.zeros((NUM, 3))
    draws = jax.jit(brownian.increment)(keys, x, levels(-1.0), levels(0.5))
    rows = np.concatenate([draws[:-1], draws[1:]], axis=1)
    assert_allclose(np.cov(rows.T), np.eye(6), atol=0.05)
    # And each has its own path in any batch.
    backwards = jax.jit(brownian.increment)(keys[::-1], x, levels(-1.0), levels(0.5))
    assert_array_equal(backwards, draws[::-1])


def test_only_the_key_and_the_signal_to_noise_ratio_matter():
    ends = levels([-1.0] * (POINTS - 1)), levels([0.5] * (POINTS - 1))
    exploding = [
        process.NoiseLevel(jnp.ones_like(a.sigma), a.sigma / a.alpha, a.time)
        for a in ends
    ]
    draws = between(KEY, *ends)[0]
    assert_allclose(between(KEY, *exploding)[0], draws, atol=1e-3)
    other = between(jax.random.key(1), *ends)[0]
    assert abs(np.corrcoef(other, draws)[0, 1]) < 0.05


def test_no_length_is_no_noise():
    assert_array_equal(increments([-np.inf, -np.inf]), 0)
    assert_array_equal(increments([0.5, 0.5]), 0)
    assert_array_equal(increments([np.inf, np.inf]), 0)
