"""Laws of shifted schedules and of those that networks hear in whole steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from diffusion_jax.diffusion import process, schedules
from diffusion_jax.diffusion.schedules import ShiftedSNR, WholeTimes

INSIDE = np.linspace(0.05, 0.95, 19, dtype=np.float32)


@jax.jit
def summary(t):
    """Of every schedule at these shares of t_max, in one program."""
    return {
        name: (schedule(t * schedule.t_max), shifted(t * schedule.t_max))
        for name, (schedule, shifted) in SHIFTED.items()
    }


BARE = {
    "table": schedules.Discrete(),
    "cosine": schedules.Cosine(),
    "laplace": schedules.Laplace(),
    "exploding": schedules.VarianceExploding(),
    "flow": schedules.RectifiedFlow(),
}
SHIFTED = {name: (bare, ShiftedSNR(bare, shift=-1.7)) for name, bare in BARE.items()}


@pytest.fixture(scope="module")
def levels():
    return summary(jnp.asarray(INSIDE))


def test_a_shift_adds_to_logsnr(levels):
    for before, after in levels.values():
        difference = process.logsnr(after) - process.logsnr(before)
        assert_allclose(difference, -1.7, rtol=1e-4)


def test_a_shift_keeps_what_alpha_and_sigma_keep(levels):
    for name in ("table", "cosine", "laplace"):
        _, level = levels[name]
        assert_allclose(level.alpha**2 + level.sigma**2, 1, rtol=1e-6)
    _, level = levels["flow"]
    assert_allclose(level.alpha + level.sigma, 1, rtol=1e-6)
    _, level = levels["exploding"]
    assert_allclose(level.alpha, 1, rtol=1e-6)


def test_the_network_hears_the_time_unless_asked_to_hear_the_noise(levels):
    for before, after in levels.values():
        assert_array_equal(before.time, after.time)
    for bare in (schedules.Discrete(), schedules.RectifiedFlow(time_scale=1000.0)):
        t = jnp.asarray(INSIDE * bare.t_max)
        level = ShiftedSNR(bare, shift=-0.3, hears_noise=True)(t)
        heard = bare.at_logsnr(process.logsnr(level)).time
        assert_allclose(heard, level.time, rtol=1e-5)
        assert np.all(level.time > bare(t).time)


def test_shifts_add_and_none_is_the_identity():
    for bare in (schedules.Cosine(), schedules.RectifiedFlow()):
        t = jnp.asarray(INSIDE)
        twice = ShiftedSNR(ShiftedSNR(bare, shift=1.5), shift=-2.0)(t)
        once = ShiftedSNR(bare, shift=-0.5)(t)
        for ours, expected in zip(twice, once, strict=True):
            assert_allclose(ours, expected, rtol=1e-5)
        for ours, expected in zip(ShiftedSNR(bare)(t), bare(t), strict=True):
            assert_allclose(ours, expected, rtol=1e-6)


def test_the_time_shift_of_a_flow_is_a_shift_of_logsnr():
    # Esser et al. (2024), eq. 23.
    s, t = 3.0, np.append(INSIDE, 1.0)
    flow = schedules.RectifiedFlow(time_scale=1000.0)
    shifted = ShiftedSNR(flow, shift=-2 * float(np.log(s)), hears_noise=True)
    level = shifted(jnp.asarray(t))
    assert_allclose(level.sigma, s * t / (1 + (s - 1) * t), rtol=1e-5)
    assert_allclose(level.time, 1000 * level.sigma, rtol=1e-5)


def test_larger_images_of_the_same_scene_are_shifted_by_their_resolution():
    # Averaged over d x d pixels, noise is d times weaker: as if not shifted.
    bare, d = schedules.Cosine(), 4
    shifted = ShiftedSNR(bare, shift=-2 * float(np.log(d)))
    level, expected = (f(jnp.asarray(INSIDE)) for f in (shifted, bare))
    assert_allclose(
        level.sigma / level.alpha / d, expected.sigma / expected.alpha, 1e-5
    )


def test_a_shifted_table_may_end_in_pure_noise():
    shifted = ShiftedSNR(schedules.Discrete(), shift=-1.0)
    level = schedules.ZeroTerminalSNR(shifted)(jnp.asarray([1.0, 1000.0]))
    assert_allclose(level.alpha[0], shifted(jnp.asarray(1.0)).alpha, rtol=1e-6)
    assert (level.alpha[1], level.sigma[1]) == (0.0, 1.0)


def test_only_what_the_network_hears_is_rounded():
    t = jnp.asarray([1.0, 1.4, 1.6, 500.0, 999.9, 1000.0])
    exact = schedules.Discrete()(t)
    for rounding, heard in (
        ("nearest", [0, 0, 1, 499, 999, 999]),
        ("down", [0, 0, 0, 499, 998, 999]),
        ("below", [0, 0, 0, 498, 998, 998]),
    ):
        level = WholeTimes(schedules.Discrete(), rounding)(t)
        assert_array_equal(level.time, heard)
        assert_array_equal(level.alpha, exact.alpha)
        assert_array_equal(level.sigma, exact.sigma)


def test_midpoints_are_heard_as_they_are():
    whole = WholeTimes(schedules.RectifiedFlow(time_scale=1000.0))
    logsnr = jnp.linspace(-3.0, 3.0, 7)
    exact = whole.wrapped.at_logsnr(logsnr)
    assert_array_equal(whole.at_logsnr(logsnr).time, exact.time)
    assert np.abs(exact.time - np.round(exact.time)).max() > 0.1


def test_an_unknown_rounding_raises():
    with pytest.raises(ValueError, match="unknown rounding 'up'; one of"):
        WholeTimes(schedules.Discrete(), "up")
