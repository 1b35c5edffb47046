"""Laws of the training times."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from numpy.testing import assert_allclose

from diffusion_jax.diffusion import process, schedules, time_samplers
from diffusion_jax.diffusion.time_samplers import DRAWS, QUANTILES, drawn

KEY = jax.random.key(6)
FLOW = schedules.RectifiedFlow(t_min=0.0)
NUM = 2001
MIDPOINTS = (np.arange(NUM) + 0.5) / NUM


def midpoints(key, num):
    return jnp.asarray((np.arange(num) + 0.5) / num, float)


# ---- on the schedule ----------------------------------------------------------------


@pytest.mark.parametrize("name", QUANTILES)
def test_training_times_lie_on_the_schedule(schedule, name):
    t, weight = drawn(QUANTILES[name])(KEY, 4096, schedule)
    assert t.shape == weight.shape == (4096,)
    assert t.dtype == jnp.float32
    assert np.all(t >= schedule.t_min)
    assert np.all(t <= schedule.t_max)
    assert np.all(weight == 1)


@pytest.mark.parametrize("name", QUANTILES)
def test_times_are_finite_and_noisier_as_u_grows_to_its_very_ends(schedule, name):
    u = jnp.asarray([0, *MIDPOINTS, 1], jnp.float32)
    t = QUANTILES[name](u, schedule)
    assert np.all(np.isfinite(t))
    # Neighbours may differ by the rounding of an inverse.
    assert np.all(np.diff(t) >= -1e-6 * schedule.t_max)
    assert t[-1] > t[0]


def test_whole_steps_are_drawn_whole_and_evenly():
    for draw in DRAWS.values():
        t, _ = drawn(time_samplers.uniform, draw=draw)(
            KEY, 50_000, schedules.Discrete(num_steps=10)
        )
        t = np.asarray(t)
        counts = np.bincount(t.astype(int), minlength=11)
        assert np.all(t == t.astype(int))
        assert counts[0] == 0
        assert_allclose(counts[1:], 5000, rtol=0.06)


# ---- published laws -----------------------------------------------------------------


def hyperbolic_secant(mean, scale):
    """Density sech((logsnr - mean) / (2 scale)) / (2 pi scale)."""
    return scipy.stats.hypsecant(mean, 2 * scale).cdf


def normal_of_half(mean, std):
    """The law of logsnr if -logsnr / 2 is normal."""
    return scipy.stats.norm(-2 * mean, 2 * std).cdf


LOGSNR_LAWS = [
    ("log_normal", {}, normal_of_half(-1.2, 1.2)),
    ("log_normal", dict(mean=-0.4, std=1), normal_of_half(-0.4, 1)),
    ("logit_normal", {}, normal_of_half(0, 1)),
    ("logit_normal", dict(mean=0.5, std=0.6), normal_of_half(0.5, 0.6)),
    ("laplace", {}, scipy.stats.laplace(0, 0.5).cdf),
    ("laplace", dict(mean=1, scale=2), scipy.stats.laplace(1, 2).cdf),
    ("cauchy", {}, scipy.stats.cauchy(0, 1).cdf),
    ("cauchy", dict(mean=-1, scale=0.5), scipy.stats.cauchy(-1, 0.5).cdf),
    ("cosmap", {}, hyperbolic_secant(0, 1)),
    ("cosmap", dict(mean=1, scale=2), hyperbolic_secant(1, 2)),
    (
        "uniform_logsnr",
        dict(logsnr_min=-3, logsnr_max=5),
        scipy.stats.uniform(-3, 8).cdf,
    ),
]


@pytest.mark.parametrize(("name", "options", "law"), LOGSNR_LAWS)
def test_logsnr_has_the_published_law(name, options, law):
    wide = schedules.VarianceExploding(t_min=1e-17, t_max=1e17)
    t = QUANTILES[name](jnp.asarray(MIDPOINTS, float), wide, **options)
    logsnr = np.asarray(process.logsnr(wide(t)), float)
    inside = np.abs(logsnr) < 75
    assert inside.mean() > 0.98
    assert_allclose(law(logsnr)[inside], 1 - MIDPOINTS[inside], atol=2e-6)


@pytest.mark.parametrize(
    ("name", "density"),
    [
        # Esser et al. (2024), eq. 19 and 21.
        (
            "logit_normal",
            lambda t: (
                np.exp(-(np.log(t / (1 - t)) ** 2) / 2)
                / (np.sqrt(2 * np.pi) * t * (1 - t))
            ),
        ),
        ("cosmap", lambda t: 2 / (np.pi - 2 * np.pi * t + 2 * np.pi * t**2)),
    ],
)
def test_times_on_a_flow_have_the_published_density(name, density):
    t = np.asarray(QUANTILES[name](jnp.asarray([0.1, 0.35, 0.8]), FLOW), float)
    for low, high, share in [(0, 1, 0.25), (1, 2, 0.45)]:
        area, _ = scipy.integrate.quad(density, t[low], t[high])
        assert_allclose(area, share, atol=1e-5)


@pytest.mark.parametrize("scale", [-1, 0, 0.8, 1.29, 1.75])
def test_mode_is_the_published_function_of_a_uniform_variable(scale):
    t = QUANTILES["mode"](jnp.asarray(MIDPOINTS, float), FLOW, scale=scale)
    u = MIDPOINTS[::-1]
    expected = 1 - u - scale * (np.cos(np.pi / 2 * u) ** 2 - 1 + u)  # eq. 20
    assert_allclose(t, expected, atol=2e-6)


def test_a_law_of_logsnr_is_the_same_on_every_schedule(schedule):
    t, _ = drawn(
        functools.partial(time_samplers.log_normal, mean=-0.4, std=0.7), draw=midpoints
    )(KEY, 4096, schedule)
    ratio = -process.logsnr(schedule(t)) / 2
    assert_allclose([ratio.mean(), ratio.std()], [-0.4, 0.7], atol=0.01)


def test_uniform_logsnr_reaches_the_ends_of_the_schedule():
    vp = schedules.Discrete()
    t = time_samplers.uniform_logsnr(jnp.asarray([0.0, 0.5, 1.0]), vp)
    assert_allclose(t[jnp.asarray([0, 2])], [1, 1000], rtol=1e-4)
    logsnr = process.logsnr(vp(t))
    assert_allclose(logsnr[1], (logsnr[0] + logsnr[2]) / 2, rtol=1e-4)


# ---- how u is drawn -----------------------------------------------------------------


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("num", [4, 5])
def test_every_u_is_uniform_over_many_batches(name, num):
    keys = jax.random.split(KEY, 3000)
    u = jax.vmap(lambda key: DRAWS[name](key, num))(keys)
    assert u.shape == (3000, num)
    # A batch as a whole; one place in it may be kept to a cell of its own.
    law = scipy.stats.kstest(np.asarray(u).ravel(), "uniform")
    assert law.statistic < 1.7 / np.sqrt(3000)


@pytest.mark.parametrize("name", ["low_discrepancy", "stratified"])
def test_every_cell_has_one_u(name):
    for seed in range(5):
        u = np.asarray(DRAWS[name](jax.random.key(seed), 64))
        if name == "low_discrepancy":
            assert_allclose(np.diff(np.sort(u)), 1 / 64, atol=1e-6)
        else:
            np.testing.assert_array_equal(np.floor(u * 64), np.arange(64))
            assert np.std(np.diff(u)) > 0.1 / 64


def test_antithetic_times_mirror_one_another():
    u = DRAWS["antithetic"](KEY, 64)
    assert_allclose(u[:32] + u[32:], 1, atol=1e-6)
    assert np.std(u[:32]) > 0.2


# ---- integrals over logsnr ----------------------------------------------------------


@pytest.mark.parametrize("name", QUANTILES)
def test_over_logsnr_the_loss_is_an_integral_whatever_the_law(schedule, name):
    if name == "uniform" and schedule.num_steps:
        pytest.skip("whole steps have no density")

    def bump(logsnr):
        return np.exp(-((logsnr - 0.5) ** 2) / 0.5)

    sample = drawn(QUANTILES[name], draw=midpoints, over="logsnr")
    t, weight = sample(KEY, 4096, schedule)
    logsnr = np.asarray(process.logsnr(schedule(t)), float)
    area = np.mean(weight * bump(logsnr))
    assert_allclose(area, np.sqrt(0.5 * np.pi), rtol=0.01)


def test_uniform_logsnr_has_one_weight_for_all():
    sample = drawn(time_samplers.uniform_logsnr, over="logsnr")
    vp = schedules.VariancePreserving()
    ends = process.logsnr(vp(jnp.asarray([vp.t_min, vp.t_max])))
    _, weight = sample(KEY, 256, vp)
    assert_allclose(weight, ends[0] - ends[1], rtol=0.02)


def test_whole_steps_over_logsnr_and_unknown_measures_are_refused():
    with pytest.raises(ValueError, match="whole steps"):
        drawn(time_samplers.uniform, over="logsnr")(KEY, 4, schedules.Discrete())
    with pytest.raises(ValueError, match="measure"):
        drawn(time_samplers.uniform, over="time")
