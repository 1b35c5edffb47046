"""Every form of a convolution is the same function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models import convolution


def draw(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def plain(x, kernel, stride=1, padding=(1, 1)):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), (padding, padding), dimension_numbers=numbers
    )


@pytest.mark.parametrize(
    ("pixels", "size", "stride", "padding"),
    [
        ((2, 2), 3, 1, (1, 1)),  # patches
        ((1, 4), 3, 1, (0, 2)),
        ((6, 4), 3, 1, (1, 1)),  # XLA's own
        ((6, 4), 3, 2, (0, 1)),
        ((6, 4), 1, 1, (0, 0)),  # tiles
        ((7, 9), 4, 4, (0, 0)),
    ],
)
def test_every_form_is_the_plain_convolution(pixels, size, stride, padding):
    x, kernel = draw(2, *pixels, 3), draw(size, size, 3, 5, seed=1)
    y = convolution.convolve(x, kernel, stride, padding)
    np.testing.assert_allclose(y, plain(x, kernel, stride, padding), atol=1e-5)


def test_repeating_within_the_convolution_is_repeating_before_it():
    def together(x, kernel):
        return convolution.repeat_and_convolve(x, kernel)

    def apart(x, kernel):
        return plain(convolution.repeat_pixels(x), kernel)

    inputs = draw(2, 3, 5, 4), draw(3, 3, 4, 6, seed=1)
    weights = draw(2, 6, 10, 6, seed=2)
    results = []
    for form in (together, apart):

        def weighted(x, kernel, form=form):
            y = form(x, kernel)
            return jnp.sum(weights * y), y

        results.append(jax.grad(weighted, (0, 1), has_aux=True)(*inputs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), *results)


def test_repeated_pixels_fill_squares():
    x = draw(1, 2, 3, 2)
    y = convolution.repeat_pixels(x)
    for row in range(2):
        for column in range(2):
            np.testing.assert_array_equal(y[:, row::2, column::2], x)


def test_platform_follows_the_default_device():
    with jax.default_device(jax.devices("cpu")[0]):
        assert convolution.platform() == "cpu"
    with jax.default_device("cpu"):
        assert convolution.platform() == "cpu"
