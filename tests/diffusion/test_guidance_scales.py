"""Laws of the curves that a guidance scale follows."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from numpy.testing import assert_allclose

from diffusion_jax.diffusion import guidance_scales, schedules
from diffusion_jax.diffusion.guidance_scales import CURVES

WAY = jnp.linspace(0, 1, 1001)
RISING = {"linear", "cosine", "power_cosine"}
FALLING = {"inverse_linear", "sine"}


@pytest.mark.parametrize("name", sorted(CURVES.keys() - {"power_cosine"}))
def test_a_curve_spends_as_much_guidance_as_a_constant(name):
    curve = np.asarray(CURVES[name](WAY), np.float64)
    assert_allclose(np.trapezoid(curve, WAY), 1, atol=1e-4)
    assert np.all(curve >= 0)


def test_curves_rise_and_fall_as_they_say():
    steps = {name: np.diff(curve(WAY)) for name, curve in CURVES.items()}
    for name in RISING:
        assert np.all(steps[name] >= 0) and steps[name].sum() >= 1
    for name in FALLING:
        assert np.all(steps[name] <= 0) and steps[name].sum() == -2
    assert steps["v_shape"][0] < 0 < steps["v_shape"][-1]
    assert steps["lambda_shape"][0] > 0 > steps["lambda_shape"][-1]


def test_mirrored_curves_add_up_to_twice_the_constant():
    for one, other in (
        ("linear", "inverse_linear"),
        ("cosine", "sine"),
        ("v_shape", "lambda_shape"),
    ):
        assert_allclose(CURVES[one](WAY) + CURVES[other](WAY), 2, atol=1e-6)


def test_power_cosine_of_one_is_half_a_cosine():
    assert_allclose(
        2 * guidance_scales.power_cosine(WAY, power=1), CURVES["cosine"](WAY), atol=1e-6
    )


def test_beta_is_the_density_of_a_beta_distribution():
    for a, b in ((1, 1), (2, 2), (3, 2), (1, 4)):
        expected = scipy.stats.beta.pdf(np.asarray(WAY), a, b)
        assert_allclose(guidance_scales.beta(WAY, a=a, b=b), expected, atol=1e-5)


def test_the_way_is_the_share_of_t(schedule):
    """So that a curve is read at 1 - t / t_max, whatever the schedule."""
    ts = jnp.asarray([0.05, 0.3, 0.75, 1.0]) * schedule.t_max
    scale_at = guidance_scales.along(CURVES["linear"], schedule, 5.0)
    expected = 1 + 4 * 2 * (1 - ts / schedule.t_max)
    # cosine betas have sigma / alpha beyond what float32 inverts to t at the end
    assert_allclose(scale_at(schedule(ts)), expected, atol=5e-3)


def test_the_clamp_is_on_what_is_added_to_the_condition():
    schedule = schedules.RectifiedFlow()
    clamped = guidance_scales.along(CURVES["linear"], schedule, 9.0, least=2.0)
    levels = schedule(jnp.asarray([1.0, 0.9, 0.5]))
    assert_allclose(clamped(levels), [3.0, 3.0, 9.0], rtol=1e-5)


def test_a_curve_may_start_at_the_unconditional_model():
    schedule = schedules.RectifiedFlow()
    beta = functools.partial(guidance_scales.beta, a=2, b=2)
    scale_at = guidance_scales.along(beta, schedule, 4.0, start=0)
    assert_allclose(scale_at(schedule(jnp.asarray([1.0, 0.5]))), [0, 6], atol=1e-5)


def test_curves_follow_on_one_another():
    schedule = schedules.RectifiedFlow()
    level = schedule(jnp.asarray(0.75))
    twice = guidance_scales.along(
        CURVES["linear"],
        schedule,
        guidance_scales.along(CURVES["cosine"], schedule, 4.0),
    )
    expected = 1 + 3 * 0.5 * (1 - np.cos(np.pi / 4))
    assert_allclose(twice(level), expected, rtol=1e-5)
