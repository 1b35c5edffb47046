"""Laws of the samplers, against data whose denoiser and flow are known exactly."""

from __future__ import annotations

import itertools

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.diffusion import grids, process, schedules
from diffusion_jax.diffusion.samplers import SAMPLERS, integrate
from diffusion_jax.diffusion.samplers.ddim import ddim, ddpm, kept_share

ORDERS = {"ddim": 1, "heun": 2, "dpmpp_2m": 2}
KEY = jax.random.key(0)


def grid_of(schedule, steps):
    if isinstance(schedule, schedules.VarianceExploding):
        return grids.karras(schedule, steps)
    return grids.trailing(schedule, steps)


@pytest.mark.parametrize("name", exact.GENERAL)
@pytest.mark.parametrize("steps", [1, 4])
def test_a_single_image_is_reached_in_any_number_of_steps(name, steps, schedule):
    levels = schedule(grid_of(schedule, steps))
    x = levels.sigma[0] * jax.random.normal(KEY, exact.IMAGE.shape)
    sample, trace = exact.run(name, exact.image, KEY, x, levels)
    assert_allclose(sample, exact.IMAGE, atol=1e-5)  # from sigma = 80 in float32
    assert_allclose(trace, jnp.stack([exact.IMAGE] * steps))


# ---- convergence --------------------------------------------------------------------


def error(name, schedule, steps):
    """Root mean square error of the flow from sigma / alpha = 5 to 0.1, in float64.

    Many dimensions of different spread, so that errors of opposite sign do not cancel;
    even in the root of t, which is no solver's own variable.
    """
    ends = schedule.inverse(-2 * jnp.log(jnp.asarray([5.0, 0.1])))
    levels = schedule(jnp.linspace(*jnp.sqrt(ends), steps + 1) ** 2)
    here, there = exact.at(levels, 0), exact.at(levels, -1)
    x = here.alpha * 0.2 + here.sigma * jnp.linspace(-2, 2, len(exact.STDS))
    got, _ = exact.run(name, exact.anisotropic, KEY, x, levels)
    return np.sqrt(np.mean((got - exact.anisotropic_flow(x, here, there)) ** 2))


@pytest.mark.parametrize("name", ORDERS)
def test_the_error_falls_with_the_published_order(name, schedule):
    with jax.enable_x64(True):
        coarse, fine = (error(name, schedule, steps) for steps in (64, 256))
    order = np.log(coarse / fine) / np.log(4)
    print(f"order of {name} on {schedule}: {order:.3f}, error {fine:.1e}")
    assert abs(order - ORDERS[name]) < 0.15


def test_second_order_is_worth_its_evaluations():
    steps = {"ddim": 256, "heun": 64, "dpmpp_2m": 64}
    with jax.enable_x64(True):
        errors = {
            name: error(name, schedules.Discrete(), steps[name]) for name in steps
        }
    assert errors["heun"] < errors["ddim"] / 2
    assert errors["dpmpp_2m"] < errors["ddim"] / 2


# ---- limits -------------------------------------------------------------------------


@pytest.mark.parametrize("name", exact.GENERAL)
def test_a_step_of_no_length_does_nothing(name):
    levels = schedules.Discrete()(jnp.asarray([700.0, 700.0]))
    x = jax.random.normal(KEY, exact.IMAGE.shape)
    assert_allclose(exact.run(name, exact.image, KEY, x, levels)[0], x, atol=1e-6)


@pytest.mark.parametrize("name", exact.GENERAL)
def test_gradients_are_finite_from_pure_noise_to_clean_data(name):
    schedule = schedules.ZeroTerminalSNR()
    ts = grids.trailing(schedule, 3)

    @jax.jit
    def slopes_of(mean, std, x):
        def total(mean, std, x):
            def denoise(x, level):
                return exact.gaussian(x, level, mean, std)

            return SAMPLERS[name](KEY, denoise, schedule, x, ts)[0].sum()

        return jax.grad(total, (0, 1, 2))(mean, std, x)

    slopes = slopes_of(0.7, 0.35, jax.random.normal(KEY, (6,)))
    assert all(np.all(np.isfinite(slope)) for slope in slopes)
    # Data moved as a whole: samples move with it.
    assert_allclose(slopes[0], 6.0, rtol=1e-4)


def test_heun_evaluates_twice_but_at_the_two_infinite_ends():
    times = []

    def counted(x, level):
        jax.debug.callback(times.append, level.time)
        return exact.gaussian(x, level)

    schedule = schedules.ZeroTerminalSNR()
    x = jax.random.normal(KEY, (6,))
    for steps, expected in [(1, 1), (5, 8)]:
        times.clear()
        ts = grids.trailing(schedule, steps)
        SAMPLERS["heun"](KEY, counted, schedule, x, ts)
        jax.effects_barrier()
        assert len(times) == expected
        assert min(times) >= 0  # never at clean data


