"""Laws of the grids that are even in a function of the noise."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from diffusion_jax.diffusion import grids, process, schedules

TABLE = schedules.Discrete()
# Here times are sigma / alpha.
EXPLODING = schedules.VarianceExploding(t_min=0.01, t_max=50.0)
SHAPES = {
    "karras": grids.karras,
    "exponential": grids.exponential,
    "polyexponential": functools.partial(grids.polyexponential, rho=2),
    "beta": functools.partial(grids.beta, over="noise"),
    "laplace": grids.laplace,
    "kl_optimal": grids.kl_optimal,
}


@pytest.fixture(params=SHAPES)
def grid(request):
    return SHAPES[request.param]


def test_the_ends_are_the_schedules_own_unless_given(grid):
    for schedule in (TABLE, EXPLODING):
        times = grid(schedule, 7)
        assert (times[0], times[-2]) == (schedule.t_max, np.float32(schedule.t_min))
        assert np.all(np.diff(times) < 0)
    times = grid(EXPLODING, 7, sigma_min=0.1, sigma_max=5)
    assert_allclose(times[np.asarray([0, -2])], [5, 0.1], rtol=1e-5)


def test_they_visit_the_same_noise_whatever_the_schedule(grid):
    expected = grid(EXPLODING, 7, sigma_min=0.05, sigma_max=10)[:-1]
    for schedule in (TABLE, schedules.RectifiedFlow()):
        level = schedule(grid(schedule, 7, sigma_min=0.05, sigma_max=10)[:-1])
        assert_allclose(level.sigma / level.alpha, expected, rtol=2e-4)


def test_one_step_starts_at_the_most_noise(grid):
    if grid is grids.laplace:
        pytest.skip("its one quantile is the median")
    assert_allclose(grid(EXPLODING, 1), [50, 0], rtol=1e-6)


def test_ends_may_be_those_of_another_grid():
    shifted = functools.partial(grids.leading, offset=0)
    for within in ("leading", "trailing", "linspace", shifted):
        selected = within if callable(within) else grids.GRIDS[within]
        even = np.asarray(selected(TABLE, 8))
        for name in ("karras", "exponential", "polyexponential", "beta"):
            times = np.asarray(grids.GRIDS[name](TABLE, 8, within=within))
            assert_array_equal(times[[0, -2]], even[[0, -2]])


def test_each_is_even_in_its_function_of_the_noise():
    for name, function in (
        ("karras", lambda sigma: sigma ** (1 / 7)),
        ("exponential", np.log),
        ("kl_optimal", np.arctan),
    ):
        times = np.asarray(SHAPES[name](EXPLODING, 20)[:-1], float)
        steps = np.diff(function(times))
        assert_allclose(steps, steps.mean(), rtol=2e-4)
    logs = np.log(np.asarray(SHAPES["polyexponential"](EXPLODING, 20)[:-1], float))
    share = (logs - logs[-1]) / (logs[0] - logs[-1])
    assert_allclose(np.diff(np.sqrt(share)), -1 / 19, rtol=1e-3)


def test_powers_of_one_and_large_powers_are_other_grids():
    exponential = grids.exponential(EXPLODING, 12)
    assert_allclose(grids.polyexponential(EXPLODING, 12), exponential, rtol=1e-5)
    assert_allclose(grids.karras(EXPLODING, 12, rho=1e5), exponential, rtol=1e-3)
    evenly = np.linspace(50, 0.01, 12)
    assert_allclose(grids.karras(EXPLODING, 12, rho=1)[:-1], evenly, rtol=1e-5)
    assert_allclose(grids.beta(EXPLODING, 12, alpha=1, beta=1)[:-1], evenly, rtol=1e-4)
    assert_allclose(grids.uniform_logsnr(EXPLODING, 12), exponential, rtol=1e-4)


def test_beta_visits_quantiles_of_its_distribution():
    for alpha, beta in ((0.6, 0.6), (2.0, 0.5)):
        options = dict(alpha=alpha, beta=beta, sigma_min=1.0, sigma_max=3.0)
        times = grids.beta(EXPLODING, 20, over="noise", **options)[:-1]
        expected = 1 + 2 * stats.beta.ppf(np.linspace(1, 0, 20), alpha, beta)
        assert_allclose(times, expected, rtol=1e-5)


def test_beta_is_of_time_unless_asked_to_be_of_noise():
    times = grids.beta(TABLE, 9)[:-1]
    share = stats.beta.ppf(np.linspace(1, 0, 9), 0.6, 0.6)
    assert_allclose(times, 1 + 999 * share, rtol=1e-5)
    # Both ends are dense, and alike.
    assert_allclose(times + times[::-1], 1001, rtol=1e-5)


def test_laplace_visits_quantiles_between_its_ends():
    times = grids.laplace(EXPLODING, 21, mu=0.5, b=0.3)[:-1]
    u = np.linspace(1, 0, 21)[1:-1]
    assert_allclose(np.log(times[1:-1]), stats.laplace.ppf(u, 0.5, 0.3), atol=1e-5)


def test_over_time_the_times_themselves_are_shaped():
    flow = schedules.RectifiedFlow()
    options = dict(sigma_min=0.01, sigma_max=0.9)
    for name in ("karras", "exponential", "beta"):
        over_time = grids.GRIDS[name](flow, 8, over="time", **options)
        expected = grids.GRIDS[name](EXPLODING, 8, over="noise", **options)
        assert_allclose(over_time, expected, rtol=1e-5)


def test_vp_visits_the_noise_of_its_sde_at_even_times():
    schedule = schedules.VariancePreserving()
    even = grids.linspace(schedule, 10)
    assert_allclose(grids.vp(schedule, 10), even, rtol=1e-4)
    exploding = schedules.VarianceExploding(t_max=200.0)
    level = schedule(even)
    assert_allclose(grids.vp(exploding, 10), level.sigma / level.alpha, rtol=1e-4)


def test_crash_has_the_square_of_a_sine_as_noise():
    schedule = schedules.Cosine(s=0.0)
    level = schedule(grids.crash(schedule, 8)[:-1])
    assert_allclose(
        level.sigma, np.sin(np.pi / 2 * np.linspace(1, 0, 9)[:-1]) ** 2, 1e-5
    )


def test_kl_optimal_is_even_in_the_angle_of_a_cosine():
    # sigma / alpha = tan(angle): there it is even in time.
    schedule = schedules.Cosine(s=0.0)
    times = grids.kl_optimal(schedule, 9, sigma_min=0.01, sigma_max=50)[:-1]
    assert_allclose(np.diff(times), np.diff(times).mean(), rtol=1e-4)


def test_the_published_ten_steps_are_visited_and_others_lie_between():
    schedule = schedules.VarianceExploding(t_max=700.0)
    for model in ("sd15", "sdxl", "svd"):
        ten = np.asarray(grids.align_your_steps(schedule, 10, model=model))
        twenty = np.asarray(grids.align_your_steps(schedule, 20, model=model))
        assert_allclose(twenty[:-1:2], ten[:-1], rtol=1e-5)
        middle = np.sqrt(ten[:-2] * ten[1:-1])
        assert_allclose(twenty[1:-3:2], middle, rtol=1e-5)
        five = grids.align_your_steps(schedule, 5, model=model)
        assert_allclose(five[:-1], ten[:-1:2], rtol=1e-5)


def test_the_published_whole_steps_are_close_to_their_noise():
    for model in ("sd15", "sdxl"):
        whole = grids.align_your_steps(TABLE, 10, model=model, whole=True, end=1)
        real = grids.align_your_steps(TABLE, 10, model=model, end=1)
        assert_allclose(whole, real, atol=2)
        assert_array_equal(whole, np.round(whole))


def test_impossible_noise_grids_are_refused():
    with pytest.raises(ValueError, match="unknown over 'sigma'; one of"):
        grids.karras(TABLE, 10, over="sigma")
    with pytest.raises(ValueError, match="unknown within 'karras'"):
        grids.exponential(TABLE, 10, within="karras")
    for name, grid in SHAPES.items():
        with pytest.raises(ValueError, match=f"{name} needs 0 < sigma_min < sigma_max"):
            grid(TABLE, 10, sigma_min=20)
    with pytest.raises(ValueError, match="beta needs alpha, beta > 0"):
        grids.beta(TABLE, 10, alpha=0)
    with pytest.raises(ValueError, match="do not fit Discrete"):
        grids.vp(TABLE, 50)
    with pytest.raises(ValueError, match="do not fit Discrete"):
        grids.align_your_steps(TABLE, 10, model="svd")
    with pytest.raises(ValueError, match="unknown model 'flux'; one of .*sdxl"):
        grids.align_your_steps(TABLE, 10, model="flux")
    with pytest.raises(ValueError, match="unknown model 'svd'; one of"):
        grids.align_your_steps(TABLE, 10, model="svd", whole=True)
    with pytest.raises(ValueError, match="published for 10 only, got 20"):
        grids.align_your_steps(TABLE, 20, whole=True)


def test_logsnr_is_even_within_given_ends():
    times = grids.uniform_logsnr(TABLE, 10, logsnr_min=-5, logsnr_max=5, end=1)
    logsnr = process.logsnr(TABLE(times[:-1]))
    assert_allclose(logsnr, np.linspace(-5, 5, 10), atol=2e-3)
    assert times[-1] == 1
