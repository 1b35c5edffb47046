"""CLIP's loss is that of the whole batch, however it is split; SAM climbs as published."""

import functools
import math
import os
import pathlib
import subprocess
import sys

import clip_losses
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.tasks import clip, sharpness
from diffusion_jax.training import optimizer

ROOT = pathlib.Path(__file__).parents[2]


@functools.cache
def on_one(**options):
    return clip_losses.run(**options)


@pytest.fixture(scope="module")
def on_eight(tmp_path_factory):
    path = tmp_path_factory.mktemp("losses") / "eight.npz"
    flags = "--xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", clip_losses.__file__, path],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return np.load(path)


def close(found, expected, tolerance):
    """Of the largest entry of all: some gradients vanish."""
    largest = max(np.abs(x).max() for x in expected[1:])
    assert largest > 0.01
    np.testing.assert_allclose(found[0], expected[0], rtol=tolerance)
    for a, b in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * largest)


@pytest.mark.parametrize("name", clip_losses.VARIANTS)
def test_eight_devices_give_the_loss_and_gradients_of_one(name, on_eight):
    assert on_eight["num_devices"] == 8
    found = [on_eight[key] for key in on_eight.files if key.startswith(f"{name}/")]
    close(found, on_one(**clip_losses.VARIANTS[name]), 1e-6)


def test_parts_change_nothing():
    close(on_one(num_parts=4), on_one(), 1e-6)
    sharp = dict(sam_rho=0.1, samples_per_replica=2)
    close(on_one(**sharp, num_parts=2), on_one(**sharp), 2e-6)


def test_parts_keep_less_of_the_towers():
    memory = {
        n: clip_losses.compiled(clip_losses.batch(), num_parts=n).compile()
        for n in (1, 8)
    }
    used = {n: p.memory_analysis().temp_size_in_bytes for n, p in memory.items()}
    assert used[8] < 0.5 * used[1]


def loss_of(params, batch, **options):
    return clip_losses.task(**options).loss(params, {}, jax.random.key(0), batch)[0]


@functools.cache
def gradient_of_the_loss():
    return jax.jit(jax.grad(loss_of))


def test_a_replica_of_the_whole_batch_climbs_along_the_gradient():
    """g(w + rho g(w) / |g(w)|)"""
    rho, params, batch = 0.3, clip_losses.parameters(), clip_losses.batch()
    grads = gradient_of_the_loss()(params, batch)
    norm = optax.tree.norm(grads)
    climbed = jax.tree.map(lambda w, g: w + rho * g / norm, params, grads)
    expected = jax.tree.leaves(gradient_of_the_loss()(climbed, batch))
    value, *found = on_one(sam_rho=rho, samples_per_replica=clip_losses.BATCH)
    close([value, *found], [loss_of(climbed, batch), *expected], 1e-5)
    assert value > on_one()[0] + 0.1


def test_a_step_of_no_length_changes_nothing():
    close(on_one(sam_rho=1e-7, samples_per_replica=4), on_one(), 1e-5)


def test_each_replica_reads_its_own_pairs_with_its_own_weights():
    """The embeddings of a replica do not depend on the others."""
    model, params = clip_losses.MODEL, clip_losses.parameters()

    def read(params, batch):
        image, text = clip.embed(model, params, batch["image"], batch["tokens"])
        scale = clip.logit_scale(params["logit_scale"])
        return clip.Pairs(image, text, jnp.broadcast_to(scale, len(image)))

    reader = jax.jit(clip.perturbed(read, 0.5, 4))
    whole = {k: jnp.asarray(v[:8]) for k, v in clip_losses.batch().items()}
    pairs = reader(params, whole)
    alone = reader(params, {k: v[4:] for k, v in whole.items()})
    for a, b in zip(pairs, alone, strict=True):
        np.testing.assert_allclose(a[4:], b, atol=1e-6)
    assert abs(pairs.scale[0] - pairs.scale[4]) > 1e-4
    assert pairs.scale[0] == pairs.scale[3]
    plain = read(params, whole)
    assert jnp.abs(plain.image - pairs.image).max() > 1e-3


def test_a_step_up_has_its_length_and_passes_no_gradient():
    def loss(params):
        return jnp.sum(params["a"] ** 2) + jnp.sum(params["b"] ** 3)

    params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([0.5])}
    climbed = sharpness.ascend(loss, params, 0.25)
    step = jax.tree.map(jnp.subtract, climbed, params)
    np.testing.assert_allclose(optax.tree.norm(step), 0.25, rtol=1e-5)
    assert loss(climbed) > loss(params)
    total = jax.grad(
        lambda p: sum(map(jnp.sum, sharpness.ascend(loss, p, 1.0).values()))
    )
    np.testing.assert_array_equal(total(params)["a"], 1.0)


# ---- the temperature ----------------------------------------------------------------


def test_the_scale_stops_at_a_hundred_and_returns():
    """Beyond it, a gradient that would lead further is blocked, one back is not."""
    value_and_slope = jax.value_and_grad(clip.logit_scale)
    for log_scale, expected in ((2.0, math.exp(2)), (5.0, 100.0)):
        value, slope = value_and_slope(log_scale)
        np.testing.assert_allclose((value, slope), expected, rtol=1e-5)
    downward = jax.grad(lambda x: -clip.logit_scale(x))
    assert downward(5.0) == 0
    np.testing.assert_allclose(downward(2.0), -math.exp(2), rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_parameter_itself_never_passes_the_maximum(name):
    """However long it is pushed outwards; the first push back moves it."""
    made = optimizer.make_optimizer(name, learning_rate=0.1)
    made = optimizer.at_most(made, clip.MAXIMA)
    params = {"logit_scale": jnp.array(4.5), "other": jnp.array(4.5)}
    state = made.init(params)
    update = jax.jit(made.update)
    for gradient in [-1.0] * 20 + [30.0]:
        grads = jax.tree.map(lambda x, g=gradient: jnp.full_like(x, g), params)
        before = params
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        assert params["logit_scale"] <= clip.MAXIMA["logit_scale"] + 1e-6
    assert before["logit_scale"] > 4.6 and before["other"] > 6
    assert params["logit_scale"] < before["logit_scale"]


# ---- errors -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_parts=0), "num_parts is 0; at least 1"),
        (dict(sam_rho=-0.1), "sam_rho is -0.1; at least 0"),
        (dict(sam_rho=0.1, samples_per_replica=1), "samples_per_replica is 1"),
        (dict(num_parts=3), "32 pairs do not divide into num_parts = 3"),
        (dict(sam_rho=0.1, samples_per_replica=5), "32 pairs .* replica = 5"),
        (dict(sam_rho=0.1, samples_per_replica=16, num_parts=4), "8 pairs .* = 16"),
    ],
)
def test_what_does_not_divide_is_named(options, message):
    shapes = jax.eval_shape(lambda: clip_losses.batch())
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda b: loss_of(clip_losses.parameters(), b, **options), shapes
        )