def test_ddim_without_noise_is_euler(schedule):
    levels = schedule(grid_of(schedule, 4))
    x = levels.sigma[0] * jax.random.normal(KEY, exact.IMAGE.shape)
    expected, _ = exact.run("euler", exact.gaussian, KEY, x, levels)
    got, _ = exact.run("ddim", exact.gaussian, KEY, x, levels)
    assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_euler_is_euler_in_time_on_a_rectified_flow():
    schedule = schedules.RectifiedFlow()
    ts = grids.trailing(schedule, 4)
    x = start = jax.random.normal(KEY, exact.IMAGE.shape)
    for t, after in itertools.pairwise(ts):
        pred = exact.gaussian(x, schedule(t))
        x = x + (after - t) * (pred.eps - pred.x0)
    got, _ = exact.run("euler", exact.gaussian, KEY, start, schedule(ts))
    assert_allclose(got, x, atol=1e-5)


# ---- ancestral sampling -------------------------------------------------------------


@pytest.mark.parametrize("t", [2, 10, 500, 1000])
def test_ddpm_draws_from_the_posterior_of_ho_et_al(t):
    betas = np.linspace(1e-4, 0.02, 1000)
    alpha2 = np.cumprod(1 - betas)
    beta, now, before = betas[t - 1], alpha2[t - 1], alpha2[t - 2]
    x = jax.random.normal(KEY, exact.IMAGE.shape)
    # Eq. 7 of arXiv:2006.11239.
    mean = (
        np.sqrt(before) * beta / (1 - now) * exact.IMAGE
        + np.sqrt(1 - beta) * (1 - before) / (1 - now) * x
    )
    std = np.sqrt((1 - before) / (1 - now) * beta)
    schedule = schedules.Discrete("linear", beta_start=1e-4, beta_end=0.02)
    levels = schedule(jnp.asarray([t, t - 1.0]))
    sample, _ = exact.run("ddpm", exact.image, KEY, x, levels)
    noise = integrate.normal_like(integrate.split(KEY, 1)[0], x)
    assert_allclose(sample, mean + std * noise, atol=2e-5)


def test_eta_redraws_a_share_of_the_noise_and_keeps_its_variance():
    def empty(x, level):
        return process.from_x0(x, jnp.zeros_like(x), level)

    schedule = schedules.Discrete()
    ts = jnp.asarray([600.0, 400.0])
    here, there = (exact.at(schedule(ts), i) for i in (0, 1))
    x = here.sigma * jax.random.normal(KEY, (50_000,))
    etas = np.asarray([0.0, 0.5, 1.0])
    sample = jax.jit(lambda eta: ddim(KEY, empty, schedule, x, ts, eta=eta)[0])
    samples = [sample(eta) for eta in etas]
    assert_allclose([a.std() for a in samples], there.sigma, rtol=0.01)
    # Song et al., eq. 16: sqrt(1 - eta**2 * share) of eps is kept.
    share = 1 - process.snr(here) / process.snr(there)
    correlations = [np.corrcoef(x, a)[0, 1] for a in samples]
    assert_allclose(correlations, np.sqrt(1 - etas**2 * share), atol=0.01)


def test_ancestral_steps_compose():
    """With one known image, three steps draw from the same law as one."""

    def constant(x, level):
        return process.from_x0(x, jnp.full_like(x, 0.5), level)

    schedule = schedules.Cosine()
    x = jax.random.normal(KEY, (40_000,))
    level = schedule(jnp.asarray(0.3))
    for ts in ([1.0, 0.3], [1.0, 0.8, 0.5, 0.3]):
        sample, _ = ddpm(jax.random.key(1), constant, schedule, x, jnp.asarray(ts))
        assert_allclose(sample.mean(), 0.5 * level.alpha, atol=0.015)
        assert_allclose(sample.std(), level.sigma, rtol=0.015)


def test_what_an_ancestral_step_keeps_does_not_cancel_near_pure_noise():
    schedule = schedules.Discrete(betas="cosine")
    here, there = schedule(jnp.asarray(1000.0)), schedule(jnp.asarray(750.0))
    ratios = np.exp(schedule.log_ratios)
    expected = (ratios[749] / ratios[999]) ** 2  # 2e-8, of which float32 knows 1 - it
    assert_allclose(kept_share(here, there, 1.0), expected, rtol=1e-4)
    halved = 1 - 0.25 * (1 - expected)
    assert_allclose(kept_share(here, there, 0.5), halved, rtol=1e-6)
    assert kept_share(here, there, 2.0) == 0
