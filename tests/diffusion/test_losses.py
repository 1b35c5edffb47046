"""Laws of the losses."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.diffusion import (
    likelihood,
    losses,
    parameterization,
    process,
    schedules,
    time_samplers,
    variational,
    weightings,
)
from diffusion_jax.diffusion.parameterization import PARAMETERIZATIONS
from diffusion_jax.diffusion.weightings import WEIGHTINGS
from diffusion_jax.types import Conditioning

SCHEDULE = schedules.Discrete()
X0 = jax.random.normal(jax.random.key(5), (32, 3, 3, 2))
KEY = jax.random.key(6)
UNIFORM = time_samplers.drawn(time_samplers.uniform)


def network_of(p, schedule, guess_x0):
    """The network whose output, read as p, is `guess_x0(x, level)`."""

    def network(scaled, time, cond):
        t = time + 1 if schedule.num_steps else time
        level = schedule(t)
        x = scaled / process.align(p.input_scale(level), scaled)
        pred = process.from_x0(x, guess_x0(x, level), level)
        return parameterization.target(p, pred.x0, pred.eps, level)

    return network


def loss_of(p, weighting, network, schedule=SCHEDULE, sample_times=UNIFORM):
    return losses.diffusion_loss(
        KEY, network, schedule, p, weighting, sample_times, X0, Conditioning()
    )


def plain_mse(p, network, schedule=SCHEDULE):
    """Mean squared error of each example's output, and its level, from the definition."""
    time_key, eps_key = jax.random.split(KEY)
    level = schedule(UNIFORM(time_key, len(X0), schedule).t)
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
    got = losses.output_weight(p, weightings.min_snr, level)
    assert_allclose(got, factor(np.asarray(process.snr(level))), rtol=1e-5)


def test_a_perfect_network_has_no_loss():
    p = parameterization.v()
    network = network_of(p, SCHEDULE, lambda x, level: X0)
    assert_allclose(loss_of(p, weightings.v, network)[0], 0, atol=1e-6)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_loss_and_gradient_are_finite_from_clean_data_to_pure_noise(name, weighting):
    p, weight = PARAMETERIZATIONS[name](), WEIGHTINGS[weighting]
    schedule = schedules.ZeroTerminalSNR()

    def ends(key, num, schedule):
        return time_samplers.Times(jnp.linspace(0, 1000, num), jnp.ones(num))

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

    loss, _ = loss_of(p, weightings.min_snr, half)
    assert loss.shape == (32,)
    assert loss.dtype == jnp.float32
    static = jax.jit(functools.partial(loss_of, p, weightings.min_snr, half))
    assert_allclose(static()[0], loss, rtol=1e-4)


def test_a_network_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="network maps"):
        loss_of(parameterization.v(), weightings.v, lambda x, time, cond: x[..., :1])


@pytest.mark.parametrize("name", losses.LOSSES)
def test_a_loss_is_proportional_to_the_weight_of_its_time(name):
    p = parameterization.v()

    def network(x, time, cond):
        return jnp.concatenate([jnp.sin(x), jnp.cos(x)], axis=-1)[..., : channels[name]]

    def weighted(key, num, schedule):
        t, weight = UNIFORM(key, num, schedule)
        return time_samplers.Times(t, 3 * weight)

    channels = {"diffusion": 2, "hybrid": 4, "vlb": 4}

    @jax.jit
    def both(x0):
        return [
            losses.LOSSES[name](
                KEY, network, SCHEDULE, p, weightings.eps, times, x0, Conditioning()
            )
            for times in (UNIFORM, weighted)
        ]

    once, thrice = both(X0)
    assert_allclose(thrice[0], 3 * once[0], rtol=1e-5)
    assert_allclose(thrice[1]["mse"], once[1]["mse"], rtol=1e-6)


# ---- disturbed inputs ---------------------------------------------------------------


def disturbed(**options):
    """eps and x of a loss, which a network that sees them leaks, on pure noise."""
    seen = []

    def network(x, time, cond):
        seen.append(x)
        return jnp.zeros_like(x)

    def last(key, num, schedule):
        return time_samplers.Times(jnp.full(num, 1000.0), jnp.ones(num))

    x0 = jnp.zeros((64, 16, 16, 3))
    loss, _ = losses.diffusion_loss(
        KEY,
        network,
        schedules.ZeroTerminalSNR(),
        parameterization.eps(),
        weightings.eps,
        last,
        x0,
        Conditioning(),
        **options,
    )
    return seen[0], loss


def test_offset_noise_moves_each_channel_as_a_whole():
    plain, _ = disturbed()
    offset, loss = disturbed(offset_noise=0.5)
    moved = offset - plain
    assert_allclose(moved, np.broadcast_to(moved[:, :1, :1], moved.shape), atol=1e-6)
    assert_allclose(moved[:, 0, 0].std(), 0.5, rtol=0.15)
    # It belongs to the target.
    assert_allclose(loss, jnp.mean(offset**2, axis=(1, 2, 3)), rtol=1e-5)


def test_input_perturbation_is_seen_but_not_sought():
    plain, plain_loss = disturbed()
    perturbed, loss = disturbed(input_perturbation=0.5)
    assert_allclose((perturbed - plain).std(), 0.5, rtol=0.02)
    assert_allclose(loss, plain_loss, rtol=1e-6)


