"""Every weighting against the loss that its paper writes down."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.diffusion import (
    losses,
    parameterization,
    process,
    schedules,
    time_samplers,
    weightings,
)
from diffusion_jax.diffusion.weightings import WEIGHTINGS
from diffusion_jax.types import Conditioning

KEY = jax.random.key(2)
VP, FLOW, VE = (
    schedules.Cosine(),
    schedules.RectifiedFlow(),
    schedules.VarianceExploding(),
)
# What is wrong by how much, of true and predicted x0 and eps.
ERRORS = {
    "x0": lambda a, s, x0, eps: x0,
    "eps": lambda a, s, x0, eps: eps,
    "v": lambda a, s, x0, eps: a * eps - s * x0,
    "flow": lambda a, s, x0, eps: eps - x0,
}


def snr(a, s):
    return (a / s) ** 2


# name, options, the paper's process, what its network predicts, its weight
PAPERS = [
    ("x0", {}, VP, "x0", lambda a, s: 1),
    ("uniform", {}, VP, "x0", lambda a, s: 1),
    ("eps", {}, VP, "eps", lambda a, s: 1),
    ("snr", {}, VP, "eps", lambda a, s: 1),
    ("v", {}, VP, "v", lambda a, s: 1),
    ("flow", {}, FLOW, "flow", lambda a, s: 1),
    ("edm", {}, VE, "x0", lambda a, s: (s**2 + 0.25) / (0.5 * s) ** 2),
    ("edm", {"sigma_data": 2}, VE, "x0", lambda a, s: (s**2 + 4) / (2 * s) ** 2),
    ("truncated_snr", {}, VP, "x0", lambda a, s: np.maximum(snr(a, s), 1)),
    ("max_snr", {"floor": 3}, VP, "x0", lambda a, s: np.maximum(snr(a, s), 3)),
    ("min_snr", {}, VP, "eps", lambda a, s: np.minimum(snr(a, s), 5) / snr(a, s)),
    ("min_snr", {}, VP, "v", lambda a, s: np.minimum(snr(a, s), 5) / (snr(a, s) + 1)),
    ("soft_min_snr", {}, VE, "x0", lambda a, s: 1 / (s**2 + 0.5**2)),
    ("soft_min_snr", {"gamma": 1}, VE, "x0", lambda a, s: 1 / (s**2 + 1)),
    ("sigmoid", {"bias": -1}, VP, "eps", lambda a, s: 1 / (1 + np.e * snr(a, s))),
    ("p2", {}, VP, "eps", lambda a, s: 1 / (1 + snr(a, s))),
    ("p2", {"gamma": 0.5, "k": 2}, VP, "eps", lambda a, s: (2 + snr(a, s)) ** -0.5),
    ("debiased", {}, VP, "eps", lambda a, s: s / a),
    ("cosmap", {}, FLOW, "flow", lambda a, t: 2 / (np.pi * (1 - 2 * t + 2 * t**2))),
    ("sigma_sqrt", {}, FLOW, "flow", lambda a, t: t**-2),
]


@pytest.mark.parametrize(
    "paper", PAPERS, ids=[f"{name}-{p}{options}" for name, options, _, p, _ in PAPERS]
)
def test_a_weighting_is_the_loss_of_its_paper(paper):
    name, options, schedule, prediction, weight = paper
    u = jnp.linspace(0.05, 0.95, 40)
    t = schedule.quantile(u)

    def times(key, num, schedule):
        return time_samplers.Times(t, jnp.ones_like(t))

    x0, guess = jax.random.normal(KEY, (2, 40, 6))

    def network(x, time, cond):
        """Predicts v, which no paper here does with this weight but one."""
        x = x.astype(float)
        v = parameterization.v()
        pred = process.from_x0(x, guess, schedule(t))
        return parameterization.target(v, pred.x0, pred.eps, schedule(t))

    key = jax.random.key(4)
    loss, _ = jax.jit(losses.diffusion_loss, static_argnums=(1, 2, 3, 4, 5))(
        key,
        network,
        schedule,
        parameterization.v(),
        lambda snr: WEIGHTINGS[name](snr, **options),
        times,
        x0,
        Conditioning(),
    )
    alpha, sigma = (np.asarray(a, float)[:, None] for a in schedule(t)[:2])
    # At the same x, x0 too small by d means eps too large by alpha / sigma * d.
    wrong_x0 = np.asarray(guess - x0, float)
    wrong_eps = -alpha / sigma * wrong_x0
    wrong = ERRORS[prediction](alpha, sigma, wrong_x0, wrong_eps)
    expected = np.mean(weight(alpha, sigma) * wrong**2, axis=1)
    assert_allclose(loss, expected, rtol=2e-4)


def test_no_weighting_is_left_out_above():
    assert {paper[0] for paper in PAPERS} == WEIGHTINGS.keys()


def test_weightings_are_positive_and_grow_with_the_signal():
    snr = jnp.logspace(-8, 8, 100)
    for weighting in WEIGHTINGS.values():
        weight = np.asarray(weighting(snr))
        assert np.all(weight > 0)
        assert np.all(weight[1:] >= weight[:-1] * (1 - 1e-6))


def test_min_snr_lies_between_its_limits_and_the_soft_one_below_it():
    snr = jnp.logspace(-4, 4, 50)
    for gamma in (1, 5, 20):
        hard = weightings.min_snr(snr, gamma=gamma)
        soft = weightings.soft_min_snr(snr, gamma=gamma)
        assert np.all(hard <= weightings.eps(snr))
        assert np.all(hard <= gamma)
        assert np.all((hard / 2 * 0.999 < soft) & (soft < hard))
    assert_allclose(weightings.min_snr(snr, gamma=1e9), weightings.eps(snr))
    assert_allclose(weightings.soft_min_snr(snr, gamma=1e9), snr, rtol=1e-4)


def test_the_sigmoid_weight_is_a_sigmoid_of_logsnr_in_x0_too():
    logsnr = jnp.linspace(-15, 15, 50)
    expected = np.exp(-2) * jax.nn.sigmoid(logsnr + 2)
    assert_allclose(weightings.sigmoid(jnp.exp(logsnr), bias=-2), expected, rtol=1e-4)
