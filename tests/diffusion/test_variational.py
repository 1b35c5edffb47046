"""Laws of the variational bounds, against data whose denoiser and density are known."""

from __future__ import annotations

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from numpy.testing import assert_allclose

from diffusion_jax.diffusion import (
    grids,
    learned_schedule,
    likelihood,
    process,
    schedules,
    time_samplers,
    variational,
)

KEY = jax.random.key(0)
X0 = exact.MEAN + 0.35 * jnp.asarray([[-1.2], [0.1], [0.9], [1.6]])
SHORT = schedules.Discrete("linear", 0.01, 0.4, 20)
NLL = 0.5 * ((X0[:, 0] - exact.MEAN) / exact.STD) ** 2 + np.log(
    exact.STD * np.sqrt(2 * np.pi)
)

term_at = jax.jit(variational.term_at, static_argnames=("schedule", "chain"))


# ---- one step, in one dimension, against numerical integration ----------------------


def brute_force(t, x, x0, guess, raw, betas):
    """KL of the exact posterior, from Bayes' rule on a fine line, in betas."""
    alpha2 = np.cumprod(1 - betas)
    beta, before = betas[t - 1], alpha2[t - 2]
    line = np.linspace(-12, 12, 400_001)

    def posterior(x0):
        log = scipy.stats.norm(np.sqrt(1 - beta) * line, np.sqrt(beta)).logpdf(x)
        log += scipy.stats.norm(np.sqrt(before) * x0, np.sqrt(1 - before)).logpdf(line)
        density = np.exp(log - log.max())
        return density / np.trapezoid(density, line)

    q, around_guess = posterior(x0), posterior(guess)
    mean = np.trapezoid(around_guess * line, line)
    small = np.trapezoid(around_guess * (line - mean) ** 2, line)
    share = (raw + 1) / 2  # eq. 15 of arXiv:2102.09672
    std = np.exp((share * np.log(beta) + (1 - share) * np.log(small)) / 2)
    ratio = np.log(np.maximum(q, 1e-300)) - scipy.stats.norm(mean, std).logpdf(line)
    return np.trapezoid(q * ratio, line)


@pytest.mark.parametrize("t", [2, 5, 20])
@pytest.mark.parametrize("raw", [-1.0, 0.3, 1.0])
def test_a_term_is_the_divergence_of_the_exact_posterior(t, raw):
    betas = np.linspace(0.01, 0.4, 20)
    x, x0, guess = 0.4, 0.9, -0.3
    pred = process.Prediction(
        jnp.asarray([[guess]]), jnp.zeros((1, 1)), jnp.asarray([[raw]])
    )
    chain = variational.Chain("learned_range", 20)
    term, num_steps = term_at(
        SHORT, pred, jnp.asarray([[x0]]), jnp.asarray([float(t)]), chain=chain
    )
    assert num_steps == 20
    assert_allclose(term, brute_force(t, x, x0, guess, raw, betas), rtol=2e-3)


@pytest.mark.parametrize(
    ("variance", "raw"), [("posterior", -1.0), ("beta", 1.0), ("learned_log", None)]
)
def test_a_fixed_variance_is_an_end_of_the_learned_range(variance, raw):
    t = jnp.arange(2.0, 21)
    guess, x0 = jax.random.normal(KEY, (2, 19, 3))
    if raw is None:  # log beta
        raw = 1.0
        told = jnp.log(jnp.linspace(0.01, 0.4, 20))[1:, None] + jnp.zeros((19, 3))
    else:
        told = None
    terms = []
    for name, channels in [(variance, told), ("learned_range", raw + 0 * guess)]:
        pred = process.Prediction(guess, guess, channels)
        chain = variational.Chain(name)
        terms.append(term_at(SHORT, pred, x0, t, chain=chain)[0])
    assert_allclose(*terms, rtol=1e-4)


# ---- the decoder --------------------------------------------------------------------


def decoder(values, guess, num_bins, variance="posterior", raw=None):
    """-log p of each value, on the last step."""
    x0 = jnp.asarray(values, float)[:, None]
    pred = process.Prediction(jnp.full_like(x0, guess), x0, raw)
    chain = variational.Chain(variance, None, num_bins)
    return term_at(SHORT, pred, x0, jnp.ones(len(x0)), chain=chain)[0]


