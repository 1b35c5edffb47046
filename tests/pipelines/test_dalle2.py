"""The stages of DALL·E 2 in a row: what an image depends on, and what the decoder hears."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_dalle2 as tiny
from numpy.testing import assert_allclose

from diffusion_jax.diffusion import guidance
from diffusion_jax.diffusion.samplers import SAMPLERS
from diffusion_jax.pipelines import batched_unclip, conditionings, dalle2
from diffusion_jax.pipelines import stage as stages
from diffusion_jax.pipelines.batched_unclip import Rows, Scales
from diffusion_jax.pipelines.dalle2 import Heard

PARAMS = tiny.drawn()
KEYS = tiny.keys_for(3)


@functools.cache
def whole():
    return jax.jit(tiny.PIPELINE.__call__)


def draw(keys=KEYS, tokens=tiny.TOKENS, params=PARAMS, **scales):
    return np.asarray(whole()(params, keys, tokens, tiny.NULL, **scales))


@functools.cache
def captions():
    encode = jax.jit(tiny.PIPELINE.encode_text)
    return encode(PARAMS, tiny.TOKENS), encode(PARAMS, tiny.NULL)


@functools.cache
def heard():
    embed = jax.random.normal(jax.random.key(3), (3, tiny.WIDTH))
    return tiny.PIPELINE.hear(PARAMS, embed, *captions())


@functools.cache
def decoding():
    return jax.jit(tiny.PIPELINE.decode)


@functools.cache
def steady():
    """Decoding without noise on the way, whose variance would be the condition's."""
    stage = dataclasses.replace(tiny.DECODER, sampler=SAMPLERS["ddim"])
    return jax.jit(dataclasses.replace(tiny.PIPELINE, decoder=stage).decode)


# ---- the whole -----------------------------------------------------------------------


def test_an_image_depends_on_its_own_key_and_caption_alone():
    images = draw()
    assert images.shape == (3, 16, 16, 3)
    assert np.abs(images).max() <= 1
    order = np.array([2, 0, 1])
    assert_allclose(draw(KEYS[order], tiny.TOKENS[order]), images[order], atol=1e-5)
    other = draw(KEYS, tiny.TOKENS[np.array([0, 1, 0])])
    assert_allclose(other[:2], images[:2], atol=1e-5)
    assert np.abs(other[2] - images[2]).max() > 0.05


def test_a_change_of_scales_does_not_recompile():
    draw(prior_scale=1.0, decoder_scale=3.0)
    tiny.TRACED.clear()
    changed = draw(prior_scale=2.0, decoder_scale=3.0)
    assert not tiny.TRACED
    assert np.abs(changed - draw(prior_scale=1.0, decoder_scale=3.0)).max() > 0.01
    assert np.abs(changed - draw(prior_scale=2.0, decoder_scale=1.0)).max() > 0.01
    assert not tiny.TRACED


def test_the_scale_that_none_stands_for_is_the_stage_s():
    assert_allclose(draw(decoder_scale=2.0, prior_scale=1.0), draw(), atol=1e-5)


def test_jit_changes_nothing():
    plain = tiny.PIPELINE(PARAMS, KEYS, tiny.TOKENS, tiny.NULL)
    assert_allclose(draw(), plain, atol=1e-4)


def test_stages_one_after_the_other_are_the_whole():
    text, null = captions()
    embed = tiny.PIPELINE.draw_embedding(PARAMS, KEYS, text, null)
    told = tiny.PIPELINE.hear(PARAMS, embed, text, null)
    images = decoding()(PARAMS, KEYS, told)
    assert_allclose(tiny.PIPELINE.upsample(PARAMS, KEYS, images), draw(), atol=1e-5)


