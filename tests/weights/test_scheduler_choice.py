"""Another sampler or grid for a published scheduler_config.json."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import grids
from diffusion_jax.diffusion.samplers import SAMPLERS
from diffusion_jax.weights import scheduler_choice, scheduler_config

SHARED = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    num_train_timesteps=1000,
    set_alpha_to_one=False,
    skip_prk_steps=True,
    steps_offset=1,
    trained_betas=None,
    clip_sample=False,
)
SD1 = SHARED | dict(_class_name="PNDMScheduler", _diffusers_version="0.7.0.dev0")
SD2 = SHARED | dict(_class_name="DDIMScheduler", prediction_type="v_prediction")
XL = SHARED | dict(
    _class_name="EulerDiscreteScheduler",
    interpolation_type="linear",
    prediction_type="epsilon",
    sample_max_value=1.0,
    timestep_spacing="leading",
    use_karras_sigmas=False,
)
PUBLISHED = {"sd1": SD1, "sd2": SD2, "xl": XL}


def times(recipe, steps=10):
    return np.asarray(recipe.grid(recipe.schedule, steps))


@pytest.mark.parametrize("config", PUBLISHED.values(), ids=PUBLISHED)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_can_be_chosen_and_keeps_what_the_network_predicts(
    sampler, config
):
    own = scheduler_config.read(config)
    chosen = scheduler_choice.choose(config, sampler=sampler)
    level = own.schedule(jnp.asarray(500.0))
    there = chosen.schedule(jnp.asarray(500.0))
    np.testing.assert_allclose(
        there.alpha / there.sigma, level.alpha / level.sigma, rtol=1e-6
    )
    np.testing.assert_allclose(
        chosen.parameterization.coefficients(there),
        own.parameterization.coefficients(there),
        rtol=1e-6,
    )
    assert np.all(np.diff(times(chosen)) <= 0)


@pytest.mark.parametrize("config", PUBLISHED.values(), ids=PUBLISHED)
def test_without_a_choice_it_is_the_file_as_it_is(config):
    np.testing.assert_array_equal(
        times(scheduler_choice.choose(config)), times(scheduler_config.read(config))
    )


@pytest.mark.parametrize("config", PUBLISHED.values(), ids=PUBLISHED)
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler", "unipc", "heun"])
def test_karras_is_the_field_of_a_class_that_has_it(sampler, config):
    name, fields = scheduler_choice.COUNTERPARTS[sampler]
    expected = scheduler_config.read(
        config | fields | dict(_class_name=name, use_karras_sigmas=True)
    )
    chosen = scheduler_choice.choose(config, sampler=sampler, grid="karras")
    np.testing.assert_array_equal(times(chosen), times(expected))
    plain = scheduler_choice.choose(config, sampler=sampler)
    assert np.abs(times(chosen) - times(plain)).max() > 1


def test_a_grid_that_a_class_lacks_is_ours():
    chosen = scheduler_choice.choose(SD1, sampler="ddim", grid="uniform_logsnr")
    expected = grids.GRIDS["uniform_logsnr"](chosen.schedule, 10)
    np.testing.assert_array_equal(times(chosen), expected)


def test_the_last_choice_of_times_counts():
    config = XL | dict(use_karras_sigmas=True)
    chosen = scheduler_choice.choose(config, grid="trailing")
    expected = scheduler_config.read(XL | dict(timestep_spacing="trailing"))
    np.testing.assert_array_equal(times(chosen), times(expected))


@pytest.mark.parametrize("wrong", [dict(sampler="eular"), dict(grid="karas")])
def test_an_unknown_name_is_an_error_with_the_choices(wrong):
    with pytest.raises(ValueError, match="unknown .* one of"):
        scheduler_choice.choose(SD1, **wrong)
