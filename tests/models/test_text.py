"""Text encoders: emphasis, chunks, clip skip, and the empty text of SDXL."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models import text
from diffusion_jax.models.clip import CLIPText
from diffusion_jax.types import Prompt
from tests.models.drawn import draw, draw_params

LENGTH, EOS = 9, 40
TOWER = CLIPText(
    vocab_size=41,
    context_length=LENGTH,
    width=16,
    num_layers=3,
    num_heads=2,
    mlp_width=32,
    eos_id=EOS,
)
PENULTIMATE = TOWER.clone(skip_layers=1, norm_hidden=False)
ONE = text.TextEncoders((TOWER,))
TWO = text.TextEncoders(
    (PENULTIMATE, text.ProjectedText(PENULTIMATE, 12)),
    ("text_encoder", "text_encoder_2"),
    zero_empty=True,
)


@pytest.fixture(scope="module")
def params():
    tokens = jnp.zeros((1, LENGTH), jnp.int32)
    towers = dict(zip(TWO.names, TWO.towers))
    return {name: draw_params(tower, tokens) for name, tower in towers.items()} | {
        "unet": {}
    }


def prompts(num_towers, num_chunks, batch=2, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, EOS, (batch, num_towers, num_chunks, LENGTH))
    tokens[..., 5:] = EOS
    weights = np.ones(tokens.shape, np.float32)
    return Prompt(tokens.astype(np.int32), weights, np.zeros(batch, bool))


def encode(encoders, params, prompt):
    return jax.jit(encoders)(params, jax.tree.map(jnp.asarray, prompt))


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("encoders", [ONE, TWO], ids=["one", "two"])
def test_without_emphasis_states_are_the_towers_own(encoders, params):
    prompt = prompts(len(encoders.towers), 1)
    hidden, pooled = encoders(params, prompt)  # numpy, not compiled
    own = [
        tower.apply({"params": params[name]}, jnp.asarray(prompt.tokens[:, i, 0]))
        for i, (tower, name) in enumerate(zip(encoders.towers, encoders.names))
    ]
    same(hidden, jnp.concatenate([states for states, _ in own], -1))
    same(pooled, own[-1][1])
    assert hidden.dtype == pooled.dtype == jnp.float32


def test_weights_of_one_are_the_identity_bit_for_bit_even_compiled():
    hidden = draw(4, LENGTH, 16)
    weights = jnp.ones((4, LENGTH)).at[1, 3].set(1.5)
    emphasised = jax.jit(text.emphasise)(hidden, weights)
    same(emphasised[jnp.array([0, 2, 3])], hidden[jnp.array([0, 2, 3])])
    assert jnp.abs(emphasised[1] - hidden[1]).max() > 0.1
    huge = 1e38 * hidden  # whose mean overflows
    same(text.emphasise(huge, jnp.ones((4, LENGTH))), huge)


def test_emphasis_multiplies_and_restores_the_mean_of_each_row():
    hidden = draw(3, LENGTH, 16) + 0.2
    weights = jnp.abs(draw(3, LENGTH, seed=1)) + 0.1
    emphasised = text.emphasise(hidden, weights)
    means = [
        np.mean(np.asarray(z, np.float64), axis=(1, 2)) for z in (emphasised, hidden)
    ]
    np.testing.assert_allclose(*means, rtol=1e-4)
    ratio = np.asarray(emphasised / (hidden * weights[..., None]))  # one per row
    np.testing.assert_allclose(
        ratio, np.broadcast_to(ratio[:, :1, :1], ratio.shape), rtol=1e-4
    )
    # Twice the weights everywhere say the same.
    np.testing.assert_allclose(
        text.emphasise(hidden, 2 * weights), emphasised, rtol=1e-4, atol=1e-6
    )


def test_emphasis_of_nothing_is_finite_and_so_is_its_gradient():
    hidden = draw(2, LENGTH, 16)
    for weights in (jnp.zeros((2, LENGTH)), jnp.ones((2, LENGTH))):
        value, grad = jax.value_and_grad(
            lambda z, w: text.emphasise(z, w).sum(), argnums=0
        )(hidden, weights)
        assert np.isfinite(value) and np.isfinite(grad).all()
    same(text.emphasise(hidden, jnp.zeros((2, LENGTH))), jnp.zeros_like(hidden))


def test_chunks_are_encoded_alone_and_joined_in_length(params):
    prompt = prompts(2, 3)
    hidden, pooled = encode(TWO, params, prompt)
    assert hidden.shape == (2, 3 * LENGTH, 32)
    for n in range(3):
        chunk = prompt._replace(
            tokens=prompt.tokens[:, :, n : n + 1],
            weights=prompt.weights[:, :, n : n + 1],
        )
        alone, alone_pooled = encode(TWO, params, chunk)
        part = hidden[:, n * LENGTH : (n + 1) * LENGTH]
        np.testing.assert_allclose(part, alone, rtol=1e-5, atol=1e-6)
        if n == 0:
            np.testing.assert_allclose(pooled, alone_pooled, rtol=1e-5, atol=1e-6)
    # Nothing of another chunk, its emphasis included, changes the first.
    weights, tokens = prompt.weights.copy(), prompt.tokens.copy()
    weights[:, :, 1:, 2], tokens[:, :, 1:, 3] = 1.7, 11
    other, other_pooled = encode(
        TWO, params, prompt._replace(tokens=tokens, weights=weights)
    )
    same(other[:, :LENGTH], hidden[:, :LENGTH])
    same(other_pooled, pooled)
    assert jnp.abs(other[:, LENGTH:] - hidden[:, LENGTH:]).max() > 0.1


def test_each_tower_has_its_own_tokens_and_weights(params):
    prompt = prompts(2, 1)
    hidden, pooled = encode(TWO, params, prompt)
    tokens, weights = prompt.tokens.copy(), prompt.weights.copy()
    tokens[:, 1, 0, 2], weights[:, 1, 0, 3] = 7, 1.4
    for changed in (prompt._replace(tokens=tokens), prompt._replace(weights=weights)):
        other, other_pooled = encode(TWO, params, changed)
        same(other[..., :16], hidden[..., :16])
        assert jnp.abs(other[..., 16:] - hidden[..., 16:]).max() > 0.1
        # Emphasis leaves the pooled text alone.
        moves = jnp.abs(other_pooled - pooled).max()
        assert moves == 0 if changed.tokens is prompt.tokens else moves > 0.01


def test_emphasis_does_not_depend_on_the_batch(params):
    prompt = prompts(1, 1, batch=3)
    prompt.weights[0, 0, 0, 2], prompt.weights[1, 0, 0, 3] = 1.5, 0.5
    hidden, _ = encode(ONE, params, prompt)
    first = jax.tree.map(lambda leaf: leaf[:1], prompt)
    np.testing.assert_allclose(
        hidden[:1], encode(ONE, params, first)[0], rtol=1e-5, atol=1e-6
    )


def test_the_empty_text_is_zeros_where_the_model_says_so(params):
    prompt = prompts(2, 1)._replace(is_empty=np.array([True, False]))
    hidden, pooled = encode(TWO, params, prompt)
    assert not hidden[0].any() and not pooled[0].any()
    assert hidden[1].any() and pooled[1].any()
    one = prompt._replace(tokens=prompt.tokens[:, :1], weights=prompt.weights[:, :1])
    hidden, pooled = encode(ONE, params, one)
    assert hidden[0].any() and pooled[0].any()


def test_skipping_leaves_out_last_layers_and_keeps_the_norm_where_it_was(params):
    prompt = prompts(2, 1)
    last = "layers.2"  # of three
    broken = jax.tree.map(lambda leaf: leaf, params)
    for tower in (broken["text_encoder"], broken["text_encoder_2"]["text_model"]):
        tower["encoder"][last] = jax.tree.map(jnp.zeros_like, tower["encoder"][last])
    one = prompt._replace(tokens=prompt.tokens[:, :1], weights=prompt.weights[:, :1])
    plain = encode(text.skipping(ONE, 1), params, one)[0]
    # A layer of zeros passes its input on, so it is as good as left out.
    same(plain, encode(text.skipping(ONE, 1), broken, one)[0])
    np.testing.assert_allclose(plain, encode(ONE, broken, one)[0], atol=1e-5)
    assert jnp.abs(plain - encode(ONE, params, one)[0]).max() > 0.1
    norm = params["text_encoder"]["final_layer_norm"]
    normed = (plain - norm["bias"]) / norm["scale"]
    np.testing.assert_allclose(normed.std(-1), 1, atol=0.05)
    assert text.skipping(ONE, 0) == ONE

    two, pooled = encode(text.skipping(TWO, 1), params, prompt)
    deeper = [
        t.text_model if hasattr(t, "text_model") else t
        for t in text.skipping(TWO, 1).towers
    ]
    assert [t.skip_layers for t in deeper] == [2, 2]
    same(pooled, encode(TWO, params, prompt)[1])
    assert jnp.abs(two - encode(TWO, params, prompt)[0]).max() > 0.1


@pytest.mark.parametrize(("encoders", "clip_skip"), [(ONE, 4), (ONE, -1), (TWO, 3)])
def test_an_impossible_clip_skip_names_the_number_of_layers(encoders, clip_skip):
    with pytest.raises(ValueError, match=f"clip_skip={clip_skip} .* 3 layers"):
        text.skipping(encoders, clip_skip)


def test_towers_in_bfloat16_give_float32_states_nearby(params):
    half = text.TextEncoders(
        (
            PENULTIMATE.clone(dtype="bfloat16"),
            text.ProjectedText(PENULTIMATE.clone(dtype="bfloat16"), 12),
        ),
        TWO.names,
    )
    stored = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    prompt = prompts(2, 1)
    for a, b in zip(encode(half, stored, prompt), encode(TWO, params, prompt)):
        assert a.dtype == jnp.float32
        assert 0 < jnp.abs(a - b).max() < 0.05 * jnp.abs(b).max()


def test_prompts_and_towers_that_do_not_fit_are_errors(params):
    with pytest.raises(ValueError, match=r"2 text towers named \('text_encoder',\)"):
        text.TextEncoders(TWO.towers)
    with pytest.raises(ValueError, match="a prompt for 1 text encoders"):
        TWO(params, prompts(1, 1))
    prompt = prompts(1, 1)
    with pytest.raises(ValueError, match=r"\(2, 1, 9\) weights"):
        ONE(params, prompt._replace(weights=prompt.weights[:, 0]))


def test_one_program_serves_every_prompt_and_emphasis(params):
    compiled = jax.jit(lambda *inputs: TWO(*inputs))
    for seed in range(3):
        prompt = prompts(2, 1, seed=seed)
        prompt.weights[:, :, :, seed] = 1 + seed
        empty = np.array([seed == 0, seed == 1])
        compiled(params, jax.tree.map(jnp.asarray, prompt._replace(is_empty=empty)))
    assert compiled._cache_size() == 1
