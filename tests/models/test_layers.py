"""Norms normalise, sinusoids rotate, activations are what they approximate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from diffusion_jax.models import layers


def draw(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def group_norm(x, **options):
    norm = layers.GroupNorm(**options)
    return norm.apply(norm.init(jax.random.key(0), x), x)


def test_group_norm_gives_every_group_mean_zero_and_variance_one():
    x = 3 + 2 * draw(2, 4, 5, 12)
    y = group_norm(x, groups=3).reshape(2, 20, 3, 4)
    np.testing.assert_allclose(y.mean((1, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(y.var((1, 3)), 1, atol=1e-4)


def test_group_norm_forgets_the_scale_and_the_mean_of_a_group():
    x = draw(2, 4, 4, 6)
    scale = jnp.repeat(jnp.array([2.0, 0.5, 7.0]), 2)
    y = group_norm(scale * x + 3 * scale, groups=3)
    np.testing.assert_allclose(y, group_norm(x, groups=3), atol=1e-3)


def test_group_norm_of_a_constant_is_zero():
    y = group_norm(jnp.full((1, 4, 4, 4), 7.0), groups=2)
    np.testing.assert_allclose(y, 0, atol=1e-3)


def test_group_norm_computes_in_float32_whatever_its_dtype():
    x = draw(2, 4, 4, 8)
    y = group_norm(x.astype("bfloat16"), groups=4, dtype="bfloat16")
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype("float32"), group_norm(x, groups=4), atol=0.03)


def test_group_norm_wants_whole_groups():
    with pytest.raises(ValueError, match="10 channels do not split in 4 groups"):
        group_norm(jnp.zeros((1, 2, 2, 10)), groups=4)


def test_products_of_sinusoids_depend_on_the_distance_alone():
    times = jnp.array([0.0, 3.0, 17.5, 200.0])
    here = layers.sinusoid(times, 16)
    there = layers.sinusoid(times + 4, 16)
    products = jnp.sum(here * there, -1)
    np.testing.assert_allclose(products, products[0], rtol=1e-4)


def test_sinusoid_starts_with_the_fastest_cosine():
    times = jnp.array([0.0, 1.0])
    y = layers.sinusoid(times, 8)
    np.testing.assert_allclose(y[0], [1] * 4 + [0] * 4)
    np.testing.assert_allclose(y[1, 0], np.cos(1.0), rtol=1e-6)
    np.testing.assert_allclose(y[1, 7], np.sin(1e-3), rtol=1e-4)


def test_sinusoid_wants_an_even_width():
    with pytest.raises(ValueError, match="even width, not 7"):
        layers.sinusoid(jnp.zeros(2), 7)


def test_gelu_is_exact_and_quick_gelu_is_near():
    x = jnp.linspace(-6, 6, 101)
    exact = np.asarray(x) * scipy.special.ndtr(np.asarray(x, np.float64))
    np.testing.assert_allclose(layers.gelu(x), exact, atol=2e-6)
    distance = np.abs(layers.quick_gelu(x) - exact).max()
    assert 1e-3 < distance < 0.03


def test_a_convolution_keeps_its_dtype_and_its_parameters_float32():
    x = draw(1, 4, 4, 3)
    conv = layers.Conv(5, dtype="bfloat16")
    params = conv.init(jax.random.key(0), x)
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    y = conv.apply(params, x)
    assert y.dtype == jnp.bfloat16
    exact = layers.Conv(5).apply(params, x)
    np.testing.assert_allclose(y.astype("float32"), exact, atol=0.03)
