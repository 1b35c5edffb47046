"""The priors at the sizes of the paper and of Karlo, counted without making them.

The paper's table 3 says "1B" of both; what its widths and depths make is more. Counted
here is what the configs train, part by part, against the arithmetic of a transformer:
a layer of width w has 12 w**2 weights, 4 of attention and 8 of its perceptron.
"""

import math

import jax
import jax.numpy as jnp
import pytest

from configs.dalle2 import autoregressive_prior, diffusion_prior
from diffusion_jax.models.autoregressive_prior import AutoregressiveTransformer
from diffusion_jax.models.prior import PriorTransformer, condition
from diffusion_jax.models.unclip import Encoded, TextTransformer

BILLION = 10**9
VOCABULARY = 49408  # of CLIP's tokenizer
PAPER_WIDTH = 1024  # of the paper's CLIP embeddings


def numbers(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct((1, *shape), dtype)


def caption(tokens, width, embed_dim):
    mask = numbers(tokens, dtype=bool)
    return condition(Encoded(numbers(tokens, width), numbers(embed_dim), mask))


def count(params):
    return sum(math.prod(p.shape) for p in jax.tree.leaves(params))


def shapes(module, *inputs):
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


def layers(params):
    return {k: v for k, v in params.items() if k.startswith("transformer_blocks")}


def text_shapes(config):
    text = TextTransformer(VOCABULARY, VOCABULARY - 1, **config.text)
    return shapes(text, numbers(config.text.context_length, dtype=jnp.int32))


def test_karlos_prior_has_as_many_parameters_as_published():
    """But for the mean and standard deviation of the embeddings, kept beside it."""
    prior = PriorTransformer()
    params = shapes(prior, numbers(768), numbers(), caption(77, 768, 768))
    assert count(params) + 2 * 768 == 1_022_030_080


def test_the_diffusion_priors_transformer_is_that_of_the_table():
    """24 layers of width 2048 are 21 % above 1B; with tables and projections, 34 %."""
    config = diffusion_prior.get_config()
    prior = PriorTransformer(embed_dim=PAPER_WIDTH, **config.prior)
    inputs = numbers(PAPER_WIDTH), numbers(), caption(256, 2048, PAPER_WIDTH)
    params, text = shapes(prior, *inputs), text_shapes(config)
    in_layers = count(layers(params))
    assert in_layers == pytest.approx(24 * 12 * 2048**2, rel=2e-3)
    assert in_layers / BILLION == pytest.approx(1.21, abs=0.01)
    tables = (VOCABULARY + 256 + 2) * 2048  # of tokens and places, and a norm
    assert count(text) == tables
    total = count(params) + count(text)
    assert total / BILLION == pytest.approx(1.33, abs=0.01)


def test_the_autoregressive_priors_transformers_are_those_of_the_table():
    """Its latent decoder, with tables, is 19 % below 1B; with its text encoder, 2.1B."""
    config = autoregressive_prior.get_config()
    prior = AutoregressiveTransformer(
        embed_dim=PAPER_WIDTH,
        num_dims=config.codes.num_dims,
        num_buckets=config.codes.num_buckets,
        num_dot_buckets=config.codes.num_dot_buckets,
        **config.prior,
    )
    codes = numbers(319, dtype=jnp.int32)
    cond = caption(256, 2048, PAPER_WIDTH)
    params = shapes(prior, codes, numbers(dtype=jnp.int32), cond)
    text = text_shapes(config)
    assert prior.length == 384
    assert count(layers(params)) == pytest.approx(24 * 12 * 1664**2, rel=2e-3)
    assert count(text["encoder"]) == pytest.approx(24 * 12 * 2048**2, rel=2e-3)
    assert count(params) / BILLION == pytest.approx(0.81, abs=0.01)
    assert (count(params) + count(text)) / BILLION == pytest.approx(2.12, abs=0.01)
