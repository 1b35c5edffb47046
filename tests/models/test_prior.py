"""Laws of the diffusion prior's network: what it hears, and what it may forget."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw, draw_params

from diffusion_jax.models.prior import PriorTransformer, condition
from diffusion_jax.models.unclip import Encoded

WIDTH, LENGTH, BATCH = 6, 5, 3
NETWORK = PriorTransformer(
    embed_dim=WIDTH, num_layers=2, num_heads=2, head_width=4, num_tokens=LENGTH
)
X, TIME = draw(BATCH, WIDTH), jnp.asarray([1.0, 40.0, 900.0])
MASK = jnp.arange(LENGTH)[None] < jnp.asarray([[2], [4], [LENGTH]])
TEXT = Encoded(draw(BATCH, LENGTH, 7, seed=1), draw(BATCH, WIDTH, seed=2), MASK)
PARAMS = draw_params(NETWORK, X, TIME, condition(TEXT))


@jax.jit
def predict(x, time, text):
    return NETWORK.apply({"params": PARAMS}, x, time, condition(text))


def moved(y):
    """Which rows differ from the prediction of all that is given above."""
    return np.abs(np.asarray(y - predict(X, TIME, TEXT))).max(axis=1) > 1e-4


def test_everything_that_it_is_told_changes_the_prediction():
    assert moved(predict(X + 1, TIME, TEXT)).all()
    assert moved(predict(X, TIME + 7, TEXT)).all()
    assert moved(predict(X, TIME, TEXT._replace(embed=TEXT.embed + 1))).all()
    assert moved(predict(X, TIME, TEXT._replace(hidden=-TEXT.hidden))).all()


def test_padding_is_not_seen():
    other = jnp.where(MASK[..., None], TEXT.hidden, 100.0)
    assert not moved(predict(X, TIME, TEXT._replace(hidden=other))).any()
    seen = predict(X, TIME, TEXT._replace(mask=jnp.ones_like(MASK)))
    np.testing.assert_array_equal(moved(seen), [True, True, False])


def test_tokens_have_places():
    swapped = TEXT.hidden[:, jnp.asarray([1, 0, 2, 3, 4])]
    assert moved(predict(X, TIME, TEXT._replace(hidden=swapped))).all()


def test_the_text_never_hears_what_follows_it():
    """So that its keys and values may be kept for all steps of sampling."""
    variables = {"params": PARAMS}
    kept = NETWORK.apply(variables, condition(TEXT), method="remember")
    y = jax.jit(NETWORK.apply)(variables, X, TIME, kept)
    np.testing.assert_allclose(y, predict(X, TIME, TEXT), atol=2e-6)
    other = jax.jit(NETWORK.apply)(variables, -X, TIME + 5, kept)
    np.testing.assert_allclose(other, predict(-X, TIME + 5, TEXT), atol=2e-6)


def test_a_shorter_text_is_a_longer_one_with_padding():
    short = Encoded(TEXT.hidden[:2, :4], TEXT.embed[:2], MASK[:2, :4])
    y = jax.jit(NETWORK.apply)({"params": PARAMS}, X[:2], TIME[:2], condition(short))
    np.testing.assert_allclose(y, predict(X, TIME, TEXT)[:2], atol=2e-6)


def test_a_faint_text_embedding_may_be_normed():
    network = NETWORK.clone(norm_embedding=True)
    params = draw_params(network, X, TIME, condition(TEXT))
    apply = jax.jit(network.apply)
    loud = condition(TEXT._replace(embed=1000 * TEXT.embed))
    np.testing.assert_allclose(
        apply({"params": params}, X, TIME, condition(TEXT)),
        apply({"params": params}, X, TIME, loud),
        atol=1e-4,
    )


@pytest.mark.parametrize(
    ("x", "text", "error"),
    [
        (draw(3, 7), TEXT, "image embeddings of width 7; the prior's: 6"),
        (X, TEXT._replace(embed=draw(3, 5)), "text embeddings of width 5"),
        (X, TEXT._replace(hidden=draw(3, 6, 7)), "6 text tokens; the prior reads 5"),
    ],
)
def test_wrong_sizes_are_named(x, text, error):
    with pytest.raises(ValueError, match=error):
        NETWORK.apply({"params": PARAMS}, x, TIME, condition(text))
