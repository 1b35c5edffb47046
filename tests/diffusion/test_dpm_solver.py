"""Laws of DPM-Solver and DPM-Solver++: multistep, singlestep, within a step."""

from __future__ import annotations

import functools

import convergence
import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.diffusion import grids, process, schedules
from diffusion_jax.diffusion.samplers.dpm_solver import (
    dpm_multistep,
    dpm_singlestep,
    dpm_solver,
)
from diffusion_jax.diffusion.samplers.dpmpp import dpmpp_2m, dpmpp_2s, dpmpp_3m

KEY = jax.random.key(0)
NOISE = np.asarray(jax.random.normal(KEY, (3, len(exact.STDS))))
partial = functools.partial


def draws(samplers, schedule, ts, denoise=exact.anisotropic):
    @jax.jit
    def run(x, ts):
        return [sampler(KEY, denoise, schedule, x, ts)[0] for sampler in samplers]

    return [np.asarray(sample) for sample in run(jnp.asarray(NOISE), ts)]


# ---- convergence --------------------------------------------------------------------

ORDERS = {
    "dpmpp_2m": (dpmpp_2m, 2),
    "dpmpp_2m heun": (partial(dpmpp_2m, solver_type="heun"), 2),
    "dpmpp_3m": (dpmpp_3m, 3),
    "dpmpp_3m as published": (partial(dpmpp_3m, half_curvature=True), 2),
    "dpm_multistep 3": (partial(dpm_multistep, order=3), 3),
    "dpmpp_2s": (dpmpp_2s, 2),
    "dpm_solver 2": (partial(dpm_solver, order=2), 2),
    "dpm_solver 3": (dpm_solver, 3),
    "dpm_solver++ 3": (partial(dpm_solver, form="x0"), 3),
    "dpm_singlestep 2": (dpm_singlestep, 2),
    "dpm_singlestep 3": (partial(dpm_singlestep, order=3, form="eps"), 3),
    "dpm_singlestep 3 heun": (
        partial(dpm_singlestep, order=3, solver_type="heun"),
        3,
    ),
}


def logsnrs_of(name):
    """Even in lambda for those that need no start of their own."""
    if "multistep" in name or name.endswith("m") or "m " in name:
        return convergence.in_lambda
    return lambda steps: 2 * np.linspace(np.log(0.2), np.log(10), steps + 1)


@pytest.mark.parametrize("name", ORDERS)
def test_the_error_falls_with_the_published_order(name):
    sampler, order = ORDERS[name]
    measured = convergence.measured_orders(sampler, logsnrs_of(name))
    print(f"order of {name}: {measured.round(2)}")
    assert_allclose(measured, order, atol=0.15)


def test_the_published_third_order_adds_half_of_a_parabola():
    schedule = schedules.VarianceExploding()
    lambdas = np.asarray([-1.0, -0.3, 0.5, 1.6])

    def denoise(x, level):
        # A parabola in lambda whose vertex is the last evaluation.
        parabola = (process.logsnr(level) / 2 - lambdas[2]) ** 2
        return process.from_x0(x, jnp.full_like(x, parabola), level)

    samplers = [partial(dpmpp_3m, half_curvature=half) for half in (False, True)]
    options = dict(lower_order_final_below=0)
    samplers = [partial(sampler, **options) for sampler in samplers]
    ts = schedule.inverse(jnp.asarray(2 * lambdas, float))
    whole, half = draws(samplers, schedule, ts, denoise)
    # x / sigma grows by the integral of x0 d(e^lambda).
    u = np.linspace(*lambdas[2:], 10_001)
    added = np.exp(-lambdas[3]) * np.trapezoid((u - lambdas[2]) ** 2 * np.exp(u), u)
    assert_allclose(whole - half, added / 2, rtol=1e-4)


# ---- one method is another ----------------------------------------------------------


def test_points_in_the_middles_of_steps_are_the_intermediate_evaluations():
    schedule = schedules.Discrete()
    logsnr = np.asarray([-5.0, -2.0, 0.0, 4.0])
    every = np.sort([*logsnr, *(logsnr[1:] + logsnr[:-1]) / 2])
    ts, every = (schedule.inverse(jnp.asarray(a, float)) for a in (logsnr, every))
    forms = ("x0", "eps")
    whole = draws([partial(dpm_solver, order=2, form=f) for f in forms], schedule, ts)
    halves = draws([partial(dpm_singlestep, form=f) for f in forms], schedule, every)
    assert_allclose(halves, whole, atol=1e-5)


def test_the_last_step_falls_to_order_one_in_few_steps_or_where_asked():
    schedule = schedules.Discrete()
    options = [
        dict(),
        dict(lower_order_final_below=0),
        dict(lower_order_final_below=0, euler_at_final=True),
    ]
    samplers = [partial(dpmpp_2m, **each) for each in options]
    for steps, falls in [(14, True), (15, False)]:
        ts = grids.trailing(schedule, steps, end=1)
        usual, never, always = draws(samplers, schedule, ts)
        assert np.abs(never - always).max() > 1e-5
        assert_allclose(usual, always if falls else never, atol=1e-7)


def test_singlestep_gives_up_the_last_order_only_where_a_group_is_whole():
    schedule = schedules.Discrete()
    samplers = [
        partial(dpm_singlestep, order=3, lower_order_final=lower)
        for lower in (False, True)
    ]
    for steps, end, same in [(6, 1, False), (7, 1, True), (8, 1, True), (6, 0, True)]:
        ts = grids.trailing(schedule, steps, end=end)
        first, second = draws(samplers, schedule, ts)
        assert np.allclose(first, second, atol=1e-7) == same


# ---- edges --------------------------------------------------------------------------


def test_neither_pure_noise_nor_clean_data_breaks_any_form():
    schedule = schedules.ZeroTerminalSNR()
    samplers = [
        *(partial(dpm_multistep, order=3, form=form) for form in ("x0", "eps")),
        *(partial(dpm_singlestep, order=3, form=form) for form in ("x0", "eps")),
        *(partial(dpm_solver, order=3, form=form) for form in ("x0", "eps")),
    ]

    @jax.jit
    def slopes(mean, ts):
        def total(mean, sampler):
            def denoise(x, level):
                return exact.gaussian(x, level, mean)

            return sampler(KEY, denoise, schedule, jnp.asarray(NOISE), ts)[0].sum()

        return [jax.grad(total)(mean, sampler) for sampler in samplers]

    # Data moved as a whole: samples move with it.
    assert_allclose(slopes(0.7, grids.trailing(schedule, 5)), NOISE.size, rtol=1e-4)


def test_unknown_choices_are_refused():
    x, ts = jnp.zeros((1, 1)), jnp.asarray([2.0, 1.0])
    schedule = schedules.Discrete()
    for sampler, options, message in [
        (dpm_multistep, dict(form="v"), "unknown form 'v'"),
        (dpm_multistep, dict(order=4), "got 4"),
        (dpm_solver, dict(order=0), "got 0"),
        (dpm_singlestep, dict(order=4), "got 4"),
        (dpm_singlestep, dict(solver_type="rk"), "unknown solver_type 'rk'"),
    ]:
        with pytest.raises(ValueError, match=message):
            sampler(KEY, exact.anisotropic, schedule, x, ts, **options)
