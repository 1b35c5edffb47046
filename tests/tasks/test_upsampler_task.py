"""The upsampler: what it hears is the small image, at whatever size it is applied."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.diffusion import (
    parameterization,
    schedules,
    time_samplers,
    weightings,
)
from diffusion_jax.models.unet import UNet
from diffusion_jax.tasks import upsampler
from diffusion_jax.tasks.objective import Objective
from diffusion_jax.types import Conditioning

OBJECTIVE = Objective(
    schedules.SCHEDULES["cosine"](),
    parameterization.PARAMETERIZATIONS["eps"](),
    weightings.WEIGHTINGS["eps"],
    time_samplers.drawn(time_samplers.QUANTILES["uniform"]),
)
UNET = UNet(
    channels=(8, 8),
    blocks_per_level=1,
    attention=("none", "none"),
    mid_attention="none",
    resample="resnet",
    time_modulation="scale_shift",
    norm_groups=4,
    out_channels=3,
    dropout=0.5,
)
CROP = 8
TASK = upsampler.upsampler(UNET, OBJECTIVE, size=CROP)


@pytest.fixture(scope="module")
def params():
    """Random in every weight: those of the last layers are zero at first."""
    params, frozen = TASK.init(jax.random.key(0))
    assert frozen == {}
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [
        leaf + 0.2 * jax.random.normal(key, leaf.shape)
        for key, leaf in zip(keys, leaves)
    ]
    return jax.tree.unflatten(tree, drawn)


def batch(size=CROP, seed=0):
    rng = np.random.default_rng(seed)
    x, low = rng.uniform(-1, 1, (2, 4, size, size, 3)).astype(np.float32)
    return {"image": jnp.asarray(x), "low_res": jnp.asarray(low)}


LOSS = jax.jit(TASK.loss)


def test_the_small_image_is_heard_and_the_key_decides_the_rest(params):
    key, given = jax.random.key(2), batch()
    value, metrics = LOSS(params, {}, key, given)
    assert "mse" in metrics
    assert "loss" not in metrics
    assert LOSS(params, {}, key, given)[0] == value
    assert LOSS(params, {}, jax.random.key(3), given)[0] != value
    other = given | {"low_res": given["low_res"][::-1]}
    assert LOSS(params, {}, key, other)[0] != value


def test_a_few_steps_learn_to_copy_the_small_image():
    """Where the small image is the image, eps is known of x, and the loss falls."""
    optimizer = optax.adam(1e-2)
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.uniform(-1, 1, (8, CROP, CROP, 3)).astype(np.float32))
    given = {"image": image, "low_res": image}

    @jax.jit
    def step(params, state, key):
        (value, _), grads = jax.value_and_grad(TASK.loss, has_aux=True)(
            params, {}, key, given
        )
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    params, _ = TASK.init(jax.random.key(0))
    state, values = optimizer.init(params), []
    for key in jax.random.split(jax.random.key(1), 40):
        params, state, value = step(params, state, key)
        values.append(float(value))
    assert values[0] == pytest.approx(1.0, abs=0.1)  # it begins by predicting 0
    assert np.mean(values[-10:]) < 0.8 * np.mean(values[:5])


def test_what_is_trained_on_crops_applies_to_whole_images(params):
    """Far from the border a whole image is treated as a crop, but for the norms.

    GroupNorm averages over the image: with its statistics the same, as in a picture
    that repeats itself, so is every pixel that no border reaches.
    """
    rng = np.random.default_rng(0)
    tile = rng.uniform(-1, 1, (1, CROP, CROP, 3)).astype(np.float32)
    apply = jax.jit(UNET.apply)
    outputs = []
    for repeats in (6, 12):
        x = jnp.tile(tile, (1, repeats, repeats, 1))
        cond = Conditioning(image=x[:, ::-1])
        variables = {"params": params["upsampler"]}
        outputs.append(apply(variables, x, jnp.ones(1), cond))
    small, large = outputs
    assert large.shape == (1, 12 * CROP, 12 * CROP, 3)
    middle = slice(2 * CROP, 4 * CROP)
    there = slice(5 * CROP, 7 * CROP)
    difference = np.abs(small[:, middle, middle] - large[:, there, there])
    assert difference.mean() < 0.1 * np.std(small)
    shifted = np.abs(
        small[:, middle, middle] - large[:, there, 4 * CROP + 2 : 6 * CROP + 2]
    )
    assert shifted.mean() > 0.5 * np.std(small)


def test_dropout_is_on_in_training(params):
    dry = upsampler.upsampler(UNET.clone(dropout=0.0), OBJECTIVE, size=CROP)
    told = params, {}, jax.random.key(4), batch()
    assert LOSS(*told)[0] != jax.jit(dry.loss)(*told)[0]
