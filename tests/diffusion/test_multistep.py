"""Laws of the linear multistep samplers and of the weights that they share."""

from __future__ import annotations

import functools

import convergence
import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from diffusion_jax.diffusion import grids, schedules
from diffusion_jax.diffusion.samplers import multistep
from diffusion_jax.diffusion.samplers.ddim import ddim
from diffusion_jax.diffusion.samplers.deis import deis
from diffusion_jax.diffusion.samplers.dpm_solver import (
    dpm_multistep,
    dpm_singlestep,
    dpm_solver,
)
from diffusion_jax.diffusion.samplers.heun import heun
from diffusion_jax.diffusion.samplers.lms import lms
from diffusion_jax.diffusion.samplers.pndm import ipndm, plms, pndm
from diffusion_jax.diffusion.samplers.unipc import unipc

KEY = jax.random.key(0)
NOISE = np.asarray(jax.random.normal(KEY, (3, len(exact.STDS))))
LEVELS = schedules.Discrete()(jnp.linspace(1000.0, 1.0, 6))
partial = functools.partial


# ---- weights ------------------------------------------------------------------------


def mean_over(start, stop, tilt, power):
    """That of u**power under e^(tilt * u) du, by many trapezoids."""
    u = np.linspace(start, stop, 200_001)
    density = np.exp(tilt * (u - u.max()))
    return np.trapezoid(density * u**power, u) / np.trapezoid(density, u)


@pytest.mark.parametrize("tilt", [-1, 0, 1])
def test_weights_are_exact_for_every_polynomial_that_they_can_see(tilt):
    # Steps short and long, and ever fewer nodes in use.
    nodes = np.asarray([[0.3, 0.1, -0.4, -0.5], [-2, -2.2, -2.9, -4], [1, 0, -1, -2]])
    nodes = np.repeat(nodes, 4, axis=0)
    used = np.tile([1, 2, 3, 4], 3)
    start, stop = nodes[:, 0], np.repeat([0.35, 7.0, 1.0], 4)
    with jax.enable_x64(True):
        window = multistep.Window(*map(jnp.asarray, (nodes, used, start, stop)))
        weights = np.asarray(multistep.lagrange(window, tilt))
    for row, node, count, *ends in zip(weights, nodes, used, start, stop):
        assert_array_equal(row[count:], 0)
        for power in range(count):
            mean = ends[0] ** power
            if ends[1] > ends[0]:
                mean = mean_over(*ends, tilt, power)
            assert_allclose(row @ node**power, mean, rtol=1e-7, atol=1e-7)


def test_orders_rise_from_one_and_fall_again_only_in_few_steps():
    few = dict(lower_order_final_below=15)
    assert_array_equal(multistep.orders(LEVELS, 3, **few), [1, 2, 3, 2, 1])
    few = dict(lower_order_final_below=5)
    assert_array_equal(multistep.orders(LEVELS, 3, **few), [1, 2, 3, 3, 3])
    last = dict(euler_at_final=True)
    assert_array_equal(multistep.orders(LEVELS, 2, **last), [1, 2, 2, 2, 1])
    with pytest.raises(ValueError, match="order must be one of 1 .. 3, got 4"):
        multistep.orders(LEVELS, 4)


def test_nothing_is_remembered_of_pure_noise_or_of_a_step_of_no_length():
    infinity = jnp.inf
    nodes = jnp.asarray([-infinity, -2, -1, 0, 1, 1, 2, 3, infinity])
    window = multistep.window(nodes, np.full(8, 3))
    assert_array_equal(window.used, [1, 1, 2, 3, 3, 1, 2, 1])
    assert all(np.all(np.isfinite(a)) for a in window)


# ---- one method is another ----------------------------------------------------------


def draws(samplers, schedule, ts, denoise=exact.anisotropic):
    x = jnp.asarray(NOISE, ts.dtype)

    @jax.jit
    def run(x, ts):
        return [sampler(KEY, denoise, schedule, x, ts)[0] for sampler in samplers]

    return [np.asarray(sample) for sample in run(x, ts)]


def test_of_first_order_all_are_ddim():
    schedule = schedules.ZeroTerminalSNR()
    samplers = [
        ddim,
        partial(deis, order=1),
        partial(lms, order=1),
        partial(ipndm, order=1),
        partial(dpm_multistep, order=1),
        partial(dpm_solver, order=1),
        partial(dpm_singlestep, order=1),
        partial(unipc, order=1, corrector=False),
    ]
    expected, *samples = draws(samplers, schedule, grids.trailing(schedule, 5))
    for sample in samples:
        assert_allclose(sample, expected, atol=2e-6)


def test_on_equal_steps_in_sigma_lms_is_ipndm():
    schedule = schedules.VarianceExploding()
    ts = jnp.linspace(4, 0, 9)
    samplers = [partial(f, order=order) for f in (lms, ipndm) for order in (2, 3, 4)]
    samples = draws(samplers, schedule, ts)
    assert_allclose(samples[:3], samples[3:], atol=1e-5)


