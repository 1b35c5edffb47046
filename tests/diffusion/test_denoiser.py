"""Laws of denoisers that are made from networks and from one another."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from diffusion_jax.diffusion import denoiser, parameterization, process, schedules
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


def test_clipping_bounds_x0_and_keeps_x():
    pred = denoiser.clipped(lambda x, level: DENOISE(x, level, COND), 0.5)(X, LEVEL)
    assert np.abs(pred.x0).max() == 0.5
    assert_allclose(process.add_noise(pred.x0, pred.eps, LEVEL), X, atol=1e-6)


def test_clipping_leaves_a_small_x0_alone():
    plain = DENOISE(X, LEVEL, COND)
    pred = denoiser.clipped(lambda x, level: DENOISE(x, level, COND), 100.0)(X, LEVEL)
    assert_array_equal(pred.x0, plain.x0)
    assert_allclose(pred.eps, plain.eps, atol=1e-5)