# ---- learned variance ---------------------------------------------------------------


def all_times(key, num, schedule):
    return time_samplers.Times(jnp.arange(1.0, num + 1), jnp.ones(num))


def chain_loss(make, scales, steps=20, **options):
    """A loss at every step of a short chain, for one image in as many copies."""
    schedule = schedules.Discrete("linear", 1e-3, 0.5, steps)

    def network(x, time, cond):
        # Reads as the same x0 whatever x is, so that no term depends on the draw of it.
        level = schedule(time + 1)
        constant = jnp.full_like(x, scales[0])
        eps = process.from_x0(x, constant, level).eps
        raw = scales[1] * jnp.sin(jnp.arange(x.size).reshape(x.shape))
        return jnp.concatenate([eps, raw], axis=-1)

    x0 = jnp.repeat(jnp.round(X0[:1] * 50) / 255 * 2 + 1 / 255, steps, axis=0)
    return make(
        KEY,
        network,
        schedule,
        parameterization.eps(),
        weightings.eps,
        all_times,
        x0,
        Conditioning(),
        **options,
    )


def test_hybrid_teaches_the_variance_by_the_bound_and_the_mean_by_the_error():
    @jax.jit
    @jax.jacrev
    def slopes(scales):
        hybrid, metrics = chain_loss(losses.hybrid_loss, scales, vlb_weight=0.1)
        vlb, _ = chain_loss(losses.vlb_loss, scales)
        return metrics["mse"], hybrid.mean(), vlb.mean()

    mse, hybrid, vlb = slopes(jnp.asarray([0.3, 0.5]))
    assert_allclose(hybrid[0], mse[0], rtol=1e-5)
    assert_allclose(hybrid[1], 0.1 * vlb[1], rtol=1e-5)
    assert abs(vlb[0]) > 1e-3
    assert abs(vlb[1]) > 1e-3


def test_hybrid_is_its_two_terms():
    @jax.jit
    def both(scales):
        hybrid = chain_loss(losses.hybrid_loss, scales, vlb_weight=0.01)
        return *hybrid, chain_loss(losses.vlb_loss, scales)[0]

    loss, metrics, vlb = both(jnp.asarray([0.3, 0.5]))
    assert_allclose(metrics["vlb"], vlb.mean(), rtol=1e-6)
    assert_allclose(metrics["loss"], metrics["mse"] + 0.01 * vlb.mean(), rtol=1e-5)
    assert_allclose(loss.mean(), metrics["loss"], rtol=1e-6)


def test_the_loss_over_all_steps_is_the_bound_of_the_chain():
    """But for the prior, which nothing that is trained can change."""
    steps = 20
    schedule = schedules.Discrete("linear", 1e-3, 0.5, steps)
    x0 = jnp.round(X0[:1] * 50) / 255 * 2 + 1 / 255
    raw = 0.5 * jnp.sin(jnp.arange(steps * x0.size).reshape(steps, *x0.shape[1:]))

    def denoise(x, level):
        pred = process.from_x0(x, jnp.full_like(x, 0.3), level)
        return pred._replace(variance=raw[level.time.astype(int)][None])

    bound, _ = variational.discrete_bound(
        KEY,
        denoise,
        schedule,
        x0,
        jnp.arange(float(steps), -1, -1),
        variance="learned_range",
    )
    loss = jax.jit(lambda s: chain_loss(losses.vlb_loss, s, steps)[0])(
        jnp.asarray([0.3, 0.5])
    )
    expected = bound.diffusion + bound.reconstruction
    expected = likelihood.bits_per_dim(expected, x0.shape[1:])
    assert_allclose(loss.mean(), expected[0], rtol=1e-4)


def test_the_bound_at_every_step_is_finite_and_so_are_its_gradients(schedule):
    def network(x, time, cond):
        return scale * jnp.concatenate([x, jnp.sin(x)], axis=-1)

    def loss(value):
        nonlocal scale
        scale = value
        return losses.vlb_loss(
            KEY,
            network,
            schedule,
            parameterization.v(),
            weightings.v,
            UNIFORM,
            X0,
            Conditioning(),
            num_steps=schedule.num_steps or 100,
        )[0]

    scale = None
    values, slopes = jax.jit(lambda a: jax.jvp(loss, (a,), (1.0,)))(1.1)
    assert np.all(np.isfinite(values))
    assert np.all(np.isfinite(slopes))


def test_a_continuous_schedule_has_no_steps_of_its_own():
    with pytest.raises(ValueError, match="num_steps"):
        losses.vlb_loss(
            KEY,
            lambda x, time, cond: x,
            schedules.Cosine(),
            parameterization.v(),
            weightings.v,
            UNIFORM,
            X0,
            Conditioning(),
            variance="beta",
        )


def test_a_network_without_a_variance_is_refused_where_one_is_learned():
    with pytest.raises(ValueError, match="learned_range"):
        losses.hybrid_loss(
            KEY,
            lambda x, time, cond: x,
            SCHEDULE,
            parameterization.v(),
            weightings.v,
            UNIFORM,
            X0,
            Conditioning(),
        )
