"""Laws of the noise schedules, against closed forms evaluated in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import special, stats

from diffusion_jax.diffusion import process, schedules

EVERY = {
    "linear": schedules.Discrete(betas="linear", beta_start=1e-4, beta_end=0.02),
    "scaled_linear": schedules.Discrete(),
    "sigmoid_betas": schedules.Discrete("sigmoid", beta_start=1e-5, beta_end=0.02),
    "cosine_betas": schedules.Discrete("cosine"),
    "laplace_betas": schedules.Discrete("laplace"),
    "exp_betas": schedules.Discrete("exp"),
    "zero_terminal_snr": schedules.ZeroTerminalSNR(schedules.Discrete()),
    "almost_zero_snr": schedules.ZeroTerminalSNR(terminal_alpha2=2.0**-24),
    "cosine": schedules.Cosine(),
    "angle": schedules.Cosine(s=0.0),
    "sigmoid": schedules.Sigmoid(),
    "steep_sigmoid": schedules.Sigmoid(start=0, end=3, tau=0.3),
    "laplace": schedules.Laplace(mu=1.0),
    "variance_preserving": schedules.VariancePreserving(),
    "sub_variance_preserving": schedules.SubVariancePreserving(),
    "variance_exploding": schedules.VarianceExploding(),
    "rectified_flow": schedules.RectifiedFlow(),
    "shifted_table": schedules.ShiftedSNR(schedules.Discrete(), shift=-2),
    "shifted_cosine": schedules.ShiftedSNR(schedules.Cosine(), shift=-2 * np.log(4.0)),
    "shifted_flow": schedules.ShiftedSNR(
        schedules.RectifiedFlow(), shift=-2 * np.log(3.0), hears_noise=True
    ),
    "shifted_exploding": schedules.ShiftedSNR(schedules.VarianceExploding(), shift=3),
}


@pytest.fixture(params=EVERY)
def schedule(request):
    return EVERY[request.param]


def level_at(schedule, times):
    """The level at these times; always evaluated in one shape, hence compiled once."""
    times = np.asarray(times, np.float32)
    padded = np.append(times, np.full(1001 - times.size, times.flat[-1], np.float32))
    level = schedule(jnp.asarray(padded))
    return process.NoiseLevel(*(np.asarray(a)[: times.size] for a in level))


def ratio_at(schedule, times):
    level = level_at(schedule, times)
    with np.errstate(divide="ignore"):
        return level.sigma / level.alpha


def test_time_zero_is_clean_data(schedule):
    level = level_at(schedule, [0])
    assert (level.alpha, level.sigma) == (1.0, 0.0)
    assert np.isfinite(level.time)


def test_signal_falls_and_noise_rises_with_time(schedule):
    t = np.linspace(0, schedule.t_max, 1001)
    level = level_at(schedule, t)
    assert np.all(np.diff(ratio_at(schedule, t)) > 0)
    assert np.all(np.diff(level.alpha) <= 1e-7)
    assert np.all(np.diff(level.sigma) >= -1e-7)  # rounding errors near 1
    assert np.all(np.diff(level.time) > 0)


def test_inverse_finds_the_time_of_a_logsnr(schedule):
    t = np.linspace(schedule.t_min, schedule.t_max, 1002)[:-1]
    logsnr = jnp.asarray(-2 * np.log(ratio_at(schedule, t)))
    assert_allclose(schedule.inverse(logsnr), t, rtol=1e-3)
    again = schedule.at_logsnr(logsnr)
    assert_allclose(-2 * np.log(again.sigma / again.alpha), logsnr, atol=3e-4)
    assert_allclose(again.time, level_at(schedule, t).time, rtol=1e-3, atol=1e-3)


def test_levels_are_the_same_under_jit_and_vmap(schedule):
    t = jnp.linspace(schedule.t_min, schedule.t_max, 1001)
    for mapped in (jax.jit(schedule), jax.vmap(schedule)):
        for got, expected in zip(mapped(t), schedule(t)):
            assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


def test_half_precision_times_do_not_lower_the_precision_of_the_level(schedule):
    t = jnp.linspace(schedule.t_min, schedule.t_max, 1001, dtype=jnp.bfloat16)
    assert schedule(t).alpha.dtype == schedule(t).sigma.dtype == jnp.float32


def test_derivatives_are_finite_inside_and_at_both_ends(schedule):
    t = jnp.linspace(0, schedule.t_max, 1001)
    forward = jax.jit(lambda t: jax.jvp(schedule, (t,), (jnp.ones_like(t),))[1])(t)
    reverse = jax.jit(jax.grad(lambda t: sum(a.sum() for a in schedule(t))))(t)
    assert np.all(np.isfinite([*forward, reverse]))


def test_quantiles_of_the_uniform_span_the_trained_times(schedule):
    t = schedule.quantile(jnp.linspace(0, 1, 1001))
    assert_allclose([t[0], t[-1]], [schedule.t_min, schedule.t_max], rtol=1e-6)
    assert np.all(np.diff(t) >= 0)


def test_whole_steps_are_all_equally_likely():
    steps = schedules.Discrete(num_steps=10).quantile((jnp.arange(1000) + 0.5) / 1000)
    assert_allclose(np.bincount(np.asarray(steps, int)), [0] + [100] * 10)


def test_schedules_are_static_under_jit(schedule):
    level = jax.jit(lambda s, t: s(t), static_argnums=0)(schedule, jnp.ones(()))
    assert np.isfinite(level.alpha)
    assert hash(schedule) == hash(schedule)


# ---- whole steps --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "betas"),
    [
        ("linear", np.linspace(1e-4, 0.02, 1000)),
        ("scaled_linear", np.linspace(1e-4**0.5, 0.02**0.5, 1000) ** 2),
        ("sigmoid", 1e-4 + (0.02 - 1e-4) * special.expit(np.linspace(-6, 6, 1000))),
    ],
)
def test_alpha_squared_is_the_product_of_one_minus_beta(name, betas):
    schedule = schedules.Discrete(name, beta_start=1e-4, beta_end=0.02)
    level = level_at(schedule, np.arange(1, 1001))
    alpha2 = np.cumprod(1 - betas)
    assert_allclose(level.alpha, np.sqrt(alpha2), rtol=2e-6)
    assert_allclose(level.sigma, np.sqrt(1 - alpha2), rtol=2e-6)
    assert_allclose(level.time, np.arange(1000))


def test_trained_betas_overrule_the_others():
    betas = tuple(np.linspace(1e-4, 0.02, 1000).tolist())
    trained = level_at(schedules.Discrete(trained_betas=betas), np.arange(1001))
    linear = schedules.Discrete("linear", beta_start=1e-4, beta_end=0.02)
    for ours, expected in zip(trained, level_at(linear, np.arange(1001)), strict=True):
        assert_allclose(ours, expected, rtol=1e-5)


def test_a_last_trained_beta_of_one_is_pure_noise():
    schedule = schedules.Discrete(trained_betas=(0.1, 0.2, 0.5, 1.0), num_steps=4)
    level = level_at(schedule, [1, 2, 3, 4])
    assert_allclose(level.alpha**2, [0.9, 0.72, 0.36, 0], rtol=1e-6)


def test_exponential_betas_make_logarithms_of_alpha_even():
    level = level_at(schedules.Discrete("exp"), np.arange(1, 1001))
    assert_allclose(np.log(level.alpha), -6 * np.arange(1, 1001) / 1000, rtol=1e-5)


def test_cosine_betas_follow_the_continuous_cosine_until_the_cap():
    capped = level_at(schedules.Discrete("cosine"), np.arange(1, 999))
    smooth = level_at(schedules.Cosine(), np.arange(1, 999) / 1000)
    assert_allclose(capped.alpha, smooth.alpha, rtol=2e-4)
    assert_allclose(capped.sigma, smooth.sigma, rtol=2e-6)
    # The last beta would be 1 and is 0.999.
    last = level_at(schedules.Discrete("cosine"), [999, 1000]).alpha
    assert_allclose((last[1] / last[0]) ** 2, 1e-3, rtol=1e-4)


def test_stable_diffusion_ends_at_its_published_noise():
    # sigma_min and sigma_max of k-diffusion's wrapper of Stable Diffusion 1.
    assert_allclose(
        ratio_at(schedules.Discrete(), [1, 1000]), [0.02917, 14.6146], rtol=1e-4
    )


def test_log_ratio_is_linear_between_entries():
    log_ratios = np.log(ratio_at(schedules.Discrete(), [100, 100.25, 101]))
    assert_allclose(log_ratios[1], [0.75, 0, 0.25] @ log_ratios, rtol=1e-5)
    assert_allclose(np.diff(log_ratios)[1] / np.diff(log_ratios)[0], 3, rtol=1e-3)


def test_below_the_first_entry_noise_shrinks_linearly():
    ratio = ratio_at(schedules.Discrete(), [0.25, 0.5, 1.0])
    assert_allclose(ratio / ratio[-1], [0.25, 0.5, 1.0], rtol=1e-6)


def test_the_two_powers_of_whole_step_schedules_sum_to_one():
    for schedule in (
        schedules.Discrete(),
        schedules.ZeroTerminalSNR(),
        schedules.Cosine(),
    ):
        level = level_at(schedule, np.linspace(0, schedule.t_max, 777))
        assert_allclose(level.alpha**2 + level.sigma**2, 1, rtol=1e-6)


def test_zero_terminal_snr_shifts_and_scales_alpha():
    every = np.arange(1, 1001)
    plain = level_at(schedules.Discrete(), every)
    level = level_at(schedules.ZeroTerminalSNR(), every)
    assert (level.alpha[-1], level.sigma[-1]) == (0.0, 1.0)
    assert_allclose(level.alpha[0], plain.alpha[0], rtol=1e-6)
    assert_allclose(level.sigma[0], plain.sigma[0], rtol=1e-6)
    # An affine map of alpha: equal second differences up to one factor.
    factor = plain.alpha[0] / (plain.alpha[0] - plain.alpha[-1])
    assert_allclose(np.diff(level.alpha), factor * np.diff(plain.alpha), atol=3e-7)


def test_zero_terminal_snr_is_continuous_at_its_end():
    alpha = level_at(schedules.ZeroTerminalSNR(), [999, 999.5, 999.75, 1000]).alpha
    assert_allclose(alpha / alpha[0], [1, 0.5, 0.25, 0], rtol=1e-5, atol=0)


def test_zero_terminal_snr_may_end_just_above_zero():
    almost = schedules.ZeroTerminalSNR(terminal_alpha2=2.0**-24)
    got = level_at(almost, np.arange(1, 1001))
    zero = level_at(schedules.ZeroTerminalSNR(), np.arange(1, 1001))
    assert_allclose(got.alpha[-1], 2.0**-12, rtol=1e-5)
    assert_allclose(got.alpha[:-1], zero.alpha[:-1], rtol=1e-6)


# ---- continuous ---------------------------------------------------------------------


def test_cosine_matches_its_closed_form_even_near_the_ends():
    t = np.asarray([1e-6, 1e-4, 0.01, 0.5, 0.9, 0.9999], np.float32)
    level = level_at(schedules.Cosine(), t)
    u = (t.astype(np.longdouble) + 0.008) / 1.008 * np.pi / 2
    alpha = np.cos(u) / np.cos(0.008 / 1.008 * np.pi / 2)
    assert_allclose(level.alpha, alpha.astype(float), rtol=1e-5)
    assert_allclose(level.sigma, np.sqrt(1 - alpha**2).astype(float), rtol=1e-5)


@pytest.mark.parametrize("name", ["sigmoid", "steep_sigmoid"])
def test_sigmoid_matches_its_closed_form_even_near_the_ends(name):
    schedule = EVERY[name]
    t = np.asarray([1e-6, 1e-4, 0.01, 0.5, 0.9, 0.9999], np.float32)
    u = t.astype(np.longdouble) * (schedule.end - schedule.start) + schedule.start
    ends = np.longdouble([schedule.start, schedule.end])
    first, last, now = (1 / (1 + np.exp(-a / schedule.tau)) for a in (*ends, u))
    level = level_at(schedule, t)
    alpha2 = (last - now) / (last - first)
    assert_allclose(level.alpha, np.sqrt(alpha2).astype(float), rtol=1e-5)
    assert_allclose(level.sigma, np.sqrt(1 - alpha2).astype(float), rtol=1e-5)


def test_even_times_of_laplace_have_laplace_distributed_logsnr():
    t = np.linspace(0.001, 0.999, 999, dtype=np.float32)
    logsnr = -2 * np.log(ratio_at(schedules.Laplace(mu=1.0, b=0.7), t))
    # The more noise the later: t is the probability of a logsnr above this.
    assert_allclose(stats.laplace.sf(logsnr, 1.0, 0.7), t, rtol=1e-4)


def test_the_vp_sde_is_ddpm_with_ever_shorter_steps():
    t = np.linspace(0.01, 1, 100)
    smooth = level_at(schedules.VariancePreserving(), t)

    def error(num):
        betas = schedules.Discrete("linear", 0.1 / num, 20 / num, num)
        return np.abs(level_at(betas, t * num).alpha - smooth.alpha).max()

    assert error(4000) < 2e-3
    assert_allclose(error(1000) / error(4000), 4, rtol=0.1)  # first order


def test_the_sub_vp_sde_has_the_square_of_its_noise():
    t = np.linspace(0, 1, 101)
    vp = level_at(schedules.VariancePreserving(), t)
    sub = level_at(schedules.SubVariancePreserving(), t)
    assert_allclose(sub.alpha, vp.alpha, rtol=1e-6)
    assert_allclose(sub.sigma, vp.sigma**2, rtol=1e-5)
    assert_allclose(sub.time, 999 * t, rtol=1e-6)


def test_rectified_flow_is_a_straight_line():
    t = np.linspace(0, 1, 11, dtype=np.float32)
    level = level_at(schedules.RectifiedFlow(time_scale=1000), t)
    assert_allclose(level.alpha + level.sigma, 1, rtol=1e-6)
    assert_allclose(level.sigma, t)
    assert_allclose(level.time, 1000 * t)


def test_variance_exploding_hears_a_quarter_of_log_sigma():
    level = level_at(schedules.VarianceExploding(), [0.1, 1, 80])
    assert_allclose(level.alpha, 1)
    assert_allclose(level.time, np.log([0.1, 1.0, 80.0]) / 4, atol=1e-7)


def test_continuous_noise_is_reached_at_time_one():
    for schedule in (schedules.Cosine(), schedules.RectifiedFlow()):
        level = level_at(schedule, [1])
        assert level.alpha == 0
        assert_allclose(level.sigma, 1, rtol=1e-6)


# ---- errors -------------------------------------------------------------------------


def test_impossible_schedules_are_refused():
    with pytest.raises(
        ValueError, match="unknown betas 'quadratic'; one of .*scaled_linear"
    ):
        schedules.Discrete("quadratic")
    with pytest.raises(ValueError, match="betas must rise"):
        schedules.Discrete(beta_start=0.02, beta_end=0.01)
    with pytest.raises(ValueError, match="num_steps"):
        schedules.Discrete(num_steps=1)
    with pytest.raises(ValueError, match="3 trained_betas for num_steps = 1000"):
        schedules.Discrete(trained_betas=(0.1, 0.2, 0.3))
    with pytest.raises(ValueError, match="trained_betas must lie in"):
        schedules.Discrete(trained_betas=(0.1, 1.0, 0.3), num_steps=3)
    with pytest.raises(TypeError, match="whole steps.*Cosine"):
        schedules.ZeroTerminalSNR(schedules.Cosine())
    with pytest.raises(ValueError, match="pure noise already"):
        schedules.ZeroTerminalSNR(schedules.ZeroTerminalSNR())
    with pytest.raises(ValueError, match="terminal_alpha2 must be .*got 0.5"):
        schedules.ZeroTerminalSNR(terminal_alpha2=0.5)
    with pytest.raises(ValueError, match="start < end and tau > 0"):
        schedules.Sigmoid(tau=0)
