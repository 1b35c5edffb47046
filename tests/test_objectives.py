"""Every objective can be named in a config."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from configs.small import shapes_clip, shapes_ldm, shapes_vae
from diffusion_jax import build
from diffusion_jax.diffusion import losses, time_samplers, weightings
from diffusion_jax.pipelines import stage
from diffusion_jax.types import Conditioning

KEY = jax.random.key(0)
X0 = jax.random.normal(KEY, (4, 4, 4, 2))


def config_with(**sections):
    """That of the small latent diffusion, beside those of its two towers."""
    config = shapes_ldm.get_config("runlocal")
    with config.unlocked():
        config.vae = shapes_vae.get_config("runlocal").vae
        config.clip = shapes_clip.get_config("runlocal").clip
        for name, value in sections.items():
            config[name] = ConfigDict(value)
    return config


def loss_of(objective, network):
    return objective.loss(KEY, network, *objective[:-1], X0, Conditioning())


def test_every_weighting_law_and_draw_is_a_name():
    names = [
        *(("weighting", name, {}) for name in weightings.WEIGHTINGS),
        *(("times", name, {}) for name in time_samplers.QUANTILES),
        *(("times", "mode", {"draw": draw}) for draw in time_samplers.DRAWS),
        ("times", "log_normal", {"mean": -0.4, "std": 1.0, "over": "logsnr"}),
    ]
    for section, name, options in names:
        made = build.objective(config_with(**{section: dict(name=name, **options)}))
        sample = functools.partial(made.sample_times, num=4, schedule=made.schedule)
        times = jax.eval_shape(sample, KEY)
        assert times.t.shape == times.weight.shape == (4,)
        assert jax.eval_shape(made.weighting, jnp.ones(4)).shape == (4,)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_every_loss_is_a_name_and_doubles_the_channels_if_it_learns_a_variance(name):
    config = config_with(loss=dict(name=name), schedule=dict(name="discrete"))
    is_learned = name != "diffusion"
    assert build.learns_variance(config) == is_learned
    assert build.stage(config).learned_variance == is_learned
    channels = build.unet(config).out_channels
    assert channels == config.vae.latent_channels * (2 if is_learned else 1)

    def network(x, time, cond):
        return jnp.concatenate([x, x], axis=-1)[..., : 4 if is_learned else 2]

    values, metrics = jax.eval_shape(lambda: loss_of(build.objective(config), network))
    assert values.shape == (4,)
    assert {"loss", "mse"} <= metrics.keys()


def test_a_fixed_variance_leaves_the_channels():
    config = config_with(loss=dict(name="vlb", variance="beta"))
    assert not build.learns_variance(config)
    assert build.unet(config).out_channels == config.vae.latent_channels


def test_a_network_with_a_learned_variance_is_sampled():
    sampling = shapes_ldm.get_config("runlocal").sampling.to_dict()
    sampling |= dict(sampler=dict(name="ddpm", variance="learned_range"), steps=3)
    config = config_with(loss=dict(name="hybrid"), sampling=sampling)
    made = build.stage(config)
    shape = build.latent_shape(config)

    def sample():
        cond = Conditioning(tokens=jnp.zeros((2, 8, 16)))
        if build.hears_pooled(config):
            cond = cond._replace(vector=jnp.zeros((2, config.clip.projection_dim)))
        x = jnp.zeros((2, *shape))
        params = made.network.init(KEY, x, jnp.zeros(2), cond)["params"]
        keys = stage.image_keys(KEY, jnp.arange(2))
        return stage.sample(made, params, keys, shape, cond)[0]

    assert jax.eval_shape(sample).shape == (2, *shape)


@pytest.mark.parametrize(
    ("section", "value", "hint"),
    [
        ("times", dict(name="logit_norml"), "logit_normal"),
        ("times", dict(name="uniform", draw="low_discrepency"), "low_discrepancy"),
        ("times", dict(name="uniform", over="logsnrs"), "logsnr"),
        ("loss", dict(name="hybird"), "hybrid"),
        ("loss", dict(name="hybrid", vlb_wieght=1.0), "vlb_weight"),
    ],
)
def test_a_wrong_name_is_refused_with_the_nearest(section, value, hint):
    with pytest.raises(build.ConfigError, match=hint):
        build.objective(config_with(**{section: value}))


def test_a_way_to_draw_named_alone_is_of_uniform_times():
    short = build.times(dict(name="low_discrepancy"))
    long = build.times(dict(name="uniform", draw="low_discrepancy"))
    schedule = build.schedule(dict(name="cosine"))
    for got, expected in zip(short(KEY, 8, schedule), long(KEY, 8, schedule)):
        assert jnp.array_equal(got, expected)
    spread = jnp.sort(jnp.ravel(short(KEY, 8, schedule)[0]))
    assert jnp.ptp(jnp.diff(spread)) < 1e-5
