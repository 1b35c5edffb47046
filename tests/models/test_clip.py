"""CLIP: the text tower is causal, embeddings lie on a sphere, samples stand alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models.clip import CLIP, CLIPText, CLIPVision

EOS = 19
MODEL = CLIP(
    CLIPText(
        vocab_size=20,
        context_length=8,
        width=16,
        num_layers=2,
        num_heads=2,
        mlp_width=32,
        eos_id=EOS,
    ),
    CLIPVision(
        image_size=8, patch_size=4, width=24, num_layers=2, num_heads=3, mlp_width=48
    ),
    projection_dim=12,
)
TOKENS = jnp.array([[18, 3, 4, 5, EOS, 0, 0, 0], [18, 7, EOS, EOS, EOS, EOS, 2, 1]])
IMAGES = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))


@functools.cache
def parameters():
    return jax.jit(MODEL.init)(jax.random.key(0), IMAGES, TOKENS)["params"]


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames="unit_norm")
def apply(module, method, params, *args, **options):
    return module.apply({"params": params}, *args, method=method, **options)


def run(method, *args, **options):
    return apply(MODEL, method, parameters(), *args, **options)


def read(tokens, *mask, tower=MODEL.text_model):
    """The hidden states and the pooled one."""
    return apply(tower, "__call__", parameters()["text_model"], tokens, *mask)


def test_later_tokens_leave_earlier_states_alone():
    hidden, _ = read(TOKENS)
    changed, _ = read(TOKENS.at[:, 5].set(9))
    np.testing.assert_allclose(hidden[:, :5], changed[:, :5], atol=1e-6)
    assert jnp.abs(hidden[:, 5:] - changed[:, 5:]).max(-1).min() > 1e-3


def test_what_follows_the_end_of_the_text_does_not_matter():
    _, pooled = read(TOKENS)
    _, other = read(TOKENS.at[0, 5:].set(7))
    np.testing.assert_allclose(pooled, other, atol=1e-6)
    _, cut = read(TOKENS[:, :5])
    np.testing.assert_allclose(pooled, cut, atol=1e-6)


def test_the_legacy_end_of_text_is_the_largest_id():
    _, pooled = read(TOKENS, tower=MODEL.text_model.clone(eos_id=2))
    np.testing.assert_allclose(pooled, read(TOKENS)[1], atol=1e-6)


def test_hidden_padding_changes_no_earlier_state():
    hidden, _ = read(TOKENS, jnp.arange(8) < jnp.array([[5], [3]]))
    np.testing.assert_allclose(hidden[0, :5], read(TOKENS)[0][0, :5], atol=1e-6)


def test_embeddings_have_unit_norm_and_keep_their_direction():
    image, text, scale = run("__call__", IMAGES, TOKENS)
    np.testing.assert_allclose(jnp.linalg.norm(image, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(text, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(scale, 1 / 0.07, rtol=1e-5)
    longer = run("encode_text", TOKENS, unit_norm=False)
    norm = jnp.linalg.norm(longer, axis=-1, keepdims=True)
    np.testing.assert_allclose(longer / norm, text, atol=1e-5)


def test_the_temperature_never_falls_below_a_hundredth():
    params = parameters() | {"logit_scale": jnp.array(7.0)}
    _, _, scale = apply(MODEL, "__call__", params, IMAGES, TOKENS)
    np.testing.assert_allclose(scale, 100, rtol=1e-5)


@pytest.mark.parametrize(
    "method, batch", [("encode_text", TOKENS), ("encode_image", IMAGES)]
)
def test_a_sample_does_not_depend_on_its_batch(method, batch):
    together, alone = run(method, batch)[1:], run(method, batch[1:])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_bfloat16_is_close_to_float32():
    half = MODEL.clone(
        text_model=MODEL.text_model.clone(dtype="bfloat16"),
        vision_model=MODEL.vision_model.clone(dtype="bfloat16"),
    )
    rounded = apply(half, "__call__", parameters(), IMAGES, TOKENS)
    exact = run("__call__", IMAGES, TOKENS)
    for a, b in zip(rounded, exact, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=0.03)


def test_every_parameter_matters_but_the_bias_of_the_keys():
    """A constant added to every key adds one to all scores of a query."""

    @jax.jit
    @jax.grad
    def gradient(params):
        image, text, scale = MODEL.apply({"params": params}, IMAGES, TOKENS)
        return -jnp.diag(jax.nn.log_softmax(scale * image @ text.T)).mean()

    for path, grad in jax.tree_util.tree_leaves_with_path(gradient(parameters())):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        matters = not name.endswith("k_proj/bias")
        assert (jnp.abs(grad).max() > 1e-7) == matters, name


@pytest.mark.parametrize(
    ("module", "given", "message"),
    [
        (MODEL.text_model, jnp.zeros((1, 9), int), "9 tokens; the model has 8"),
        (
            MODEL.text_model.clone(activation="relu"),
            jnp.zeros((1, 8), int),
            "unknown activation 'relu'; one of",
        ),
        (
            MODEL.vision_model,
            jnp.zeros((1, 8, 9, 3)),
            "images are 8x9, the model's 8x8",
        ),
        (
            MODEL.text_model.clone(skip_layers=3),
            jnp.zeros((1, 8), int),
            "skip_layers=3 of 2 layers",
        ),
    ],
)
def test_what_does_not_fit_is_named(module, given, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(module.init, jax.random.key(0), given)
