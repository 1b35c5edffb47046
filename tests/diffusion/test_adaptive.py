"""Laws of the solver that chooses its own steps."""

from __future__ import annotations

import functools

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.diffusion import grids, schedules
from diffusion_jax.diffusion.samplers.adaptive import adaptive

KEY = jax.random.key(0)
SCHEDULE = schedules.Discrete()


def started(levels, num=4):
    here = exact.at(levels, 0)
    spread = jnp.linspace(-2, 2, num * len(exact.STDS)).reshape(num, -1)
    return here.alpha * 0.2 + here.sigma * spread


@functools.partial(jax.jit, static_argnames="max_evaluations")
def solve(levels, x, rtol, first_step=0.05, max_evaluations=3000):
    schedule = exact.Visited(levels)
    ts = jnp.zeros_like(levels.time)
    return adaptive(
        KEY,
        exact.anisotropic,
        schedule,
        x,
        ts,
        rtol=rtol,
        atol=0.1 * rtol,
        first_step=first_step,
        max_evaluations=max_evaluations,
    )


def error(levels, rtol, **options):
    x = started(levels)
    got, _ = solve(levels, x, rtol, **options)
    ends = exact.at(levels, 0), exact.at(levels, -1)
    wrong = got - exact.anisotropic_flow(x, *ends)
    return np.sqrt(np.mean(wrong**2))


def test_the_error_follows_the_tolerance(schedule):
    ends = schedule.inverse(-2 * jnp.log(jnp.asarray([5.0, 0.1])))
    with jax.enable_x64(True):
        levels = schedule(jnp.asarray(ends, float))
        errors = [error(levels, rtol) for rtol in (1e-1, 1e-3, 1e-5)]
    print(schedule, errors)
    assert errors[0] < 0.1
    assert errors[1] < errors[0] / 10
    assert errors[2] < errors[1] / 10


def test_a_step_that_is_too_long_is_taken_back():
    levels = SCHEDULE(jnp.asarray([900.0, 50.0]))
    errors = [error(levels, 1e-3, first_step=step) for step in (0.05, 50.0)]
    print(errors)
    assert errors[1] < 2 * errors[0]


def test_single_steps_have_order_3():
    """With one evaluation allowed, every interval is one step, whatever its error."""
    with jax.enable_x64(True):
        ends = SCHEDULE.inverse(-2 * jnp.log(jnp.asarray([5.0, 0.1])))
        errors = [
            error(
                SCHEDULE(jnp.linspace(*jnp.sqrt(ends), steps + 1) ** 2),
                1e-9,
                max_evaluations=1,
            )
            for steps in (64, 256)
        ]
    order = np.log(errors[0] / errors[1]) / np.log(4)
    print(f"order {order:.3f}")
    assert abs(order - 3) < 0.2


def test_two_steps_are_a_whole_grid():
    ts = jnp.asarray([SCHEDULE.t_max, SCHEDULE.t_min, 0.0])
    levels = SCHEDULE(ts)
    x = started(levels)
    got, trace = solve(levels, x, 1e-3)
    assert_allclose(trace[-1], got, atol=1e-5)
    ends = exact.at(levels, 0), exact.at(levels, -1)
    assert_allclose(got, exact.anisotropic_flow(x, *ends), atol=0.02)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_number_of_evaluations_is_bounded_and_what_the_error_asks_for(steps):
    """Reaching the bound takes one long last step, and stays finite."""
    times = []

    def counted(x, level):
        jax.debug.callback(times.append, level.time)
        return exact.anisotropic(x, level)

    levels = SCHEDULE(jnp.linspace(900.0, 100.0, steps + 1))
    ts = jnp.append(jnp.linspace(900.0, 100.0, steps + 1), 0.0)
    x = started(levels)
    numbers = {}
    for rtol, bound in [(1e-1, 600), (1e-4, 600), (1e-9, 40)]:
        times.clear()
        options = dict(rtol=rtol, atol=rtol, max_evaluations=bound)
        got, trace = adaptive(KEY, counted, SCHEDULE, x, ts, **options)
        jax.effects_barrier()
        assert np.all(np.isfinite(got)) and np.all(np.isfinite(trace))
        numbers[bound, rtol] = len(times)
        assert len(times) <= bound
        assert min(map(np.min, times)) >= 0  # never at clean data
    assert numbers[600, 1e-1] < numbers[600, 1e-4] < 600
    assert numbers[40, 1e-9] > 30


def test_an_example_has_steps_of_its_own():
    levels = SCHEDULE(jnp.asarray([900.0, 50.0]))
    x = started(levels).at[0].mul(100.0)  # whose error asks for other steps
    together, _ = solve(levels, x, 1e-2)
    for i in range(len(x)):
        alone, _ = solve(levels, x[i : i + 1], 1e-2)
        assert_allclose(alone[0], together[i], rtol=1e-5, atol=1e-5)


def test_pure_noise_and_clean_data_are_left_and_reached_by_euler_steps():
    schedule = schedules.ZeroTerminalSNR()
    ts = grids.trailing(schedule, 1)
    x = jax.random.normal(KEY, (6,))
    got, _ = adaptive(KEY, exact.gaussian, schedule, x, ts)
    assert_allclose(got, exact.gaussian(x, schedule(ts[0])).x0, atol=1e-6)


def test_gradients_are_finite_where_steps_are_rejected():
    levels = SCHEDULE(jnp.asarray([900.0, 1.0, 0.0]))

    def total(x):
        return solve(levels, x, 1e-2, first_step=3.0, max_evaluations=120)[0].sum()

    x = started(levels, 2)
    slope = jax.jit(jax.grad(total))(x)
    ends = exact.at(levels, 0), exact.at(levels, -1)
    flow = jax.grad(lambda x: exact.anisotropic_flow(x, *ends).sum())(x)
    assert_allclose(slope, flow, rtol=0.05, atol=0.01)
