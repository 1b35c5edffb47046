"""Settings of diffusers that raise here: class, config, the field named, and why."""

from __future__ import annotations

NOISE_ON_CLEAN = "its last step adds noise that no q(x_0 | x_t) has"
STRIDE = "it steps by T // steps, not to the next time of its list"
NOT_SUPPORTED = [
    (
        "DDPMScheduler",
        dict(variance_type="fixed_large", timestep_spacing="trailing"),
        "variance_type",
        NOISE_ON_CLEAN,
    ),
    (
        "DDPMScheduler",
        dict(variance_type="learned_range", steps_offset=1),
        "variance_type",
        NOISE_ON_CLEAN,
    ),
    (
        "DDPMScheduler",
        dict(variance_type="fixed_large_log"),
        "variance_type",
        "it takes the root of a logarithm: NaN",
    ),
    (
        "DDIMInverseScheduler",
        dict(prediction_type="sample"),
        "prediction_type",
        "eps is x - x0 over 0 at its first step: NaN",
    ),
    (
        "DDIMInverseScheduler",
        dict(timestep_spacing="linspace"),
        "timestep_spacing",
        "it raises there too",
    ),
    ("PNDMScheduler", dict(timestep_spacing="linspace"), "timestep_spacing", STRIDE),
    (
        "CogVideoXDPMScheduler",
        dict(timestep_spacing="linspace"),
        "timestep_spacing",
        STRIDE,
    ),
    (
        "CogVideoXDPMScheduler",
        dict(set_alpha_to_one=False),
        "set_alpha_to_one",
        "its last step is then of first order, to noise",
    ),
    (
        "EulerDiscreteScheduler",
        dict(interpolation_type="log_linear"),
        "interpolation_type",
        "it has one sigma more than timesteps",
    ),
    (
        "EulerDiscreteScheduler",
        dict(use_karras_sigmas=True, sigma_max=1000.0),
        "sigma_max",
        "the network hears the last step for all that lies beyond its betas",
    ),
    (
        "EulerAncestralDiscreteScheduler",
        dict(prediction_type="sample"),
        "prediction_type",
        "it raises there too",
    ),
    (
        "DPMSolverMultistepScheduler",
        dict(use_flow_sigmas=True, prediction_type="v_prediction"),
        "prediction_type",
        "its v is not one of a flow, whose alpha**2 + sigma**2 is not 1",
    ),
    (
        "DPMSolverMultistepScheduler",
        dict(lambda_min_clipped=-5.1, timestep_spacing="trailing"),
        "timestep_spacing",
        "it has fewer steps than were asked for",
    ),
    (
        "DPMSolverMultistepScheduler",
        dict(algorithm_type="dpmsolver"),
        "final_sigmas_type",
        "it raises there too",
    ),
    (
        "DPMSolverMultistepInverseScheduler",
        dict(use_karras_sigmas=True),
        "use_karras_sigmas",
        "it drops steps that round to the same",
    ),
    (
        "DPMSolverMultistepInverseScheduler",
        dict(algorithm_type="sde-dpmsolver++"),
        "algorithm_type",
        "an inversion with noise inverts nothing",
    ),
    (
        "DPMSolverSinglestepScheduler",
        dict(algorithm_type="sde-dpmsolver++"),
        "algorithm_type",
        "no singlestep solver of the SDE here",
    ),
    (
        "UniPCMultistepScheduler",
        dict(solver_p={"_class_name": "DEISMultistepScheduler"}),
        "solver_p",
        "a predictor of another class",
    ),
    (
        "FlowMatchEulerDiscreteScheduler",
        dict(use_dynamic_shifting=True),
        "use_dynamic_shifting",
        "needs read(config, tokens=...)",
    ),
    (
        "FlowMatchEulerDiscreteScheduler",
        dict(invert_sigmas=True),
        "invert_sigmas",
        "time runs from data to noise",
    ),
    (
        "FlowMatchEulerDiscreteScheduler",
        dict(shift_terminal=0.1),
        "shift_terminal",
        "published with use_dynamic_shifting only",
    ),
    (
        "FlowMatchLCMScheduler",
        dict(scale_factors=[1.0, 2.0]),
        "scale_factors",
        "the resolution grows while sampling",
    ),
    (
        "CMStochasticIterativeScheduler",
        dict(s_noise=1.1),
        "s_noise",
        "more noise than the level says",
    ),
    (
        "IPNDMScheduler",
        dict(trained_betas=[0.1, 0.2]),
        "trained_betas",
        "it takes betas for sigmas",
    ),
]
