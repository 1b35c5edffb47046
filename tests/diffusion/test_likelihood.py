"""Laws of exact likelihoods, against data whose density is known."""

from __future__ import annotations

import functools

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.diffusion import grids, likelihood, mixture, schedules
from diffusion_jax.diffusion.samplers import integrate

KEY = jax.random.key(0)
FLOW = schedules.RectifiedFlow()
DATA = mixture.Mixture(
    jnp.asarray([0.5, 0.3, 0.2]),
    jnp.asarray([[0.8, -0.2], [-0.7, 0.5], [0.1, -0.9]]),
    jnp.asarray([[0.3, 0.4], [0.5, 0.3], [0.3, 0.3]]),
)
X0 = mixture.sample(jax.random.key(1), DATA, 8)


def denoise(x, level):
    return mixture.denoise(DATA, x, level)


def log_density(blur):
    """Of the data with noise of this standard deviation, from the definition."""
    std = np.sqrt(np.square(DATA.stds) + blur**2)
    residual = (np.asarray(X0)[:, None] - DATA.means) / std
    each = np.exp(-0.5 * np.sum(residual**2, axis=2)) / (2 * np.pi * std.prod(1))
    return np.log(np.sum(DATA.weights * each, axis=1))


@functools.partial(jax.jit, static_argnames=("schedule", "num_probes", "probe"))
def run(key, schedule, ts, num_probes=None, probe="rademacher"):
    return likelihood.log_likelihood(
        key, denoise, schedule, X0, ts, num_probes=num_probes, probe=probe
    )


@pytest.mark.parametrize(
    "schedule",
    [
        FLOW,
        schedules.ZeroTerminalSNR(),
        schedules.VarianceExploding(t_max=1000.0),
    ],
    ids=["flow", "zero_terminal_snr", "ve"],
)
def test_the_likelihood_of_a_mixture_is_its_density(schedule):
    """And a grid may end with clean data, where no network is asked."""
    inner = grids.karras(schedule, 60, sigma_min=0.02, sigma_max=100, rho=3)
    assert inner[-1] == 0
    ts = jnp.asarray([schedule.t_max, *inner])
    assert_allclose(run(KEY, schedule, ts), log_density(0.02), atol=2e-3)


def test_the_error_falls_with_the_fourth_order():
    def error(steps):
        # From sigma / alpha = 5 to 0.1 and a prior that is the truth there.
        ts = 5 / 6 + (1 / 11 - 5 / 6) * jnp.linspace(0, 1, steps + 1)
        x0 = jnp.full((1, 1), 0.5)

        def gaussian(x, level):
            return exact.gaussian(x, level, 0.0, 0.3)

        got = jax.jit(
            lambda ts: likelihood.log_likelihood(
                KEY, gaussian, FLOW, x0, ts, num_probes=None, data_std=0.3
            )
        )(ts)
        variance = 0.3**2 + 0.1**2
        return abs(got[0] + (0.25 / variance + np.log(2 * np.pi * variance)) / 2)

    with jax.enable_x64(True):
        coarse, fine = error(8), error(32)
    order = np.log(coarse / fine) / np.log(4)
    print(f"order {order:.2f}, error {fine:.1e}")
    assert abs(order - 4) < 0.3


def test_hutchinson_is_unbiased_and_closer_with_more_probes_or_with_signs():
    ts = grids.trailing(FLOW, 8)
    truth = run(KEY, FLOW, ts)
    keys = jax.random.split(KEY, 400)
    spread = {}
    for choice in [("rademacher", 1), ("rademacher", 4), ("gaussian", 1)]:
        probe, num_probes = choice
        estimate = functools.partial(
            run, schedule=FLOW, ts=ts, num_probes=num_probes, probe=probe
        )
        error = np.asarray(jax.vmap(estimate)(keys) - truth)
        spread[choice] = error.std(0)
        assert np.all(np.abs(error.mean(0)) < 4 * error.std(0) / np.sqrt(400))
    assert np.all(spread["rademacher", 1] > 1e-3)
    assert_allclose(spread["rademacher", 1] / spread["rademacher", 4], 2, rtol=0.3)
    assert np.all(spread["gaussian", 1] > spread["rademacher", 1])


def test_a_key_of_its_own_gives_an_example_the_same_estimate_in_any_batch():
    ts = grids.trailing(FLOW, 4)
    keys = jax.random.split(KEY, 8)

    @jax.jit
    def both(x0):
        together = likelihood.log_likelihood(keys, denoise, FLOW, x0, ts)
        alone = likelihood.log_likelihood(keys[3:5], denoise, FLOW, x0[3:5], ts)
        return together[3:5], alone

    assert_allclose(*both(X0), rtol=1e-5)


def test_probability_adds_up_to_one():
    line = jnp.linspace(-4, 4, 2001)[:, None]
    ts = grids.karras(FLOW, 40, sigma_min=0.05, sigma_max=100)[:-1]

    def gaussian(x, level):
        return exact.gaussian(x, level, -0.2, 0.6)

    log_p = jax.jit(
        lambda x: likelihood.log_likelihood(KEY, gaussian, FLOW, x, ts, num_probes=None)
    )(line)
    assert_allclose(np.trapezoid(np.exp(log_p), line[:, 0]), 1, rtol=1e-3)


def test_an_unknown_probe_is_refused():
    with pytest.raises(ValueError, match="rademacher"):
        run(KEY, FLOW, grids.trailing(FLOW, 4), 1, "uniform")


# ---- bits ---------------------------------------------------------------------------


def test_bytes_of_which_nothing_is_known_take_eight_bits_each():
    shape = (4, 4, 3)
    nats = 48 * np.log(2.0)  # of the uniform density on [-1, 1]
    bits = likelihood.bits_per_dim(jnp.asarray([nats]), shape, bin_width=2 / 256)
    assert_allclose(bits, 8, rtol=1e-6)
    probability = jnp.asarray(48 * np.log(256.0))
    assert_allclose(likelihood.bits_per_dim(probability, shape), 8, rtol=1e-6)


def test_dequantised_bytes_fill_their_bins_and_can_be_told_again():
    values = jnp.arange(256) / 127.5 - 1
    x = likelihood.dequantise(KEY, jnp.tile(values, (200, 1)))
    place = np.asarray((x + 1) / 2 * 256)
    np.testing.assert_array_equal(np.floor(place), np.tile(np.arange(256), (200, 1)))
    assert_allclose(np.mean(place % 1), 0.5, atol=0.01)
    assert_allclose(np.std(place % 1), np.sqrt(1 / 12), atol=0.01)


def test_rademacher_probes_are_signs():
    signs = likelihood.rademacher(KEY, jnp.zeros((100, 100)))
    assert set(np.unique(signs)) == {-1, 1}
    assert abs(signs.mean()) < 0.05
    keys = integrate.split(KEY, 100)
    assert abs(likelihood.rademacher(keys, jnp.zeros((100, 100))).mean()) < 0.05
