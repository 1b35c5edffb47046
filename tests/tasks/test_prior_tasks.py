"""What both priors are trained on, and what their losses and metrics say."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import (
    losses,
    parameterization,
    schedules,
    time_samplers,
    weightings,
)
from diffusion_jax.models import embedding_codes, embedding_scale
from diffusion_jax.models.autoregressive_prior import AutoregressiveTransformer
from diffusion_jax.models.clip import CLIPText, CLIPVision, ProjectedVision
from diffusion_jax.models.clip_towers import ClipTowers
from diffusion_jax.models.prior import PriorTransformer
from diffusion_jax.models.text import ProjectedText
from diffusion_jax.models.unclip import TextTransformer
from diffusion_jax.tasks import autoregressive_prior as autoregressive
from diffusion_jax.tasks import clip_batches, prior
from diffusion_jax.tasks.objective import Objective
from diffusion_jax.types import Conditioning

WIDTH, LENGTH, EOS, BATCH = 8, 4, 9, 6
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
TOWER = dict(width=8, num_layers=1, num_heads=1, mlp_width=8)
TOWERS = ClipTowers(
    ProjectedText(
        CLIPText(vocab_size=10, context_length=LENGTH, eos_id=EOS, **TOWER), WIDTH
    ),
    ProjectedVision(CLIPVision(image_size=8, patch_size=4, **TOWER), WIDTH),
)
TOKENS = RNG.integers(0, EOS, (BATCH, LENGTH)).astype(np.int32)
TOKENS[:, 2:] = EOS
TOKENS = jnp.asarray(TOKENS)
NULL_TOKENS = jnp.full((1, LENGTH), EOS)
IMAGE = jnp.asarray(np.tanh(RNG.standard_normal((BATCH, 8, 8, 3))), jnp.float32)
RAW = {"image": IMAGE, "tokens": TOKENS}
OWN = TextTransformer(10, EOS, LENGTH, width=8, num_layers=1, num_heads=1)
SIZES = dict(embed_dim=WIDTH, num_layers=1, num_heads=1, head_width=8)
OBJECTIVE = Objective(
    schedules.Cosine(time_scale=1000.0),
    parameterization.x0(),
    weightings.x0,
    time_samplers.drawn(time_samplers.QUANTILES["uniform"]),
)


def randomised(shapes):
    return jax.tree.map(
        lambda like: jnp.asarray(0.5 * RNG.standard_normal(like.shape), jnp.float32),
        shapes,
    )


def initial(module, *inputs):
    return randomised(jax.eval_shape(module.init, KEY, *inputs)["params"])


TOWER_PARAMS = {
    "text_encoder": initial(TOWERS.text, TOKENS),
    "image_encoder": initial(TOWERS.image, IMAGE),
}


@functools.cache
def cached():
    """What the towers make of the batch, as a cache on disk brings it."""

    @jax.jit
    def encode(params):
        text = TOWERS.encode_text(params, TOKENS)
        image = TOWERS.encode_image(params, IMAGE)
        return {"image_embed": image} | clip_batches.as_batch(text)

    return encode(TOWER_PARAMS)


def frozen():
    embed = cached()["image_embed"]
    codes = embedding_codes.fit(
        embed, cached()["text_embed"], num_dims=3, num_buckets=5, num_dot_buckets=4
    )
    scale = embedding_scale.statistics(embed)
    return TOWER_PARAMS | {"embedding": scale, "codes": codes}


def diffusion_task(caption_dropout=0.1, text=None):
    networks = prior.Networks(PriorTransformer(num_tokens=LENGTH, **SIZES), text)
    return prior.prior(
        networks,
        TOWERS,
        OBJECTIVE,
        frozen(),
        NULL_TOKENS,
        caption_dropout=caption_dropout,
    )


CODES = AutoregressiveTransformer(
    num_dims=3, num_buckets=5, num_dot_buckets=4, num_tokens=2, **SIZES
)


def codes_task(caption_dropout=0.1, text=None):
    return autoregressive.autoregressive_prior(
        autoregressive.Networks(CODES, text),
        TOWERS,
        frozen(),
        NULL_TOKENS,
        caption_dropout=caption_dropout,
    )


TASKS = {"diffusion": diffusion_task, "autoregressive": codes_task}


@functools.cache
def evaluated(name, **options):
    """Parameters, and the loss with its gradient in them and in the batch's floats."""
    task, frozen_now = TASKS[name](**options), frozen()
    params = randomised(jax.eval_shape(task.init, KEY)[0])

    @jax.jit
    def run(params, floats, others):
        def value(params, floats):
            return task.loss(params, frozen_now, KEY, floats | others)

        return jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(params, floats)

    def run_batch(batch):
        is_float = {k: jnp.issubdtype(v.dtype, jnp.floating) for k, v in batch.items()}
        floats = {k: v for k, v in batch.items() if is_float[k]}
        return run(params, floats, {k: v for k, v in batch.items() if not is_float[k]})

    return run_batch


