"""Laws of the schedules that are trained: monotone, invertible, differentiable."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.diffusion import grids, learned_schedule, process
from diffusion_jax.diffusion.learned_schedule import from_params
from diffusion_jax.diffusion.schedules import Schedule

TIMES = jnp.linspace(1e-3, 1, 101)


def perturbed(params, key):
    """Weights that training has taken far from where they were."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    far = [a + 2 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys)]
    return jax.tree.unflatten(tree, far) | {"ends": params["ends"]}


KINDS = {
    "network": learned_schedule.init(jax.random.key(0), num_units=64),
    "knots": learned_schedule.init_knots(num_pieces=10),
}


@pytest.fixture(params=KINDS)
def params(request):
    return KINDS[request.param]


@pytest.fixture
def trained(params):
    return perturbed(params, jax.random.key(1))


level_at = jax.jit(lambda schedule, t: schedule(t))
inverse_of = jax.jit(lambda schedule, logsnr: schedule.inverse(logsnr))


def test_it_is_a_schedule(trained):
    schedule = from_params(trained)
    assert isinstance(schedule, Schedule)
    assert schedule.num_steps is None
    ends = schedule.quantile(jnp.asarray([0.0, 1.0]))
    assert_allclose(ends, [schedule.t_min, schedule.t_max])
    assert grids.trailing(schedule, 4).shape == (5,)


def test_it_starts_almost_linear_in_gamma(params):
    gamma = -process.logsnr(level_at(from_params(params), TIMES))
    assert_allclose(gamma, np.linspace(-13.3, 5, 101), atol=0.6)


def test_noise_rises_whatever_the_weights(trained):
    level = level_at(from_params(trained), TIMES)
    assert np.all(np.diff(level.sigma / level.alpha) > 0)
    assert np.all(np.diff(level.time) > 0)
    assert_allclose(level.alpha**2 + level.sigma**2, 1, rtol=1e-6)


@pytest.mark.parametrize("offsets", [(8, -30), (-30, 8)])
def test_even_negative_weights_make_noise_rise(offsets):
    params = dict(KINDS["network"])
    for layer, offset in zip(("l2", "l3"), offsets, strict=True):
        params[layer] = params[layer] | {"kernel": params[layer]["kernel"] + offset}
    level = level_at(from_params(params), TIMES)
    assert np.all(np.diff(level.sigma / level.alpha) > 0)


def test_the_ends_are_those_given_and_zero_is_clean(trained):
    level = level_at(from_params(trained), jnp.asarray([0.0, 5e-4, 1e-3, 1.0]))
    assert (level.alpha[0], level.sigma[0]) == (1, 0)
    assert_allclose(-process.logsnr(level)[2:], [-13.3, 5], rtol=1e-4)
    assert_allclose(level.sigma[1] / level.sigma[2], 0.5, rtol=1e-4)
    assert_allclose(level.time[-1], 1, rtol=1e-5)


def test_the_network_hears_the_noise(trained):
    level = level_at(from_params(trained, time_scale=1000.0), TIMES)
    share = (-process.logsnr(level) + 13.3) / 18.3
    assert_allclose(level.time, 1000 * share, rtol=1e-3, atol=2e-3)


def test_inverse_finds_the_time_of_a_logsnr(trained):
    schedule = from_params(trained)
    t = jnp.asarray([2e-4, 1e-3, 0.01, 0.2, 0.5, 0.9, 0.999])
    logsnr = process.logsnr(level_at(schedule, t))
    assert_allclose(inverse_of(schedule, logsnr), t, rtol=2e-3, atol=2e-5)
    again = process.logsnr(schedule.at_logsnr(logsnr))
    assert_allclose(again, logsnr, rtol=1e-4, atol=1e-4)


def test_derivatives_of_the_inverse_are_those_of_the_implicit_function(trained):
    t, weights = jnp.asarray([0.13, 0.52, 0.87]), jnp.asarray([1.0, -2.0, 3.0])

    def there(params, t):
        return weights @ process.logsnr(from_params(params)(t))

    def there_and_back(params, t):
        schedule = from_params(params)
        return weights @ schedule.inverse(process.logsnr(schedule(t)))

    @jax.jit
    def slopes(params, t):
        return [jax.grad(f, (0, 1))(params, t) for f in (there_and_back, there)]

    # inverse(logsnr(t)) = t: it follows t, and no parameter moves it.
    (unmoved, of_t), (moved, _) = slopes(trained, t)
    assert_allclose(of_t, weights, rtol=2e-3)
    for still, moves in zip(*map(jax.tree.leaves, (unmoved, moved)), strict=True):
        assert np.abs(still).max() < 1e-3 * max(np.abs(moves).max(), 1)


def test_gradients_reach_every_parameter_and_are_finite_at_the_ends(params):
    def loss(params, fixed_ends):
        level = from_params(params, fixed_ends=fixed_ends)(
            jnp.asarray([0, 1e-3, 0.4, 1])
        )
        return jnp.sum(level.sigma * jnp.arange(4.0)) + jnp.sum(level.time**2)

    @jax.jit
    def gradients(params):
        return [jax.grad(loss)(params, fixed_ends) for fixed_ends in (False, True)]

    learned, fixed = gradients(params)
    for gradient in jax.tree.leaves(learned):
        assert np.all(np.isfinite(gradient)) and np.any(gradient != 0)
    assert np.all(fixed.pop("ends") == 0)
    for gradient in jax.tree.leaves(fixed):
        assert np.all(np.isfinite(gradient)) and np.any(gradient != 0)


def test_training_moves_the_schedule_to_another_one(params):
    """Gradients are worth following: fit the logsnr of a cosine."""
    target = -2 * jnp.log(jnp.tan(jnp.pi / 2 * jnp.linspace(0.1, 0.9, 33)))
    t = jnp.linspace(1e-3, 1, 33)

    def loss(params):
        return jnp.mean((process.logsnr(from_params(params)(t)) - target) ** 2)

    @jax.jit
    def descend(params):
        def step(_, params):
            gradients = jax.grad(loss)(params)
            return jax.tree.map(lambda a, g: a - 0.2 * g, params, gradients)

        return jax.lax.fori_loop(0, 100, step, params)

    assert loss(descend(params)) < 0.02 * loss(params)


def test_impossible_ends_are_refused():
    with pytest.raises(ValueError, match="gamma_0 must lie below gamma_1"):
        learned_schedule.init(jax.random.key(0), gamma_0=5, gamma_1=-13)
    with pytest.raises(ValueError, match="num_pieces"):
        learned_schedule.init_knots(num_pieces=0)
