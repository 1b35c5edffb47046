"""Laws of UniPC: what its predictor is, and what its corrector adds."""

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
from diffusion_jax.diffusion.samplers.deis import deis
from diffusion_jax.diffusion.samplers.dpmpp import dpmpp_2m, dpmpp_3m
from diffusion_jax.diffusion.samplers.unipc import unipc

KEY = jax.random.key(0)
NOISE = np.asarray(jax.random.normal(KEY, (3, len(exact.STDS))))
SCHEDULE = schedules.Discrete()
partial = functools.partial
predictor = partial(unipc, corrector=False)


def draws(samplers, ts, schedule=SCHEDULE):
    @jax.jit
    def run(x, ts):
        return [
            sampler(KEY, exact.anisotropic, schedule, x, ts)[0] for sampler in samplers
        ]

    return [np.asarray(sample) for sample in run(jnp.asarray(NOISE), ts)]


CONSTANT = dict(lower_order_final_below=0)  # a last step of order 1 leaves order 2
ORDERS = {
    "UniP-2": (partial(predictor, **CONSTANT), 2),
    "UniP-3": (partial(predictor, order=3, **CONSTANT), 3),
    "UniPC-1": (partial(unipc, order=1, **CONSTANT), 2),
    "UniPC-2": (partial(unipc, **CONSTANT), 3),
    "UniPC-2 bh1": (partial(unipc, variant="bh1", **CONSTANT), 3),
    "UniPC-3": (partial(unipc, order=3, **CONSTANT), 4),
    "UniPC-3 eps": (partial(unipc, order=3, form="eps", **CONSTANT), 4),
}


@pytest.mark.parametrize("name", ORDERS)
def test_the_corrector_adds_one_to_the_order(name):
    sampler, order = ORDERS[name]
    measured = convergence.measured_orders(sampler)
    print(f"order of {name}: {measured.round(2)}")
    assert_allclose(measured, order, atol=0.15)


def test_the_predictor_is_dpm_solver_pp_or_deis():
    ts = grids.trailing(SCHEDULE, 8, end=1)
    for first, second in [
        (predictor, dpmpp_2m),
        (partial(predictor, order=3), dpmpp_3m),
    ]:
        assert_allclose(*draws([first, second], ts), atol=1e-6)
    # All but its lines, where B(h) leaves a choice.
    ts = SCHEDULE.inverse(jnp.linspace(-5.0, 5.0, 100))
    third = partial(predictor, order=3, form="eps", **CONSTANT)
    assert_allclose(*draws([third, deis], ts), atol=1e-4)


def test_a_step_that_is_not_corrected_keeps_what_it_predicts():
    ts = grids.trailing(SCHEDULE, 6, end=1)
    samplers = [partial(unipc, uncorrected=some) for some in [(), (0, 1), range(6)]]
    none, some, all_ = draws(samplers, ts)
    assert_allclose(all_, *draws([predictor], ts), atol=1e-7)
    for first, second in [(none, some), (some, all_), (none, all_)]:
        assert np.abs(first - second).max() > 1e-4


def test_a_line_adds_half_of_bh_times_its_rise():
    """With a line that is 0 at the newest node; B(h) is of -h in x0."""
    lambdas = np.asarray([-0.6, 0.2, 1.5])
    levels = SCHEDULE.at_logsnr(jnp.asarray(2 * lambdas, float))
    alpha, sigma = levels.alpha[-1], levels.sigma[-1]
    h = lambdas[2] - lambdas[1]

    def rising(x, level, form):
        line = jnp.full_like(x, process.logsnr(level) / 2 - lambdas[1])
        if form == "x0":
            return process.from_x0(x, line, level)
        return process.Prediction((x - level.sigma * line) / level.alpha, line)

    @functools.partial(jax.jit, static_argnames=("variant", "form"))
    def added(variant, form):
        def run(order):
            args = (KEY, partial(rising, form=form), exact.Visited(levels))
            options = dict(order=order, variant=variant, form=form, **CONSTANT)
            return predictor(*args, jnp.asarray(NOISE), levels.time, **options)[0]

        return run(2) - run(1)

    for variant, form, expected in [
        ("bh1", "x0", alpha * h),
        ("bh2", "x0", -alpha * np.expm1(-h)),
        ("bh1", "eps", -sigma * h),
        ("bh2", "eps", -sigma * np.expm1(h)),
    ]:
        assert_allclose(added(variant, form), expected * h / 2, rtol=1e-4)


def test_the_network_is_asked_once_a_step():
    times = []

    def counted(x, level):
        jax.debug.callback(times.append, level.time)
        return exact.gaussian(x, level)

    ts = grids.leading(SCHEDULE, 5)
    jax.jit(lambda x: unipc(KEY, counted, SCHEDULE, x, ts))(jnp.ones((6,)))
    jax.effects_barrier()
    assert_allclose(sorted(times, reverse=True), [801, 601, 401, 201, 1])


def test_neither_pure_noise_nor_clean_data_breaks_any_form():
    schedule = schedules.ZeroTerminalSNR()
    ts = grids.trailing(schedule, 5)

    @jax.jit
    def slopes(mean):
        def total(mean):
            def denoise(x, level):
                return exact.gaussian(x, level, mean)

            args = (KEY, denoise, schedule, jnp.asarray(NOISE), ts)
            forms = ("x0", "eps")
            return [unipc(*args, order=3, form=form)[0].sum() for form in forms]

        return jax.jacrev(total)(mean)

    # Data moved as a whole: samples move with it.
    assert_allclose(slopes(0.7), NOISE.size, rtol=1e-4)


def test_unknown_variants_are_refused():
    x, ts = jnp.zeros((1, 1)), jnp.asarray([2.0, 1.0])
    with pytest.raises(ValueError, match="unknown variant 'bh3'"):
        unipc(KEY, exact.anisotropic, SCHEDULE, x, ts, variant="bh3")
    with pytest.raises(ValueError, match="unknown form 'v'"):
        unipc(KEY, exact.anisotropic, SCHEDULE, x, ts, form="v")