@pytest.mark.parametrize("name", TASKS)
def test_a_batch_of_the_towers_outputs_is_one_of_images_and_captions(name):
    run = evaluated(name, caption_dropout=0.5)
    (value, metrics), _ = run(cached())
    (expected, expected_metrics), _ = run(RAW)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
        metrics,
        expected_metrics,
    )


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_a_dropped_caption_is_not_heard_at_all(name, rate):
    """Neither by its states nor by its embedding, nor by the dot product with that."""
    _, (_, grads) = evaluated(name, caption_dropout=rate)(cached())
    heard = {
        k: np.abs(np.asarray(grads[k])).reshape(BATCH, -1).max(axis=1) > 1e-7
        for k in ("text", "text_embed")
    }
    np.testing.assert_array_equal(heard["text"], heard["text_embed"])
    shares = {0.0: (1, 1), 0.5: (1 / BATCH, 1 - 1 / BATCH), 1.0: (0, 0)}
    least, most = shares[rate]
    assert least <= heard["text"].mean() <= most


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_a_dropped_caption_takes_the_dot_product_along(rate):
    run = evaluated("autoregressive", caption_dropout=rate)
    # So large an embedding moves the dot product to the other end of its buckets.
    far = -100 * jnp.sign(cached()["text_embed"])
    values = [float(run(cached() | {"text_embed": e})[0][0]) for e in (far, -far)]
    assert (abs(values[0] - values[1]) < 1e-6) == (rate == 1.0)


@pytest.mark.parametrize("name", TASKS)
def test_an_own_text_encoder_is_trained_along_and_the_towers_are_not(name):
    _, (grads, _) = evaluated(name, text=OWN, caption_dropout=0.0)(RAW)
    assert set(grads) == {"prior", "text"}
    largest = {
        k: max(np.abs(x).max() for x in jax.tree.leaves(grads[k])) for k in grads
    }
    assert min(largest.values()) > 1e-5
    embed_alone = {k: cached()[k] for k in ("image_embed", "text_embed")}
    run = evaluated(name, text=OWN, caption_dropout=0.0)
    (value, _), _ = run(embed_alone | {"tokens": TOKENS})
    np.testing.assert_allclose(value, run(RAW)[0][0], rtol=1e-4)


def test_indifferent_logits_cost_the_logarithm_of_the_number_of_buckets():
    task = codes_task()
    params = randomised(jax.eval_shape(task.init, KEY)[0])
    head = params["prior"]["proj_to_buckets"]
    params["prior"]["proj_to_buckets"] = jax.tree.map(jnp.zeros_like, head)
    value, metrics = jax.jit(task.loss)(params, frozen(), KEY, cached())
    assert float(value) == pytest.approx(math.log(5), rel=1e-5)
    assert float(metrics["perplexity"]) == pytest.approx(5, rel=1e-5)


def test_measured_is_the_x0_of_any_parameterization():
    x0 = jnp.asarray(RNG.standard_normal((64, 3)), jnp.float32)
    schedule = schedules.Cosine()
    times = time_samplers.drawn(time_samplers.QUANTILES["uniform"])

    def oracle(x, time, cond):  # v of the x0 above, from x and the level alone
        level = schedule(time[:, None])
        return (level.alpha * x - x0) / level.sigma

    def measure(found):
        return {"error": jnp.abs(found - x0).max()}

    _, metrics = losses.diffusion_loss(
        KEY,
        oracle,
        schedule,
        parameterization.v(),
        weightings.v,
        times,
        x0,
        Conditioning(),
        measure=measure,
    )
    assert metrics["error"] < 1e-4


def cosines(*embeddings):
    return {k: float(v) for k, v in prior.cosines(*embeddings).items()}


def test_cosines_tell_a_good_prior_from_a_mean_one():
    image = jnp.asarray(RNG.standard_normal((200, 16)) + 1, jnp.float32)
    text = jnp.asarray(RNG.standard_normal((200, 16)), jnp.float32)
    good = cosines(3 * image, image, text)
    assert good["cos_image"] == pytest.approx(1, abs=1e-5)
    assert good["cos_unrelated"] < good["cos_baseline"] < 0.9
    of_others = (image.sum(axis=0) - image) / (len(image) - 1)
    lazy = cosines(of_others, image, text)
    assert lazy["cos_image"] == pytest.approx(lazy["cos_baseline"], abs=1e-5)
    of_all = cosines(jnp.broadcast_to(image.mean(axis=0), image.shape), image, text)
    assert of_all["cos_image"] > of_all["cos_baseline"] + 1e-3  # it has the image too
    copied = cosines(text, image, text)
    assert copied["cos_text"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_impossible_rates_are_refused(name):
    with pytest.raises(ValueError, match="caption_dropout is 1.5"):
        TASKS[name](caption_dropout=1.5)


def test_codes_of_other_sizes_than_the_networks_are_refused():
    with pytest.raises(ValueError, match="codes of 3 components, 5 buckets and 4"):
        autoregressive.autoregressive_prior(
            autoregressive.Networks(CODES.clone(num_buckets=6)),
            TOWERS,
            frozen(),
            NULL_TOKENS,
        )
