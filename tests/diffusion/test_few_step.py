"""Laws of the samplers of distilled denoisers, and of those along the chord."""

from __future__ import annotations

import functools
import itertools

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.diffusion import grids, parameterization, process, schedules
from diffusion_jax.diffusion.denoiser import from_network
from diffusion_jax.diffusion.samplers.consistency import (
    boundary,
    consistency,
    karras_boundary,
    lcm,
    tcd,
)
from diffusion_jax.diffusion.samplers.ddim import ddim
from diffusion_jax.diffusion.samplers.flow import flow_euler
from diffusion_jax.types import Conditioning

KEY = jax.random.key(0)
NUM = 100_000
FLOW = schedules.RectifiedFlow()


def jump_to(end):
    """The consistency function of a Gaussian: along the flow, to this level."""

    def denoise(x, level):
        before, after = (jnp.hypot(a.alpha * exact.STD, a.sigma) for a in (level, end))
        x0 = end.alpha * exact.MEAN + after / before * (x - level.alpha * exact.MEAN)
        return process.from_x0(x, x0, level)

    return denoise


@jax.jit
def consistent(levels):
    start, end = (exact.at(levels, i) for i in (0, -1))
    std = jnp.hypot(start.alpha * exact.STD, start.sigma)
    x = start.alpha * exact.MEAN + std * jax.random.normal(KEY, (NUM,))
    ts = jnp.zeros_like(levels.time)
    schedule = exact.Visited(levels)
    return consistency(jax.random.key(1), jump_to(end), schedule, x, ts)[0]


@pytest.mark.parametrize("end", [0.0, 0.5])
@pytest.mark.parametrize("steps", [1, 3])
def test_an_exact_consistency_function_samples_exactly(steps, end, schedule):
    """Also where the path ends before clean data, at epsilon."""
    clean = schedule.inverse(jnp.asarray(2.0)) if end else jnp.asarray(0.0)
    ts = jnp.linspace(jnp.asarray(schedule.t_max, float), clean, steps + 1)
    levels = schedule(ts)
    x = consistent(levels)
    last = exact.at(levels, -1)
    std = jnp.hypot(last.alpha * exact.STD, last.sigma)
    assert_allclose(x.mean(), last.alpha * exact.MEAN, atol=0.02 * std)
    assert_allclose(x.std(), std, rtol=0.01)


def test_lcm_is_consistency_sampling_but_for_its_boundary():
    schedule = schedules.Discrete()
    ts = jnp.asarray([1000.0, 600.0, 200.0, 0.0])
    x = jax.random.normal(KEY, (3, 4))
    expected, _ = consistency(KEY, exact.gaussian, schedule, x, ts)
    options = dict(timestep_scaling=1e4)
    got, _ = lcm(KEY, exact.gaussian, schedule, x, ts, **options)
    assert_allclose(got, expected, atol=1e-5)
    options = dict(timestep_scaling=1e-3)
    got, _ = lcm(KEY, exact.gaussian, schedule, x, ts, **options)
    assert np.abs(got - expected).max() > 0.1


@pytest.mark.parametrize("scaling", [0.5, 10.0])
def test_the_boundary_is_x_at_time_0_and_x0_far_from_it(scaling):
    x = jax.random.normal(KEY, (2, 3))
    bounded = boundary(exact.gaussian, timestep_scaling=scaling)

    def x0_at(time):
        level = process.NoiseLevel(*map(jnp.asarray, (0.8, 0.6, time)))
        pred = bounded(x, level)
        again = process.add_noise(pred.x0, pred.eps, level)
        assert_allclose(again, x, atol=1e-5)
        return pred.x0, exact.gaussian(x, level).x0

    assert_allclose(x0_at(0.0)[0], x, atol=1e-6)
    assert_allclose(*x0_at(1e5), atol=1e-5)
    # Where the scaled time is sigma_data, both weigh as their squares say.
    got, inner = x0_at(0.5 / scaling)
    assert_allclose(got, x / 2 + inner / np.sqrt(2), atol=1e-5)


def test_the_boundary_of_karras_is_x_at_sigma_min():
    def network(x, time, cond):
        return jnp.sin(3 * x)

    def denoise(x, level):
        return from_network(network, parameterization.edm())(x, level, Conditioning())

    schedule = schedules.VarianceExploding()
    x = jax.random.normal(KEY, (2, 3))
    at_min = karras_boundary(denoise)(x, schedule(jnp.asarray(0.002)))
    assert_allclose(at_min.x0, x, atol=1e-6)
    far = schedule(jnp.asarray(70.0))
    got, inner = karras_boundary(denoise)(70 * x, far).x0, denoise(70 * x, far).x0
    assert_allclose(got, inner, rtol=1e-3, atol=1e-4)
    level = schedule(jnp.asarray(0.4))
    got = karras_boundary(denoise, sigma_min=0.0)(x, level).x0
    assert_allclose(got, denoise(x, level).x0, atol=1e-5)


# ---- trajectory consistency ---------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("denoise", "schedule"))
def follow(denoise, schedule, x, ts, gamma):
    return tcd(KEY, denoise, schedule, x, ts, gamma=gamma)[0]


