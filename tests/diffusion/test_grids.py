"""Laws of the grids, and the timesteps that the published samplers visit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from diffusion_jax.diffusion import grids, process, schedules

STABLE_DIFFUSION = schedules.Discrete()
SPAN = {"logsnr_min": -5, "logsnr_max": 6}
RATIOS = {"sigma_min": 0.05, "sigma_max": 10}


def heard(times):
    """Timesteps as networks and the published code count them."""
    return np.asarray(times) - 1


@pytest.mark.parametrize(
    ("grid", "first_to_last"),
    [
        (grids.leading, [801, 601, 401, 201, 1]),
        (grids.trailing, [999, 799, 599, 399, 199]),
        (lambda *a: grids.linspace(*a, rounded=True), [999, 749, 500, 250, 0]),
    ],
)
def test_five_steps_are_those_of_the_published_samplers(grid, first_to_last):
    assert_array_equal(heard(grid(STABLE_DIFFUSION, 5))[:-1], first_to_last)


def test_fifty_steps_start_where_the_published_samplers_start():
    leading = heard(grids.leading(STABLE_DIFFUSION, 50))
    trailing = heard(grids.trailing(STABLE_DIFFUSION, 50))
    assert (leading[0], leading[-2], leading[-1]) == (981, 1, 0)
    assert (trailing[0], trailing[-2], trailing[-1]) == (999, 19, -1)


@pytest.mark.parametrize("steps", [1, 7, 50])
@pytest.mark.parametrize(
    "grid",
    [
        grids.trailing,
        grids.linspace,
        lambda *a: grids.karras(*a, **RATIOS),
        lambda *a: grids.uniform_logsnr(*a, **SPAN),
    ],
)
def test_grids_fall_strictly_from_the_noise_to_clean_data(schedule, grid, steps):
    times = grid(schedule, steps)
    assert times.shape == (steps + 1,)
    assert times[-1] == 0
    assert np.all(np.diff(times) < 0)
    assert times[0] <= schedule.t_max


def test_leading_falls_strictly_to_its_end():
    for steps in (1, 3, 50, 999):
        times = grids.leading(STABLE_DIFFUSION, steps)
        assert np.all(np.diff(times) < 0)
        assert times[-1] == 1


def test_trailing_and_linspace_start_at_the_most_noise(schedule):
    for grid in (grids.trailing, grids.linspace):
        assert_allclose(grid(schedule, 10)[0], schedule.t_max)
    assert_allclose(grids.linspace(schedule, 10)[-2], schedule.t_min, rtol=1e-6)


def test_whole_steps_stay_whole():
    for steps in (3, 7, 30, 999):
        times = np.asarray(grids.trailing(STABLE_DIFFUSION, steps))
        assert_array_equal(times, np.round(times))


def test_karras_is_even_in_a_root_of_the_noise():
    times = grids.karras(schedules.VarianceExploding(), 10)
    assert_allclose(np.diff(times[:-1] ** (1 / 7), n=2), 0, atol=1e-6)
    assert_allclose([times[0], times[-2]], [80, 0.002], rtol=1e-5)


def test_karras_visits_the_same_noise_whatever_the_schedule(schedule):
    levels = schedule(grids.karras(schedule, 10, **RATIOS)[:-1])
    ratios = grids.karras(schedules.VarianceExploding(), 10, **RATIOS)[:-1]
    assert_allclose(levels.sigma / levels.alpha, ratios, rtol=2e-4)


def test_uniform_logsnr_is_even_in_logsnr(schedule):
    levels = schedule(grids.uniform_logsnr(schedule, 10, **SPAN)[:-1])
    assert_allclose(process.logsnr(levels), np.linspace(-5, 6, 10), atol=2e-3)


def test_grids_are_constants_under_jit(schedule):
    for grid in (grids.trailing, grids.linspace):
        compiled = jax.jit(lambda grid=grid: grid(schedule, 10))
        assert_array_equal(compiled(), grid(schedule, 10))
    compiled = jax.jit(lambda: grids.uniform_logsnr(schedule, 10, **SPAN))
    assert_array_equal(compiled(), grids.uniform_logsnr(schedule, 10, **SPAN))
    assert "scan" not in str(jax.make_jaxpr(compiled)())


def test_impossible_grids_are_refused():
    flow = schedules.RectifiedFlow()
    with pytest.raises(ValueError, match="whole steps.*RectifiedFlow.*trailing"):
        grids.leading(flow, 10)
    with pytest.raises(ValueError, match="rounded needs"):
        grids.linspace(flow, 10, rounded=True)
    with pytest.raises(ValueError, match="at least one step, got 0"):
        grids.trailing(flow, 0)
    with pytest.raises(ValueError, match="do not fit Discrete.*ends at t = 1000"):
        grids.trailing(STABLE_DIFFUSION, 1001)
    with pytest.raises(ValueError, match="do not fit Discrete.*ends at t = 1000"):
        grids.leading(STABLE_DIFFUSION, 1000)
    with pytest.raises(ValueError, match="do not fit Discrete"):
        grids.karras(STABLE_DIFFUSION, 10, sigma_min=0.03, sigma_max=80)
    with pytest.raises(ValueError, match="end = 3 lies above"):
        grids.leading(STABLE_DIFFUSION, 10, end=3)
    with pytest.raises(ValueError, match="give them by name"):
        grids.uniform_logsnr(flow, 10)
    with pytest.raises(ValueError, match="give them by name"):
        grids.karras(schedules.ZeroTerminalSNR(), 10)


def test_times_are_real_numbers():
    for grid in (grids.leading, grids.trailing, grids.karras):
        assert grid(STABLE_DIFFUSION, 4).dtype == jnp.float32
