"""Laws of reverse variances: fixed, learned, and the optimal one of Analytic-DPM."""

from __future__ import annotations

import functools

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.diffusion import grids, parameterization, process, schedules
from diffusion_jax.diffusion.denoiser import from_network
from diffusion_jax.diffusion.samplers.analytic_dpm import (
    analytic_dpm,
    estimate_eps_power,
)
from diffusion_jax.diffusion.samplers.ddim import VARIANCES, ddim, ddpm
from diffusion_jax.types import Conditioning

KEY = jax.random.key(0)
NUM = 100_000
SCHEDULE = schedules.Discrete()
THREE = jnp.asarray([900.0, 500.0, 100.0])


def data_from(mean, std):
    return lambda x, level: exact.gaussian(x, level, mean, std)


def marginal(level, mean, std):
    return level.alpha * mean, jnp.hypot(level.alpha * std, level.sigma)


def draw_marginal(level, mean, std):
    mean, std = marginal(level, mean, std)
    return mean + std * jax.random.normal(KEY, (NUM,))


def with_variance(denoise, value):
    def varied(x, level):
        return denoise(x, level)._replace(variance=jnp.full_like(x, value))

    return varied


@functools.partial(jax.jit, static_argnames="variance")
def sample(variance, value, ts, mean, std):
    """Samples, from the true marginal on, and the marginal where they should end."""
    x = draw_marginal(SCHEDULE(ts[0]), mean, std)
    denoise = with_variance(data_from(mean, std), value)
    x, _ = ddpm(jax.random.key(1), denoise, SCHEDULE, x, ts, variance=variance)
    return x, *marginal(SCHEDULE(ts[-1]), mean, std)


# ---- fixed and learned variances ----------------------------------------------------


@pytest.mark.parametrize(
    ("exact_for", "variance"), [("a point", "posterior"), ("N(0, 1)", "beta")]
)
def test_each_fixed_variance_is_exact_on_the_data_it_is_meant_for(exact_for, variance):
    """Ho et al. (2020), section 3.2, in any number of steps."""
    data = {"a point": (0.5, 0.0), "N(0, 1)": (0.0, 1.0)}
    x, mean, std = sample(variance, 0.0, THREE, *data.pop(exact_for))
    assert_allclose((x.mean(), x.std()), (mean, std), atol=0.01)
    (other,) = data.values()
    x, _, std = sample(variance, 0.0, THREE, *other)
    assert abs(x.std() - std) > 0.05


@pytest.mark.parametrize("std", [0.1, 0.35, 0.9])
@pytest.mark.parametrize("variance", ["learned_range", "learned", "learned_log"])
def test_a_learned_variance_can_be_exact_on_a_gaussian(variance, std):
    """Bayes' rule gives the variance of x_there given x_here; the network says it."""
    ts = THREE[:2]
    here, there = (SCHEDULE(t) for t in ts)
    ratio2 = (here.alpha / there.alpha) ** 2
    forward = here.sigma**2 - ratio2 * there.sigma**2
    prior = (there.alpha * std) ** 2 + there.sigma**2
    best = 1 / (1 / prior + ratio2 / forward)
    low = there.sigma**2 * (1 - ratio2 * there.sigma**2 / here.sigma**2)
    share = jnp.log(best / low) / jnp.log(forward / low)
    said = {
        "learned": best,
        "learned_log": jnp.log(best),
        "learned_range": 2 * share - 1,
    }
    x, mean, expected = sample(variance, said[variance], ts, exact.MEAN, std)
    assert_allclose((x.mean(), x.std()), (mean, expected), atol=0.01)


def test_a_learned_range_spans_from_the_posterior_to_beta():
    ends = {-1.0: "posterior", 1.0: "beta"}
    for value, variance in ends.items():
        got, *_ = sample("learned_range", value, THREE, 0.5, 0.3)
        expected, *_ = sample(variance, value, THREE, 0.5, 0.3)
        assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("variance", VARIANCES)
def test_a_step_to_clean_data_adds_no_noise(variance):
    got, *_ = sample(variance, 0.1, jnp.asarray([300.0, 0.0]), 0.5, 0.3)
    x = draw_marginal(SCHEDULE(jnp.asarray(300.0)), 0.5, 0.3)
    pred = data_from(0.5, 0.3)(x, SCHEDULE(jnp.asarray(300.0)))
    assert_allclose(got, pred.x0, atol=1e-5)


@pytest.mark.parametrize("variance", VARIANCES)
def test_gradients_are_finite_whatever_the_variance(variance):
    schedule = schedules.ZeroTerminalSNR()
    ts = grids.trailing(schedule, 3)

    def total(value, mean):
        denoise = with_variance(data_from(mean, 0.3), value)
        return ddpm(KEY, denoise, schedule, jnp.ones(4), ts, variance=variance)[0].sum()

    slopes = jax.jit(jax.grad(total, (0, 1)))(0.1, 0.5)
    assert np.all(np.isfinite(slopes))


def test_the_extra_channels_of_a_network_reach_the_sampler():
    def network(x, time, cond):
        return jnp.concatenate([jnp.zeros_like(x), jnp.full_like(x, 0.5)], axis=-1)

    def denoise(x, level):
        conditional = from_network(
            network, parameterization.x0(), learned_variance=True
        )
        return conditional(x, level, Conditioning())

    def zero(x, level):
        return process.from_x0(x, jnp.zeros_like(x), level, jnp.full_like(x, 0.5))

    x = jnp.ones((2, 3))
    got, expected = (
        ddpm(KEY, d, SCHEDULE, x, THREE, variance="learned_range")[0]
        for d in (denoise, zero)
    )
    assert_allclose(got, expected, atol=1e-6)