def test_dpm_solver_at_exact_means_is_deis():
    schedule = schedules.Discrete()
    ts = grids.trailing(schedule, 6, end=1)
    exact_means = partial(dpm_multistep, solver_type="heun")
    samplers = [
        partial(f, order=order) for f in (exact_means, deis) for order in (2, 3)
    ]
    samples = draws(samplers, schedule, ts)
    assert_allclose(samples[:2], samples[2:], atol=1e-6)


def test_plms_starts_with_a_step_of_heun():
    schedule = schedules.Discrete()
    ts = jnp.asarray([900.0, 700.0, 700.0])
    first, second, third = draws([plms, heun, ddim], schedule, ts)
    assert_allclose(first, second, atol=1e-6)
    assert np.abs(first - third).max() > 1e-3


@pytest.mark.parametrize("name", ["plms", "pndm"])
def test_plms_and_pndm_evaluate_once_and_nine_times_more(name):
    times = []

    def counted(x, level):
        jax.debug.callback(times.append, level.time)
        return exact.gaussian(x, level)

    sampler, more = {"plms": (plms, 1), "pndm": (pndm, 9)}[name]
    schedule = schedules.Discrete()
    ts = grids.leading(schedule, 5)
    jax.jit(lambda x: sampler(KEY, counted, schedule, x, ts))(jnp.ones((6,)))
    jax.effects_barrier()
    assert len(times) == 5 + more
    heard = [801, 601, 401, 201, 1]
    middles = [701, 701, 501, 501, 301, 301] if name == "pndm" else []
    again = [601, 401, 201] if name == "pndm" else [601]
    assert_allclose(sorted(times), sorted(heard + middles + again))


def test_what_happens_depends_on_sigma_over_alpha_alone():
    """In y = x / alpha the same samples on every schedule."""
    samplers = [
        *(partial(dpm_multistep, order=3, form=form) for form in ("x0", "eps")),
        *(partial(dpm_singlestep, order=3, form=form) for form in ("x0", "eps")),
        *(partial(dpm_solver, form=form) for form in ("x0", "eps")),
        *(partial(unipc, order=3, form=form) for form in ("x0", "eps")),
        deis,
        lms,
        plms,
    ]

    @jax.jit
    def scaled(levels, y):
        schedule, ts = exact.Visited(levels), levels.time
        x = exact.at(levels, 0).alpha * y
        run = (f(KEY, exact.anisotropic, schedule, x, ts)[0] for f in samplers)
        return [sample / levels.alpha[-1] for sample in run]

    with jax.enable_x64(True):
        y = jnp.asarray(5 * NOISE[0], float)
        logsnrs = 2 * jnp.linspace(-2.0, 2.0, 9)
        made = [each.at_logsnr(logsnrs) for each in convergence.SCHEDULES]
        first, *others = [scaled(levels, y) for levels in made]
    for samples in others:
        assert_allclose(samples, first, rtol=1e-9)


# ---- convergence --------------------------------------------------------------------

ORDERS = {
    "deis 2": (partial(deis, order=2), 2),
    "deis 3": (deis, 3),
    "lms 2": (partial(lms, order=2), 2),
    "lms 3": (partial(lms, order=3), 3),
    "lms 4": (lms, 4),
}


@pytest.mark.parametrize("name", ORDERS)
def test_the_error_falls_with_the_published_order(name):
    sampler, order = ORDERS[name]
    measured = convergence.measured_orders(sampler)
    print(f"order of {name}: {measured.round(2)}")
    assert_allclose(measured, order, atol=0.15)


def test_fixed_weights_have_the_order_of_their_start_on_equal_steps():
    """What one step of Euler, of Heun, or of Runge and Kutta leaves of order four.

    The middle that PNDM takes is that of a step in sigma / alpha only if alpha is 1.
    """
    for sampler, orders in [
        (ipndm, [2, 2, 2, 2]),
        (plms, [3, 3, 3, 3]),
        (pndm, [3, 3, 4, 3]),
    ]:
        measured = convergence.measured_orders(
            sampler, convergence.in_ratio, knows_time=sampler is pndm
        )
        print(f"order of {sampler.__name__}: {measured.round(2)}")
        assert_allclose(measured, orders, atol=0.15)


def test_fixed_weights_on_other_steps_have_order_two_and_of_v_order_one():
    for form, order in [("eps", 2), ("v", 1)]:
        measured = convergence.measured_orders(
            partial(plms, form=form), lambda steps: 2 * np.linspace(-1.5, 2, steps + 1)
        )
        print(f"order of plms in {form}: {measured.round(2)}")
        assert_allclose(measured, order, atol=0.15)


# ---- float32 ------------------------------------------------------------------------


def test_single_precision_is_enough():
    schedule = schedules.Discrete()
    samplers = [
        partial(dpm_multistep, order=3, form="x0"),
        partial(unipc, order=3, form="eps"),
        lms,
    ]
    ts = grids.trailing(schedule, 100, end=1)
    single = draws(samplers, schedule, ts)
    with jax.enable_x64(True):
        double = draws(samplers, schedule, jnp.asarray(np.asarray(ts), float))
    for first, second in zip(single, double):
        assert second.dtype == np.float64
        assert_allclose(first, second, atol=2e-5)
