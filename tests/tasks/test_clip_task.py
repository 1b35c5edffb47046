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
        timeout=240,
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


def test_parts_change_nothing_but_memory():
    close(on_one(num_parts=4), on_one(), 1e-6)
    whole, parts = (
        clip_losses.compiled(**options).memory_analysis().temp_size_in_bytes
        for options in ({}, dict(num_parts=4))
    )
    assert parts < 0.6 * whole


def test_parts_are_of_whole_replicas():
    sharp = dict(sam_rho=0.1, samples_per_replica=2)
    close(on_one(**sharp, num_parts=2), on_one(**sharp), 2e-6)


def test_a_replica_of_the_whole_batch_climbs_along_the_gradient():
    """g(w + rho g(w) / |g(w)|)"""
    rho, params = 0.3, clip_losses.parameters()
    value, *grads = on_one()
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in grads))
    grads = jax.tree.unflatten(jax.tree.structure(params), grads)
    climbed = jax.tree.map(lambda w, g: w + rho * g / norm, params, grads)
    found = on_one(sam_rho=rho, samples_per_replica=clip_losses.BATCH)
    close(found, clip_losses.run(climbed), 1e-5)
    assert found[0] > value + 0.1


def test_each_replica_reads_its_own_pairs_with_its_own_weights():
    def read(params, batch):
        angle = params["w"] * batch["x"]
        image = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
        text = jnp.stack([jnp.cos(batch["x"]), jnp.sin(batch["x"])], axis=1)
        return clip.Pairs(image, text, jnp.broadcast_to(params["s"], len(angle)))

    params = {"w": jnp.array(0.5), "s": jnp.array(2.0)}
    whole = {"x": jnp.array([0.1, 0.9, -0.4, 0.3, 1.5, -1.2])}
    pairs = clip.perturbed(read, 0.5, 2)(params, whole)
    for start in (0, 2, 4):
        own = {"x": whole["x"][start : start + 2]}

        def local_loss(params, own=own):
            return clip.contrastive_loss(*read(params, own))[0]

        grads = jax.grad(local_loss)(params)
        norm = math.hypot(*grads.values())
        moved = {k: params[k] + 0.5 * grads[k] / norm for k in params}
        found = jax.tree.map(lambda x, start=start: x[start : start + 2], pairs)
        close = functools.partial(np.testing.assert_allclose, atol=1e-6)
        jax.tree.map(close, found, read(moved, own))
    assert len({float(scale) for scale in pairs.scale}) == 3


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
        value, slope = value_and_slope(jnp.array(log_scale))
        np.testing.assert_allclose((value, slope), expected, rtol=1e-5)
    downward = jax.grad(lambda x: -clip.logit_scale(x))
    assert downward(jnp.array(5.0)) == 0
    np.testing.assert_allclose(downward(jnp.array(2.0)), -math.exp(2), rtol=1e-5)


def test_the_parameter_itself_never_passes_the_maximum():
    """However long it is pushed outwards; the first push back moves it."""
    made = optimizer.make_optimizer("adamw", learning_rate=0.1)
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
        (dict(sam_rho=0.1, samples_per_replica=5), "32 pairs .*per_replica = 5"),
        (dict(sam_rho=0.1, samples_per_replica=16, num_parts=4), "8 pairs .* = 16"),
    ],
)
def test_what_does_not_divide_is_named(options, message):
    task, params = clip_losses.task(**options), clip_losses.parameters()
    arguments = params, {}, jax.random.key(0), clip_losses.batch()
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(task.loss, *arguments)


def test_a_false_caption_counts_as_one_more_of_the_batch_for_images_alone():
    """Images choose among all; the captions themselves choose as before."""
    rng = np.random.default_rng(0)
    image, text, false = (
        jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))
        for x in rng.standard_normal((3, 4, 8)).astype("float32")
    )
    scale = jnp.array(5.0)
    value, _ = clip.contrastive_loss(image, text, scale, false)
    rows = scale * image @ jnp.concatenate([text, false]).T
    columns = scale * text @ image.T
    expected = [
        -jax.nn.log_softmax(logits, axis=1)[jnp.arange(4), jnp.arange(4)].mean()
        for logits in (rows, columns)
    ]
    np.testing.assert_allclose(value, np.mean(expected), rtol=1e-5)


def test_false_captions_that_are_the_true_ones_double_the_choice():
    """log 2 more for the images, nothing for the captions."""
    told = clip_losses.batch()
    task, params = clip_losses.task(), clip_losses.parameters()
    loss = jax.jit(task.loss)
    plain, _ = loss(params, {}, jax.random.key(0), told)
    again = told | {"false_tokens": told["tokens"]}
    twice, _ = loss(params, {}, jax.random.key(0), again)
    np.testing.assert_allclose(twice, plain + math.log(2) / 2, rtol=1e-5)
