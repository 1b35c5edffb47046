"""Laws of the parameterizations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.diffusion import parameterization, process, schedules
from diffusion_jax.diffusion.parameterization import PARAMETERIZATIONS


@pytest.fixture(params=PARAMETERIZATIONS)
def p(request):
    return PARAMETERIZATIONS[request.param]()


def draw(schedule, num=16):
    x0, eps = jax.random.normal(jax.random.key(0), (2, num, 3, 3, 2))
    level = schedule(jnp.linspace(schedule.t_min, 0.9 * schedule.t_max, num))
    return x0, eps, level, process.add_noise(x0, eps, level)


def test_read_inverts_target(p, schedule):
    x0, eps, level, x = draw(schedule)
    pred = parameterization.read(
        p, parameterization.target(p, x0, eps, level), x, level
    )
    # Only the poorer half is lost to rounding, where alpha or sigma is small.
    noisy = process.align(jnp.maximum(1.0, level.sigma / level.alpha), x)
    clean = process.align(jnp.maximum(1.0, level.alpha / level.sigma), x)
    assert_allclose((pred.x0 - x0) / noisy, 0, atol=1e-5)
    assert_allclose((pred.eps - eps) / clean, 0, atol=1e-5)


def test_whatever_the_network_says_x0_and_eps_make_up_x(p, schedule):
    _, _, level, x = draw(schedule)
    output = jax.random.normal(jax.random.key(1), x.shape)
    pred = parameterization.read(p, output, x, level)
    again = process.add_noise(pred.x0, pred.eps, level)
    assert_allclose(again, x, rtol=1e-3, atol=2e-5 * np.abs(x).max())


def test_each_target_is_what_its_name_says():
    x0, eps, level, _ = draw(schedules.Discrete())
    alpha, sigma = (process.align(a, x0) for a in (level.alpha, level.sigma))
    expected = {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0}
    for name, value in expected.items():
        p = PARAMETERIZATIONS[name]()
        assert_allclose(parameterization.target(p, x0, eps, level), value, atol=1e-6)


def test_flow_target_is_the_velocity_of_the_path():
    schedule = schedules.RectifiedFlow()
    x0, eps, _, _ = draw(schedule)

    def path(t):
        return process.add_noise(x0, eps, schedule(t))

    _, velocity = jax.jvp(path, (jnp.asarray(0.3),), (jnp.asarray(1.0),))
    target = parameterization.target(
        parameterization.flow(), x0, eps, schedule(jnp.asarray(0.3))
    )
    assert_allclose(target, velocity, atol=1e-6)


def test_edm_is_the_published_preconditioning():
    sigma_data = 0.5
    _, _, level, x = draw(schedules.VarianceExploding())
    p = parameterization.edm(sigma_data)
    sigma = process.align(level.sigma, x)
    total = sigma**2 + sigma_data**2
    c_skip = sigma_data**2 / total
    c_out = sigma * sigma_data / jnp.sqrt(total)
    output = jax.random.normal(jax.random.key(1), x.shape)
    pred = parameterization.read(p, output, x, level)
    assert_allclose(pred.x0, c_skip * x + c_out * output, rtol=1e-4, atol=1e-5)
    assert_allclose(p.input_scale(level), 1 / np.sqrt(total.ravel()), rtol=1e-6)


def test_edm_targets_and_inputs_have_unit_variance():
    schedule = schedules.RectifiedFlow()
    p = parameterization.edm(0.3)
    x0, eps = jax.random.normal(jax.random.key(0), (2, 4, 100_000))
    level = schedule(jnp.asarray([0.1, 0.4, 0.7, 1.0]))
    x = process.add_noise(0.3 * x0, eps, level)
    target = parameterization.target(p, 0.3 * x0, eps, level)
    assert_allclose(target.std(1), 1, rtol=0.01)
    assert_allclose((process.align(p.input_scale(level), x) * x).std(1), 1, rtol=0.01)


def test_edm_of_unit_data_is_minus_v_where_variance_is_preserved():
    x0, eps, level, _ = draw(schedules.Cosine())
    edm, v = parameterization.edm(1.0), parameterization.v()
    assert_allclose(
        parameterization.target(edm, x0, eps, level),
        -parameterization.target(v, x0, eps, level),
        atol=1e-5,
    )
    assert_allclose(edm.input_scale(level), 1, rtol=1e-6)


@pytest.mark.parametrize("name", ["v", "flow", "edm"])
def test_pure_noise_can_be_read_and_trained_on(name):
    p = PARAMETERIZATIONS[name]()
    schedule = schedules.ZeroTerminalSNR()
    x0, eps = jax.random.normal(jax.random.key(0), (2, 5, 3))
    level = schedule(jnp.full(5, 1000.0))
    pred = parameterization.read(
        p, parameterization.target(p, x0, eps, level), eps, level
    )
    assert_allclose(pred.x0, x0, atol=1e-6)
    assert_allclose(pred.eps, eps, atol=1e-6)
    parameterization.check(p, schedule)


def test_what_cannot_be_read_is_refused():
    with pytest.raises(ValueError, match="t = 1000 of ZeroTerminalSNR.*predict v"):
        parameterization.check(parameterization.eps(), schedules.ZeroTerminalSNR())
    parameterization.check(parameterization.eps(), schedules.Discrete())
    parameterization.check(parameterization.x0(), schedules.ZeroTerminalSNR())


def test_equal_parameterizations_are_one_static_argument():
    assert parameterization.edm(0.5) is parameterization.edm(0.5)
    assert hash(parameterization.v()) == hash(parameterization.v())
