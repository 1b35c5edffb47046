"""The autoencoder treats every image alone and uses every parameter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw, draw_params

from diffusion_jax.models.autoencoder import AutoencoderKL

VAE = AutoencoderKL(channels=(8, 16), blocks_per_level=1, norm_groups=4)


@functools.cache
def parameters():
    return draw_params(VAE, draw(1, 6, 4, 3))


@functools.partial(jax.jit, static_argnums=(0, 1))
def apply(method, vae, params, x):
    return vae.apply({"params": params}, x, method=method)


def run(method, vae, x):
    return apply(method, vae, parameters(), x)


@pytest.mark.parametrize("method, channels", [("encode", 3), ("decode", 4)])
def test_an_image_does_not_depend_on_its_batch(method, channels):
    x, order = draw(3, 6, 4, channels), jnp.array([2, 1, 1])
    given = jax.tree.map(lambda y: y[order], run(method, VAE, x))
    close = functools.partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(close, given, run(method, VAE, x[order]))


def test_the_reconstruction_is_the_decoded_mean():
    x = draw(3, 6, 4, 3)
    mean, _ = run("encode", VAE, x)
    assert mean.shape == (3, 3, 2, 4)
    decoded = VAE.apply({"params": parameters()}, mean, method="decode")
    np.testing.assert_allclose(run("__call__", VAE, x), decoded, atol=1e-5)


def test_the_log_variance_stays_within_its_bounds():
    quant = {"kernel": jnp.zeros((1, 1, 8, 8)), "bias": 100 * jnp.ones(8)}
    for sign, bound in ((1, 20), (-1, -30)):
        bias = {"bias": sign * quant["bias"]}
        params = parameters() | {"quant_conv": quant | bias}
        _, logvar = apply("encode", VAE, params, draw(3, 6, 4, 3))
        np.testing.assert_array_equal(logvar, jnp.full_like(logvar, bound))


def test_bfloat16_is_close_to_float32():
    x = draw(3, 6, 4, 3)
    exact = run("__call__", VAE, x)
    rounded = run("__call__", VAE.clone(dtype="bfloat16"), x)
    assert rounded.dtype == jnp.float32
    error = jnp.linalg.norm(rounded - exact) / jnp.linalg.norm(exact)
    assert 1e-5 < error < 0.05


def test_every_parameter_matters_but_the_bias_of_the_keys():
    """A constant added to every key adds one to all scores of a query."""

    @jax.jit
    @jax.grad
    def gradient(params, x):
        mean, logvar = VAE.apply({"params": params}, x, method="encode")
        z = mean + 0.1 * logvar
        return jnp.square(VAE.apply({"params": params}, z, method="decode") - 1).mean()

    grads = gradient(parameters(), draw(2, 6, 4, 3))
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        matters = not name.endswith("to_k/bias")
        assert (jnp.abs(grad).max() > 1e-7) == matters, name


def test_sides_that_do_not_halve_are_an_error():
    with pytest.raises(ValueError, match="height 6, width 5: not multiples of 2"):
        jax.eval_shape(VAE.init, jax.random.key(0), draw(1, 6, 5, 3))
