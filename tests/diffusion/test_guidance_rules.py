"""Laws of each guidance rule."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from diffusion_jax.diffusion import (
    grids,
    guidance,
    guidance_rules,
    parameterization,
    process,
    schedules,
)
from diffusion_jax.diffusion.samplers import SAMPLERS
from diffusion_jax.types import Conditioning

SCHEDULE = schedules.Discrete()
LEVEL = SCHEDULE(jnp.asarray(500.0))
FLOW = schedules.RectifiedFlow()(jnp.asarray(0.7))
X, X0, OTHER = jax.random.normal(jax.random.key(0), (3, 2, 3, 4, 2))
SPACES = {name: make() for name, make in parameterization.PARAMETERIZATIONS.items()}
KEY = jax.random.key(1)
COND, NULL = (Conditioning(vector=jnp.full((n, 1), a)) for n, a in ((2, 1.0), (1, 0.0)))


def pair(level):
    return process.from_x0(X, X0, level), process.from_x0(X, OTHER, level)


def rows(a):
    return np.asarray(a, np.float64).reshape(len(a), -1)


def inner(a, b):
    return (rows(a) * rows(b)).sum(1)


def output(space, pred, level):
    return parameterization.target(space, pred.x0, pred.eps, level)


def conditional(x, level, cond):
    """A denoiser that is told how much to lean to one side."""
    lean = process.align(cond.vector[:, 0], x)
    return process.from_x0(x, jnp.tanh(x + lean * jnp.cos(3 * x) + 0.2 * lean), level)


# ---- adaptive projected guidance -----------------------------------------------------


@pytest.mark.parametrize("name", SPACES)
def test_at_eta_zero_nothing_is_added_along_the_condition(name):
    given, without = pair(LEVEL)
    project = functools.partial(guidance_rules.projected, space=SPACES[name])
    whole, across = (
        project(LEVEL, 4.0, given, without, eta=eta, threshold=math.inf)
        for eta in (1.0, 0.0)
    )
    toward, whole, across = (
        output(SPACES[name], pred, LEVEL) for pred in (given, whole, across)
    )
    size = np.sqrt(inner(toward, toward) * inner(across - toward, across - toward))
    assert np.all(np.abs(inner(across - toward, toward)) < 1e-5 * size)
    assert np.all(np.abs(inner(whole - toward, toward)) > 1e-3 * size)
    # What is left out is parallel to the condition.
    lost = whole - across
    parallel = np.sqrt(inner(lost, lost) * inner(toward, toward))
    assert_allclose(np.abs(inner(lost, toward)), parallel, rtol=1e-4)


def test_the_threshold_bounds_the_update_and_keeps_its_direction():
    given, without = pair(LEVEL)
    project = functools.partial(guidance_rules.projected, eta=1.0)
    free = project(LEVEL, 3.0, given, without, threshold=math.inf).x0 - X0
    norm = np.sqrt(inner(free, free)) / 2
    bound = float(norm.mean())  # shortens one of the two examples
    bounded = project(LEVEL, 3.0, given, without, threshold=bound).x0 - X0
    assert_allclose(np.sqrt(inner(bounded, bounded)) / 2, np.minimum(norm, bound), 1e-5)
    assert_allclose(
        inner(bounded, free) ** 2, inner(free, free) * inner(bounded, bounded), 1e-4
    )


def test_momentum_adds_a_share_of_the_updates_before():
    given, without = pair(LEVEL)
    memory = jax.new_ref(jnp.zeros_like(X))
    project = functools.partial(
        guidance_rules.projected, eta=1.0, threshold=math.inf, memory=memory
    )
    updates = [
        project(LEVEL, 2.0, given, without, momentum=-0.5).x0 - X0 for _ in range(3)
    ]
    for update, factor in zip(updates, (1, 1 - 0.5, 1 - 0.5 + 0.25)):
        assert_allclose(update, factor * (X0 - OTHER), atol=1e-5)


def test_momentum_lives_through_the_loop_of_a_sampler():
    ts = grids.trailing(SCHEDULE, 4)

    def sample(x, momentum, limit):
        memory = jax.new_ref(jnp.zeros_like(x))
        guide = functools.partial(guidance.apg, momentum=momentum, memory=memory)
        guide = guidance.limited(guide, up_to=limit)
        denoise = guide(conditional, COND, NULL, 3.0)
        return SAMPLERS["ddim"](KEY, denoise, SCHEDULE, x, ts)[0]

    compiled = jax.jit(sample)
    plain = guidance.apg(conditional, COND, NULL, 3.0)
    without = SAMPLERS["ddim"](KEY, plain, SCHEDULE, X, ts)[0]
    assert_allclose(compiled(X, 0.0, math.inf), without, atol=1e-4)

    x, levels, average = X, SCHEDULE(ts), 0.0
    for i in range(4):
        here, there = (jax.tree.map(lambda a, j=j: a[j], levels) for j in (i, i + 1))
        given, other = (
            conditional(x, here, Conditioning(vector=jnp.full((2, 1), a)))
            for a in (1.0, 0.0)
        )
        average = given.x0 - other.x0 - 0.5 * average
        moved = given._replace(x0=given.x0 - average)
        # At scale 1 the difference is the update itself: hand it in as the null.
        moved = moved._replace(eps=process.from_x0(x, moved.x0, here).eps)
        pred = guidance_rules.projected(here, 3.0, given, moved)
        x = process.add_noise(pred.x0, pred.eps, there)
    assert_allclose(compiled(X, -0.5, math.inf), x, atol=1e-4)
    assert np.abs(compiled(X, -0.5, math.inf) - without).max() > 1e-2


def test_momentum_without_memory_is_refused():
    with pytest.raises(ValueError, match="needs a memory"):
        guidance_rules.projected(LEVEL, 2.0, *pair(LEVEL), momentum=-0.5)


# ---- CFG-Zero* -----------------------------------------------------------------------


def test_the_optimized_scale_leaves_only_what_the_null_does_not_explain():
    given, without = pair(FLOW)
    pred = guidance_rules.optimized(FLOW, 3.0, given, without)
    flow = SPACES["flow"]
    toward, away, guided = (output(flow, p, FLOW) for p in (given, without, pred))
    added = (guided - toward) / 2
    size = np.sqrt(inner(added, added) * inner(away, away))
    assert np.all(np.abs(inner(added, away)) < 1e-5 * size)
    # So it does not matter how large the null's velocity is.
    larger = parameterization.read(flow, 5 * away, X, FLOW)
    again = guidance_rules.optimized(FLOW, 3.0, given, larger)
    assert_allclose(again.x0, pred.x0, atol=1e-4)


def test_where_the_null_explains_nothing_cfg_zero_star_is_classifier_free_of_zero():
    given, without = pair(FLOW)
    flow = SPACES["flow"]
    toward, away = (output(flow, p, FLOW) for p in (given, without))
    share = (inner(toward, away) / inner(away, away)).reshape(-1, 1, 1, 1)
    orthogonal = parameterization.read(
        flow, jnp.asarray(toward - share * away, X.dtype), X, FLOW
    )
    pred = guidance_rules.optimized(FLOW, 3.0, orthogonal, without)
    assert_allclose(
        output(flow, pred, FLOW), 3.0 * output(flow, orthogonal, FLOW), atol=1e-4
    )


def test_a_flow_stands_still_on_its_first_steps():
    schedule = schedules.RectifiedFlow()
    ts = jnp.linspace(1, 0, 11)
    first = schedule(ts[1])
    for options, num_still in ({}, 1), ({"zero_from": first.sigma / first.alpha}, 2):
        denoise = guidance.cfg_zero_star(conditional, COND, NULL, 3.0, **options)
        for num in (1, 2, 3):
            x, _ = SAMPLERS["ddim"](KEY, denoise, schedule, X, ts[: num + 1])
            moved = np.abs(x - X).max()
            assert (moved < 1e-6) == (num <= num_still)


# ---- CFG++, beta-CFG -----------------------------------------------------------------


def test_cfg_plus_plus_is_classifier_free_of_another_scale_in_each_ddim_step():
    """lambda * alpha' = w * (alpha' - sigma' * alpha / sigma), ' after the step."""
    ts = jnp.asarray([600.0, 400.0])
    here, there = (SCHEDULE(t) for t in ts)
    share = 0.6
    slope = there.alpha - there.sigma * here.alpha / here.sigma
    scale = share * there.alpha / slope
    ours = guidance.cfg_plus_plus(conditional, COND, NULL, share)
    theirs = guidance.classifier_free(conditional, COND, NULL, scale)
    x, expected = (
        SAMPLERS["ddim"](KEY, denoise, SCHEDULE, X, ts)[0] for denoise in (ours, theirs)
    )
    assert scale > 1
    assert_allclose(x, expected, atol=1e-5)


def test_cfg_plus_plus_of_zero_is_the_unconditional_model():
    given, without = pair(LEVEL)
    pred = guidance_rules.renoised(LEVEL, 0.0, given, without)
    assert_array_equal(pred.x0, without.x0)
    assert_array_equal(pred.eps, without.eps)


def test_the_normalized_update_has_length_scale_in_eps():
    given, without = pair(LEVEL)
    pred = guidance_rules.normalized(LEVEL, 2.5, given, without)
    change = pred.eps - without.eps
    assert_allclose(np.sqrt(inner(change, change)), 2.5, rtol=1e-5)
    assert_allclose(process.add_noise(pred.x0, pred.eps, LEVEL), X, atol=1e-5)


# ---- rescaling -----------------------------------------------------------------------


@pytest.mark.parametrize("name", SPACES)
def test_at_phi_one_the_output_has_the_standard_deviation_of_the_condition(name):
    given, without = pair(LEVEL)
    guided = guidance_rules.extrapolated(LEVEL, 6.0, given, without)
    rescale = functools.partial(guidance_rules.rescale, SPACES[name])
    stds = [
        rows(output(SPACES[name], pred, LEVEL)).std(1)
        for pred in (given, rescale(1.0)(LEVEL, guided, given), guided)
    ]
    assert_allclose(stds[1], stds[0], rtol=1e-5)
    assert np.all(stds[2] > 1.2 * stds[0])
    none, half, whole = (rescale(phi)(LEVEL, guided, given) for phi in (0.0, 0.5, 1.0))
    assert_allclose(half.x0, (none.x0 + whole.x0) / 2, atol=1e-5)
    assert_allclose(none.x0, guided.x0, atol=1e-6)


# ---- degenerate predictions ----------------------------------------------------------


@pytest.mark.parametrize("name", guidance.GUIDANCE)
def test_equal_predictions_and_their_gradients_are_finite(name):
    def total(x):
        guided = guidance.GUIDANCE[name](conditional, COND, COND, 3.0)(x, LEVEL)
        return guided.x0.sum() + guided.eps.sum()

    value, gradient = jax.value_and_grad(total)(X)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))