def test_batches_through_every_stage_are_the_whole():
    seen = []
    run = batched_unclip.generator(
        tiny.PIPELINE, batch_size=2, on_stage=lambda *told: seen.append(told)
    )
    rows = Rows(np.asarray(tiny.TOKENS), np.arange(3))
    batches = list(run(PARAMS, rows, tiny.NULL, seed=4, scales=Scales(decoder=3.0)))
    assert [len(batch) for batch in batches] == [2, 1]
    keys = stages.image_keys(jax.random.key(4), jnp.arange(3))
    expected = draw(keys, decoder_scale=3.0)
    assert_allclose(np.concatenate(batches), expected, atol=1e-5)
    names = ["prior", "decoder", "super_res_first", "super_res_second"]
    assert seen == [(name, done, 3) for done in (2, 3) for name in names]
    tiny.TRACED.clear()
    list(run(PARAMS, rows, tiny.NULL, seed=5, scales=Scales(decoder=1.0)))
    assert not tiny.TRACED


def test_a_batch_of_embeddings_needs_no_prior():
    without = dataclasses.replace(tiny.PIPELINE, prior=None, upsamplers=())
    run = batched_unclip.generator(without, batch_size=3)
    text, null = captions()
    keys = stages.image_keys(jax.random.key(0), jnp.arange(3))
    embed = tiny.PIPELINE.draw_embedding(PARAMS, keys, text, null)
    rows = Rows(np.asarray(tiny.TOKENS), np.arange(3), np.asarray(embed))
    (images,) = run(PARAMS, rows, tiny.NULL)
    told = tiny.PIPELINE.hear(PARAMS, embed, text, null)
    assert_allclose(images, decoding()(PARAMS, keys, told), atol=1e-5)


# ---- what the decoder hears ----------------------------------------------------------


def test_scale_one_is_what_is_heard_and_zero_what_is_not():
    told = heard()
    plain = steady()(PARAMS, KEYS, Heard(told.cond), 1.0)
    assert_allclose(steady()(PARAMS, KEYS, told, 1.0), plain, atol=1e-5)
    absent = steady()(PARAMS, KEYS, Heard(told.null), 1.0)
    assert_allclose(steady()(PARAMS, KEYS, told, 0.0), absent, atol=1e-4)
    assert np.abs(plain - absent).max() > 0.1


def test_two_equal_scales_are_one():
    one = steady()(PARAMS, KEYS, heard(), 3.0)
    two = steady()(PARAMS, KEYS, heard(), 3.0, image_scale=3.0)
    assert_allclose(two, one, atol=1e-4)


def test_each_of_two_scales_guides_by_its_own():
    told = heard()
    image = steady()(PARAMS, KEYS, Heard(told.image), 1.0)
    two = steady()(PARAMS, KEYS, told, 0.0, image_scale=1.0)
    assert_allclose(two, image, atol=1e-4)
    # Without the embedding's share, what is left of 1 for the caption is not nothing.
    text_alone = steady()(PARAMS, KEYS, told, 1.0, image_scale=0.0)
    assert (
        np.abs(text_alone - steady()(PARAMS, KEYS, Heard(told.null), 1.0)).max() > 0.01
    )
    by_stage = dataclasses.replace(
        tiny.DECODER,
        sampler=SAMPLERS["ddim"],
        guide=functools.partial(guidance.two_scale, image_scale=0.5),
    )
    pipeline = dataclasses.replace(tiny.PIPELINE, decoder=by_stage)
    of_stage = jax.jit(pipeline.decode)(PARAMS, KEYS, told, 2.0)
    given = steady()(PARAMS, KEYS, told, 2.0, image_scale=0.5)
    assert_allclose(of_stage, given, atol=1e-4)


def test_a_learned_variance_is_that_of_the_condition():
    seen = []

    def watching(key, denoise, schedule, x, ts):
        pred = denoise(x, schedule(ts[0]))
        seen.append(pred)
        return pred.variance, pred.x0[None]

    decoder = dataclasses.replace(tiny.DECODER, sampler=watching)
    pipeline = dataclasses.replace(tiny.PIPELINE, decoder=decoder)
    told = heard()
    pipeline.decode(PARAMS, KEYS, told, 5.0)
    pipeline.decode(PARAMS, KEYS, Heard(told.cond))
    pipeline.decode(PARAMS, KEYS, told, 5.0, image_scale=2.0)
    guided, plain, two_way = seen
    assert np.abs(guided.x0 - plain.x0).max() > 0.01
    assert_allclose(guided.variance, plain.variance)
    assert_allclose(two_way.variance, plain.variance)


