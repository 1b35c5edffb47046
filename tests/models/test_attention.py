"""All implementations of attention agree, and attention keeps its laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models import attention, convolution
from diffusion_jax.types import Conditioning

IMPLEMENTATIONS = {
    "chosen for this platform": attention.attend,
    "at once": functools.partial(attention.blocked_attention, max_scores=2**22),
    "in even blocks": functools.partial(attention.blocked_attention, max_scores=1),
    "in ragged blocks": functools.partial(attention.blocked_attention, max_scores=400),
    "head by head": functools.partial(
        attention.blocked_attention, max_scores=100, by_head=True
    ),
    "a query of a head": functools.partial(
        attention.blocked_attention, max_scores=1, by_head=True
    ),
}


def draw(shape, seed, dtype="float32"):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def heads(num_queries=13, num_keys=7, dtype="float32"):
    return (
        draw((2, num_queries, 3, 8), 0, dtype),
        draw((2, num_keys, 3, 8), 1, dtype),
        draw((2, num_keys, 3, 8), 2, dtype),
    )


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "causal, masked", [(False, False), (False, True), (True, True)]
)
def test_implementations_agree_with_the_reference(name, causal, masked):
    qkv = heads(num_keys=13 if causal else 7)
    mask = None
    if masked:
        mask = jnp.arange(qkv[1].shape[1]) < jnp.array([[3], [7]])
    weights = draw(qkv[0].shape, 3)

    @jax.jit
    def values_and_gradients(*qkv):
        results = []
        for attend in (IMPLEMENTATIONS[name], attention.reference_attention):

            def weighted(*qkv, attend=attend):
                y = attend(*qkv, mask=mask, causal=causal)
                return jnp.sum(weights * y), y

            results.append(jax.grad(weighted, (0, 1, 2), has_aux=True)(*qkv))
        return results

    close = functools.partial(np.testing.assert_allclose, atol=2e-5)
    jax.tree.map(close, *values_and_gradients(*qkv))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_bfloat16_is_close_to_float32(name):
    exact = attention.reference_attention(*heads())
    rounded = IMPLEMENTATIONS[name](*heads(dtype="bfloat16"))
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_allclose(rounded.astype("float32"), exact, atol=0.03)


def test_equal_scores_average_the_values():
    q, k, v = heads()
    y = attention.attend(jnp.zeros_like(q), k, v)
    mean = jnp.broadcast_to(v.mean(1, keepdims=True), q.shape)
    np.testing.assert_allclose(y, mean, atol=1e-6)


def test_a_query_without_any_key_averages_too():
    q, k, v = heads()
    mask = jnp.zeros((2, 7), bool)
    y = attention.attend(q, k, v, mask=mask)
    mean = jnp.broadcast_to(v.mean(1, keepdims=True), q.shape)
    np.testing.assert_allclose(y, mean, atol=1e-6)


def test_large_scores_pick_one_value():
    q, k, v = heads()
    y = attention.attend(1e6 * q, k, v)
    winner = jnp.einsum("bqnd,bknd->bnqk", q, k).argmax(-1)
    expected = jnp.take_along_axis(v.swapaxes(1, 2), winner[..., None], axis=2)
    np.testing.assert_allclose(y.swapaxes(1, 2), expected, atol=1e-5)


@pytest.mark.parametrize("by_head", [False, True])
def test_blocks_hold_few_scores(by_head):
    q, k, v = heads(num_queries=256, num_keys=64)

    def temporaries(max_scores):
        blocked = functools.partial(
            attention.blocked_attention, max_scores=max_scores, by_head=by_head
        )
        loss = jax.jit(jax.grad(lambda *qkv: blocked(*qkv).sum(), (0, 1, 2)))
        return loss.lower(q, k, v).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(2**12) < temporaries(2**22) / 2


def test_cudnn_is_taken_only_where_it_computes_the_same():
    half = heads(dtype="bfloat16")[0]
    mask = jnp.ones((2, 7), bool)
    assert attention.fits_cudnn(half, None)
    assert not attention.fits_cudnn(half, mask)
    assert not attention.fits_cudnn(half[..., :6], None)
    assert not attention.fits_cudnn(half.astype("float32"), None)


@pytest.mark.skipif(convolution.platform() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize("causal", [False, True])
def test_flash_attention_agrees_with_the_reference(causal):
    qkv = heads(num_queries=64, num_keys=64, dtype="bfloat16")
    y = jax.jit(functools.partial(attention.attend, causal=causal))(*qkv)
    exact = attention.reference_attention(*heads(64, 64), causal=causal)
    np.testing.assert_allclose(y.astype("float32"), exact, atol=0.03)


def test_tokens_are_a_set_to_the_pixels():
    tokens, x = draw((2, 5, 6), 0), draw((2, 4, 4, 8), 1)
    mask = jnp.arange(5) < jnp.array([[5], [3]])
    layer = attention.AddedKVAttention(num_heads=2, norm_groups=4)
    params = jax.jit(layer.init)(jax.random.key(0), x, Conditioning(tokens, mask))
    params = jax.tree.map(lambda p: p + 0.1, params)
    apply = jax.jit(layer.apply)
    y = apply(params, x, Conditioning(tokens, mask))
    order = jnp.array([3, 0, 4, 1, 2])
    shuffled = Conditioning(tokens[:, order], mask[:, order])
    np.testing.assert_allclose(y, apply(params, x, shuffled), atol=1e-5)
    unseen = jnp.where(mask[..., None], tokens, 100.0)
    y_unseen = apply(params, x, Conditioning(unseen, mask))
    np.testing.assert_allclose(y, y_unseen, atol=1e-5)


@pytest.mark.parametrize("upcast", [True, False])
def test_upcast_heads_are_compared_in_float32(upcast):
    """Scores are large here, so that rounding the scaled queries shows."""
    x = draw((2, 40, 24), 0, "bfloat16")
    layer = attention.CrossAttention(3, upcast=upcast, dtype="bfloat16")
    params = jax.jit(layer.init)(jax.random.key(0), x)["params"]
    params["to_q"]["kernel"] *= 100

    def project(name):
        y = x @ params[name]["kernel"].astype(x.dtype)
        return attention.split_heads(y, 3).astype("float32")

    q, k, v = (project(name) for name in ("to_q", "to_k", "to_v"))
    y = attention.reference_attention(q, k, v).astype(x.dtype).reshape(x.shape)
    out = jax.tree.map(lambda p: p.astype(x.dtype), params["to_out.0"])
    expected = (y @ out["kernel"] + out["bias"]).astype("float32")
    given = layer.apply({"params": params}, x).astype("float32")
    error = jnp.linalg.norm(given - expected) / jnp.linalg.norm(expected)
    assert (error < 0.003) == upcast


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="width 8 does not split in 3 heads"):
        attention.split_heads(jnp.zeros((1, 2, 8)), 3)
