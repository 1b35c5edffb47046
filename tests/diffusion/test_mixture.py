"""The exact mixture against the definitions of its density and its score."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from numpy.testing import assert_allclose

from diffusion_jax.diffusion import mixture, process

MIXTURE = mixture.Mixture(
    jnp.asarray([0.5, 0.2, 0.3]),
    jnp.asarray([[0.0, 1.0], [-1.0, 0.5], [2.0, -0.5]]),
    jnp.asarray([[0.3, 0.1], [0.2, 0.5], [0.4, 0.4]]),
)
KEY = jax.random.key(0)


def test_its_eps_is_the_score(schedule):
    """Tweedie: grad log p(x) = -E[eps | x] / sigma."""
    x = jax.random.normal(KEY, (16, 2))
    for share in (0.2, 0.6, 0.95):
        level = schedule(jnp.asarray(share * schedule.t_max))

        def total(x, level=level):
            return mixture.log_density(MIXTURE, x, level).sum()

        pred = mixture.denoise(MIXTURE, x, level)
        score = jax.grad(total)(x)
        assert_allclose(pred.eps, -level.sigma * score, rtol=1e-4, atol=1e-5)
        assert_allclose(process.add_noise(pred.x0, pred.eps, level), x, atol=2e-4)


def test_its_density_is_that_of_noised_samples():
    level = process.NoiseLevel(*map(jnp.asarray, (0.8, 0.5, 0.0)))
    x0 = mixture.sample(KEY, MIXTURE, 20_000)
    x = process.add_noise(x0, jax.random.normal(jax.random.key(1), x0.shape), level)
    points = np.asarray([[0.0, 0.8], [-0.8, 0.4], [1.5, -0.3]])
    densities = jnp.exp(mixture.log_density(MIXTURE, jnp.asarray(points), level))
    near = jnp.abs(x[:, None] - points).max(-1) < 0.15
    assert_allclose(near.mean(0) / 0.3**2, densities, rtol=0.15)


def test_its_moments_and_marginals_are_those_of_its_samples():
    x0 = np.asarray(mixture.sample(KEY, MIXTURE, 20_000))
    mean, std = mixture.moments(MIXTURE)
    assert_allclose(x0.mean(0), mean, atol=0.03)
    assert_allclose(x0.std(0), std, rtol=0.03)

    def cdf(value):
        return sum(
            w * scipy.stats.norm.cdf(value, m[0], s[0])
            for w, m, s in zip(*map(np.asarray, MIXTURE))
        )

    assert scipy.stats.kstest(x0[:, 0], cdf).pvalue > 1e-3


def test_each_example_may_have_its_own_level():
    x = jax.random.normal(KEY, (2, 2))
    levels = process.NoiseLevel(*map(jnp.asarray, ([0.9, 0.2], [0.3, 1.0], [0.0, 1])))
    together = mixture.denoise(MIXTURE, x, levels)
    for i in range(2):
        level = jax.tree.map(lambda a, i=i: a[i], levels)
        alone = mixture.denoise(MIXTURE, x[i : i + 1], level)
        assert_allclose(together.x0[i], alone.x0[0], rtol=1e-5)


@pytest.mark.parametrize("preserving", [True, False])
def test_its_flow_follows_eps(preserving):
    """In y = x / alpha and s = sigma / alpha the flow is dy/ds = eps."""
    line = mixture.Mixture(MIXTURE.weights, MIXTURE.means[:, :1], MIXTURE.stds[:, :1])

    def at(ratio):
        alpha = 1 / jnp.hypot(1, ratio) if preserving else jnp.ones_like(ratio)
        return process.NoiseLevel(alpha, alpha * ratio, alpha)

    def slope(ratio, y):
        level = at(ratio)
        return mixture.denoise(line, level.alpha * y, level).eps

    def step(y, ends):
        """Of Runge and Kutta's method."""
        here, there = ends
        middle, length = (here + there) / 2, there - here
        first = slope(here, y)
        second = slope(middle, y + length / 2 * first)
        third = slope(middle, y + length / 2 * second)
        last = slope(there, y + length * third)
        return y + length / 6 * (first + 2 * second + 2 * third + last), None

    with jax.enable_x64(True):
        ratios = jnp.geomspace(5.0, 0.01, 60, dtype=float)
        here, there = at(ratios[0]), at(ratios[-1])
        y = ratios[0] * jnp.linspace(-4, 4, 9)[:, None]
        end = mixture.flow(line, here.alpha * y, here, there)
        reached, _ = jax.lax.scan(step, y, (ratios[:-1], ratios[1:]))
        assert_allclose(end, there.alpha * reached, rtol=1e-4, atol=1e-5)
        back = mixture.flow(line, end, there, here)
        assert_allclose(back, here.alpha * y, rtol=1e-9, atol=1e-12)


def test_its_quantiles_part_it_evenly():
    line = mixture.Mixture(MIXTURE.weights, MIXTURE.means[:, :1], MIXTURE.stds[:, :1])
    level = process.NoiseLevel(*map(jnp.asarray, (0.9, 0.3, 0.0)))
    points = mixture.quantiles(line, 4, level)[:, 0]
    below = sum(
        w * scipy.stats.norm.cdf(points, 0.9 * m[0], np.hypot(0.9 * s[0], 0.3))
        for w, m, s in zip(*map(np.asarray, line))
    )
    assert_allclose(below, [0.125, 0.375, 0.625, 0.875], atol=1e-5)