def test_a_dropped_embedding_is_not_heard():
    text, null = captions()
    embed = jax.random.normal(jax.random.key(7), (3, tiny.WIDTH))
    dropped = tiny.PIPELINE.hear(PARAMS, embed, text, null, jnp.ones(3, bool))
    alone = conditionings.caption(tiny.PIPELINE, PARAMS, KEYS, text, null)
    assert_allclose(dropped.cond.vector, alone.cond.vector, atol=1e-6)
    assert_allclose(dropped.cond.tokens, alone.cond.tokens, atol=1e-6)
    # Nothing and "" is what guidance goes away from.
    assert_allclose(dropped.image.tokens, dropped.null.tokens, atol=1e-6)


def test_conditionings_differ_in_the_embedding_alone():
    text, null = captions()
    args = tiny.PIPELINE, PARAMS, KEYS, text, null
    told = {name: hear(*args) for name, hear in conditionings.CONDITIONINGS.items()}
    own = tiny.PIPELINE.hear(PARAMS, text.clip.embed, text, null)
    assert_allclose(told["text_embedding"].cond.tokens, own.cond.tokens, atol=1e-6)
    drawn = tiny.PIPELINE.draw_embedding(PARAMS, KEYS, text, null)
    by_prior = tiny.PIPELINE.hear(PARAMS, drawn, text, null)
    assert_allclose(told["prior"].cond.tokens, by_prior.cond.tokens, atol=1e-6)
    vectors = [np.asarray(one.cond.vector) for one in told.values()]
    assert np.abs(np.diff(vectors, axis=0)).max(axis=(1, 2)).min() > 0.01
    words = [np.asarray(one.cond.tokens[:, 4:]) for one in told.values()]
    assert_allclose(words[1:], [words[0]] * 2, atol=1e-6)


def test_encoders_of_their_own_replace_what_clip_tells():
    pipeline = dataclasses.replace(
        tiny.PIPELINE, prior_text=tiny.OWN_TEXT, decoder_text=tiny.OWN_TEXT
    )
    params = tiny.drawn(pipeline)
    text = pipeline.encode_text(params, tiny.TOKENS)
    assert_allclose(text.prior.embed, text.clip.embed)  # the prior always hears z_t
    assert text.prior.hidden.shape[-1] == text.decoder.hidden.shape[-1] == 6
    assert np.abs(text.prior.hidden - text.decoder.hidden).max() > 0.01
    null = pipeline.encode_text(params, tiny.NULL)
    embed = jnp.ones((3, tiny.WIDTH))
    cond = pipeline.hear(params, embed, text, null).cond
    assert np.abs(cond.vector[0] - cond.vector[1]).max() > 1e-3


# ---- upsamplers ----------------------------------------------------------------------


def test_upsampling_keeps_to_the_small_image():
    images = 0.5 * tiny.pictures(3)
    large = tiny.PIPELINE.upsample(PARAMS, KEYS, images, 1)
    expected = jax.image.resize(images, (3, 8, 8, 3), "cubic")
    near = np.abs(large - expected).mean()
    assert 0 < near < 2 * tiny.STD
    assert near < 0.5 * np.abs(large - expected[::-1]).mean()


def test_another_network_takes_the_last_step():
    first = tiny.UPSAMPLERS[0]
    other = dataclasses.replace(first.stage, network=tiny.Sharpener(shift=0.3))
    same = dataclasses.replace(first, last=first.stage, last_name="super_res_last")
    mixed = dataclasses.replace(first, last=other, last_name="super_res_last")
    images = 0.3 * tiny.pictures(3)
    plain = first(PARAMS, KEYS, images)
    assert_allclose(same(PARAMS, KEYS, images), plain, atol=1e-5)
    brighter = mixed(PARAMS, KEYS, images) - plain
    assert 0.01 < brighter.mean() < 0.3


