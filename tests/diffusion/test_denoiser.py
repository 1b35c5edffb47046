"""Laws of denoisers that are made from networks and from one another."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from diffusion_jax.diffusion import (
    denoiser,
    grids,
    parameterization,
    process,
    schedules,
)
from diffusion_jax.diffusion.samplers import SAMPLERS
from diffusion_jax.types import Conditioning

LEVEL = schedules.Discrete()(jnp.asarray(400.0))
X = jax.random.normal(jax.random.key(7), (3, 4, 4, 2))
COND = Conditioning()


def network(x, time, cond):
    return jnp.tanh(x + process.align(1e-3 * time, x))


DENOISE = denoiser.from_network(network, parameterization.v())


def test_a_perfect_network_recovers_x0_and_eps(schedule):
    x0, eps = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 2))
    level = schedule(jnp.asarray(0.5 * schedule.t_max))
    x = process.add_noise(x0, eps, level)
    for make in parameterization.PARAMETERIZATIONS.values():
        p = make()
        answer = parameterization.target(p, x0, eps, level)
        denoise = denoiser.from_network(lambda *_, answer=answer: answer, p)
        pred = denoise(x, level, Conditioning())
        assert_allclose(pred.x0, x0, atol=1e-4)
        assert_allclose(pred.eps, eps, atol=1e-3)


def test_the_network_hears_the_time_of_the_level_and_the_scaled_input():
    schedule = schedules.VarianceExploding()
    level = schedule(jnp.asarray([0.5, 2.0, 10.0]))

    def listening(x, time, cond):
        assert_array_equal(time, level.time)
        assert_allclose(
            x * jnp.sqrt(process.align(level.sigma**2 + 0.25, x)), X, rtol=1e-5
        )
        return x

    denoiser.from_network(listening, parameterization.edm(0.5))(
        X, level, Conditioning()
    )


def test_a_half_precision_network_gives_a_float32_prediction():
    def half(x, time, cond):
        return network(x, time, cond).astype(jnp.bfloat16)

    pred = denoiser.from_network(half, parameterization.v())(X, LEVEL, COND)
    assert pred.x0.dtype == pred.eps.dtype == jnp.float32
    assert_allclose(process.add_noise(pred.x0, pred.eps, LEVEL), X, atol=1e-5)


def test_learned_variance_is_the_second_half_of_the_channels():
    def twice(x, time, cond):
        return jnp.concatenate([network(x, time, cond), x**2], -1)

    v = parameterization.v()
    pred = denoiser.from_network(twice, v, learned_variance=True)(X, LEVEL, COND)
    assert_array_equal(pred.variance, X**2)
    assert_allclose(pred.x0, DENOISE(X, LEVEL, COND).x0)
    with pytest.raises(
        ValueError, match="expected 2 channels with learned_variance=False"
    ):
        denoiser.from_network(twice, v)(X, LEVEL, COND)


def plain(x, level):
    return DENOISE(x, level, COND)


MASK = jnp.asarray(np.arange(4) < 2, float)[:, None]  # half of the columns
CHANGES = {
    "clipped": functools.partial(denoiser.clipped, bound=0.5),
    "thresholded": functools.partial(denoiser.thresholded, quantile=0.5, largest=3.0),
    "inpainted": functools.partial(
        denoiser.inpainted, known=jnp.full(X.shape, 0.25), mask=MASK
    ),
}


def large(x, level):
    """Predicts an x0 beyond [-1, 1] in two of the three examples."""
    x0 = jnp.asarray([0.5, 2.0, 4.0])[:, None, None, None] * jnp.tanh(3 * x)
    return process.from_x0(x, x0, level)


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_x0_keeps_x_or_keeps_eps(name):
    follows = CHANGES[name](large)(X, LEVEL)
    keeps = CHANGES[name](large, rederive_eps=False)(X, LEVEL)
    before = large(X, LEVEL)
    assert np.abs(follows.x0 - before.x0).max() > 0.1
    assert_allclose(
        process.add_noise(follows.x0, follows.eps, LEVEL), X, rtol=1e-5, atol=1e-6
    )
    assert_array_equal(keeps.x0, follows.x0)
    assert_array_equal(keeps.eps, before.eps)


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_x0_keeps_the_learned_variance(name):
    variance = X + 1

    def learned(x, level):
        return large(x, level)._replace(variance=variance)

    for rederive_eps in (True, False):
        pred = CHANGES[name](learned, rederive_eps=rederive_eps)(X, LEVEL)
        assert_array_equal(pred.variance, variance)


def test_clipping_bounds_x0():
    pred = denoiser.clipped(plain, 0.5)(X, LEVEL)
    assert np.abs(pred.x0).max() == 0.5


def test_clipping_and_thresholding_leave_a_small_x0_alone():
    before = plain(X, LEVEL)
    for denoise in (
        denoiser.clipped(plain, 100.0),
        denoiser.thresholded(lambda x, level: process.from_x0(x, before.x0 / 9, level)),
    ):
        pred = denoise(X, LEVEL)
        expected = before.x0 if np.abs(pred.x0).max() > 0.5 else before.x0 / 9
        assert_array_equal(pred.x0, expected)


def test_a_threshold_scales_each_example_by_its_own_quantile():
    before = large(X, LEVEL)
    pred = denoiser.thresholded(large, quantile=0.8)(X, LEVEL)
    for i in range(3):
        s = max(np.quantile(np.abs(before.x0[i]), 0.8), 1)
        assert_allclose(pred.x0[i], np.clip(before.x0[i] / s, -1, 1), rtol=1e-5)
    assert np.abs(before.x0).max() > 3
    assert np.abs(pred.x0).max() == 1


def test_the_whole_range_is_only_divided():
    """The largest |x0| of an example as its threshold clips nothing."""
    before = large(X, LEVEL).x0
    pred = denoiser.thresholded(large, quantile=1.0)(X, LEVEL)
    largest = np.abs(before).max((1, 2, 3), keepdims=True)
    assert_allclose(pred.x0, before / np.maximum(largest, 1), rtol=1e-5)


def test_no_threshold_above_one_is_clipping():
    pred = denoiser.thresholded(large, largest=1.0)(X, LEVEL)
    assert_array_equal(pred.x0, denoiser.clipped(large)(X, LEVEL).x0)


def test_another_bound_or_quantile_does_not_recompile():
    traces = []

    @jax.jit
    def denoise(bound, quantile):
        traces.append(bound)
        both = denoiser.thresholded(denoiser.clipped(large, bound), quantile=quantile)
        return both(X, LEVEL).x0

    assert np.abs(denoise(2.0, 0.9) - denoise(3.0, 0.5)).max() > 0.01
    assert len(traces) == 1


def test_what_is_known_is_where_the_sample_ends(schedule):
    known = jax.random.normal(jax.random.key(1), X.shape)
    denoise = denoiser.inpainted(plain, known, MASK)
    ts = grids.trailing(schedule, 4)
    x, trace = SAMPLERS["ddim"](jax.random.key(2), denoise, schedule, X, ts)
    kept = np.broadcast_to(MASK, X.shape) == 1
    assert_allclose(x[kept], known[kept], atol=1e-5)
    assert_array_equal(trace[0][kept], known[kept])
    assert np.abs(x - known)[~kept].max() > 0.1


def test_a_mask_of_zeros_changes_nothing():
    pred = denoiser.inpainted(plain, X, jnp.zeros(()))(X, LEVEL)
    assert_array_equal(pred.x0, plain(X, LEVEL).x0)
