"""Keys and values kept for a prompt change what is computed, not what comes out."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw, draw_params

from diffusion_jax.diffusion import guidance
from diffusion_jax.diffusion.process import NoiseLevel, Prediction
from diffusion_jax.models.context import readers, with_keys_values
from diffusion_jax.models.unet import UNet
from diffusion_jax.types import Conditioning

UNET = UNet(
    channels=(8,),
    blocks_per_level=1,
    attention=("transformer",),
    mid_attention="added_kv",
    num_heads=2,
    norm_groups=4,
)
NUM_READERS = 4  # one going down, one in the middle, two going up
TOKENS, MASK = (
    draw(2, 5, 6, seed=1),
    jnp.array([[True] * 5, [True, False] * 2 + [True]]),
)
COND = Conditioning(TOKENS, MASK)
X, TIME = draw(2, 4, 6, 4), jnp.array([3.0, 700.0])


@functools.cache
def params():
    return draw_params(UNET, X, TIME, COND)


def keep(cond, unet=UNET):
    return with_keys_values(unet, params(), cond)


@functools.partial(jax.jit, static_argnums=0)
def run(unet, cond, params):
    return unet.apply({"params": params}, X, TIME, cond)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_output_is_that_of_the_tokens(dtype):
    unet = UNET.clone(dtype=dtype)
    kept = keep(COND, unet)
    assert kept.tokens is None
    assert len(kept.keys_values) == NUM_READERS
    assert {a.dtype for a in jax.tree.leaves(kept.keys_values)} == {jnp.dtype(dtype)}
    y = run(unet, COND, params())
    tolerance = 1e-6 if dtype == "float32" else 1e-3
    error = jnp.abs(run(unet, kept, params()) - y).max() / jnp.abs(y).max()
    assert error < tolerance
    other = keep(COND._replace(tokens=TOKENS + 1), unet)
    assert jnp.abs(run(unet, other, params()) - y).max() > 0.01


def test_guidance_stacks_them_with_those_of_one_null_for_all():
    null = Conditioning(draw(1, 5, 6, seed=2), jnp.ones((1, 5), bool))

    @jax.jit
    def guided(cond, null):
        def denoise(x, level, cond):
            time = jnp.full(len(x), 700.0)
            eps = UNET.apply({"params": params()}, x, time, cond)
            return Prediction(x0=x, eps=eps)

        level = NoiseLevel(jnp.float32(0.6), jnp.float32(0.8), jnp.float32(700.0))
        return guidance.classifier_free(denoise, cond, null, 5.0)(X, level).eps

    expected = guided(COND, null)
    np.testing.assert_allclose(guided(keep(COND), keep(null)), expected, atol=1e-5)


def test_a_null_of_other_tokens_is_named():
    denoise = functools.partial(run, UNET)
    null = keep(Conditioning(draw(1, 4, 6), jnp.ones((1, 5), bool)))
    guided = guidance.classifier_free(denoise, keep(COND), null, 5.0)
    with pytest.raises(ValueError, match="shape of 'keys_values': .2, 5, .*1, 4, "):
        guided(X, NoiseLevel(jnp.float32(0.6), jnp.float32(0.8), jnp.float32(1.0)))


def test_they_can_be_mapped_over_prompts():
    def one(tokens):
        cond = keep(Conditioning(tokens[None]))
        return UNET.apply({"params": params()}, X[:1], TIME[:1], cond)[0]

    mapped = jax.jit(jax.vmap(one))(TOKENS)
    for tokens, y in zip(TOKENS, mapped):
        np.testing.assert_allclose(jax.jit(one)(tokens), y, atol=1e-5)
    assert jnp.abs(mapped[0] - mapped[1]).max() > 0.01


def test_gradients_go_through_them():
    def loss(params, tokens, keeps):
        cond = COND._replace(tokens=tokens)
        cond = with_keys_values(UNET, params, cond) if keeps else cond
        return jnp.square(UNET.apply({"params": params}, X, TIME, cond)).mean()

    gradient = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    expected = gradient(params(), TOKENS, False)
    jax.tree.map(close, gradient(params(), TOKENS, True), expected)
    assert jnp.abs(expected[1]).max() > 1e-4


def products(jaxpr):
    """How many matrix products a program has, those of its parts included."""
    inner = jax.extend.core.jaxprs_in_params
    return sum(
        (eqn.primitive.name == "dot_general") + sum(map(products, inner(eqn.params)))
        for eqn in jaxpr.eqns
    )


def products_of_a_step(cond):
    def sample(params, cond):
        def step(x, _):
            return UNET.apply({"params": params}, x, TIME, cond), None

        return jax.lax.scan(step, X, length=3)[0]

    (loop,) = (
        eqn
        for eqn in jax.make_jaxpr(sample)(params(), cond).eqns
        if eqn.primitive.name == "scan"
    )
    return products(loop.params["jaxpr"].jaxpr)


def test_a_step_computes_none_of_them():
    with_tokens = products_of_a_step(COND)
    assert products_of_a_step(keep(COND)) == with_tokens - 2 * NUM_READERS


def test_without_tokens_or_readers_nothing_changes():
    nothing = Conditioning(vector=draw(2, 3))
    assert keep(nothing) is nothing
    plain = UNET.clone(attention=("none",), mid_attention="none")
    without = draw_params(plain, X, TIME, Conditioning())
    assert not readers(without)
    assert with_keys_values(plain, without, COND) is COND


def test_a_layer_without_its_keys_and_values_is_named():
    kept = keep(COND)
    path = "mid_block/attentions.0"
    others = {name: kept.keys_values[name] for name in kept.keys_values if name != path}
    with pytest.raises(ValueError, match=f"no keys and values for '{path}'"):
        run(UNET, kept._replace(keys_values=others), params())