def test_tcd_without_gamma_is_ddim(schedule):
    ts = grids.trailing(schedule, 4, end=schedule.t_min)
    x = schedule(ts[0]).sigma * jax.random.normal(KEY, (2, 3))
    expected, _ = exact.run("ddim", exact.gaussian, KEY, x, schedule(ts))
    got = follow(exact.gaussian, schedule, x, ts, 0.0)
    assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_tcd_with_gamma_1_is_consistency_sampling():
    x = jax.random.normal(KEY, (2, 3))
    ts = grids.trailing(FLOW, 4)
    expected, _ = consistency(KEY, exact.gaussian, FLOW, x, ts)
    assert_allclose(follow(exact.gaussian, FLOW, x, ts, 1.0), expected, atol=1e-5)


def test_tcd_jumps_to_whole_steps():
    """Of a time t the network hears t - 1, whose share is rounded down."""
    schedule = schedules.Discrete()
    x = jax.random.normal(KEY, (2, 3))
    for gamma, end, jump in [(0.3, 760.0, 532.0), (0.5, 2.0, 1.0), (1.0, 400.0, 1.0)]:
        x_jump, _ = ddim(KEY, exact.gaussian, schedule, x, jnp.asarray([1000.0, jump]))
        got = follow(exact.gaussian, schedule, x, jnp.asarray([1000.0, end]), gamma)
        # The part that is not noise: x_jump, scaled as alpha is.
        other = follow(
            exact.gaussian, schedule, x + 0.1, jnp.asarray([1000.0, end]), gamma
        )
        moved, _ = ddim(
            KEY, exact.gaussian, schedule, x + 0.1, jnp.asarray([1000.0, jump])
        )
        ratio = schedule(jnp.asarray(end)).alpha / schedule(jnp.asarray(jump)).alpha
        assert_allclose(other - got, ratio * (moved - x_jump), atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_tcd_keeps_the_marginals_of_a_single_image(gamma):
    def constant(x, level):
        return process.from_x0(x, jnp.full_like(x, 0.5), level)

    schedule = schedules.Discrete()
    ts = jnp.asarray([1000.0, 800.0, 500.0, 300.0])
    start, last = schedule(ts[0]), schedule(ts[-1])
    x = start.alpha * 0.5 + start.sigma * jax.random.normal(jax.random.key(1), (NUM,))
    x = tcd(KEY, constant, schedule, x, ts, gamma=gamma)[0]
    assert_allclose((x.mean(), x.std()), (0.5 * last.alpha, last.sigma), atol=0.01)


# ---- along the chord ----------------------------------------------------------------


def test_flow_euler_lands_where_euler_does(schedule):
    levels = schedule(grids.trailing(schedule, 4))
    x = levels.sigma[0] * jax.random.normal(KEY, exact.IMAGE.shape)
    expected, _ = exact.run("euler", exact.gaussian, KEY, x, levels)
    got, _ = exact.run("flow_euler", exact.gaussian, KEY, x, levels)
    assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("renewed", [0.0, 0.4, 1.0])
def test_renewed_noise_keeps_the_marginals_of_a_single_image(renewed):
    def constant(x, level):
        return process.from_x0(x, jnp.full_like(x, 0.5), level)

    ts = jnp.asarray([1.0, 0.8, 0.5])
    x = jax.random.normal(jax.random.key(1), (NUM,))
    got, _ = flow_euler(KEY, constant, FLOW, x, ts, renewed=renewed)
    assert_allclose((got.mean(), got.std()), (0.25, 0.5), atol=0.01)
    assert_allclose(np.corrcoef(x, got)[0, 1], 1 - renewed, atol=0.01)


def test_fully_renewed_flow_euler_is_consistency_sampling():
    x = jax.random.normal(KEY, (2, 3))
    ts = grids.trailing(FLOW, 4)
    expected, _ = consistency(KEY, exact.gaussian, FLOW, x, ts)
    got, _ = flow_euler(KEY, exact.gaussian, FLOW, x, ts, renewed=1)
    assert_allclose(got, expected, atol=1e-6)


def test_flow_heun_is_heun_in_time_on_a_rectified_flow():
    ts = grids.trailing(FLOW, 4)
    x = start = jax.random.normal(KEY, exact.IMAGE.shape)

    def velocity(x, t):
        pred = exact.gaussian(x, FLOW(t))
        return pred.eps - pred.x0

    for t, after in itertools.pairwise(ts):
        slope = velocity(x, t)
        if after > 0:
            slope = (slope + velocity(x + (after - t) * slope, after)) / 2
        x = x + (after - t) * slope
    got, _ = exact.run("flow_heun", exact.gaussian, KEY, start, FLOW(ts))
    assert_allclose(got, x, atol=1e-5)


@pytest.mark.parametrize("name", ["flow_euler", "flow_heun"])
def test_methods_along_the_chord_keep_their_order_from_pure_noise(name):
    order = {"flow_euler": 1, "flow_heun": 2}[name]
    schedule = schedules.RectifiedFlow()
    errors = []
    with jax.enable_x64(True):
        for steps in (32, 128):
            levels = schedule(jnp.linspace(1.0, 0.1, steps + 1))
            here, there = (exact.at(levels, i) for i in (0, -1))
            x = jnp.linspace(-2, 2, len(exact.STDS))
            got, _ = exact.run(name, exact.anisotropic, KEY, x, levels)
            wrong = got - exact.anisotropic_flow(x, here, there)
            errors.append(np.sqrt(np.mean(wrong**2)))
    measured = np.log(errors[0] / errors[1]) / np.log(4)
    print(f"order of {name} from pure noise: {measured:.3f}")
    assert abs(measured - order) < 0.15
