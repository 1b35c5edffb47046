"""PSNR and SSIM against their definitions where these have closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from diffusion_jax.evaluation import reconstruction

# Compiled once a shape; one test below calls them as they are.
psnr, ssim = jax.jit(reconstruction.psnr), jax.jit(reconstruction.ssim)


def photos(count=4, size=24, seed=0):
    noise = np.random.default_rng(seed).normal(size=(count, size, size, 3))
    smooth = ndimage.gaussian_filter(noise, (0, 3, 3, 0))
    return (smooth / np.abs(smooth).max()).astype(np.float32)


@pytest.mark.parametrize("std", [0.01, 0.1, 0.5])
def test_psnr_of_gaussian_noise_is_its_closed_form(std):
    x = photos(count=8, size=64)
    noise = std * np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    # One image has 64 * 64 * 3 values: its mean square is known to 1.3 %, or 0.06 dB.
    expected = 20 * np.log10(2 / std)
    assert float(psnr(x, x + noise)) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("offset", [0.02, 0.3, 2.0])
def test_psnr_of_an_offset_is_exact(offset):
    x = photos()
    expected = 20 * np.log10(2 / offset)
    found = reconstruction.psnr_of_each(x, x - np.float32(offset))
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_psnr_of_opposite_extremes_is_zero_and_of_equal_images_infinite():
    white = np.ones((2, 4, 4, 3), np.float32)
    assert float(psnr(white, -white)) == 0
    assert float(psnr(white, white)) == np.inf


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_metrics_are_symmetric_and_blind_to_batch_order_and_flips(metric):
    x, y = photos(seed=0), photos(seed=1)
    value = float(metric(x, y))
    order = np.array([2, 0, 3, 1])
    for other in (
        metric(y, x),
        metric(x[order], y[order]),
        metric(x[:, ::-1], y[:, ::-1]),
        metric(x.swapaxes(1, 2), y.swapaxes(1, 2)),
        np.mean([metric(x[i : i + 1], y[i : i + 1]) for i in range(4)]),
    ):
        assert float(other) == pytest.approx(value, rel=1e-4)


def test_metrics_are_the_same_without_jit():
    x, y = photos(seed=0), photos(seed=1)
    assert float(reconstruction.psnr(x, y)) == pytest.approx(float(psnr(x, y)))
    eager = float(reconstruction.ssim(x, y))
    assert eager == pytest.approx(float(ssim(x, y)), abs=1e-5)


def test_psnr_is_the_mean_over_images_not_of_the_pooled_error():
    x = np.zeros((2, 8, 8, 3), np.float32)
    y = x + np.array([0.2, 0.002], np.float32)[:, None, None, None]
    assert float(psnr(x, y)) == pytest.approx((20 + 60) / 2, abs=1e-3)


def test_bfloat16_images_are_compared_in_float32():
    x = jnp.asarray(photos())
    rounded = x.astype(jnp.bfloat16)
    exact = float(psnr(x, rounded.astype(jnp.float32)))
    assert float(psnr(x, rounded)) == pytest.approx(exact, abs=1e-3)


def test_ssim_of_equal_images_is_one_and_noise_only_lowers_it():
    x = photos()
    noise = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    values = [float(ssim(x, x + s * noise)) for s in (0, 0.05, 0.2, 1)]
    assert values[0] == pytest.approx(1, abs=1e-6)
    assert values == sorted(values, reverse=True) and values[-1] < 0.3


@pytest.mark.parametrize("a, b", [(-1.0, 1.0), (-0.5, 0.2), (0.0, 0.9)])
def test_ssim_of_constant_images_is_the_luminance_term(a, b):
    x, y = (np.full((1, 16, 16, 3), v, np.float32) for v in (a, b))
    p, q = (a + 1) / 2, (b + 1) / 2
    expected = (2 * p * q + 0.01**2) / (p**2 + q**2 + 0.01**2)
    assert float(ssim(x, y)) == pytest.approx(expected, abs=1e-3)


def test_ssim_of_opposite_stripes_around_one_mean_is_negative():
    stripes = np.where(np.arange(32) % 2, 0.8, -0.8).astype(np.float32)
    x = np.broadcast_to(stripes[None, :, None, None], (1, 32, 32, 3))
    # The window sees a variance v = 0.4^2 on [0, 1] and the covariance -v.
    expected = (-2 * 0.16 + 0.03**2) / (2 * 0.16 + 0.03**2)
    assert float(ssim(x, -x)) == pytest.approx(expected, abs=1e-3)


def test_the_window_of_ssim_is_a_gaussian_of_standard_deviation_one_and_a_half():
    """A wave b cos(w i) that it blurs to b exp(-(1.5 w)^2 / 2) cos(w i), against grey."""
    i = np.arange(5, 59)  # where a window has its centre
    b, w = 0.05, 2 * np.pi / 6
    wave = (2 * b * np.cos(w * np.arange(64))).astype(np.float32)
    x = np.broadcast_to(wave[None, None, :, None], (1, 64, 64, 3))
    once, twice = np.exp(-((1.5 * w) ** 2) / 2), np.exp(-((3 * w) ** 2) / 2)
    mean = b * once * np.cos(w * i)
    variance = b**2 * (1 + twice * np.cos(2 * w * i)) / 2 - mean**2
    p, q = 0.5 + mean, 0.5
    luminance = (2 * p * q + 0.01**2) / (p**2 + q**2 + 0.01**2)
    expected = np.mean(luminance * 0.03**2 / (variance + 0.03**2))
    assert float(ssim(x, np.zeros_like(x))) == pytest.approx(expected, abs=2e-3)


def test_ssim_agrees_with_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    x, y = photos(seed=0), photos(seed=1)
    expected = [
        metrics.structural_similarity(
            *pair,
            data_range=1.0,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for pair in zip(x / 2 + 0.5, y / 2 + 0.5, strict=True)
    ]
    assert float(ssim(x, y)) == pytest.approx(np.mean(expected), abs=1e-5)


def test_ssim_of_images_smaller_than_its_window_is_refused():
    with pytest.raises(ValueError, match="11 pixels"):
        ssim(photos(size=10), photos(size=10))
