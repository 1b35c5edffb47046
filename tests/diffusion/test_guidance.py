"""Laws of guidance."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from diffusion_jax.diffusion import (
    denoiser,
    guidance,
    parameterization,
    process,
    schedules,
)
from diffusion_jax.types import Conditioning

SCHEDULE = schedules.Discrete()
LEVEL = SCHEDULE(jnp.asarray(400.0))


def network(x, time, cond):
    shift = cond.tokens.mean((1, 2)) + cond.vector[:, 0] + 1e-3 * time
    return jnp.tanh(x + process.align(shift, x))


def conditioning(seed, batch):
    keys = jax.random.split(jax.random.key(seed))
    return Conditioning(
        tokens=jax.random.normal(keys[0], (batch, 4, 5)),
        vector=jax.random.normal(keys[1], (batch, 3)),
    )


X = jax.random.normal(jax.random.key(7), (3, 4, 4, 2))
COND, NULL = conditioning(1, 3), conditioning(2, 1)
DENOISE = denoiser.from_network(network, parameterization.v())


def repeated(cond, batch):
    return jax.tree.map(lambda a: jnp.repeat(a, batch, 0), cond)


def test_scale_one_is_the_conditional_model():
    guided = guidance.classifier_free(DENOISE, COND, NULL, 1.0)(X, LEVEL)
    plain = DENOISE(X, LEVEL, COND)
    assert_allclose(guided.x0, plain.x0, rtol=1e-6)
    assert_allclose(guided.eps, plain.eps, rtol=1e-6)


def test_scale_zero_is_the_unconditional_model():
    guided = guidance.classifier_free(DENOISE, COND, NULL, 0.0)(X, LEVEL)
    assert_allclose(guided.x0, DENOISE(X, LEVEL, repeated(NULL, 3)).x0, atol=1e-6)


def test_equal_conditions_make_the_scale_irrelevant():
    guided = guidance.classifier_free(DENOISE, COND, COND, 9.0)(X, LEVEL)
    assert_allclose(guided.eps, DENOISE(X, LEVEL, COND).eps, rtol=1e-6)


def test_guidance_is_linear_in_its_scale():
    low, mid, high = (
        guidance.classifier_free(DENOISE, COND, NULL, s)(X, LEVEL).x0 for s in (1, 4, 7)
    )
    assert np.abs(low - high).max() > 0.1
    assert_allclose(mid, (low + high) / 2, atol=1e-5)


def test_guided_x0_and_eps_still_make_up_x():
    pred = guidance.classifier_free(DENOISE, COND, NULL, 7.5)(X, LEVEL)
    assert_allclose(process.add_noise(pred.x0, pred.eps, LEVEL), X, atol=1e-5)


def test_a_scale_and_a_level_per_example_act_on_their_own_example():
    scales, times = jnp.asarray([1.0, 3.0, 7.5]), jnp.asarray([100.0, 400.0, 900.0])
    together = guidance.classifier_free(DENOISE, COND, NULL, scales)(X, SCHEDULE(times))
    for i in range(3):
        one = slice(i, i + 1)
        cond = Conditioning(tokens=COND.tokens[one], vector=COND.vector[one])
        alone = guidance.classifier_free(DENOISE, cond, NULL, scales[i])
        pred = alone(X[one], SCHEDULE(times[i]))
        assert_allclose(together.x0[one], pred.x0, atol=1e-5)


def test_the_network_runs_once_on_the_doubled_batch():
    batches = []

    def counted(x, time, cond):
        batches.append((len(x), len(time), len(cond.tokens)))
        return network(x, time, cond)

    denoise = denoiser.from_network(counted, parameterization.v())
    guidance.classifier_free(denoise, COND, NULL, 3.0)(X, LEVEL)
    assert batches == [(6, 6, 6)]


def test_another_scale_does_not_recompile():
    traces = []

    @jax.jit
    def guided(scale):
        traces.append(scale)
        return guidance.classifier_free(DENOISE, COND, NULL, scale)(X, LEVEL).x0

    results = [guided(scale) for scale in (1.0, 3.0, 7.5)]
    assert len(traces) == 1
    expected = guidance.classifier_free(DENOISE, COND, NULL, 7.5)(X, LEVEL).x0
    assert_allclose(results[-1], expected, atol=1e-5)


def test_mismatched_conditions_are_refused():
    with pytest.raises(ValueError, match="both have 'vector'"):
        guidance.classifier_free(DENOISE, COND, NULL._replace(vector=None), 2.0)(
            X, LEVEL
        )
    with pytest.raises(ValueError, match="shape of 'tokens'"):
        short = NULL._replace(tokens=NULL.tokens[:, :2])
        guidance.classifier_free(DENOISE, COND, short, 2.0)(X, LEVEL)


def test_a_learned_variance_is_that_of_the_condition():
    def twice(x, time, cond):
        return jnp.concatenate([x, x * process.align(cond.vector[:, 0], x)], -1)

    v = parameterization.v()
    denoise = denoiser.from_network(twice, v, learned_variance=True)
    guided = guidance.classifier_free(denoise, COND, NULL, 5.0)(X, LEVEL)
    assert_array_equal(guided.variance, denoise(X, LEVEL, COND).variance)
