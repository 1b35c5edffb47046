"""Every optimizer descends, decays only matrices, and follows its schedule."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.training import optimizer, step


class Net(nn.Module):
    """Kernels of two and four axes, biases, a norm and a table."""

    @nn.compact
    def __call__(self, x, ids):
        x = nn.Conv(8, (3, 3), name="conv")(x)
        x = nn.GroupNorm(2, name="norm")(x).mean(axis=(1, 2))
        x = x + nn.Embed(5, 8, name="table")(ids)
        return nn.Dense(16, name="out")(x)


def parameters(seed):
    arguments = jnp.zeros((1, 4, 4, 3)), jnp.zeros(1, jnp.int32)
    shapes = jax.eval_shape(Net().init, jax.random.key(0), *arguments)["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), shapes
    )


@pytest.mark.parametrize("name", sorted(optimizer.OPTIMIZERS))
def test_every_optimizer_descends(name):
    params, goal = parameters(0), parameters(1)
    tx = optimizer.make_optimizer(name, learning_rate=0.05, clip_norm=10.0)

    def loss(params):
        return sum(
            jnp.sum((params[k][n] - v) ** 2) for k in goal for n, v in goal[k].items()
        )

    def update(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    _, values = jax.lax.scan(update, (params, tx.init(params)), length=200)
    assert values[-1] < 0.1 * values[0]


@pytest.mark.parametrize("name", ["adamw", "lion", "muon", "adafactor"])
def test_weight_decay_spares_norms_and_biases(name):
    params = jax.tree.map(jnp.ones_like, parameters(0))
    zeros = jax.tree.map(jnp.zeros_like, params)
    rate, weight_decay = 0.1, 0.5
    tx = optimizer.make_optimizer(name, learning_rate=rate, weight_decay=weight_decay)
    updates, _ = jax.jit(tx.update)(zeros, tx.init(params), params)
    for path, value in jax.tree_util.tree_leaves_with_path(updates):
        is_table = path[-1].key == "embedding" and name != "muon"
        is_decayed = path[-1].key == "kernel" or is_table
        expected = -rate * weight_decay if is_decayed else 0.0
        np.testing.assert_allclose(value, expected, atol=1e-7)


def test_clipping_bounds_the_gradient_that_the_optimizer_sees():
    grads = {"kernel": jnp.full((3, 4), 100.0)}
    tx = optimizer.make_optimizer("adam", learning_rate=1.0, clip_norm=0.5, b1=0.0)
    _, state = jax.jit(tx.update)(grads, tx.init(grads), grads)
    second_moment = optax.tree.get(state, "nu")["kernel"]
    assert float(jnp.sqrt(second_moment.sum() / 0.001)) == pytest.approx(0.5, rel=1e-4)


def muon_update(kernel):
    tx = optimizer.make_optimizer("muon", learning_rate=1.0, weight_decay=0.0)
    grads = {"kernel": kernel}
    updates, _ = jax.jit(tx.update)(grads, tx.init(grads), grads)
    return updates["kernel"]


def test_muon_moves_a_convolution_along_an_orthogonal_matrix():
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 8, 16))
    update = muon_update(kernel).reshape(72, 16)
    np.testing.assert_allclose(update, muon_update(kernel.reshape(72, 16)), atol=1e-5)
    singular = np.linalg.svd(update, compute_uv=False) / (0.2 * np.sqrt(72))
    assert singular.min() > 0.5
    assert singular.max() < 1.3  # of the quintic Newton-Schulz iteration


@pytest.mark.parametrize("warmup_steps", [0, 10])
@pytest.mark.parametrize(
    ("name", "halfway", "end"),
    [("constant", 1, 1), ("linear", 0.5, 0), ("cosine", 0.5, 0)],
)
def test_schedules_meet_their_endpoints(name, halfway, end, warmup_steps):
    peak, total = 0.3, 110
    rate = optimizer.make_schedule(
        name, learning_rate=peak, warmup_steps=warmup_steps, total_steps=total
    )
    middle = warmup_steps + (total - warmup_steps) // 2
    if warmup_steps:
        np.testing.assert_allclose([rate(0), rate(5)], [0, peak / 2], atol=1e-7)
    found = [rate(warmup_steps), rate(middle), rate(total), rate(10 * total)]
    expected = [peak, halfway * peak, end * peak, end * peak]
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_the_rate_in_the_state_is_that_of_the_update():
    params = {"kernel": jnp.ones((2, 2))}
    tx = optimizer.make_optimizer(
        learning_rate=1.0, schedule="linear", total_steps=4, weight_decay=0.0
    )
    state, seen = tx.init(params), []
    for _ in range(5):
        _, state = tx.update(params, state, params)
        seen.append(float(step.learning_rate(state)["learning_rate"]))
    assert seen == [1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "adamww"}, "'adamww'; one of .*'adamw'"),
        ({"schedule": "cos"}, "'cos'; one of .*'cosine'"),
        ({"schedule": "cosine"}, "needs total_steps"),
        ({"warmup_steps": 9, "total_steps": 9}, r"warmup_steps is 9; .* 0..8"),
        ({"name": "adam", "weight_decay": 0.1}, "adam has no option 'weight_decay'"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        optimizer.make_optimizer(**{"learning_rate": 0.1} | arguments)