@pytest.mark.parametrize("guess", [-1.3, -0.2, 0.999, 1.05])
@pytest.mark.parametrize("num_bins", [8, 256])
def test_the_decoder_shares_one_among_all_values(guess, num_bins):
    values = np.linspace(-1, 1, num_bins)
    assert_allclose(np.exp(-decoder(values, guess, num_bins)).sum(), 1, rtol=1e-4)


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_the_decoder_has_the_published_variance(variance):
    """beta_tilde of the second step, for both (and the middle of a wide bin)."""
    betas = np.linspace(0.01, 0.4, 20)
    alpha2 = np.cumprod(1 - betas)
    std = np.sqrt(betas[1] * (1 - alpha2[0]) / (1 - alpha2[1]))
    values = np.linspace(-1, 1, 256)[[0, 100, 130, 255]]
    law = scipy.stats.norm(0.02, std)
    edges = [(-np.inf, values[0] + 1 / 255), (values[-1] - 1 / 255, np.inf)]
    edges[1:1] = [(v - 1 / 255, v + 1 / 255) for v in values[1:3]]
    expected = [
        np.log(law.cdf(b) - law.cdf(a)) if a < 0.02 else np.log(law.sf(a) - law.sf(b))
        for a, b in edges
    ]
    assert_allclose(-decoder(values, 0.02, 256, variance), expected, rtol=1e-3)


def test_the_decoder_of_learned_range_reaches_from_that_variance_to_beta():
    betas = np.linspace(0.01, 0.4, 20)
    alpha2 = np.cumprod(1 - betas)
    small = betas[1] * (1 - alpha2[0]) / (1 - alpha2[1])

    def variance(raw):
        # The share of a narrow bin around the mean says it.
        raw = jnp.full((1, 1), raw)
        surprise = decoder([0.0], 0.0, 2551, "learned_range", raw)
        return np.exp(2 * surprise[0]) / (2 * np.pi) * (2 / 2550) ** 2

    assert_allclose(variance(1.0), betas[0], rtol=1e-3)
    assert_allclose(variance(0.0), np.sqrt(betas[0] * small), rtol=1e-3)
    assert_allclose(variance(-1.0), small, rtol=1e-3)


def test_a_value_far_from_its_prediction_has_a_finite_gradient():
    def surprise(guess):
        return decoder(jnp.asarray([-1.0, 0.0, 1.0]), guess, 256).sum()

    for guess in (-60.0, 0.0, 60.0):
        value, slope = jax.value_and_grad(surprise)(guess)
        assert np.isfinite(value)
        assert np.isfinite(slope)


# ---- whole bounds -------------------------------------------------------------------


def uniform_in_logsnr(steps):
    """A chain of a wide VP schedule down to a cleanest level, then clean data."""
    schedule = schedules.Cosine(t_min=1e-6)
    return schedule, grids.uniform_logsnr(schedule, steps, logsnr_min=-9, logsnr_max=9)


def discrete(steps, copies, **options):
    schedule, ts = uniform_in_logsnr(steps)
    x0 = jnp.tile(X0, (copies, 1))

    @jax.jit
    def average(key):
        bound, terms = variational.discrete_bound(
            key, exact.gaussian, schedule, x0, ts, num_bins=None, **options
        )
        return [a.reshape(copies, -1).mean(0) for a in bound], terms

    return average(KEY)


def test_a_chain_is_a_bound_that_more_steps_make_tight():
    excess = []
    for steps in (8, 32, 128):
        bound, terms = discrete(steps, 20_000)
        assert terms.shape == (steps, len(X0) * 20_000)
        assert_allclose(
            np.sum(np.mean(terms, axis=1)),
            np.mean(bound[1] + bound[2]),
            rtol=1e-4,
            atol=1e-4,
        )
        excess.append(np.mean(sum(bound) - NLL))
    print("nats above -log p:", excess)
    # In proportion to the length of a step.
    assert excess[0] > 4 * excess[1]
    assert 3 < excess[1] / excess[2] < 6
    assert 0 < excess[2] < 0.3


def test_no_fixed_variance_is_below_the_truth():
    for variance in ("posterior", "beta"):
        bound, _ = discrete(16, 4000, variance=variance)
        assert np.all(np.mean(sum(bound) - NLL) > 0)


def test_a_respaced_chain_of_whole_steps_is_a_bound_too():
    schedule = schedules.Discrete()
    x0 = jnp.tile(jnp.round((X0[:2] + 1) * 127.5) / 127.5 - 1, (500, 1))
    for steps in (1, 100):
        ts = grids.trailing(schedule, steps)
        bound, _ = jax.jit(variational.discrete_bound, static_argnums=(1, 2))(
            KEY, exact.gaussian, schedule, x0, ts
        )
        # In bits: of a bin of 2 / 255 under the density.
        bits = likelihood.bits_per_dim(sum(bound), (1,))
        truth = likelihood.bits_per_dim(jnp.tile(NLL[:2], 500), (1,), bin_width=2 / 255)
        assert np.all(np.isfinite(bits))
        assert bits.mean() > truth.mean()


