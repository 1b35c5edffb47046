"""Every field of every class that is read from a scheduler_config.json counts."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.weights.scheduler_config import CLASSES, read

# Another value of each field; several where not every class has the first.
OTHERS = dict(
    num_train_timesteps=(500,),
    beta_start=(0.0002,),
    beta_end=(0.03,),
    beta_schedule=("squaredcos_cap_v2", "linear", "other"),
    trained_betas=([0.01, 0.02, 0.03],),
    prediction_type=("sample", "v_prediction", "other"),
    timestep_spacing=("trailing",),
    steps_offset=(3,),
    clip_sample=(False, True),
    clip_sample_range=(3.0,),
    thresholding=(True,),
    dynamic_thresholding_ratio=(0.5,),
    sample_max_value=(3.0,),
    rescale_betas_zero_snr=(True,),
    set_alpha_to_one=(False, True),
    variance_type=("learned_range",),
    snr_shift_scale=(2.0,),
    skip_prk_steps=(True,),
    eta=(0.5,),
    interpolation_type=("log_linear",),
    timestep_type=("continuous",),
    final_sigmas_type=("sigma_min",),
    use_karras_sigmas=(True,),
    use_exponential_sigmas=(True,),
    use_beta_sigmas=(True,),
    use_lu_lambdas=(True,),
    use_flow_sigmas=(True,),
    flow_shift=(2.0,),
    sigma_min=(0.05, 0.004),
    sigma_max=(5.0,),
    solver_order=(3,),
    algorithm_type=("dpmsolver", "sde-dpmsolver++", "noise_prediction", "other"),
    solver_type=("heun", "bh1", "other"),
    lower_order_final=(False, True),
    euler_at_final=(True,),
    lambda_min_clipped=(-5.1,),
    use_dynamic_shifting=(True,),
    time_shift_type=("linear",),
    base_shift=(0.6,),
    max_shift=(1.5,),
    base_image_seq_len=(64,),
    max_image_seq_len=(1024,),
    predict_x0=(False,),
    disable_corrector=([0],),
    solver_p=("another",),
    shift_terminal=(0.1,),
    predictor_order=(3,),
    corrector_order=(3,),
    tau_func=("another",),
    sigma_data=(0.7,),
    sigma_schedule=("exponential", "karras"),
    rho=(5.0,),
    original_inference_steps=(25,),
    timestep_scaling=(5.0,),
    s_noise=(1.1,),
    clip_denoised=(False,),
    shift=(2.0,),
    invert_sigmas=(True,),
    stochastic_sampling=(True,),
    scale_factors=([2.0],),
)
FLOW = dict(use_flow_sigmas=True, prediction_type="flow_prediction")
# Fields that matter only beside others.
BESIDE = dict(
    clip_sample_range=dict(clip_sample=True),
    dynamic_thresholding_ratio=dict(thresholding=True),
    sample_max_value=dict(thresholding=True),
    flow_shift=FLOW,
    use_flow_sigmas=dict(prediction_type="epsilon"),
    use_dynamic_shifting=FLOW,
    time_shift_type=dict(FLOW, use_dynamic_shifting=True),
    base_shift=dict(FLOW, use_dynamic_shifting=True),
    max_shift=dict(FLOW, use_dynamic_shifting=True),
    base_image_seq_len=dict(FLOW, use_dynamic_shifting=True),
    max_image_seq_len=dict(FLOW, use_dynamic_shifting=True),
    shift_terminal=FLOW,
    sigma_min=dict(use_karras_sigmas=True),
    sigma_max=dict(use_karras_sigmas=True),
    steps_offset=dict(timestep_spacing="leading"),
    timestep_type=dict(prediction_type="v_prediction"),
    rho=dict(sigma_schedule="karras"),
)
# In these the field says nothing: what they mean by it is always the same.
SAME = {
    ("DEISMultistepScheduler", "algorithm_type"),
    ("DEISMultistepScheduler", "solver_type"),
    ("IPNDMScheduler", "num_train_timesteps"),
    ("EDMEulerScheduler", "num_train_timesteps"),
    ("EDMDPMSolverMultistepScheduler", "num_train_timesteps"),
    ("CosineDPMSolverMultistepScheduler", "num_train_timesteps"),
    ("DPMSolverMultistepInverseScheduler", "sigma_min"),
    ("DPMSolverMultistepInverseScheduler", "sigma_max"),
    ("DPMSolverMultistepInverseScheduler", "flow_shift"),
}


def described(config):
    """All that a recipe is, or the error in its place."""
    try:
        made = read(config, tokens=1024)
    except (ValueError, TypeError) as error:
        return str(error)
    return repr(made._replace(unused=()))


@pytest.mark.parametrize("kind", CLASSES)
def test_every_field_of_a_class_counts_or_is_listed(kind):
    fields = CLASSES[kind].fields
    for name in fields:
        beside = BESIDE.get(name, {})
        config = {"_class_name": kind} | {
            field: beside[field] for field in beside if field in fields
        }
        plain = described(config)
        others = [described(config | {name: value}) for value in OTHERS.get(name, ())]
        if name in CLASSES[kind].inert:
            assert name in read(config | {name: fields[name]}).unused
        elif (kind, name) not in SAME:
            assert any(other != plain for other in others), name


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_samples_at_its_defaults(kind):
    made = read({"_class_name": kind})
    ts = np.asarray(made.grid(made.schedule, 5))
    assert ts.shape == (6,)
    assert (np.diff(ts) <= 0).all()
    level = made.schedule(jnp.asarray(ts[:1]))
    assert np.isfinite(made.prior_std(level)).all()
