"""Laws of the loop over levels and of where random numbers come from."""

from __future__ import annotations

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from diffusion_jax.diffusion import grids, parameterization, schedules
from diffusion_jax.diffusion.denoiser import from_network
from diffusion_jax.diffusion.guidance import classifier_free
from diffusion_jax.diffusion.samplers import SAMPLERS, integrate
from diffusion_jax.types import Conditioning

SCHEDULE = schedules.Discrete()
TIMES = grids.trailing(SCHEDULE, 6)
KEY = jax.random.key(3)
EACH = ["ddpm", "heun", "dpmpp_2m"]  # ddim and euler are one line of ddpm


def example_keys(num):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(num))


def network(x, time, cond):
    return jnp.tanh(x + 1e-3 * time[:, None, None])


def denoise(x, level):
    return from_network(network, parameterization.v())(x, level, Conditioning())


def denoise_half(x, level):
    """As `denoise`, but the network computes in bfloat16."""

    def half(x, time, cond):
        return network(x.astype(jnp.bfloat16), time.astype(jnp.bfloat16), cond)

    return from_network(half, parameterization.v())(x, level, Conditioning())


def draw(name, keys, denoise=denoise):
    first, second = integrate.split(keys, 2)
    x = integrate.prior_sample(first, SCHEDULE, TIMES[0], (len(keys), 3, 3))
    return SAMPLERS[name](second, denoise, SCHEDULE, x, TIMES)


draw_fast = jax.jit(draw, static_argnames=("name", "denoise"))


def test_levels_are_visited_in_order_and_in_pairs():
    def step(count, key, here, there):
        return count + 1, (here.time, there.time)

    levels = SCHEDULE(TIMES)
    count, (here, there) = integrate.integrate(
        step, jnp.zeros((), int), jax.random.key(0), levels
    )
    assert count == len(TIMES) - 1
    assert_array_equal(here, levels.time[:-1])
    assert_array_equal(there, levels.time[1:])


def test_every_step_and_every_example_draws_its_own_noise():
    x = jnp.zeros((5, 400))

    def step(carry, key, here, there):
        return carry, integrate.normal_like(key, x)

    for key in (jax.random.key(1), example_keys(5)):
        _, noise = integrate.integrate(step, x, key, SCHEDULE(TIMES))
        rows = noise.reshape(-1, 400)
        assert np.abs(np.corrcoef(rows) - np.eye(len(rows))).max() < 0.25
        assert_allclose(rows.std(), 1, atol=0.02)


@pytest.mark.parametrize("name", EACH)
def test_an_image_is_the_same_in_any_batch_and_under_vmap(name):
    keys = example_keys(4)

    @jax.jit
    @jax.vmap
    def alone(key):
        sample, trace = draw(name, key[None])
        return sample[0], trace[:, 0]

    sample, trace = draw_fast(name, keys)
    for got, expected in zip(alone(keys[::-1]), (sample, trace.swapaxes(0, 1))):
        assert_allclose(got, expected[::-1], atol=1e-6)


@pytest.mark.parametrize("name", EACH)
def test_half_precision_networks_stay_close_and_finite(name):
    half, _ = draw_fast(name, example_keys(4), denoise=denoise_half)
    full, _ = draw_fast(name, example_keys(4))
    assert half.dtype == jnp.float32
    assert 0 < np.abs(half - full).max() < 0.05


def test_noise_in_half_precision_starts_a_float32_solver():
    x = jnp.ones((4, 3, 3), jnp.bfloat16)
    for sampler in (SAMPLERS[name] for name in exact.GENERAL):
        out, trace = jax.eval_shape(
            lambda x, sampler=sampler: sampler(KEY, denoise, SCHEDULE, x, TIMES), x
        )
        assert out.dtype == trace.dtype == jnp.float32


def test_neither_eta_nor_guidance_nor_key_recompiles_but_the_number_of_steps_does():
    traces = []

    @jax.jit
    def sample(key, eta, scale, ts):
        traces.append(len(ts))

        def steered(x, time, cond):
            return network(x, time, cond) + cond.vector[:, :, None]

        null = Conditioning(vector=jnp.zeros((1, 3)))
        cond = Conditioning(vector=jnp.ones((2, 3)))
        conditional = from_network(steered, parameterization.v())
        guided = classifier_free(conditional, cond, null, scale)
        x = integrate.prior_sample(key, SCHEDULE, ts[0], (2, 3, 3))
        return SAMPLERS["ddim"](key, guided, SCHEDULE, x, ts, eta=eta)[0]

    for seed, eta, scale in [(0, 0.0, 1.0), (1, 0.5, 3.0), (2, 1.0, 7.5)]:
        sample(jax.random.key(seed), eta, scale, TIMES)
    sample(jax.random.key(0), 0.0, 1.0, grids.linspace(SCHEDULE, 6))
    assert traces == [7]
    sample(jax.random.key(0), 0.0, 1.0, grids.trailing(SCHEDULE, 8))
    assert traces == [7, 9]


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m"])
def test_a_trace_that_is_dropped_costs_no_memory(name):
    x = jnp.zeros((1, 64, 256))
    ts = grids.trailing(SCHEDULE, 40)

    def memory(keep):
        def sample(key, x):
            x, trace = SAMPLERS[name](key, denoise, SCHEDULE, x, ts)
            return (x, trace) if keep else x

        used = jax.jit(sample).lower(KEY, x).compile().memory_analysis()
        return (used.temp_size_in_bytes + used.output_size_in_bytes) / x.nbytes

    assert memory(keep=True) > 40
    assert memory(keep=False) < 10


def test_the_prior_has_the_standard_deviation_of_its_level(schedule):
    t = jnp.asarray(float(schedule.t_max))
    level = schedule(t)
    for data_std in (0, 1):
        x = integrate.prior_sample(KEY, schedule, t, (1, 40_000), data_std=data_std)
        expected = jnp.sqrt(level.sigma**2 + (level.alpha * data_std) ** 2)
        assert_allclose(x.std(), expected, rtol=0.02)


def test_the_wrong_number_of_keys_is_refused():
    with pytest.raises(ValueError, match=r"\(3,\) keys for a batch of 4"):
        integrate.normal_like(example_keys(3), jnp.zeros((4, 2)))
