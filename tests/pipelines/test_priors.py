"""Laws of the priors as they are sampled: the better of two, guidance, Analytic-DPM."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from diffusion_jax.diffusion import grids, parameterization, schedules
from diffusion_jax.diffusion.samplers import SAMPLERS
from diffusion_jax.models import embedding_codes
from diffusion_jax.models.autoregressive_prior import AutoregressiveTransformer
from diffusion_jax.models.prior import PriorTransformer, condition
from diffusion_jax.models.unclip import Encoded
from diffusion_jax.pipelines import code_sampling, priors
from diffusion_jax.pipelines import stage as stages
from diffusion_jax.types import Conditioning

WIDTH, LENGTH, BATCH = 4, 3, 3
RNG = np.random.default_rng(0)
KEYS = stages.image_keys(jax.random.key(0), jnp.arange(BATCH))


def numbers(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


TEXT = Encoded(
    numbers(BATCH, LENGTH, 5), numbers(BATCH, WIDTH), jnp.ones((BATCH, LENGTH), bool)
)
NULL = Encoded(*(0.5 * a[:1] if a.dtype != bool else a[:1] for a in TEXT))
SCALE = {"mean": numbers(WIDTH), "std": jnp.asarray([0.1, 0.5, 1.0, 3.0])}


def drawn(module, *inputs, size=1.0):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return jax.tree.map(lambda like: size * numbers(*like.shape), shapes)


def stage(network, steps=3, sampler="ddpm", **fields):
    return stages.Stage(
        network,
        schedules.Cosine(time_scale=1000.0),
        parameterization.x0(),
        SAMPLERS[sampler],
        grids.GRIDS["trailing"],
        steps,
        **fields,
    )


# ---- the diffusion prior --------------------------------------------------------------

NETWORK = PriorTransformer(
    embed_dim=WIDTH, num_layers=1, num_heads=1, head_width=4, num_tokens=LENGTH
)
PRIOR = priors.DiffusionPrior(stage(NETWORK))


@functools.cache
def params():
    inputs = jnp.zeros((1, WIDTH)), jnp.zeros(1), condition(NULL)
    return {"prior": drawn(NETWORK, *inputs), "embedding": SCALE}


@functools.partial(jax.jit, static_argnames="prior")
def draw(prior, params, keys, text, scale=None):
    return prior(params, keys, text, NULL, scale)


def dots(embedding):
    return np.sum(np.asarray(embedding * TEXT.embed), axis=1)


def test_the_best_candidate_is_the_one_nearest_to_the_text():
    one, two, four = (
        draw(dataclasses.replace(PRIOR, candidates=n), params(), KEYS, TEXT)
        for n in (1, 2, 4)
    )
    assert (dots(two) >= dots(one) - 1e-4).all() and (
        dots(four) >= dots(two) - 1e-4
    ).all()
    assert (dots(four) > dots(one) + 1e-3).any()


def test_an_embedding_is_the_same_in_any_batch():
    whole = draw(PRIOR, params(), KEYS, TEXT)
    alone = draw(PRIOR, params(), KEYS[1:2], Encoded(*(a[1:2] for a in TEXT)))
    np.testing.assert_allclose(alone, whole[1:2], atol=1e-5)
    assert np.abs(whole[1] - whole[2]).max() > 1e-2


def test_guidance_of_one_is_the_condition_and_a_scale_may_be_one_per_example():
    plain = draw(PRIOR, params(), KEYS, TEXT)
    np.testing.assert_allclose(draw(PRIOR, params(), KEYS, TEXT, 1.0), plain, atol=1e-4)
    strong = draw(PRIOR, params(), KEYS, TEXT, 5.0)
    assert (np.abs(strong - plain).max(axis=1) > 1e-3).all()
    mixed = draw(PRIOR, params(), KEYS, TEXT, jnp.asarray([1.0, 5.0, 1.0]))
    np.testing.assert_allclose(mixed[0], plain[0], atol=1e-4)
    np.testing.assert_allclose(mixed[1], strong[1], atol=1e-4)


class Gaussian(nn.Module):
    """The optimal network for embeddings from N(0, STD**2)."""

    def __call__(self, x: Array, time: Array, cond: Conditioning) -> Array:
        level = DISCRETE(time[:, None] + 1)
        return level.alpha * STD**2 / ((level.alpha * STD) ** 2 + level.sigma**2) * x


STD = 0.4
DISCRETE = schedules.Discrete(betas="cosine")
# Its last step begins nearly clean, and none takes all the noise away at once.
STAGE = dataclasses.replace(
    stage(Gaussian(), steps=6), schedule=DISCRETE, grid=grids.GRIDS["respaced"]
)
ORACLE = priors.DiffusionPrior(STAGE, candidates=1)
ANALYTIC = dataclasses.replace(
    ORACLE, stage=dataclasses.replace(ORACLE.stage, sampler=SAMPLERS["analytic_dpm"])
)
MANY = 4000


def analytic_oracle():
    text = Encoded(jnp.zeros((MANY, 1, 1)), jnp.zeros((MANY, WIDTH)))
    params = {"prior": {}, "embedding": {"mean": jnp.full(WIDTH, 7.0), "std": SPREAD}}
    images = 7.0 + SPREAD * STD * numbers(MANY, WIDTH)
    key = jax.random.key(3)
    return priors.with_eps_power(ANALYTIC, params, key, images, text), text


SPREAD = jnp.asarray([0.1, 0.5, 1.0, 3.0])


def test_eps_power_is_estimated_on_the_priors_own_scale_and_grid():
    """E|eps|**2 / d of the optimal network: sigma**2 over the variance of x."""
    power = analytic_oracle()[0]["eps_power"]
    level = ORACLE.stage.schedule(stages.times(ORACLE.stage)[:-1])
    expected = level.sigma**2 / ((level.alpha * STD) ** 2 + level.sigma**2)
    np.testing.assert_allclose(power, expected, rtol=0.05)
    assert np.ptp(expected) > 0.1
    # Of pure noise the estimate itself would claim any spread of x0.
    spread = (level.sigma / level.alpha) ** 2 * (1 - power)
    assert spread.max() < 1.1 * STD**2


def test_analytic_dpm_keeps_the_spread_that_few_ancestral_steps_lose():
    params, text = analytic_oracle()
    keys = stages.image_keys(jax.random.key(1), jnp.arange(MANY))

    def spread(prior):
        made = jax.jit(lambda: prior(params, keys, text, text, None))()
        return np.std(np.asarray((made - 7.0) / SPREAD))

    assert spread(ANALYTIC) == pytest.approx(STD, rel=0.03)
    assert spread(ORACLE) < 0.9 * STD


def test_analytic_dpm_asks_for_what_it_needs():
    assert priors.needs_eps_power(ANALYTIC.stage)
    assert not priors.needs_eps_power(ORACLE.stage)
    params = {"prior": {}, "embedding": SCALE}
    numbers_and_text = numbers(BATCH, WIDTH), TEXT
    same = priors.with_eps_power(ORACLE, params, KEYS[0], *numbers_and_text)
    assert same is params
    with pytest.raises(ValueError, match="needs params 'eps_power'"):
        ANALYTIC(params, KEYS, TEXT, NULL)
    with pytest.raises(ValueError, match="eps_power of 5 steps; the prior takes 6"):
        ANALYTIC(params | {"eps_power": jnp.ones(5)}, KEYS, TEXT, NULL)


# ---- the autoregressive prior ---------------------------------------------------------

CODES = AutoregressiveTransformer(
    embed_dim=WIDTH,
    num_dims=4,
    num_buckets=6,
    num_dot_buckets=8,
    num_layers=2,
    num_heads=1,
    head_width=4,
    num_tokens=2,
)
DOT = jnp.asarray([0, 3, 7])


CODE_PARAMS = drawn(
    CODES, jnp.zeros((1, CODES.num_dims), jnp.int32), DOT[:1], condition(NULL)
)


@functools.partial(jax.jit, static_argnames=("is_guided", "temperature"))
def sample(keys, is_guided=False, scale=1.0, temperature=1.0):
    null = condition(NULL) if is_guided else None
    return code_sampling.sample(
        CODES,
        CODE_PARAMS,
        keys,
        DOT,
        condition(TEXT),
        null,
        scale=scale,
        temperature=temperature,
    )


@jax.jit
def logits_of(codes, dot, text):
    return CODES.apply({"params": CODE_PARAMS}, codes, dot, condition(text))


def uncached(keys, scale):
    """Codes sampled by reading the whole sequence again for every one of them."""
    codes = jnp.zeros((BATCH, CODES.num_dims), jnp.int32)
    null = Encoded(*(jnp.concatenate([a] * BATCH) for a in NULL))
    keys = jax.vmap(lambda k: jax.random.split(k, CODES.num_dims), out_axes=1)(keys)
    unknown = jnp.full_like(DOT, CODES.num_dot_buckets)
    used = []
    for i in range(CODES.num_dims):
        given = logits_of(codes, DOT, TEXT)[:, i]
        without = logits_of(codes, unknown, null)[:, i]
        used.append(without + scale * (given - without))
        codes = codes.at[:, i].set(code_sampling.pick(keys[i], used[-1], 1.0))
    return codes, jnp.stack(used)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_cached_sampling_equals_uncached(scale):
    codes, logits = sample(KEYS, scale != 1, scale)
    expected, expected_logits = uncached(KEYS, scale)
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_allclose(logits, expected_logits, atol=1e-5)
    assert np.std(expected_logits) > 0.5


def test_no_temperature_takes_the_likeliest_and_a_high_one_forgets_the_logits():
    codes, logits = sample(KEYS, temperature=0.0)
    np.testing.assert_array_equal(codes.T, logits.argmax(axis=-1))
    hot = [
        sample(stages.image_keys(k, jnp.arange(BATCH)), temperature=1e6)[0]
        for k in jax.random.split(jax.random.key(5), 150)
    ]
    shares = np.bincount(np.ravel(hot), minlength=6) / np.size(hot)
    np.testing.assert_allclose(shares, 1 / 6, atol=0.04)


def test_the_dot_product_is_drawn_evenly_from_the_top_share():
    keys = jax.random.split(jax.random.key(0), 4000)
    for top, first in ((0.5, 50), (0.15, 85), (1.0, 0)):
        found = np.asarray(code_sampling.draw_top(keys, 100, top))
        assert found.min() == first and found.max() == 99
        assert found.mean() == pytest.approx((first + 99) / 2, abs=2)


def autoregressive(**fields):
    images, texts = numbers(50, WIDTH), numbers(50, WIDTH)
    codes = embedding_codes.fit(
        images, texts, num_dims=4, num_buckets=6, num_dot_buckets=8
    )
    prior = priors.AutoregressivePrior(CODES, **fields)
    return prior, {"prior": CODE_PARAMS, "codes": codes}


def test_drawn_embeddings_are_ones_that_codes_stand_for_and_the_best_is_kept():
    prior, params = autoregressive(candidates=1)
    one = draw(prior, params, KEYS, TEXT)
    codes = embedding_codes.encode(params["codes"], one)
    np.testing.assert_allclose(
        embedding_codes.decode(params["codes"], codes), one, atol=1e-5
    )
    four = draw(dataclasses.replace(prior, candidates=4), params, KEYS, TEXT)
    assert (dots(four) >= dots(one) - 1e-5).all() and (dots(four) > dots(one)).any()


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        (dict(candidates=0), "candidates=0"),
        (dict(top=0.0), "top=0.0"),
        (dict(temperature=-1.0), "temperature=-1.0"),
    ],
)
def test_impossible_choices_are_refused(fields, error):
    prior, params = autoregressive(**fields)
    with pytest.raises(ValueError, match=error):
        prior(params, KEYS, TEXT, NULL)