def continuous(schedule, copies=200_000, **options):
    """Averages over copies of each example, and over all times within each."""
    x0 = jnp.tile(X0, (copies, 1))

    @jax.jit
    def average(key):
        bound = variational.continuous_bound(
            key, exact.gaussian, schedule, x0, num_bins=None, **options
        )
        return [a.reshape(copies, -1).mean(0) for a in bound]

    return average(KEY)


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.RectifiedFlow(t_min=1e-2),
        schedules.Cosine(t_min=1e-2),
        schedules.VarianceExploding(t_min=1e-2),
    ],
    ids=["flow", "cosine", "ve"],
)
def test_the_continuous_bound_is_tight_if_its_ends_are_wide(schedule):
    bound = continuous(schedule)
    assert_allclose(np.mean(sum(bound)), NLL.mean(), atol=0.06)


def test_the_continuous_bound_of_whole_steps_takes_a_law_of_logsnr():
    sample_times = time_samplers.drawn(
        time_samplers.uniform_logsnr,
        draw=time_samplers.low_discrepancy,
        over="logsnr",
    )
    schedule = schedules.Discrete("linear", 1e-4, 0.02)
    bound = continuous(schedule, sample_times=sample_times)
    assert_allclose(np.mean(sum(bound)), NLL.mean(), atol=0.06)


def test_narrow_ends_loosen_the_bound_on_their_own_side():
    wide = continuous(schedules.VarianceExploding(t_min=1e-2))
    noisy = continuous(schedules.VarianceExploding(t_min=0.3))
    short = continuous(schedules.VarianceExploding(t_min=1e-2, t_max=1.0))
    assert np.mean(sum(noisy)) > np.mean(sum(wide)) + 0.1
    assert short[0].mean() > wide[0].mean() + 0.1
    assert np.mean(sum(short)) > np.mean(sum(wide)) + 0.01


def test_the_reconstruction_shares_one_among_all_values():
    """p(x0 | x_t) at one x_t, for every x0 that there is (arXiv:2107.00630, 3.3)."""
    values = jnp.linspace(-1, 1, 64)[:, None]
    schedule = schedules.Cosine(t_min=0.02)
    level = schedule(jnp.asarray(0.02))
    eps = (level.alpha * 0.123 - level.alpha * values) / level.sigma
    surprise = variational.reconstruction(values, eps, level, 64)
    assert_allclose(np.exp(-surprise).sum(), 1, rtol=1e-4)
    # Of real numbers it is a density.
    line = jnp.linspace(-3, 3, 5001)[:, None]
    eps = level.alpha / level.sigma * (0.123 - line)
    density = np.exp(-variational.reconstruction(line, eps, level, None))
    assert_allclose(np.trapezoid(density, line[:, 0]), 1, rtol=1e-3)


def test_the_prior_is_the_divergence_from_where_sampling_starts():
    level = process.NoiseLevel(*map(jnp.asarray, (0.6, 0.8, 0.0)))
    x0 = jnp.asarray([[0.5, -0.3]])
    for data_std in (0.0, 1.0, 2.0):
        law = scipy.stats.norm(0, np.sqrt(0.64 + 0.36 * data_std**2))
        line = np.linspace(-8, 8, 20_001)
        expected = 0
        for value in x0[0]:
            q = scipy.stats.norm(0.6 * float(value), 0.8)
            ratio = q.logpdf(line) - law.logpdf(line)
            expected += np.trapezoid(q.pdf(line) * ratio, line)
        got = variational.prior_bound(x0, level, data_std)
        assert_allclose(got[0], expected, rtol=1e-4)


# ---- learned schedules --------------------------------------------------------------


def learned_bound(params, key=KEY, copies=200_000):
    schedule = learned_schedule.from_params(params)
    x0 = jnp.tile(X0, (copies, 1))
    bound = variational.continuous_bound(
        key, exact.gaussian, schedule, x0, num_bins=None
    )
    return sum(bound).mean()


def test_only_the_ends_of_a_schedule_matter_to_the_bound():
    first = learned_schedule.init_knots(gamma_0=-9, gamma_1=6, num_pieces=4)
    second = first | {"heights": jnp.asarray([2.0, -1.0, 0.0, 1.0])}
    wider = first | {"ends": jnp.asarray([-4.0, 6.0])}
    bound = jax.jit(learned_bound)
    same = [bound(params) for params in (first, second)]
    assert_allclose(*same, atol=0.02)
    assert bound(wider) > same[0] + 0.05


def test_the_bound_teaches_the_ends_and_leaves_the_interior_on_average():
    params = learned_schedule.init_knots(gamma_0=-5, gamma_1=6, num_pieces=4)
    slope = jax.jit(jax.grad(learned_bound))(params)
    bound = jax.jit(learned_bound)
    for end in range(2):
        step = 0.5 * jnp.eye(2)[end]
        up, down = (bound(params | {"ends": params["ends"] + s}) for s in (step, -step))
        assert_allclose(slope["ends"][end], up - down, atol=0.01, rtol=0.1)
    assert np.abs(slope["ends"][0]) > 0.01
    assert np.all(np.abs(slope["heights"]) < 0.01)
