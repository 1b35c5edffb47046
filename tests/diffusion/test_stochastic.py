"""Laws of the stochastic samplers: what they reduce to, where they land, what they ask."""

from __future__ import annotations

import functools

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.diffusion import grids, process, schedules
from diffusion_jax.diffusion.samplers import SAMPLERS

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (1, len(exact.STDS)))
SCHEDULE = schedules.Discrete()
ALWAYS = {"tau_interval": (0.0, np.inf)}


def sampler(name, **options):
    return functools.partial(SAMPLERS[name], **options)


@functools.partial(jax.jit, static_argnames=("which", "denoise"))
def run(which, denoise, key, x, levels):
    return which(key, denoise, exact.Visited(levels), x, jnp.zeros_like(levels.time))


# ---- reductions ---------------------------------------------------------------------

EQUAL = {
    "euler_ancestral with eta is ddim with eta": (
        sampler("euler_ancestral", eta=0.6),
        sampler("ddim", eta=0.6),
    ),
    "euler_ancestral without noise is euler": (
        sampler("euler_ancestral", eta=0.0),
        sampler("euler"),
    ),
    "dpm2_ancestral without noise is dpm2": (
        sampler("dpm2_ancestral", eta=0.0),
        sampler("dpm2"),
    ),
    "dpmpp_2s_ancestral without noise is dpmpp_2s": (
        sampler("dpmpp_2s_ancestral", eta=0.0),
        sampler("dpmpp_2s"),
    ),
    "dpmpp_sde without noise is dpmpp_2s": (
        sampler("dpmpp_sde", eta=0.0),
        sampler("dpmpp_2s"),
    ),
    "dpmpp_2m_sde without noise is dpmpp_2m": (
        sampler("dpmpp_2m_sde", eta=0.0),
        sampler("dpmpp_2m"),
    ),
    "dpmpp_2m_sde without noise is dpmpp_2m, heun": (
        sampler("dpmpp_2m_sde", eta=0.0, solver_type="heun", lower_order_final_below=0),
        sampler("dpmpp_2m", solver_type="heun", lower_order_final_below=0),
    ),
    "dpmpp_3m_sde without noise is dpmpp_3m": (
        sampler("dpmpp_3m_sde", eta=0.0, curvature="full"),
        sampler("dpmpp_3m", solver_type="heun"),
    ),
    "dpmpp_3m_sde without noise is dpmpp_3m, as published": (
        sampler("dpmpp_3m_sde", eta=0.0, solver_type="midpoint"),
        sampler("dpmpp_3m", half_curvature=True),
    ),
    "dpm_multistep_sde without noise is dpm_multistep": (
        sampler("dpm_multistep_sde", eta=0.0),
        sampler("dpm_multistep"),
    ),
    "edm without churn is heun": (sampler("edm"), sampler("heun")),
    "edm of first order without churn is euler": (
        sampler("edm", second_order=False),
        sampler("euler"),
    ),
    "sa_solver of first order without noise is ddim": (
        sampler("sa_solver", predictor_order=1, corrector_order=0, tau=0.0),
        sampler("ddim"),
    ),
    "sa_solver without corrector in eps is dpm_multistep_sde": (
        sampler(
            "sa_solver", predictor_order=2, corrector_order=0, form="eps", **ALWAYS
        ),
        sampler("dpm_multistep_sde", solver_type="heun"),
    ),
}


@pytest.mark.parametrize("law", EQUAL)
def test_samplers_reduce_to_one_another(law):
    one, other = EQUAL[law]
    for schedule in (schedules.ZeroTerminalSNR(), schedules.VarianceExploding(0.02, 9)):
        levels = schedule(grids.linspace(schedule, 6))
        x = levels.sigma[0] * X
        got, trace = run(one, exact.anisotropic, KEY, x, levels)
        expected, expected_trace = run(other, exact.anisotropic, KEY, x, levels)
        assert_allclose(got, expected, atol=2e-5)
        assert_allclose(trace, expected_trace, atol=2e-5)


# ---- schedules ----------------------------------------------------------------------

