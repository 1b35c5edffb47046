"""What DALL·E 2 does to images: round trips, ends and symmetries of every manipulation."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_dalle2 as tiny
from numpy.testing import assert_allclose

from diffusion_jax.diffusion import parameterization
from diffusion_jax.models import clip_towers
from diffusion_jax.pipelines import batched_unclip, manipulations
from diffusion_jax.pipelines.manipulations import Code

PARAMS = tiny.drawn()
PIPELINE = tiny.PIPELINE
KEYS = tiny.keys_for(2)
IMAGES = tiny.pictures(2)
NULL = PIPELINE.encode_text(PARAMS, tiny.NULL)
TEXT = PIPELINE.encode_text(PARAMS, tiny.TOKENS[:2])


@functools.cache
def jitted(function, pipeline=PIPELINE, **static):
    return jax.jit(functools.partial(function, pipeline, PARAMS, **static))


def with_steps(steps, **fields):
    decoder = dataclasses.replace(tiny.DECODER, steps=steps, **fields)
    return dataclasses.replace(PIPELINE, decoder=decoder)


@functools.cache
def code():
    return jitted(manipulations.encode, corrections=3)(IMAGES, NULL)


def swapped():
    return Code(*(a[::-1] for a in code()))


@functools.cache
def redrawn():
    return np.asarray(jitted(manipulations.redraw)(code(), NULL))


# ---- encoding and decoding -----------------------------------------------------------


def error_of(pipeline, corrections, scale=None, params=PARAMS):
    def round_trip(images, null, scale):
        made = manipulations.encode(
            pipeline, params, images, null, scale, corrections=corrections
        )
        return manipulations.redraw(pipeline, params, made, null, scale)

    return float(np.abs(jax.jit(round_trip)(IMAGES, NULL, scale) - IMAGES).mean())


def test_encoding_is_undone_the_better_the_more_steps_or_corrections():
    rough = error_of(with_steps(5), 0)
    assert error_of(with_steps(40), 0) < 0.4 * rough
    assert error_of(with_steps(5), 8) < 0.4 * rough
    guided = error_of(with_steps(5), 0, scale=2.0)  # both ways
    assert error_of(with_steps(5), 8, scale=2.0) < 0.6 * guided


def test_an_encoding_is_the_embedding_and_noise():
    assert_allclose(code().embed, PIPELINE.encode_image(PARAMS, IMAGES), atol=1e-5)
    # Of the same embedding another x_T is another image.
    other = Code(code().embed, code().x[::-1])
    images = jitted(manipulations.redraw)(other, NULL)
    assert np.abs(images - redrawn()).mean() > 0.1


def test_larger_images_are_encoded_at_the_decoder_s_size():
    large = tiny.pictures(2, size=8)
    made = jitted(manipulations.encode, corrections=3)(large, NULL)
    assert_allclose(made.embed, PIPELINE.encode_image(PARAMS, large), atol=1e-5)
    at_size = clip_towers.resized(large, tiny.SIZE)
    images = jitted(manipulations.redraw)(made, NULL)
    assert np.abs(images - at_size).mean() < 0.5 * np.abs(images[::-1] - at_size).mean()


class PainterOfX0(nn.Module):
    """The tiny decoder, predicting x0."""

    @nn.compact
    def __call__(self, x, time, cond):
        eps = tiny.Painter(name="painter")(x, time, cond)[..., :3]
        alpha, sigma = (a[:, None, None, None] for a in tiny.SCHEDULE(time + 1)[:2])
        x0 = (x - sigma * eps) / alpha
        return jnp.concatenate([x0, 0 * x0], axis=-1)


def test_a_decoder_of_x0_inverts_as_one_of_eps():
    """Though it says nothing of eps where there is no noise yet."""
    x0 = dict(network=PainterOfX0(), parameterization=parameterization.x0())
    params = PARAMS | {"decoder": {"painter": PARAMS["decoder"]}}
    rough = error_of(with_steps(5, **x0), 0, params=params)
    assert error_of(with_steps(40, **x0), 0, params=params) < 0.5 * rough
    assert error_of(with_steps(5, **x0), 8, params=params) < 0.5 * rough


def test_decoding_depends_on_its_own_code_and_hears_captions():
    again = jitted(manipulations.redraw)(swapped(), NULL)
    assert_allclose(again[::-1], redrawn(), atol=1e-5)
    told = jitted(manipulations.redraw)(code(), NULL, text=TEXT)
    assert np.abs(told - redrawn()).max() > 0.01


# ---- variations ----------------------------------------------------------------------


def test_variations_of_eta_zero_are_the_reconstruction_whatever_the_keys():
    vary = jitted(manipulations.variations)
    for seed in (0, 1):
        images = vary(tiny.keys_for(2, seed), code(), NULL, eta=0.0)
        assert_allclose(images, redrawn(), atol=1e-5)


def test_variations_differ_by_key_and_the_more_the_larger_eta():
    vary = jitted(manipulations.variations)
    one = Code(code().embed[:1], code().x[:1])
    little, much = (vary(KEYS, one, NULL, eta=eta) for eta in (0.1, 1.0))
    assert np.abs(much[0] - much[1]).mean() > 0.02
    moved = [float(np.abs(v - redrawn()[0]).mean()) for v in (little, much)]
    assert moved[0] < 0.5 * moved[1]


def test_fresh_variations_are_draws_of_the_decoder_told_the_embedding():
    images = manipulations.fresh_variations(
        PIPELINE, PARAMS, KEYS, code().embed[:1], NULL
    )
    embed = jnp.repeat(code().embed[:1], 2, axis=0)
    heard = PIPELINE.hear(PARAMS, embed, NULL, NULL)
    assert_allclose(images, PIPELINE.decode(PARAMS, KEYS, heard), atol=1e-5)
    assert np.abs(images[0] - images[1]).max() > 0.05


# ---- interpolations ------------------------------------------------------------------


def test_an_interpolation_ends_in_both_reconstructions():
    between = jitted(manipulations.interpolate)
    shares = jnp.array([0.0, 0.5, 1.0])
    images = between(code(), swapped(), shares, NULL)
    assert images.shape == (2, 3, *IMAGES.shape[1:])
    assert_allclose(images[:, 0], redrawn(), atol=1e-4)
    assert_allclose(images[:, 2], redrawn()[::-1], atol=1e-4)
    assert_allclose(images[0, 1], images[1, 1], atol=1e-4)  # half the way from each
    assert np.abs(images[0, 1] - redrawn()).max() > 0.01


def test_with_fixed_noise_only_the_embedding_goes_the_way():
    x = jnp.broadcast_to(code().x[:1], code().x.shape)
    shares = jnp.array([0.0, 0.5, 1.0])
    images = jitted(manipulations.interpolate)(code(), swapped(), shares, NULL, x=x)
    ends = jitted(manipulations.redraw)(Code(code().embed, x), NULL)
    assert_allclose(images[:, 0], ends, atol=1e-4)
    assert_allclose(images[:, 2], ends[::-1], atol=1e-4)


def test_a_caption_is_an_end_by_the_prior_or_as_it_is():
    direct = manipulations.text_code(
        PIPELINE, PARAMS, KEYS, TEXT, NULL, code().x, through_prior=False
    )
    assert_allclose(direct.embed, TEXT.clip.embed)
    assert_allclose(direct.x, code().x)
    by_prior = manipulations.text_code(PIPELINE, PARAMS, KEYS, TEXT, NULL, code().x)
    drawn = PIPELINE.draw_embedding(PARAMS, KEYS, TEXT, NULL)
    assert_allclose(by_prior.embed, drawn, atol=1e-5)


# ---- text diffs ----------------------------------------------------------------------


def caption(i):
    return jax.tree.map(lambda a: a[i : i + 1], TEXT)


def test_no_theta_is_the_reconstruction_and_more_of_it_goes_further():
    thetas = jnp.array([0.0, 0.25, 0.5])
    edit = jitted(manipulations.text_diff)
    images = edit(code(), caption(0), caption(1), thetas, NULL)
    assert_allclose(images[:, 0], redrawn(), atol=1e-4)
    moved = np.abs(images - redrawn()[:, None]).mean(axis=(0, 2, 3, 4))
    assert moved[1] < moved[2]
    one = edit(code(), caption(0), caption(1), thetas[2:], NULL)
    assert_allclose(one[:, 0], images[:, 2], atol=1e-4)


def test_a_text_diff_turns_towards_the_difference_and_keeps_the_norm():
    goal = manipulations.direction(caption(0), caption(1), 2)
    difference = caption(1).clip.embed - caption(0).clip.embed
    assert_allclose(jnp.linalg.norm(goal, axis=-1), 1.0, rtol=1e-4)
    cosine = jnp.vdot(goal[0], difference[0]) / jnp.linalg.norm(difference)
    assert float(cosine) == pytest.approx(1, abs=1e-4)
    embed = 7.0 * code().embed
    turned = manipulations.toward(embed, goal, jnp.array([0.0, 0.3, 1.0]))
    assert_allclose(turned[:, 0], embed, atol=1e-4)
    norms = jnp.linalg.norm(turned, axis=-1)
    expected = jnp.broadcast_to(jnp.linalg.norm(embed, axis=-1)[:, None], (2, 3))
    assert_allclose(norms, expected, rtol=1e-4)
    whole = jnp.arccos(jnp.sum(code().embed * goal, axis=-1))
    cosines = jnp.sum(turned[:, 1] * embed, axis=-1) / jnp.sum(embed**2, axis=-1)
    assert_allclose(jnp.arccos(cosines), 0.3 * whole, atol=1e-3)
    assert_allclose(turned[:, 2] / norms[:, 2:], goal, atol=1e-4)


def test_without_a_before_the_way_is_to_the_caption():
    goal = manipulations.direction(None, caption(1), 2)
    unit = caption(1).clip.embed / jnp.linalg.norm(caption(1).clip.embed)
    assert_allclose(goal, jnp.repeat(unit, 2, axis=0), atol=1e-5)


@pytest.mark.parametrize("thetas", [(0.0, 0.6), (-0.1,), (float("nan"),)])
def test_a_theta_out_of_range_is_refused_by_name(thetas):
    with pytest.raises(ValueError, match=r"theta .*; .*from 0 to 0\.5"):
        manipulations.text_diff(
            PIPELINE, PARAMS, code(), caption(0), caption(1), thetas, NULL
        )


def test_captions_must_be_as_many_as_images():
    three = PIPELINE.encode_text(PARAMS, tiny.TOKENS)
    with pytest.raises(ValueError, match="3 captions for 2 images"):
        manipulations.text_diff(PIPELINE, PARAMS, code(), None, three, (0.1,), NULL)
    with pytest.raises(ValueError, match="2 images for 3 keys"):
        manipulations.variations(PIPELINE, PARAMS, tiny.keys_for(3), code(), NULL)


# ---- PCA -----------------------------------------------------------------------------


def components(seed=0):
    matrix = jax.random.normal(jax.random.key(seed), (tiny.WIDTH, tiny.WIDTH))
    return jnp.linalg.qr(matrix)[0]


def test_all_components_are_the_reconstruction_and_none_are_the_mean():
    mean = 0.1 * jnp.arange(1.0, tiny.WIDTH + 1)
    reduce = jitted(manipulations.pca_reconstructions, counts=(0, 2, tiny.WIDTH))
    images = reduce(code=code(), mean=mean, components=components(), null=NULL)
    assert_allclose(images[:, 2], redrawn(), atol=1e-4)
    unit = mean / jnp.linalg.norm(mean)  # as this CLIP's embeddings are
    middle = Code(jnp.stack([unit, unit]), code().x)
    expected = jitted(manipulations.redraw)(middle, NULL)
    assert_allclose(images[:, 0], expected, atol=1e-4)


def test_what_is_left_out_is_orthogonal_to_what_is_kept():
    mean, rows = jnp.ones(tiny.WIDTH), components()
    kept = manipulations.projected(code().embed, mean, rows, (3, 5))
    left = code().embed[:, None] - kept
    for i, count in enumerate((3, 5)):
        assert_allclose(left[:, i] @ rows[:count].T, 0, atol=1e-5)
        assert_allclose((kept[:, i] - mean) @ rows[count:].T, 0, atol=1e-5)


def test_more_components_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="9 principal components; there are 8"):
        manipulations.projected(code().embed, jnp.zeros(8), components(), (9,))


# ---- many images ---------------------------------------------------------------------


def test_a_manipulation_of_any_number_of_images_is_that_of_each():
    def round_trip(params, images, null):
        made = manipulations.encode(PIPELINE, params, images, null, corrections=3)
        return {"image": manipulations.redraw(PIPELINE, params, made, null)}

    run = batched_unclip.mapped(round_trip, batch_size=2)
    images = np.concatenate([IMAGES, IMAGES[:1]])
    batches = list(run(PARAMS, images, NULL))
    assert [len(batch["image"]) for batch in batches] == [2, 1]
    made = np.concatenate([batch["image"] for batch in batches])
    assert_allclose(made, redrawn()[[0, 1, 0]], atol=1e-5)
