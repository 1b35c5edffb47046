"""Laws of the forward process."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose

from diffusion_jax.diffusion import process


def level_of(alpha, sigma):
    alpha, sigma = jnp.asarray(alpha), jnp.asarray(sigma)
    return process.NoiseLevel(alpha, sigma, jnp.zeros_like(alpha))


def test_noised_data_has_the_mean_and_variance_of_its_level():
    level = level_of([0.9, 0.2], [0.3, 2.0])
    eps = jax.random.normal(jax.random.key(0), (2, 100_000))
    x = process.add_noise(jnp.full_like(eps, 1.5), eps, level)
    assert_allclose(x.mean(1), 1.5 * level.alpha, atol=0.02)
    assert_allclose(x.std(1), level.sigma, rtol=0.01)


def test_a_level_per_example_is_the_same_as_one_example_at_a_time():
    level = level_of([0.9, 0.2], [0.3, 2.0])
    x0, eps = jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 3))
    each = jax.vmap(process.add_noise)(x0, eps, level)
    assert_allclose(process.add_noise(x0, eps, level), each, rtol=1e-6)


def test_from_x0_inverts_add_noise():
    level = level_of([0.9, 0.2], [0.3, 2.0])
    x0, eps = jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 3))
    x = process.add_noise(x0, eps, level)
    assert_allclose(process.from_x0(x, x0, level).eps, eps, atol=1e-5)


def test_snr_and_logsnr_agree_and_are_infinite_only_at_the_ends():
    level = level_of([1.0, 0.8, 0.0], [0.0, 0.6, 1.0])
    assert_allclose(jnp.log(process.snr(level)), process.logsnr(level), rtol=1e-6)
    assert_allclose(process.logsnr(level), [np.inf, np.log(16 / 9), -np.inf], rtol=1e-6)