STOCHASTIC = {
    "edm": sampler("edm", s_churn=3.0, s_noise=1.1, s_max=3.0),
    "euler_ancestral": sampler("euler_ancestral"),
    "dpm2_ancestral": sampler("dpm2_ancestral", eta=0.7),
    "dpmpp_2s_ancestral": sampler("dpmpp_2s_ancestral", eta=0.7),
    "dpmpp_sde": sampler("dpmpp_sde", r=0.3),
    "dpmpp_2m_sde": sampler("dpmpp_2m_sde", eta=0.7),
    "dpmpp_3m_sde": sampler("dpmpp_3m_sde"),
    "dpm_multistep_sde": sampler("dpm_multistep_sde", eta=0.7),
    "sa_solver": sampler("sa_solver", tau_interval=(0.1, 2.0)),
    "sa_solver in eps": sampler("sa_solver", form="eps", tau_interval=(0.1, 2.0)),
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_what_happens_to_x_over_alpha_is_the_same_on_all_schedules(name):
    """With one key, down to the last digit: only sigma / alpha matters."""
    with jax.enable_x64(True):
        ratio = jnp.asarray([5.0, 3.0, 1.1, 0.7, 0.31, 0.2, 0.1, 0.0])
        alphas = jnp.ones(8), 1 / jnp.hypot(1.0, ratio), 1 / (1 + ratio)
        samples = []
        for alpha in alphas:
            levels = process.NoiseLevel(alpha, alpha * ratio, ratio)
            x = alpha[0] * 5.0 * X.astype(float)
            sample, _ = run(STOCHASTIC[name], exact.anisotropic, KEY, x, levels)
            samples.append(sample)
        plain, _ = run(sampler("heun"), exact.anisotropic, KEY, x, levels)
    assert_allclose(samples[1], samples[0], atol=1e-7)
    assert_allclose(samples[2], samples[0], atol=1e-7)
    assert np.abs(samples[0] - plain).max() > 0.1


# ---- where they land ----------------------------------------------------------------


def half(x, level):
    """The denoiser of data that is always 1/2."""
    return process.from_x0(x, jnp.full_like(x, 0.5), level)


@pytest.mark.parametrize(
    "which",
    [
        STOCHASTIC["dpmpp_sde"],
        sampler("dpmpp_2m_sde"),
        STOCHASTIC["dpmpp_3m_sde"],
        sampler("sa_solver", **ALWAYS),
    ],
    ids=lambda which: which.func.__name__,
)
def test_with_one_known_image_a_path_does_not_depend_on_the_steps(which):
    # Steps of no length do nothing, and make one program do.
    grids = [
        [1000.0, 930.0, 610.0, 320.0, 300.0],
        [1000.0, 610.0, 610.0, 300.0, 300.0],
        [1000.0, 300.0, 300.0, 300.0, 300.0],
    ]
    with jax.enable_x64(True):
        x = X[:, :3].astype(float)
        samples = []
        for ts in grids:
            levels = schedules.ZeroTerminalSNR()(jnp.asarray(ts))
            samples.append(np.asarray(run(which, half, KEY, x, levels)[0]))
    assert_allclose(samples[1], samples[0], atol=1e-6)
    assert_allclose(samples[2], samples[0], atol=1e-6)
    assert np.std(samples[0]) > 0.1


def line(x, level):
    """x0 is whatever x is, and linear in lambda."""
    return process.from_x0(x, jnp.full_like(x, process.logsnr(level) / 2), level)


def parabola(x, level):
    halved = process.logsnr(level) / 2
    return process.from_x0(x, jnp.full_like(x, halved - halved**2), level)


@pytest.mark.parametrize(
    ("which", "denoise"),
    [
        (sampler("dpmpp_2m_sde", solver_type="heun"), line),
        (
            sampler("dpmpp_3m_sde", curvature="full", lower_order_final_below=0),
            parabola,
        ),
        (
            sampler("sa_solver", corrector_order=0, lower_order_final=False, **ALWAYS),
            parabola,
        ),
        (sampler("sa_solver", lower_order_final=False, **ALWAYS), parabola),
    ],
    ids=["dpmpp_2m_sde", "dpmpp_3m_sde", "predictor", "predictor and corrector"],
)
def test_a_polynomial_in_lambda_is_integrated_exactly(which, denoise):
    """After a start so short that the lower order there makes no difference."""
    fine = [-1, -0.9999, -0.9998, -0.5, 0.1, 0.3, 0.8, 1.7, 1.7]
    coarse = [-1, -0.9999, -0.9998, 0.1, 1.7, 1.7, 1.7, 1.7, 1.7]
    with jax.enable_x64(True):
        samples = []
        for lambdas in (fine, coarse):
            levels = SCHEDULE.at_logsnr(2 * jnp.asarray(lambdas, float))
            sample, _ = run(which, denoise, KEY, X.astype(float), levels)
            samples.append(np.asarray(sample))
    assert_allclose(samples[1], samples[0], atol=1e-6)


def test_where_dpmpp_sde_looks_within_a_step_does_not_matter_to_a_line():
    levels = SCHEDULE(jnp.asarray([900.0, 500.0, 200.0]))
    samples = [
        run(sampler("dpmpp_sde", r=r), line, KEY, X, levels)[0] for r in (0.2, 0.5, 0.9)
    ]
    assert_allclose(samples[1], samples[0], atol=2e-5)
    assert_allclose(samples[2], samples[0], atol=2e-5)


def test_churn_adds_noise_up_to_the_level_that_the_network_hears():
    heard = []

    def empty(x, level):
        jax.debug.callback(lambda *a: heard.append(a), level.sigma, x.std())
        return process.from_x0(x, jnp.zeros_like(x), level)

    @jax.jit
    def churned(x, ts, **options):
        schedule = schedules.VarianceExploding()
        options |= {"second_order": False}
        return SAMPLERS["edm"](KEY, empty, schedule, x, ts, **options)[0]

    x = jax.random.normal(KEY, (1, 20_000))
    for churn, low, high, growth in [
        (0.2, 0.5, 2.0, 1.2),
        (99.0, 0.5, 2.0, 2**0.5),
        (0.2, 1.5, 2.0, 1.0),
        (0.2, 0.5, 0.9, 1.0),
    ]:
        heard.clear()
        ts = jnp.asarray([1.0, 0.5])
        end = churned(x, ts, s_churn=churn, s_min=low, s_max=high)
        jax.effects_barrier()
        assert_allclose(heard, [(growth, growth)], rtol=0.02)
        assert_allclose(end.std(), 0.5, rtol=0.02)


# ---- evaluations and errors ---------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dpm2_ancestral", 8),
        ("dpmpp_2s_ancestral", 8),
        ("dpmpp_sde", 8),
        ("edm", 8),
    ],
)
def test_second_evaluations_are_left_out_at_infinite_ends(name, expected):
    times = []

    def counted(x, level):
        jax.debug.callback(times.append, level.time)
        return exact.gaussian(x, level)

    schedule = schedules.ZeroTerminalSNR()
    SAMPLERS[name](KEY, counted, schedule, X, grids.trailing(schedule, 5))
    jax.effects_barrier()
    assert len(times) == expected
    assert min(times) >= 0  # never at clean data


