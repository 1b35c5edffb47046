"""Laws of the weightings, the training times and the loss."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.diffusion import losses, parameterization, process, schedules
from diffusion_jax.diffusion.losses import TIME_SAMPLERS, WEIGHTINGS
from diffusion_jax.diffusion.parameterization import PARAMETERIZATIONS
from diffusion_jax.types import Conditioning

SCHEDULE = schedules.Discrete()
X0 = jax.random.normal(jax.random.key(5), (32, 3, 3, 2))
KEY = jax.random.key(6)


def network_of(p, schedule, guess_x0):
    """The network whose output, read as p, is `guess_x0(x, level)`."""

    def network(scaled, time, cond):
        t = time + 1 if schedule.num_steps else time
        level = schedule(t)
        x = scaled / process.align(p.input_scale(level), scaled)
        pred = process.from_x0(x, guess_x0(x, level), level)
        return parameterization.target(p, pred.x0, pred.eps, level)

    return network


def loss_of(p, weighting, network, schedule=SCHEDULE, sample_times=losses.uniform):
    return losses.diffusion_loss(
        KEY, network, schedule, p, weighting, sample_times, X0, Conditioning()
    )


def plain_mse(p, network, schedule=SCHEDULE):
    """Mean squared error of each example's output, and its level, from the definition."""
    time_key, eps_key = jax.random.split(KEY)
    level = schedule(losses.uniform(time_key, len(X0), schedule))
    eps = jax.random.normal(eps_key, X0.shape)
    x = process.add_noise(X0, eps, level)
    target = parameterization.target(p, X0, eps, level)
    output = network(process.align(p.input_scale(level), x) * x, level.time, None)
    return jnp.mean((output - target) ** 2, axis=(1, 2, 3)), level


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize(
    "schedule", [SCHEDULE, schedules.RectifiedFlow()], ids=["discrete", "flow"]
)
def test_a_weighting_means_the_same_whatever_the_network_predicts(schedule, weighting):
    def guess(x, level):
        return jnp.tanh(x) + 0.1

    results = []
    for make in PARAMETERIZATIONS.values():
        p = make()
        network = network_of(p, schedule, guess)
        results.append(loss_of(p, WEIGHTINGS[weighting], network, schedule)[0])
    # Where sigma is small, eps and with it the error carry the rounding of x.
    for result in results[1:]:
        assert_allclose(result, results[0], rtol=5e-3)


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("eps", SCHEDULE),
        ("x0", SCHEDULE),
        ("v", SCHEDULE),
        ("flow", schedules.RectifiedFlow()),
        ("edm", schedules.VarianceExploding()),
    ],
)
def test_each_weighting_is_plain_mse_of_the_output_it_is_named_after(name, schedule):
    p = PARAMETERIZATIONS[name]()

    def network(x, time, cond):
        return jnp.sin(x)

    loss, metrics = loss_of(p, WEIGHTINGS[name], network, schedule)
    expected, _ = plain_mse(p, network, schedule)
    assert_allclose(loss, expected, rtol=2e-5)
    assert_allclose(metrics["mse"], expected.mean(), rtol=1e-5)
    assert_allclose(metrics["loss"], loss.mean(), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("x0", lambda s: np.minimum(s, 5)),
        ("eps", lambda s: np.minimum(s, 5) / s),
        ("v", lambda s: np.minimum(s, 5) / (s + 1)),
    ],
)
def test_min_snr_is_the_factor_published_for_each_prediction(name, factor):
    level = SCHEDULE(jnp.linspace(1, 1000, 50))
    p = PARAMETERIZATIONS[name]()
    got = losses.output_weight(p, losses.min_snr, level)
    assert_allclose(got, factor(np.asarray(process.snr(level))), rtol=1e-5)


