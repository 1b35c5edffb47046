"""Laws of the autoregressive prior's network: causal in codes, told by its prefix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw, draw_params

from diffusion_jax.models.autoregressive_prior import AutoregressiveTransformer
from diffusion_jax.models.prior import condition
from diffusion_jax.models.unclip import Encoded

BATCH, LENGTH, NUM_DIMS = 2, 4, 5
NETWORK = AutoregressiveTransformer(
    embed_dim=6,
    num_dims=NUM_DIMS,
    num_buckets=7,
    num_dot_buckets=3,
    num_layers=2,
    num_heads=2,
    head_width=4,
    num_tokens=3,
)
CODES = jnp.asarray([[0, 6, 2, 3, 1], [5, 5, 0, 1, 4]])
DOT = jnp.asarray([1, 3])  # the second is unknown
MASK = jnp.asarray([[True, True, False, False], [True] * 4])
TEXT = Encoded(draw(BATCH, LENGTH, 8), draw(BATCH, 6, seed=1), MASK)
PARAMS = draw_params(NETWORK, CODES, DOT, condition(TEXT))


@jax.jit
def logits(codes, dot, text):
    return NETWORK.apply({"params": PARAMS}, codes, dot, condition(text))


def moved(y):
    """Of which codes the logits differ from those of all that is given above."""
    return np.abs(np.asarray(y - logits(CODES, DOT, TEXT))).max(axis=2) > 1e-4


@pytest.mark.parametrize("place", range(NUM_DIMS))
def test_a_code_changes_the_logits_of_all_behind_it_and_of_no_other(place):
    other = CODES.at[:, place].set((CODES[:, place] + 1) % 7)
    expected = np.arange(NUM_DIMS) > place
    found = moved(logits(other, DOT, TEXT))
    np.testing.assert_array_equal(found, np.stack([expected] * BATCH))


def test_everything_in_front_changes_every_logit():
    assert moved(logits(CODES, (DOT + 1) % 3, TEXT)).all()
    assert moved(logits(CODES, DOT, TEXT._replace(embed=TEXT.embed + 1))).all()
    hidden = TEXT.hidden.at[:, 0].add(1)
    assert moved(logits(CODES, DOT, TEXT._replace(hidden=hidden))).all()


def test_padding_and_what_is_behind_the_prefix_are_not_read():
    hidden = jnp.where(MASK[..., None], TEXT.hidden, 50.0).at[:, 3].set(9.0)
    assert not moved(logits(CODES, DOT, TEXT._replace(hidden=hidden))).any()


def test_equal_codes_of_two_components_are_told_apart_by_their_place():
    swapped = CODES[:, jnp.asarray([1, 0, 2, 3, 4])]
    assert moved(logits(swapped, DOT, TEXT))[0, 2:].all()


def test_the_papers_context_of_384_is_what_it_reads():
    network = AutoregressiveTransformer()
    assert network.length == 384 and network.width == 1664


@pytest.mark.parametrize(
    ("codes", "text", "error"),
    [
        (CODES[:, :3], TEXT, "3 codes; the prior's: 5"),
        (CODES, TEXT._replace(embed=draw(2, 5)), "text embeddings of width 5"),
        (
            CODES,
            TEXT._replace(hidden=draw(2, 2, 8)),
            "2 text tokens; the prior reads 3",
        ),
    ],
)
def test_wrong_sizes_are_named(codes, text, error):
    with pytest.raises(ValueError, match=error):
        NETWORK.apply({"params": PARAMS}, codes, DOT, condition(text))
