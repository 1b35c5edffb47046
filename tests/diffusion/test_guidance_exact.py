"""Guidance on mixtures whose densities are known, with and without their label."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose

from diffusion_jax.diffusion import guidance, mixture, process, schedules
from diffusion_jax.types import Conditioning

DATA = mixture.Mixture(
    jnp.asarray([0.5, 0.2, 0.3]),
    jnp.asarray([[0.0, 1.0], [-1.0, 0.5], [2.0, -0.5]]),
    jnp.asarray([[0.3, 0.1], [0.2, 0.5], [0.4, 0.4]]),
)
LABELS = jnp.asarray([0, 2, 1, 1, 0, 2])
X = jax.random.normal(jax.random.key(0), (6, 2))
# The vector of a condition says how likely each component is.
COND = Conditioning(vector=jax.nn.one_hot(LABELS, 3))
NULL = Conditioning(vector=DATA.weights[None])


def conditional(x, level, cond):
    def one(x, weights, level):
        pred = mixture.denoise(DATA._replace(weights=weights), x[None], level)
        return jax.tree.map(lambda a: a[0], pred)

    level = jax.tree.map(lambda a: jnp.broadcast_to(a, len(x)), level)
    return jax.vmap(one)(x, cond.vector, level)


def unconditional(x, level):
    return mixture.denoise(DATA, x, level)


def log_density(x, level):
    return mixture.log_density(DATA, x, level)


def log_prob(x, level):
    """log p(label | x), from Bayes' rule."""
    components = [
        mixture.log_density(
            mixture.Mixture(jnp.ones(1), DATA.means[k : k + 1], DATA.stds[k : k + 1]),
            x,
            level,
        )
        for k in range(3)
    ]
    joint = jnp.log(DATA.weights) + jnp.stack(components, 1)
    return jnp.take_along_axis(joint, LABELS[:, None], 1)[:, 0] - log_density(x, level)


def check(guided, scale, level):
    """The score must be that of p(x) * p(label | x)**scale."""

    def total(x):
        return jnp.sum(log_density(x, level) + scale * log_prob(x, level))

    pred = guided(X, level)
    score = jax.grad(total)(X)
    assert_allclose(pred.eps, -level.sigma * score, rtol=1e-3, atol=1e-3)
    assert_allclose(process.add_noise(pred.x0, pred.eps, level), X, atol=1e-3)


def test_classifier_free_guidance_sharpens_the_label(schedule):
    level = schedule(jnp.asarray(0.5 * schedule.t_max))
    for scale in (0.0, 1.0, 4.0):
        check(guidance.classifier_free(conditional, COND, NULL, scale), scale, level)


def test_the_exact_classifier_does_what_its_absence_does(schedule):
    level = schedule(jnp.asarray(0.5 * schedule.t_max))
    for scale in (0.0, 1.0, 4.0):
        guided = guidance.classifier_gradient(unconditional, log_prob, scale)
        check(guided, scale, level)


def test_a_scale_per_example_steers_its_own_example():
    level = schedules.RectifiedFlow()(jnp.linspace(0.3, 0.8, 6))
    scales = jnp.linspace(0, 5, 6)
    by_gradient = guidance.classifier_gradient(unconditional, log_prob, scales)
    by_null = guidance.classifier_free(conditional, COND, NULL, scales)
    assert_allclose(
        by_gradient(X, level).x0, by_null(X, level).x0, rtol=1e-3, atol=1e-4
    )


def test_pure_noise_is_left_alone_by_a_classifier():
    level = schedules.RectifiedFlow()(jnp.asarray(1.0))

    def sure_of_noise(x, level):
        return x.sum(1)

    guided = guidance.classifier_gradient(unconditional, sure_of_noise, 3.0)
    pred, plain = guided(X, level), unconditional(X, level)
    assert_allclose(pred.x0, plain.x0)
    assert_allclose(pred.eps, plain.eps)


def test_two_scales_sharpen_each_its_own_evidence():
    """The score is that of p(x) * p(image | x)**s_i * p(text | x, image)**s_t.

    The image says that the component is not the last one; the text says which.
    """
    level = schedules.Cosine()(jnp.asarray(0.4))
    labels = jnp.asarray([0, 1, 1, 0, 0, 1])
    first_two = jnp.asarray([5 / 7, 2 / 7, 0.0])

    def denoise(x, level, cond):
        # Text is a one-hot label or zeros; an image of ones rules out the last.
        seen = cond.image[:, 0, 0, :1]
        prior = seen * first_two + (1 - seen) * DATA.weights
        told = cond.vector.sum(1, keepdims=True)
        weights = told * cond.vector + (1 - told) * prior
        return conditional(x, level, Conditioning(vector=weights))

    ones = jnp.ones((6, 1, 1, 1))
    cond = Conditioning(vector=jax.nn.one_hot(labels, 3), image=ones)
    null = Conditioning(vector=jnp.zeros((1, 3)), image=0 * ones)
    guided = guidance.two_scale(denoise, cond, null, 3.0, image_scale=2.0)

    def density(weights, x):
        def of(weights, x):
            return mixture.log_density(
                DATA._replace(weights=jnp.maximum(weights, 1e-30)), x[None], level
            )[0]

        return jax.vmap(of)(jnp.broadcast_to(weights, (6, 3)), x)

    def total(x):
        image = density(first_two, x) - density(DATA.weights, x)
        text = density(cond.vector, x) - density(first_two, x)
        return jnp.sum(density(DATA.weights, x) + 2.0 * image + 3.0 * text)

    score = jax.grad(total)(X)
    assert_allclose(guided(X, level).eps, -level.sigma * score, rtol=1e-3, atol=1e-3)


def test_a_worse_model_of_the_same_data_points_to_its_core():
    """Guided by wider Gaussians, x0 is nearer to the mean than the truth's."""
    level = schedules.VarianceExploding()(jnp.asarray(1.0))
    good = mixture.Mixture(jnp.ones(1), jnp.zeros((1, 2)), jnp.full((1, 2), 0.5))
    weak = good._replace(stds=2 * good.stds)
    guided = guidance.autoguidance(
        functools.partial(mixture.denoise, good),
        functools.partial(mixture.denoise, weak),
        2.0,
    )
    # The gains are 1/5 and 1/2, so guided to 2/5 - 1/2.
    assert_allclose(guided(X, level).x0, -0.1 * X, atol=1e-5)
    assert np.all(np.abs(guided(X, level).x0) < np.abs(0.2 * X))