def test_a_last_step_of_one_is_an_error():
    stage = dataclasses.replace(tiny.UPSAMPLERS[0].stage, steps=1)
    one = dataclasses.replace(tiny.UPSAMPLERS[0], stage=stage, last=stage)
    with pytest.raises(ValueError, match="a grid of 1"):
        one(PARAMS, KEYS, tiny.pictures(3))


# ---- errors, all of them while nothing has compiled ----------------------------------


def raises(match, call):
    with pytest.raises(ValueError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_refused_by_name():
    text, null = captions()
    pipeline = tiny.PIPELINE
    wide = jnp.zeros((3, 5))
    raises("width 5; CLIP's have 8", lambda: pipeline.hear(PARAMS, wide, text, null))
    embed = jnp.zeros((4, tiny.WIDTH))
    raises("3 captions for 4", lambda: pipeline.hear(PARAMS, embed, text, null))
    raises(
        "3 captions for 2",
        lambda: jax.eval_shape(pipeline, PARAMS, KEYS[:2], tiny.TOKENS, tiny.NULL),
    )
    images = tiny.pictures(3)
    raises("3 upsamplers.*has 2", lambda: pipeline.upsample(PARAMS, KEYS, images, 3))
    other_guide = dataclasses.replace(tiny.DECODER, guide=guidance.apg)
    other = dataclasses.replace(pipeline, decoder=other_guide)
    raises(
        "the guide 'apg', or .*; one of classifier_free, two_scale",
        lambda: other.decode(PARAMS, KEYS, heard(), image_scale=2.0),
    )


def test_a_missing_stage_is_named():
    text, null = captions()
    towers = dataclasses.replace(tiny.TOWERS, image=None)
    bare = dataclasses.replace(tiny.PIPELINE, prior=None, clip=towers, upsamplers=())
    raises("no prior", lambda: bare.draw_embedding(PARAMS, KEYS, text, null))
    raises("no image tower", lambda: bare.encode_image(PARAMS, tiny.pictures(1)))
    raises("has 0", lambda: bare.upsample(PARAMS, KEYS, tiny.pictures(3), 1))


def test_rows_that_cannot_be_made_are_refused_before_compiling():
    tokens, index = np.asarray(tiny.TOKENS), np.arange(3)

    def run(rows, pipeline=tiny.PIPELINE):
        generate = batched_unclip.generator(pipeline, batch_size=2)
        return lambda: next(generate(PARAMS, rows, tiny.NULL))

    tiny.TRACED.clear()
    raises("2 captions for 3", run(Rows(tokens[:2], index)))
    narrow = np.zeros((3, 7), np.float32)
    raises("width 7", run(Rows(tokens, index, narrow)))
    raises("2 embeddings for 3", run(Rows(tokens, index, narrow[:2])))
    without = dataclasses.replace(tiny.PIPELINE, prior=None)
    raises("no prior", run(Rows(tokens, index), without))
    assert not tiny.TRACED


def test_a_stage_s_steps_and_sampler_can_be_set():
    decoder = dataclasses.replace(tiny.DECODER, sampler=SAMPLERS["ddim"], steps=2)
    pipeline = dataclasses.replace(tiny.PIPELINE, decoder=decoder)
    other = jax.jit(pipeline.decode)(PARAMS, KEYS, heard())
    assert np.abs(other - decoding()(PARAMS, KEYS, heard())).max() > 0.01


def test_stage_keys_do_not_meet():
    made = [jax.random.key_data(dalle2.keys_of(KEYS, i)) for i in range(4)]
    flat = np.concatenate([*made, jax.random.key_data(KEYS)])
    assert len(np.unique(flat, axis=0)) == 15