def test_a_missing_or_unknown_variance_is_named():
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="learned_variance=True"):
        ddpm(KEY, exact.gaussian, SCHEDULE, x, THREE, variance="learned_range")
    with pytest.raises(ValueError, match="fixed_small.*posterior"):
        ddpm(KEY, exact.gaussian, SCHEDULE, x, THREE, variance="fixed_small")


# ---- Analytic-DPM -------------------------------------------------------------------


def eps_power_of(std, levels):
    """E|eps|**2 of the denoiser of N(mean, std**2)."""
    return levels.sigma[:-1] ** 2 / marginal(levels, 0.0, std)[1][:-1] ** 2


@jax.jit
def analytic(levels, power, eta, bound, last_pixels):
    x = draw_marginal(exact.at(levels, 0), exact.MEAN, exact.STD)
    return analytic_dpm(
        jax.random.key(1),
        exact.gaussian,
        exact.Visited(levels),
        x,
        jnp.zeros_like(levels.time),
        eps_power=power,
        eta=eta,
        bound=bound,
        last_pixels=last_pixels,
    )[0]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_optimal_variance_is_exact_on_a_gaussian_in_two_steps(eta, schedule):
    low, high = schedule.inverse(jnp.asarray([3.0, -3.0]))
    levels = schedule(jnp.stack([high, (low + high) / 2, low]))
    power = eps_power_of(exact.STD, levels)
    x = analytic(levels, power, eta, jnp.inf, jnp.inf)
    mean, std = marginal(exact.at(levels, -1), exact.MEAN, exact.STD)
    assert_allclose((x.mean(), x.std()), (mean, std), atol=0.01 * std + 0.002)
    # The posterior's variance alone is too little: that is what a bound of 0 leaves.
    assert analytic(levels, power, eta, 0.0, jnp.inf).std() < 0.97 * std


def test_the_bound_is_that_of_the_spread_of_x0():
    """Theorem 2: the bound of the data stands in for what eps does not say."""
    levels = SCHEDULE(THREE[:2])
    here, there = (exact.at(levels, i) for i in (0, 1))
    _, noisy = marginal(here, exact.MEAN, exact.STD)
    spread = exact.STD * here.sigma / noisy  # of x0, once x is known
    x = analytic(levels, jnp.zeros(1), 1.0, spread, jnp.inf)
    mean, std = marginal(there, exact.MEAN, exact.STD)
    assert_allclose((x.mean(), x.std()), (mean, std), atol=0.01 * std)


def test_eps_says_nothing_of_x0_from_pure_noise():
    levels = schedules.ZeroTerminalSNR()(jnp.asarray([1000.0, 500.0]))
    samples = [
        analytic(levels, jnp.asarray([power]), 1.0, jnp.inf, jnp.inf)
        for power in (1.0, 0.5)
    ]
    assert_allclose(*samples)


def test_data_bounded_to_a_point_leave_ddim():
    levels = SCHEDULE(THREE)
    power = eps_power_of(exact.STD, levels)
    x = draw_marginal(exact.at(levels, 0), exact.MEAN, exact.STD)
    for eta in (0.0, 0.5, 1.0):
        got = analytic(levels, power, eta, 0.0, jnp.inf)
        key = jax.random.key(1)
        expected, _ = ddim(key, exact.gaussian, SCHEDULE, x, THREE, eta=eta)
        assert_allclose(got, expected, atol=1e-5)


def test_the_mean_square_of_eps_is_estimated_on_data():
    x0 = exact.MEAN + exact.STD * jax.random.normal(KEY, (NUM,))
    got = estimate_eps_power(jax.random.key(1), exact.gaussian, SCHEDULE, x0, THREE)
    assert_allclose(got, eps_power_of(exact.STD, SCHEDULE(THREE)), rtol=0.02)


@pytest.mark.parametrize("pixels", [0.0, 1.0, 2.0])
def test_the_last_noise_is_limited_to_pixels(pixels):
    def keep(x, level):
        return process.from_x0(x, x / level.alpha, level)

    ts = jnp.asarray([900.0, 500.0, 0.0])
    x = jnp.zeros(NUM)
    options = dict(eps_power=jnp.zeros(2), last_pixels=pixels)
    x, _ = analytic_dpm(KEY, keep, SCHEDULE, x, ts, **options)
    added = SCHEDULE(ts[1]).alpha * x  # all that there is, as the last step only scales
    assert_allclose(jnp.abs(added).mean(), pixels * 2 / 255, rtol=0.02)


def test_analytic_dpm_has_finite_gradients_from_pure_noise_to_clean_data():
    schedule = schedules.ZeroTerminalSNR()
    ts = grids.trailing(schedule, 3)

    def total(power, mean):
        x = jnp.ones(4)
        denoise = data_from(mean, 0.3)
        return analytic_dpm(KEY, denoise, schedule, x, ts, eps_power=power)[0].sum()

    for slope in jax.jit(jax.grad(total, (0, 1)))(jnp.asarray([1.0, 0.9, 0.5]), 0.5):
        assert np.all(np.isfinite(slope))
