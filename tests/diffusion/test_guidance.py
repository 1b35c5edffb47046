"""Laws of guides: where the predictions come from, and what all rules share."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from diffusion_jax.diffusion import (
    denoiser,
    guidance,
    guidance_rules,
    guidance_scales,
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


RESCALE = guidance_rules.rescale(parameterization.v())
GUIDES = {
    "classifier_free": guidance.classifier_free,
    "two_scale": functools.partial(guidance.two_scale, image_scale=1.0),
    "apg": guidance.apg,
    "cfg_zero_star": guidance.cfg_zero_star,
    "rescaled": functools.partial(guidance.classifier_free, rescale=RESCALE),
    "limited": guidance.limited(guidance.classifier_free, above=0.1, up_to=10.0),
    "scheduled": guidance.scheduled(
        guidance.classifier_free, guidance_scales.cosine, SCHEDULE
    ),
}
# Each of these is classifier-free guidance of the same scale.
TRIVIAL = {
    "two_scale": lambda scale: functools.partial(guidance.two_scale, image_scale=scale),
    "apg": lambda _: functools.partial(guidance.apg, eta=1.0, threshold=math.inf),
    "normalized": lambda _: functools.partial(guidance.normalized, gamma=0.0),
    "rescaled": lambda _: functools.partial(
        guidance.classifier_free,
        rescale=guidance_rules.rescale(parameterization.eps(), 0.0),
    ),
    "limited": lambda _: guidance.limited(guidance.classifier_free),
    "scheduled": lambda _: guidance.scheduled(
        guidance.classifier_free, guidance_scales.constant, SCHEDULE
    ),
}


def repeated(cond, batch):
    return jax.tree.map(lambda a: jnp.repeat(a, batch, 0), cond)


@pytest.mark.parametrize("name", GUIDES)
def test_scale_one_is_the_conditional_model(name):
    guided = GUIDES[name](DENOISE, COND, NULL, 1.0)(X, LEVEL)
    plain = DENOISE(X, LEVEL, COND)
    assert_allclose(guided.x0, plain.x0, rtol=1e-5, atol=1e-6)
    assert_allclose(guided.eps, plain.eps, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", TRIVIAL)
def test_in_its_trivial_setting_it_is_classifier_free(name):
    guided = TRIVIAL[name](5.0)(DENOISE, COND, NULL, 5.0)(X, LEVEL)
    expected = guidance.classifier_free(DENOISE, COND, NULL, 5.0)(X, LEVEL)
    assert_allclose(guided.x0, expected.x0, atol=2e-5)
    assert_allclose(guided.eps, expected.eps, atol=2e-5)


def test_scale_zero_is_the_unconditional_model():
    guided = guidance.classifier_free(DENOISE, COND, NULL, 0.0)(X, LEVEL)
    assert_allclose(guided.x0, DENOISE(X, LEVEL, repeated(NULL, 3)).x0, atol=1e-6)


def test_guidance_is_linear_in_its_scale():
    low, mid, high = (
        guidance.classifier_free(DENOISE, COND, NULL, s)(X, LEVEL).x0 for s in (1, 4, 7)
    )
    assert np.abs(low - high).max() > 0.1
    assert_allclose(mid, (low + high) / 2, atol=1e-5)


@pytest.mark.parametrize("name", GUIDES)
def test_guided_x0_and_eps_still_make_up_x(name):
    pred = GUIDES[name](DENOISE, COND, NULL, 7.5)(X, LEVEL)
    assert np.abs(pred.x0 - DENOISE(X, LEVEL, COND).x0).max() > 0.05
    assert_allclose(process.add_noise(pred.x0, pred.eps, LEVEL), X, atol=1e-5)


@pytest.mark.parametrize("name", GUIDES)
def test_equal_conditions_make_the_scale_irrelevant_to_all_rules(name):
    guided = GUIDES[name](DENOISE, COND, COND, 9.0)(X, LEVEL)
    assert_allclose(guided.eps, DENOISE(X, LEVEL, COND).eps, atol=1e-5)


@pytest.mark.parametrize("name", GUIDES)
def test_a_scale_and_a_level_per_example_act_on_their_own_example(name):
    scales, times = jnp.asarray([1.0, 3.0, 7.5]), jnp.asarray([100.0, 400.0, 990.0])
    together = GUIDES[name](DENOISE, COND, NULL, scales)(X, SCHEDULE(times))
    for i in range(3):
        one = slice(i, i + 1)
        cond = Conditioning(tokens=COND.tokens[one], vector=COND.vector[one])
        alone = GUIDES[name](DENOISE, cond, NULL, scales[i])
        pred = alone(X[one], SCHEDULE(times[i]))
        assert_allclose(together.x0[one], pred.x0, rtol=1e-5, atol=1e-4)
        assert_allclose(together.eps[one], pred.eps, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", guidance.GUIDANCE)
def test_the_network_runs_once_on_the_batches_together(name):
    batches = []

    def counted(x, time, cond):
        batches.append((len(x), len(time), len(cond.tokens)))
        return network(x, time, cond)

    denoise = denoiser.from_network(counted, parameterization.v())
    guidance.GUIDANCE[name](denoise, COND, NULL, 3.0)(X, LEVEL)
    assert batches == [(9, 9, 9) if name == "two_scale" else (6, 6, 6)]


def test_another_number_does_not_recompile():
    traces = []

    @jax.jit
    def guided(scale, phi, bound, eta):
        traces.append(scale)
        rescale = guidance_rules.rescale(parameterization.v(), phi)
        apg = functools.partial(guidance.apg, eta=eta, rescale=rescale)
        limited = guidance.limited(apg, up_to=bound)
        scheduled = guidance.scheduled(
            limited, guidance_scales.linear, SCHEDULE, least=1.0
        )
        return scheduled(DENOISE, COND, NULL, scale)(X, LEVEL).x0

    numbers = [(1.0, 0.7, 3.0, 0.0), (7.5, 0.3, 9.0, 1.0)]
    results = [guided(*some) for some in numbers]
    assert len(traces) == 1
    with jax.disable_jit():
        assert_allclose(results[1], guided(*numbers[1]), atol=1e-5)
    assert np.abs(results[0] - results[1]).max() > 0.1


def test_mismatched_conditions_are_refused():
    with pytest.raises(ValueError, match="both have 'vector'"):
        guidance.classifier_free(DENOISE, COND, NULL._replace(vector=None), 2.0)(
            X, LEVEL
        )
    with pytest.raises(ValueError, match="shape of 'tokens'"):
        short = NULL._replace(tokens=NULL.tokens[:, :2])
        guidance.classifier_free(DENOISE, COND, short, 2.0)(X, LEVEL)


@pytest.mark.parametrize("name", guidance.GUIDANCE)
def test_a_learned_variance_is_that_of_the_condition(name):
    def twice(x, time, cond):
        return jnp.concatenate([x, x * process.align(cond.vector[:, 0], x)], -1)

    v = parameterization.v()
    denoise = denoiser.from_network(twice, v, learned_variance=True)
    expected = denoise(X, LEVEL, COND).variance
    for guide in (guidance.GUIDANCE[name], guidance.limited(guidance.GUIDANCE[name])):
        guided = guide(denoise, COND, NULL, 5.0)(X, LEVEL)
        assert_array_equal(guided.variance, expected)


def test_text_and_image_have_a_scale_each():
    def network(x, time, cond):
        text = process.align(cond.tokens.mean((1, 2)), x)
        return jnp.tanh(x + text + cond.image)

    denoise = denoiser.from_network(network, parameterization.v())
    image = jax.random.normal(jax.random.key(3), X.shape)
    cond = Conditioning(tokens=COND.tokens, image=image)
    null = Conditioning(tokens=NULL.tokens, image=jnp.zeros_like(X[:1]))
    with_image = null._replace(image=image)

    def guided(scale, image_scale):
        make = guidance.two_scale(denoise, cond, null, scale, image_scale=image_scale)
        return make(X, LEVEL).x0

    def told(cond):
        return denoise(X, LEVEL, jax.tree.map(lambda a: a.repeat(3 // len(a), 0), cond))

    assert_allclose(guided(0.0, 0.0), told(null).x0, atol=1e-6)
    assert_allclose(guided(0.0, 1.0), told(with_image).x0, atol=1e-6)
    by_text = guided(4.0, 2.0) - guided(1.0, 2.0)
    assert_allclose(by_text, 3 * (told(cond).x0 - told(with_image).x0), atol=1e-5)
    by_image = guided(2.0, 4.0) - guided(2.0, 1.0)
    assert_allclose(by_image, 3 * (told(with_image).x0 - told(null).x0), atol=1e-5)


# ---- intervals -----------------------------------------------------------------------


def test_an_interval_is_open_below_and_closed_above():
    level = process.NoiseLevel(jnp.ones(3), jnp.asarray([0.5, 1.0, 2.0]), jnp.zeros(3))
    limited = guidance.limited(guidance.classifier_free, above=0.5, up_to=1.0)
    pred = limited(DENOISE, COND, NULL, 4.0)(X, level)
    plain = DENOISE(X, level, COND)
    guided = guidance.classifier_free(DENOISE, COND, NULL, 4.0)(X, level)
    assert_allclose(pred.x0[::2], plain.x0[::2], atol=1e-6)
    assert_allclose(pred.x0[1], guided.x0[1], atol=1e-6)
    assert np.abs(guided.x0 - plain.x0).min(axis=(1, 2, 3)).max() > 0


def test_outside_of_the_interval_the_network_runs_without_the_null():
    batches = []

    def counted(x, time, cond):
        jax.debug.callback(lambda: batches.append(len(x)))
        return network(x, time, cond)

    denoise = denoiser.from_network(counted, parameterization.v())
    limited = guidance.limited(guidance.classifier_free, above=0.3, up_to=3.0)
    cond = Conditioning(tokens=COND.tokens[:1], vector=COND.vector[:1])
    denoise_at = jax.jit(limited(denoise, cond, NULL, 4.0))
    for sigma in (0.1, 1.0, 5.0):
        level = process.NoiseLevel(*map(jnp.asarray, (1.0, sigma, 0.0)))
        jax.block_until_ready(denoise_at(X, level))
    jax.effects_barrier()
    assert batches == [3, 6, 3]


def test_pure_noise_lies_in_an_interval_without_an_end():
    level = process.NoiseLevel(*map(jnp.asarray, (0.0, 1.0, 0.0)))
    for up_to, scale in ((math.inf, 4.0), (1e6, 1.0)):
        limited = guidance.limited(guidance.classifier_free, up_to=up_to)
        pred = limited(DENOISE, COND, NULL, 4.0)(X, level)
        expected = guidance.classifier_free(DENOISE, COND, NULL, scale)(X, level)
        assert_allclose(pred.x0, expected.x0, atol=1e-5)


# ---- a weaker model ------------------------------------------------------------------


def test_a_model_guided_by_itself_is_itself():
    def denoise(x, level):
        return DENOISE(x, level, COND)

    pred = guidance.autoguidance(denoise, denoise, 3.0)(X, LEVEL)
    assert_allclose(pred.x0, denoise(X, LEVEL).x0, rtol=1e-6)


def test_guidance_by_the_unconditional_model_is_classifier_free():
    rule = functools.partial(guidance_rules.projected, eta=0.5, threshold=2.0)
    cond, null = (
        lambda x, level, told=told: DENOISE(x, level, told)
        for told in (COND, repeated(NULL, 3))
    )
    pred = guidance.autoguidance(cond, null, 3.0, rule=rule, rescale=RESCALE)(X, LEVEL)
    expected = guidance.by_rule(DENOISE, COND, NULL, 3.0, rule, rescale=RESCALE)
    assert_allclose(pred.x0, expected(X, LEVEL).x0, atol=1e-5)
