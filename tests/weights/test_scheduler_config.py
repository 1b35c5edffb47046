"""Published scheduler_config.json files are read exactly, and nothing in them is ignored."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from diffusion_jax.diffusion import parameterization, schedules
from diffusion_jax.diffusion.process import Prediction
from diffusion_jax.diffusion.samplers import (
    ancestral,
    consistency,
    ddim,
    dpm_solver,
    flow,
    heun,
    pndm,
)
from diffusion_jax.weights import recipe, scheduler_config
from diffusion_jax.weights.scheduler_config import WITHOUT_COUNTERPART, read

SD_BETAS = dict(
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.012,
    num_train_timesteps=1000,
    trained_betas=None,
)
SD = schedules.Discrete("scaled_linear", 0.00085, 0.012)
# The files of the repositories, without what their pipelines add.
STABLE_DIFFUSION_15 = dict(
    SD_BETAS,
    _class_name="PNDMScheduler",
    _diffusers_version="0.6.0",
    set_alpha_to_one=False,
    skip_prk_steps=True,
    steps_offset=1,
    clip_sample=False,
)
STABLE_DIFFUSION_2_BASE = dict(STABLE_DIFFUSION_15, prediction_type="epsilon")
STABLE_DIFFUSION_21 = dict(
    SD_BETAS,
    _class_name="DDIMScheduler",
    _diffusers_version="0.8.0",
    clip_sample=False,
    prediction_type="v_prediction",
    set_alpha_to_one=False,
    skip_prk_steps=True,
    steps_offset=1,
)
SDXL = dict(
    SD_BETAS,
    _class_name="EulerDiscreteScheduler",
    _diffusers_version="0.19.0.dev0",
    clip_sample=False,
    interpolation_type="linear",
    prediction_type="epsilon",
    sample_max_value=1.0,
    set_alpha_to_one=False,
    skip_prk_steps=True,
    steps_offset=1,
    timestep_spacing="leading",
    use_karras_sigmas=False,
)
SDXL_TURBO = dict(
    SDXL, _class_name="EulerAncestralDiscreteScheduler", timestep_spacing="trailing"
)
LCM = dict(
    SD_BETAS,
    _class_name="LCMScheduler",
    clip_sample=False,
    clip_sample_range=1.0,
    dynamic_thresholding_ratio=0.995,
    original_inference_steps=50,
    prediction_type="epsilon",
    rescale_betas_zero_snr=False,
    sample_max_value=1.0,
    set_alpha_to_one=True,
    steps_offset=1,
    thresholding=False,
    timestep_scaling=10.0,
    timestep_spacing="leading",
)
TCD = dict(LCM, _class_name="TCDScheduler")
KARLO_DECODER = dict(
    _class_name="UnCLIPScheduler",
    clip_sample=True,
    clip_sample_range=1.0,
    num_train_timesteps=1000,
    prediction_type="epsilon",
    variance_type="learned_range",
)
KARLO_PRIOR = dict(
    KARLO_DECODER,
    clip_sample_range=5.0,
    prediction_type="sample",
    variance_type="fixed_small_log",
)
KARLO_UPSAMPLER = dict(KARLO_DECODER, variance_type="fixed_small_log")
KANDINSKY_22 = dict(
    _class_name="DDPMScheduler",
    beta_schedule="linear",
    beta_start=0.00085,
    beta_end=0.012,
    clip_sample=True,
    clip_sample_range=2.0,
    dynamic_thresholding_ratio=0.995,
    num_train_timesteps=1000,
    prediction_type="epsilon",
    sample_max_value=2.0,
    thresholding=False,
    timestep_spacing="leading",
    trained_betas=None,
    variance_type="learned_range",
)
DEEPFLOYD_IF = dict(
    KANDINSKY_22,
    beta_schedule="squaredcos_cap_v2",
    beta_start=0.0001,
    beta_end=0.02,
    clip_sample_range=1.0,
    dynamic_thresholding_ratio=0.95,
    sample_max_value=1.5,
    thresholding=True,
)
DDPM_CIFAR = dict(
    _class_name="DDPMScheduler",
    _diffusers_version="0.1.1",
    beta_schedule="linear",
    beta_start=0.0001,
    beta_end=0.02,
    clip_sample=True,
    num_train_timesteps=1000,
    trained_betas=None,
    variance_type="fixed_large",
)
STABLE_DIFFUSION_3 = dict(
    _class_name="FlowMatchEulerDiscreteScheduler", num_train_timesteps=1000, shift=3.0
)
FLUX = dict(
    STABLE_DIFFUSION_3,
    base_image_seq_len=256,
    base_shift=0.5,
    max_image_seq_len=4096,
    max_shift=1.15,
    use_dynamic_shifting=True,
)
PLAYGROUND_25 = dict(
    _class_name="EDMDPMSolverMultistepScheduler",
    algorithm_type="dpmsolver++",
    final_sigmas_type="zero",
    num_train_timesteps=1000,
    prediction_type="epsilon",
    rho=7.0,
    sigma_data=0.5,
    sigma_max=80.0,
    sigma_min=0.002,
    solver_order=2,
    solver_type="midpoint",
)
STABLE_VIDEO = dict(
    SDXL,
    prediction_type="v_prediction",
    sigma_max=700.0,
    sigma_min=0.002,
    timestep_type="continuous",
    use_karras_sigmas=True,
)
STABLE_CASCADE = dict(_class_name="DDPMWuerstchenScheduler", s=0.008, scaler=1.0)


def heard(made, steps):
    """What the network hears, and the time at which sampling ends."""
    ts = made.grid(made.schedule, steps)
    return np.asarray(made.schedule(ts[:-1]).time), float(ts[-1])


def function_of(sampler):
    return getattr(sampler, "func", sampler), getattr(sampler, "keywords", {})


# Times, where the published code or paper says them; all counted by the network.
@pytest.mark.parametrize(
    ("config", "steps", "times", "end"),
    [
        (STABLE_DIFFUSION_15, 5, [801, 601, 401, 201, 1], 1),
        (STABLE_DIFFUSION_2_BASE, 5, [801, 601, 401, 201, 1], 1),
        (STABLE_DIFFUSION_21, 5, [801, 601, 401, 201, 1], 1),
        (SDXL, 5, [801, 601, 401, 201, 1], 0),
        (SDXL_TURBO, 1, [999], 0),
        (SDXL_TURBO, 4, [999, 749, 499, 249], 0),
        (LCM, 4, [999, 759, 499, 259], 0),
        (TCD, 4, [999, 759, 499, 259], 1),
        (KARLO_UPSAMPLER, 7, [999, 832, 666, 500, 333, 166, 0], 0),
        (KARLO_PRIOR, 5, [999, 749, 500, 250, 0], 0),
        (DDPM_CIFAR, 5, [800, 600, 400, 200, 0], 0),
        (DEEPFLOYD_IF, 5, [800, 600, 400, 200, 0], 0),
    ],
)
def test_published_files_visit_their_times(config, steps, times, end):
    assert_array_equal(heard(read(config), steps)[0], times)
    assert heard(read(config), steps)[1] == end


@pytest.mark.parametrize(
    ("config", "schedule", "p", "sampler", "options"),
    [
        (STABLE_DIFFUSION_15, SD, "eps", pndm.plms, {"form": "eps"}),
        (SDXL, SD, "eps", heun.euler, {}),
        (SDXL_TURBO, SD, "eps", ancestral.euler_ancestral, {}),
        (LCM, SD, "eps", consistency.lcm, {"timestep_scaling": 10.0}),
        (TCD, SD, "eps", consistency.tcd, {}),
        (
            KARLO_DECODER,
            schedules.Discrete("cosine"),
            "eps",
            ddim.ddpm,
            {"variance": "learned_range"},
        ),
        (
            KARLO_PRIOR,
            schedules.Discrete("cosine"),
            "x0",
            ddim.ddpm,
            {"variance": "posterior"},
        ),
        (
            DDPM_CIFAR,
            schedules.Discrete("linear", 0.0001, 0.02),
            "eps",
            ddim.ddpm,
            {"variance": "beta"},
        ),
        (
            STABLE_DIFFUSION_3,
            schedules.RectifiedFlow(0.001, time_scale=1000.0),
            "flow",
            flow.flow_euler,
            {"renewed": 0.0},
        ),
    ],
)
def test_published_files_name_their_parts(config, schedule, p, sampler, options):
    made = read(config)
    assert made.schedule == schedule
    assert made.parameterization is parameterization.PARAMETERIZATIONS[p]()
    assert function_of(made.sampler) == (sampler, options)
    assert made.learned_variance == (options.get("variance") == "learned_range")


def test_stable_diffusion_21_predicts_v_and_is_not_clipped():
    made = read(STABLE_DIFFUSION_21)
    assert made.parameterization is parameterization.v()
    assert made.wrap is recipe.kept
    assert made.unused == ("skip_prk_steps",)


def test_fields_of_other_classes_are_listed():
    unused = ("clip_sample", "sample_max_value", "set_alpha_to_one", "skip_prk_steps")
    assert read(SDXL).unused == unused
    assert read(DDPM_CIFAR).unused == ()
    assert "timestep_spacing" in read(LCM).unused  # its own, and not used


def test_flows_are_shifted_by_a_constant_or_by_the_number_of_tokens():
    ts = read(STABLE_DIFFUSION_3).grid(read(STABLE_DIFFUSION_3).schedule, 5)
    assert_allclose(ts[0], 1.0)
    # shift / (1 + (shift - 1) / 1000) of 0.001, and shifted once more.
    once = 3 * 0.001 / (1 + 2 * 0.001)
    assert_allclose(ts[-2], 3 * once / (1 + 2 * once), rtol=1e-4)
    with pytest.raises(ValueError, match="use_dynamic_shifting"):
        read(FLUX)
    for tokens, mu in ((256, 0.5), (4096, 1.15)):
        made = read(FLUX, tokens=tokens)
        ts = np.asarray(made.grid(made.schedule, 3))
        assert_allclose(ts[1], 1 / (1 + np.exp(-mu) * (1 / 0.5005 - 1)), rtol=1e-4)


def test_edm_networks_hear_log_sigma():
    made = read(PLAYGROUND_25)
    times, end = heard(made, 10)
    assert_allclose(times[[0, -1]], np.log([80.0, 0.002]) / 4, rtol=1e-5)
    assert end == 0
    assert function_of(made.sampler)[0] is dpm_solver.dpm_multistep
    level = made.schedule(jnp.asarray(80.0))
    assert_allclose(made.prior_std(level), np.sqrt(80.0**2 + 1))
    made = read(STABLE_VIDEO)
    assert_allclose(heard(made, 25)[0][0], np.log(700.0) / 4, rtol=1e-5)
    a, b = made.parameterization.coefficients(level)
    assert_allclose([a, b], [-80 / np.sqrt(6401), 1 / np.sqrt(6401)], rtol=1e-5)


def test_x0_is_clipped_and_thresholded_as_the_file_says():
    x0 = jnp.asarray([[3.0, -0.5, *[0.25] * 98]])

    def denoise(x, level):
        return Prediction(x0, jnp.zeros_like(x0))

    def seen(config):
        made = read(config)
        level = made.schedule(jnp.asarray(500.0))
        return np.asarray(made.wrap(denoise)(jnp.zeros_like(x0), level).x0)[0, :2]

    assert_allclose(seen(DDPM_CIFAR), [1.0, -0.5])  # what a missing range means
    assert_allclose(seen(KANDINSKY_22), [2.0, -0.5])
    assert_allclose(seen(KARLO_PRIOR), [3.0, -0.5])
    assert_allclose(seen(STABLE_DIFFUSION_21), [3.0, -0.5])
    # The quantile of 0.95 is 0.25, and no less than 1 divides.
    assert_allclose(seen(DEEPFLOYD_IF), [1.0, -0.5])


def test_missing_fields_are_those_of_todays_class():
    spelled = STABLE_DIFFUSION_15 | dict(
        prediction_type="epsilon", timestep_spacing="leading"
    )
    assert repr(read(STABLE_DIFFUSION_15)) == repr(read(spelled))
    offset = STABLE_DIFFUSION_15 | dict(steps_offset=0)
    assert repr(read(STABLE_DIFFUSION_15)) != repr(read(offset))


# ---- errors -------------------------------------------------------------------------


def test_what_is_unknown_is_named():
    with pytest.raises(ValueError, match="'EulerScheduler' is unknown; one of"):
        read({"_class_name": "EulerScheduler"})
    with pytest.raises(ValueError, match="_class_name = None"):
        read({})
    with pytest.raises(ValueError, match="no field 'beta_begin'; one of"):
        read(STABLE_DIFFUSION_15 | dict(beta_begin=0.1))
    with pytest.raises(ValueError, match="prediction_type = 'epsilom' .*; one of"):
        read(STABLE_DIFFUSION_15 | dict(prediction_type="epsilom"))
    with pytest.raises(ValueError, match="use_beta_sigmas = True"):
        read(SDXL | dict(use_karras_sigmas=True, use_beta_sigmas=True))


@pytest.mark.parametrize("kind", WITHOUT_COUNTERPART)
def test_a_class_without_a_counterpart_says_why(kind):
    with pytest.raises(ValueError, match=f"'{kind}' is not supported: "):
        read({"_class_name": kind})
    assert kind not in scheduler_config.CLASSES
    with pytest.raises(ValueError, match="clamped"):
        read(STABLE_CASCADE)


def test_pndm_says_for_which_steps_it_can_be_trailing():
    made = read(STABLE_DIFFUSION_15 | dict(timestep_spacing="trailing"))
    assert_array_equal(heard(made, 4)[0], [999, 749, 499, 249])
    with pytest.raises(ValueError, match="divides 1000, got 7"):
        made.grid(made.schedule, 7)