def test_a_perfect_network_has_no_loss():
    p = parameterization.v()
    network = network_of(p, SCHEDULE, lambda x, level: X0)
    assert_allclose(loss_of(p, losses.v, network)[0], 0, atol=1e-6)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_loss_and_gradient_are_finite_from_clean_data_to_pure_noise(name, weighting):
    p, weight = PARAMETERIZATIONS[name](), WEIGHTINGS[weighting]
    schedule = schedules.ZeroTerminalSNR()

    def ends(key, num, schedule):
        return jnp.linspace(0, 1000, num)

    def loss(scale):
        def network(x, time, cond):
            return scale * x

        return loss_of(p, weight, network, schedule, ends)[0]

    values, slopes = jax.jvp(loss, (1.1,), (1.0,))
    assert np.all(np.isfinite(values))
    assert np.all(np.isfinite(slopes))


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("eps", schedules.ZeroTerminalSNR()),
        ("x0", schedules.ZeroTerminalSNR()),
        ("v", schedules.ZeroTerminalSNR()),
        ("flow", schedules.RectifiedFlow()),
        ("edm", schedules.VarianceExploding()),
    ],
)
def test_own_weight_is_one_even_at_the_ends(name, schedule):
    level = schedule(jnp.asarray([0, 0.5, 1]) * schedule.t_max)
    p = PARAMETERIZATIONS[name]()
    assert_allclose(losses.output_weight(p, WEIGHTINGS[name], level), 1, rtol=1e-5)


def test_losses_are_float32_per_example_and_the_same_under_jit():
    p = parameterization.v()

    def half(x, time, cond):
        return jnp.sin(x).astype(jnp.bfloat16)

    loss, _ = loss_of(p, losses.min_snr, half)
    assert loss.shape == (32,)
    assert loss.dtype == jnp.float32
    static = jax.jit(functools.partial(loss_of, p, losses.min_snr, half))
    assert_allclose(static()[0], loss, rtol=1e-4)


def test_a_network_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="network maps"):
        loss_of(parameterization.v(), losses.v, lambda x, time, cond: x[..., :1])


# ---- weightings ---------------------------------------------------------------------


def test_weightings_are_positive_and_grow_with_the_signal():
    snr = jnp.logspace(-8, 8, 100)
    for weighting in WEIGHTINGS.values():
        assert np.all(weighting(snr) > 0)
        assert np.all(np.diff(weighting(snr)) >= 0)


def test_min_snr_lies_between_its_limits():
    snr = jnp.logspace(-4, 4, 50)
    for gamma in (1, 5, 20):
        weight = losses.min_snr(snr, gamma=gamma)
        assert np.all(weight <= losses.eps(snr))
        assert np.all(weight <= gamma)
    assert_allclose(losses.min_snr(snr, gamma=1e9), losses.eps(snr))


# ---- training times -----------------------------------------------------------------


@pytest.mark.parametrize("sample_times", TIME_SAMPLERS.values(), ids=TIME_SAMPLERS)
def test_training_times_lie_on_the_schedule(schedule, sample_times):
    t = sample_times(KEY, 4096, schedule)
    assert t.shape == (4096,)
    assert t.dtype == jnp.float32
    assert np.all(t > 0)
    # EDM's normal law has no upper bound.
    if not isinstance(schedule, schedules.VarianceExploding):
        assert np.all(t <= schedule.t_max)


@pytest.mark.parametrize("sample_times", [losses.uniform, losses.low_discrepancy])
def test_whole_steps_are_drawn_whole_and_evenly(sample_times):
    t = np.asarray(sample_times(KEY, 50_000, schedules.Discrete(num_steps=10)))
    counts = np.bincount(t.astype(int), minlength=11)
    assert np.all(t == t.astype(int))
    assert counts[0] == 0
    assert_allclose(counts[1:], 5000, rtol=0.06)


def test_low_discrepancy_fills_every_cell_once():
    flow = schedules.RectifiedFlow(t_min=0.0)
    for seed in range(5):
        t = losses.low_discrepancy(jax.random.key(seed), 64, flow)
        gaps = np.diff(np.sort(t))
        assert_allclose(gaps, 1 / 64, atol=1e-6)


def test_low_discrepancy_is_uniform_over_many_batches():
    flow = schedules.RectifiedFlow(t_min=0.0)
    keys = jax.random.split(KEY, 2000)
    t = jax.vmap(lambda key: losses.low_discrepancy(key, 4, flow))(keys)
    for i in range(4):
        assert_allclose(
            np.quantile(t[:, i], [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.04
        )


def test_log_normal_is_the_law_of_edm(schedule):
    t = losses.log_normal(KEY, 4096, schedule, mean=-0.4, std=0.7)
    ratio = -process.logsnr(schedule(t)) / 2
    assert_allclose([ratio.mean(), ratio.std()], [-0.4, 0.7], atol=0.03)


def test_logit_normal_is_the_law_of_stable_diffusion_3():
    t = losses.logit_normal(KEY, 4096, schedules.RectifiedFlow(), mean=0.3, std=0.8)
    logit = jnp.log(t / (1 - t))
    assert_allclose([logit.mean(), logit.std()], [0.3, 0.8], atol=0.03)