@pytest.mark.parametrize("name", ["dpm2_ancestral", "dpmpp_2s_ancestral"])
def test_fully_ancestral_midpoints_are_where_the_step_ends(name):
    """Their step goes below the next level by as much in lambda as that is ahead."""
    ratios = []

    def listening(x, level):
        jax.debug.callback(ratios.append, level.sigma / level.alpha, ordered=True)
        return exact.gaussian(x, level)

    ratio = np.asarray([5.0, 2.0, 0.5])
    levels = process.NoiseLevel(jnp.ones(3), jnp.asarray(ratio), jnp.asarray(ratio))
    SAMPLERS[name](KEY, listening, exact.Visited(levels), X, jnp.zeros(3))
    jax.effects_barrier()
    assert_allclose(ratios, [5.0, 2.0, 2.0, 0.5], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dpmpp_2m_sde", {"solver_type": "bh2"}, "unknown solver_type 'bh2'.*heun"),
        ("dpmpp_3m_sde", {"curvature": "none"}, "unknown curvature 'none'.*full"),
        ("dpm_multistep_sde", {"order": 4}, "order must be one of 1 .. 3, got 4"),
        ("sa_solver", {"predictor_order": 0}, "order must be one of 1 .. 4, got 0"),
        ("sa_solver", {"corrector_order": -1}, "at least 0, got -1"),
        ("sa_solver", {"form": "velocity"}, "unknown form 'velocity'"),
    ],
)
def test_impossible_options_are_refused(name, options, message):
    def sample(ts):
        return SAMPLERS[name](KEY, exact.gaussian, SCHEDULE, X, ts, **options)

    with pytest.raises(ValueError, match=message):
        jax.eval_shape(sample, jnp.zeros(4))
