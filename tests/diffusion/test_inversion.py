"""Laws of inversion: there and back again is the identity."""

from __future__ import annotations

import functools

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.diffusion import grids, schedules
from diffusion_jax.diffusion.samplers import SAMPLERS, inversion

KEY = jax.random.key(0)
DATA = np.linspace(-1, 2, len(exact.STDS))


@functools.partial(jax.jit, static_argnames=("name", "corrections", "starts_noisier"))
def there_and_back(name, levels, x, corrections, starts_noisier=False):
    """The noise that x comes from, and what the sampler makes of it."""
    ts = jnp.zeros_like(levels.time)
    if name == "ddim":
        invert = functools.partial(
            inversion.ddim_inversion,
            corrections=corrections,
            starts_noisier=starts_noisier,
        )
    else:
        invert = inversion.inverted(SAMPLERS[name])
    back = exact.Visited(type(levels)(*(a[::-1] for a in levels)))
    noise, _ = invert(KEY, exact.anisotropic, back, x, ts)
    again, _ = SAMPLERS[name](KEY, exact.anisotropic, exact.Visited(levels), noise, ts)
    return noise, again


def levels_of(schedule, steps, end=None):
    """From sigma / alpha = 5 to 0.05, then `end`."""
    ends = schedule.inverse(-2 * jnp.log(jnp.asarray([5.0, 0.05])))
    ts = jnp.linspace(*jnp.sqrt(ends), steps + 1) ** 2
    return schedule(ts if end is None else jnp.append(ts, end))


@pytest.mark.parametrize("name", ["ddim", "heun", "flow_heun"])
def test_noise_and_round_trip_converge_with_the_order_of_the_solver(name, schedule):
    order = 1 if name == "ddim" else 2
    with jax.enable_x64(True):
        wrong = []
        for steps in (64, 256):
            levels = levels_of(schedule, steps)
            x = exact.at(levels, -1).alpha * jnp.asarray(DATA)
            noise, again = there_and_back(name, levels, x, 0)
            ends = exact.at(levels, -1), exact.at(levels, 0)
            true = exact.anisotropic_flow(x, *ends)
            scale = exact.at(levels, 0).sigma
            wrong.append([abs(noise - true).mean() / scale, abs(again - x).mean()])
    orders = np.log(np.divide(*wrong)) / np.log(4)
    print(f"{name} on {schedule}: orders {orders}")
    assert_allclose(orders[0], order, atol=0.2)
    assert orders[1] > order - 0.2  # errors may cancel on the way back


def test_corrections_make_the_round_trip_exact(schedule):
    """In few steps, and from clean data on."""
    levels = levels_of(schedule, 16, end=0.0)
    x = jnp.asarray(DATA, jnp.float32)
    errors = [
        np.abs(there_and_back("ddim", levels, x, corrections)[1] - x).max()
        for corrections in (0, 1, 50)
    ]
    print(schedule, errors)
    assert errors[0] > 0.1
    assert errors[1] < errors[0]
    assert errors[2] < 1e-4


def test_inversion_of_a_noiseless_grid_is_its_mirror():
    """The network never hears the time of clean data, and the trace starts with it."""
    times = []

    def heard(x, level):
        jax.debug.callback(times.append, level.time, ordered=True)
        return exact.gaussian(x, level)

    schedule = schedules.Discrete()
    ts = jnp.asarray([900.0, 500.0, 100.0, 0.0])
    x = jax.random.normal(KEY, (6,))
    noise, trace = inversion.ddim_inversion(KEY, heard, schedule, x, ts)
    jax.effects_barrier()
    assert_allclose(times, [99.0, 499.0, 899.0])
    assert_allclose(trace[0], x, atol=1e-6)
    assert noise.shape == x.shape and trace.shape == (3, 6)


def test_an_inverted_sampler_visits_the_grid_from_its_end():
    schedule = schedules.Discrete()
    ts = jnp.asarray([900.0, 500.0, 100.0, 1.0])
    x = jax.random.normal(KEY, (6,))
    backwards = inversion.inverted(SAMPLERS["euler"])
    got, _ = backwards(KEY, exact.gaussian, schedule, x, ts)
    expected, _ = exact.run("euler", exact.gaussian, KEY, x, schedule(ts[::-1]))
    assert_allclose(got, expected, atol=1e-5)


def test_gradients_are_finite_from_clean_data_to_pure_noise():
    schedule = schedules.ZeroTerminalSNR()
    ts = grids.trailing(schedule, 3)

    def total(x, mean):
        def denoise(x, level):
            return exact.gaussian(x, level, mean)

        invert = functools.partial(inversion.ddim_inversion, corrections=1)
        return invert(KEY, denoise, schedule, x, ts)[0].sum()

    for slope in jax.jit(jax.grad(total, (0, 1)))(jnp.ones(4), 0.7):
        assert np.all(np.isfinite(slope))


def test_a_start_at_the_noisier_end_is_undone_the_better_the_more_steps(schedule):
    """From clean data; for networks that say nothing of eps there."""
    x = jnp.asarray(DATA, jnp.float32)
    wrong = []
    for steps in (16, 64):
        levels = levels_of(schedule, steps, 0.0)
        again = there_and_back("ddim", levels, x, 0, starts_noisier=True)[1]
        wrong.append(abs(again - x).mean())
    assert wrong[1] < 0.5 * wrong[0]
