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


def test_the_multistep_solvers_leave_out_the_cleanest_of_one_step_more():
    even = heard(grids.linspace_open(STABLE_DIFFUSION, 20))[:-1]
    assert_array_equal(even[[0, 1, -1]], [999, 949, 50])
    leading = heard(grids.leading_open(STABLE_DIFFUSION, 20))[:-1]
    assert_array_equal(leading[[0, 1, -1]], [941, 894, 48])
    more = heard(grids.leading(STABLE_DIFFUSION, 21, end=0))[:-1]
    assert_array_equal(leading, more[:-1])
    more = heard(grids.linspace(STABLE_DIFFUSION, 21, rounded=True))[:-1]
    assert_array_equal(even, more[:-1])


def test_unclip_steps_are_those_of_its_release():
    schedule = schedules.Discrete("cosine")
    seven = heard(grids.linspace(schedule, 7, rounded=True))[:-1]
    assert_array_equal(seven, [999, 832, 666, 500, 333, 166, 0])
    many = heard(grids.linspace(schedule, 25, rounded=True))[:-1]
    assert_array_equal(many[[0, 1, 2, -2, -1]], [999, 957, 916, 42, 0])


def test_karras_steps_are_those_of_the_published_solvers():
    times = grids.karras(STABLE_DIFFUSION, 20)
    level = schedules.WholeTimes(STABLE_DIFFUSION)(times[:-1])
    assert_array_equal(level.time[jnp.asarray([0, 1, 2])], [999, 962, 921])
    assert_array_equal(level.time[-3:], [6, 2, 0])


def test_euler_starts_from_the_published_noise():
    level = STABLE_DIFFUSION(grids.leading(STABLE_DIFFUSION, 20)[0])
    assert_allclose(1 / level.alpha, 11.0736, rtol=1e-5)  # of x / alpha


def test_distilled_steps_are_those_of_latent_consistency_models():
    times = grids.distilled(STABLE_DIFFUSION, 4)
    assert_array_equal(heard(times)[:-1], [999, 759, 499, 259])
    all_of_them = grids.distilled(STABLE_DIFFUSION, 50)
    assert_array_equal(all_of_them, np.arange(1000, -1, -20))
    half = grids.distilled(STABLE_DIFFUSION, 25, strength=0.5)
    assert_array_equal(half, all_of_them[25:])


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


def test_steps_below_a_logsnr_are_not_visited():
    cosine = schedules.Discrete("cosine")
    times = grids.linspace_open(cosine, 10, logsnr_min=-10)
    first = process.logsnr(cosine(times[0] + jnp.arange(2.0)))
    assert first[0] >= -10 > first[1]
    smooth = schedules.Cosine()
    times = grids.linspace_open(smooth, 10, logsnr_min=-10)
    assert_allclose(process.logsnr(smooth(times[0])), -10, rtol=1e-4)


def test_quadratic_steps_grow_with_the_square():
    times = heard(grids.quadratic(STABLE_DIFFUSION, 10))[:-1]
    assert_array_equal(times[::-1], np.floor(800 / 81 * np.arange(10) ** 2 + 1e-9))
    many = grids.quadratic(STABLE_DIFFUSION, 100)
    assert many[-2] == many[-3] == 1  # the published code repeats the cleanest too
    assert np.all(np.diff(many) <= 0)


def test_given_times_and_noises_are_visited():
    flow = schedules.RectifiedFlow()
    assert_allclose(grids.explicit(flow, 3, times=(1, 0.7, 0.2)), [1, 0.7, 0.2, 0])
    times = grids.from_sigmas(flow, 2, sigmas=(9, 0.25), end=0.1)
    assert_allclose(times, [0.9, 0.2, 0.1], rtol=1e-6)


def test_every_grid_may_end_before_clean_data():
    needs = {
        "explicit": {"times": (900, 500, 20)},
        "from_sigmas": {"sigmas": (9, 5, 1)},
    }
    needs |= {"vp": {"beta_max": 10, "t_last": 0.1}, "align_your_steps": {}}
    for name in grids.GRIDS.keys() - {"crash", "resolution_shifted", "sd3"}:
        times = grids.GRIDS[name](STABLE_DIFFUSION, 3, end=0.5, **needs.get(name, {}))
        assert times.shape == (4,) and times[-1] == 0.5, name
        assert np.all(np.diff(times) < 0), name


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
    with pytest.raises(ValueError, match="end = -1 lies below clean data"):
        grids.leading(STABLE_DIFFUSION, 10, end=-1)
    with pytest.raises(ValueError, match="leading_open needs a schedule of whole"):
        grids.leading_open(flow, 10)
    with pytest.raises(ValueError, match="do not fit Discrete"):
        grids.leading_open(STABLE_DIFFUSION, 1000)
    with pytest.raises(ValueError, match="no step with a logsnr of 20"):
        grids.linspace_open(STABLE_DIFFUSION, 10, logsnr_min=20)
    with pytest.raises(ValueError, match="explicit of 3 steps was given 2 times"):
        grids.explicit(flow, 3, times=(1.0, 0.5))
    with pytest.raises(ValueError, match="no network is called at t = 0"):
        grids.explicit(flow, 2, times=(1.0, 0.0))
    with pytest.raises(ValueError, match="do not fit RectifiedFlow"):
        grids.explicit(flow, 2, times=(0.5, 0.7))
    with pytest.raises(ValueError, match="sigmas must be above 0"):
        grids.from_sigmas(flow, 2, sigmas=(0.5, 0.0))
    with pytest.raises(ValueError, match="60 steps of the 50 that strength 1.0"):
        grids.distilled(STABLE_DIFFUSION, 60)
    with pytest.raises(ValueError, match="original_steps must be 1 .. 1000"):
        grids.distilled(STABLE_DIFFUSION, 4, original_steps=2000)


def test_times_are_real_numbers():
    for grid in (grids.leading, grids.trailing, grids.karras):
        assert grid(STABLE_DIFFUSION, 4).dtype == jnp.float32
