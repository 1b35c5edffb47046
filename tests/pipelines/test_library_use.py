"""The pipeline as a library: pure functions under jit, vmap, grad and sharding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from diffusion_jax import published
from diffusion_jax.pipelines.stable_diffusion import Start
from diffusion_jax.pipelines.stage import image_keys
from diffusion_jax.training import sharding
from diffusion_jax.weights import published as weights
from tests import tiny_model

CHOICES = published.Choices(sampler="dpmpp_2m", steps=3)
KEYS = image_keys(jax.random.key(0), jnp.arange(8))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny_model.write(tmp_path_factory.mktemp("published") / "tiny")


@pytest.fixture(scope="module")
def model(directory):
    return published.load(directory, CHOICES)


@pytest.fixture(scope="module")
def images(model):
    return generate(model, model.params, KEYS)


def generate(model, params, keys):
    prompt, negative = model.read(["a red circle"] * len(keys)), model.read([""])
    return jax.jit(model.pipeline)(params, keys, prompt, negative, 7.5)


def test_the_pipeline_is_hashable_and_equal_to_itself_made_again(directory, model):
    again = published.plan(published.find(directory), CHOICES)
    assert hash(model.pipeline) == hash(model.pipeline)
    assert again.vae == model.pipeline.vae
    run = jax.jit(lambda pipeline, x: x + len(pipeline.latent_shape), static_argnums=0)
    assert run(model.pipeline, 1) == 4


def test_vmap_over_keys_is_a_batch(model, images):
    prompt, negative = model.read(["a red circle"]), model.read([""])

    def one(key):
        return model.pipeline(model.params, key[None], prompt, negative, 7.5)[0]

    np.testing.assert_allclose(jax.jit(jax.vmap(one))(KEYS[:3]), images[:3], atol=1e-4)


def test_the_gradient_through_the_decoder_is_that_of_finite_differences(model):
    latents = jax.random.normal(jax.random.key(1), (1, 8, 8, 4))
    direction = jax.random.normal(jax.random.key(2), latents.shape)

    @jax.jit
    def brightness(latents):
        return model.pipeline.decode(model.params, latents).mean()

    slope = jnp.vdot(jax.grad(brightness)(latents), direction)
    h = 1e-2
    difference = brightness(latents + h * direction) - brightness(
        latents - h * direction
    )
    assert abs(slope) > 1e-5
    assert float(difference / (2 * h)) == pytest.approx(float(slope), rel=0.05)


def test_the_gradient_reaches_the_noise_through_every_step(model):
    prompt, negative = model.read(["a red circle"]), model.read([""])

    @jax.jit
    def brightness(noise):
        start = Start(noise=noise)
        args = model.params, KEYS[:1], prompt, negative, 2.0, start
        return model.pipeline(*args).mean()

    gradient = jax.grad(brightness)(jnp.full((1, 8, 8, 4), 0.1))
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


@pytest.mark.parametrize("fsdp", [1, 4])
def test_sharded_parameters_make_the_same_images(fsdp, directory, model, images):
    if jax.device_count() != 8:
        pytest.skip("needs 8 devices")
    mesh = sharding.make_mesh(dict(data=8 // fsdp, fsdp=fsdp))
    found = published.find(directory)
    shapes = weights.shapes(found)
    places = sharding.infer_shardings(shapes, ((".*kernel", "fsdp"),), mesh)

    def place(path, array):
        where = places
        for name in path:
            where = where[name]
        return jax.device_put(array, where)

    params = weights.load_params(found, place=place)
    if fsdp > 1:
        kernel = params["unet"]["mid_block"]["resnets.0"]["conv1"]["kernel"]
        assert not kernel.sharding.is_fully_replicated
    keys = jax.device_put(KEYS, NamedSharding(mesh, PartitionSpec(mesh.axis_names)))
    sharded = generate(model, params, keys)
    np.testing.assert_allclose(sharded, images, atol=1e-4)


def test_tiles_and_slices_are_fields(model):
    latents = jax.random.normal(jax.random.key(3), (2, 8, 8, 4))
    whole = model.pipeline.decode(model.params, latents)
    for fields in (dict(tile=8), dict(is_sliced=True)):
        other = dataclasses.replace(model.pipeline, **fields)
        np.testing.assert_allclose(
            other.decode(model.params, latents), whole, atol=1e-5
        )
    tiled = dataclasses.replace(model.pipeline, tile=4).decode(model.params, latents)
    assert tiled.shape == whole.shape and np.abs(tiled - whole).max() > 1e-4
