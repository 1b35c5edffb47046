"""One step: mean gradients, averages, skips, donated memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from diffusion_jax.training import step
from diffusion_jax.training.state import init_state

KEY = jax.random.key(0)


def batch(index=0, spoil=lambda index: False):
    stream = toy.Stream(spoil=spoil)
    stream.index = index
    return jax.tree.map(jnp.asarray, next(stream))


def beginning(optimizer):
    params, frozen = toy.init(jax.random.key(3))
    return init_state(optimizer, params), frozen


def assert_close(tree, other, tolerance=1e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        tree,
        other,
    )


@pytest.mark.parametrize("accumulate", [2, 4, 16])
def test_accumulation_equals_the_big_batch(accumulate):
    state, frozen = beginning(optax.sgd(0.1))
    results = []
    for parts in (1, accumulate):
        train_step = step.make_train_step(
            toy.squared_error, optax.sgd(0.1), ema_decay=0.9, accumulate=parts
        )
        results.append(jax.jit(train_step)(state, frozen, KEY, batch()))
    assert_close(*results)


def test_micro_batches_draw_different_noise():
    def draw(params, frozen, key, batch):
        noise = jax.random.normal(key) + 0 * params["dense"]["bias"][0]
        return noise**2, {"noise": noise}

    state, frozen = beginning(optax.sgd(0.0))
    means = []
    for accumulate in (1, 16):
        train_step = step.make_train_step(
            draw, optax.sgd(0.0), ema_decay=0.0, accumulate=accumulate
        )
        _, metrics = jax.jit(train_step)(state, frozen, KEY, batch())
        means.append(float(metrics["loss"] - metrics["noise"] ** 2))
    assert means[0] == pytest.approx(0, abs=1e-6)
    assert means[1] > 0.1  # the variance of the 16 draws


def test_a_batch_that_does_not_divide_is_refused():
    train_step = step.make_train_step(
        toy.squared_error, optax.sgd(0.1), ema_decay=0.9, accumulate=3
    )
    state, frozen = beginning(optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"16 \('x'\) .* 3 micro-batches"):
        train_step(state, frozen, KEY, batch())


@pytest.mark.parametrize("warmup", [True, False])
def test_the_average_follows_its_recursion(warmup):
    decay = 0.5  # the ramp crosses it at step 8
    optimizer = optax.sgd(0.1)
    train_step = jax.jit(
        step.make_train_step(
            toy.squared_error, optimizer, ema_decay=decay, ema_warmup=warmup
        )
    )
    state, frozen = beginning(optimizer)
    ema = jax.tree.map(np.asarray, state.params)
    for t in range(12):
        state, _ = train_step(state, frozen, KEY, batch(t))
        d = min(decay, (1 + t) / (10 + t)) if warmup else decay
        ema = jax.tree.map(lambda e, p, d=d: d * e + (1 - d) * p, ema, state.params)
    assert_close(state.ema_params, ema, 1e-5)


def test_the_ramp_begins_at_a_tenth_and_ends_at_the_decay():
    assert float(step.ema_decay_at(jnp.int32(0), 0.999)) == pytest.approx(0.1)
    assert float(step.ema_decay_at(jnp.int32(10**6), 0.999)) == pytest.approx(0.999)


def test_a_bad_step_changes_counters_only():
    optimizer = toy.adamw()
    train_step = jax.jit(
        step.make_train_step(toy.squared_error, optimizer, ema_decay=0.9)
    )
    state, frozen = beginning(optimizer)
    good, _ = train_step(state, frozen, KEY, batch(0))
    bad, metrics = train_step(good, frozen, KEY, batch(1, spoil=lambda i: True))
    assert np.isnan(metrics["loss"])
    for field in ("params", "ema_params", "opt_state"):
        assert toy.equal(getattr(bad, field), getattr(good, field))
    assert (int(bad.step), int(bad.num_skipped), int(bad.num_skipped_in_row)) == (
        2,
        1,
        1,
    )
    healed, _ = train_step(bad, frozen, KEY, batch(2))
    assert (int(healed.num_skipped), int(healed.num_skipped_in_row)) == (1, 0)


def test_a_bad_gradient_of_a_good_loss_is_skipped():
    def loss(params, frozen, key, batch):
        return jnp.sqrt(jnp.abs(params["dense"]["bias"][0])), {}  # slope inf at 0

    state, frozen = beginning(optax.sgd(0.1))
    train_step = step.make_train_step(loss, optax.sgd(0.1), ema_decay=0.9)
    after, metrics = train_step(state, frozen, KEY, batch())
    assert float(metrics["loss"]) == 0
    assert int(after.num_skipped) == 1
    assert toy.equal(after.params, state.params)


def test_a_new_state_shares_no_memory():
    params, _ = toy.init(KEY)
    state = init_state(toy.adamw(), params)
    for leaf in jax.tree.leaves(state.params):
        leaf.delete()
    assert toy.equal(params, state.ema_params)
    for leaf in jax.tree.leaves(state.ema_params):
        leaf.delete()
    assert toy.equal(params, toy.init(KEY)[0])


def test_each_step_has_its_own_key():
    seen = []

    def loss(params, frozen, key, batch):
        draw = jax.random.normal(key)
        return draw + 0 * params["dense"]["bias"][0], {}

    train_step = jax.jit(step.make_train_step(loss, optax.sgd(0.1), ema_decay=0.9))
    state, frozen = beginning(optax.sgd(0.1))
    for _ in range(4):
        state, metrics = train_step(state, frozen, KEY, batch())
        seen.append(float(metrics["loss"]))
    assert len(set(seen)) == 4


def test_metrics_show_the_rate_and_the_norm_before_clipping():
    optimizer = toy.optimizer.make_optimizer(learning_rate=0.25, clip_norm=1e-3)
    train_step = step.make_train_step(toy.squared_error, optimizer, ema_decay=0.9)
    state, frozen = beginning(optimizer)
    grads, _ = jax.grad(toy.squared_error, has_aux=True)(
        state.params, frozen, KEY, batch()
    )
    _, metrics = jax.jit(train_step)(state, frozen, KEY, batch())
    assert float(metrics["learning_rate"]) == 0.25
    assert float(metrics["grad_norm"]) == pytest.approx(float(optax.tree.norm(grads)))


def test_an_optimizer_that_shows_no_rate_is_fine():
    assert step.learning_rate(optax.adam(0.1).init(jnp.ones(3))) == {}


def test_a_metric_may_not_take_a_reserved_name():
    def loss(params, frozen, key, batch):
        return jnp.float32(0), {"grad_norm": jnp.float32(0)}

    train_step = step.make_train_step(loss, optax.sgd(0.1), ema_decay=0.9)
    state, frozen = beginning(optax.sgd(0.1))
    with pytest.raises(ValueError, match="'grad_norm'"):
        train_step(state, frozen, KEY, batch())


def placed(tree):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.device_put(tree, device)


def test_the_state_is_donated():
    optimizer = toy.adamw()
    train_step = step.make_train_step(toy.squared_error, optimizer, ema_decay=0.9)
    state, frozen = beginning(optimizer)
    arguments = placed((state, frozen, KEY, batch()))
    names = step.metric_names(train_step, *arguments)
    sums = step.MetricSums({name: jnp.zeros(()) for name in names}, jnp.int32(0))
    program = step.compile_step(train_step, *arguments)
    after, *_ = program(arguments[0], placed(sums), *arguments[1:])
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(arguments[0]))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(arguments[1:]))
    assert int(after.step) == 1
