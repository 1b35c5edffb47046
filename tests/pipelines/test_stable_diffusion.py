"""What recompiles and what an image depends on, with networks that take milliseconds."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import grids, parameterization, schedules
from diffusion_jax.diffusion.samplers import SAMPLERS
from diffusion_jax.models.autoencoder import AutoencoderKL
from diffusion_jax.models.clip import CLIPText
from diffusion_jax.models.text import TextEncoders
from diffusion_jax.pipelines import batched
from diffusion_jax.pipelines.stable_diffusion import StableDiffusion
from diffusion_jax.pipelines.stage import Stage
from diffusion_jax.types import Conditioning, Prompt

TRACED = []
TEXT = CLIPText(
    vocab_size=20,
    context_length=5,
    eos_id=19,
    width=8,
    num_layers=1,
    num_heads=2,
    mlp_width=8,
)
VAE = AutoencoderKL(channels=(4, 4), blocks_per_level=1, norm_groups=2)
TOKENS = np.asarray([[1, 2, 3, 4, 19], [5, 6, 19, 19, 19], [7, 19, 19, 19, 19]])
NULL = np.asarray([[19, 19, 19, 19, 19]])


def prompt_of(tokens):
    tokens = tokens[:, None, None]
    is_empty = np.zeros(len(tokens), bool)
    return Prompt(tokens, np.ones(tokens.shape, np.float32), is_empty)


class Network(nn.Module):
    """Hears the noise, the time and the caption; notes when it is traced."""

    @nn.compact
    def __call__(self, x, time, cond, *, train=False):
        TRACED.append(x.shape)
        told = nn.Dense(x.shape[-1])(cond.tokens.mean(1)) + jnp.sin(time / 100)[:, None]
        return nn.Dense(x.shape[-1])(jnp.tanh(x)) + told[:, None, None]


PIPELINE = StableDiffusion(
    TextEncoders((TEXT,)),
    Stage(
        Network(),
        schedules.Discrete(),
        parameterization.v(),
        SAMPLERS["ddim"],
        grids.trailing,
        steps=3,
        guidance=2.0,
    ),
    VAE,
    latent_shape=(4, 4, 4),
)


@pytest.fixture(scope="module")
def params():
    keys = jax.random.split(jax.random.key(0), 3)
    latent, image = jnp.zeros((1, 4, 4, 4)), jnp.zeros((1, 8, 8, 3))
    cond = Conditioning(tokens=jnp.zeros((1, 5, 8)))
    made = {
        "text_encoder": jax.jit(TEXT.init)(keys[0], jnp.asarray(NULL)),
        "unet": jax.jit(Network().init)(keys[1], latent, jnp.zeros(1), cond),
        "vae": jax.jit(VAE.init)(keys[2], image),
    }
    params = {name: variables["params"] for name, variables in made.items()}
    return params | {"latent_scale": jnp.asarray(0.5)}


def images(generate, params, tokens=TOKENS, null_tokens=NULL, **options):
    prompt, negative = prompt_of(tokens), prompt_of(null_tokens)
    return np.concatenate(list(generate(params, prompt, negative, **options)))


def test_only_the_number_of_steps_recompiles(params):
    generate = batched.text_to_image(PIPELINE, batch_size=2)
    first = images(generate, params)
    num_traced = len(TRACED)
    for change in (
        dict(tokens=TOKENS[::-1]),
        dict(null_tokens=TOKENS[:1]),
        dict(seed=1),
        dict(scale=7.5),
    ):
        assert np.abs(images(generate, params, **change) - first).max() > 1e-3, change
    assert len(TRACED) == num_traced
    stage = dataclasses.replace(PIPELINE.unet, steps=4)
    longer = dataclasses.replace(PIPELINE, unet=stage)
    generate = batched.text_to_image(longer, batch_size=2)
    images(generate, params)
    again = len(TRACED)
    assert again > num_traced
    images(generate, params, seed=2, scale=1.0)
    assert len(TRACED) == again


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m_sde"])
def test_an_image_is_fixed_by_its_seed_index_and_prompt(sampler, params):
    stage = dataclasses.replace(PIPELINE.unet, sampler=SAMPLERS[sampler])
    pipeline = dataclasses.replace(PIPELINE, unet=stage)
    together = images(batched.text_to_image(pipeline, batch_size=3), params)
    apart = images(batched.text_to_image(pipeline, batch_size=1), params)
    np.testing.assert_allclose(together, apart, atol=1e-5)
    alike = images(
        batched.text_to_image(pipeline, batch_size=3), params, TOKENS[[0, 0, 0]]
    )
    assert np.abs(alike[0] - alike[1]).max() > 1e-3  # each index has its own noise


def test_a_negative_prompt_that_is_the_prompt_undoes_guidance(params):
    generate = batched.text_to_image(PIPELINE, batch_size=1)
    prompt = TOKENS[:1]
    plain = images(generate, params, prompt, NULL, scale=1.0)
    undone = images(generate, params, prompt, prompt, scale=7.5)
    np.testing.assert_allclose(undone, plain, atol=1e-5)


def test_the_last_prediction_is_where_sampling_to_clean_data_ends(params):
    keys = jax.random.split(jax.random.key(1), 3)
    latents, trace = jax.jit(PIPELINE.text_to_latents)(
        params, keys, prompt_of(TOKENS), prompt_of(NULL)
    )
    assert trace.shape == (3, *latents.shape)
    np.testing.assert_allclose(trace[-1], latents, atol=1e-5)
