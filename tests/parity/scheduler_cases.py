"""The configs that test_schedulers runs, as data: class -> settings, and what is left out."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

STEPS = (5, 10, 25)
SD = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
SPACINGS = {
    "leading": dict(SD, timestep_spacing="leading", steps_offset=1),
    "trailing": dict(SD, timestep_spacing="trailing"),
    "linspace": dict(SD, timestep_spacing="linspace"),
}
CURVES = {
    f"{name} sigmas": {f"use_{name}_sigmas": True}
    for name in ("karras", "exponential", "beta")
}
ALL = ("epsilon", "sample", "v_prediction")
EPS_X0 = ("epsilon", "sample")
EPS_V = ("epsilon", "v_prediction")
V = ("v_prediction",)
ITS_OWN = (None,)  # the class has no prediction_type


class Cases(NamedTuple):
    """The settings of one class: those of `spacings` run at all STEPS, `more` at 10.

    A setting that has a prediction_type runs with that alone.
    """

    spacings: dict[str, dict]
    predictions: tuple[str | None, ...] = ALL
    more: dict[str, dict] | None = None
    in_ratio: bool = False  # theirs is x / alpha
    time_scale: float = 0.01  # of the toy network
    silent_at: float = np.nan  # the time at which it says 0
    draws: int = 1  # how many draws of ours stand beside one of theirs
    timesteps: dict[str, Any] | None = None  # what set_timesteps takes besides
    step: dict[str, Any] | None = None  # what step takes besides
    traced: dict[str, Any] | None = None  # what our sampler takes besides
    static: dict[str, Any] | None = None  # and what is not traced of it
    tokens: int | None = None


def each(field: str, *values: Any, **common: Any) -> dict[str, dict]:
    return {f"{field} {value}": common | {field: value} for value in values}


def on_sd(settings: dict[str, dict]) -> dict[str, dict]:
    return {name: SD | config for name, config in settings.items()}


NO_CLIP = dict(clip_sample=False)
UNCLIPPED = {name: config | NO_CLIP for name, config in SPACINGS.items()}
TO_ONE = UNCLIPPED["leading"] | dict(set_alpha_to_one=False)
COSINE = dict(beta_schedule="squaredcos_cap_v2")
V_ZERO_SNR = dict(
    SD,
    rescale_betas_zero_snr=True,
    timestep_spacing="trailing",
    prediction_type="v_prediction",
)
THRESHOLDED = dict(SD, thresholding=True, sample_max_value=1.5)
CLIPPED = {"clipped": dict(SD, clip_sample=True), "thresholded": THRESHOLDED}

SHAPE = (2, 4, 4, 3)
KNOWN = np.random.default_rng(2).uniform(-1, 1, SHAPE).astype(np.float32)
MASK = (np.random.default_rng(3).uniform(size=SHAPE) < 0.5).astype(np.float32)

# ---- ancestral, DDIM, PNDM ----------------------------------------------------------

DDIM = Cases(UNCLIPPED | {"leading to t = 1": TO_ONE}, traced=dict(eta=0.0))
ANCESTRAL = {
    "DDPMScheduler": Cases(
        UNCLIPPED,
        more=CLIPPED
        | {"zero-SNR": V_ZERO_SNR | NO_CLIP, "cosine": COSINE}
        | each(
            "variance_type",
            *("fixed_small_log", "fixed_large", "learned", "learned_range"),
            **SD,
        ),
    ),
    "DDPMParallelScheduler": Cases(UNCLIPPED),
    "DDIMScheduler": DDIM._replace(
        more=CLIPPED
        | {
            "zero-SNR": V_ZERO_SNR | NO_CLIP,
            "cosine": COSINE,
            "trained betas": dict(
                trained_betas=np.linspace(1e-4, 0.3, 50).tolist(),
                num_train_timesteps=50,
            ),
        }
    ),
    "DDIMScheduler:eta 0.7": DDIM._replace(
        step=dict(eta=0.7), traced=dict(eta=0.7), more={"clipped": CLIPPED["clipped"]}
    ),
    "DDIMParallelScheduler": DDIM,
    "DDIMInverseScheduler": Cases(
        {name: UNCLIPPED[name] for name in ("leading", "trailing")},
        EPS_V,
        more={"clipped": CLIPPED["clipped"]},
    ),
    "DDIMInverseScheduler:to t = 1": Cases({"leading": TO_ONE}),
    "CogVideoXDDIMScheduler": Cases(SPACINGS, more={"zero-SNR": V_ZERO_SNR}),
    "CogVideoXDPMScheduler": Cases(
        {name: SPACINGS[name] for name in ("leading", "trailing")},
        more={"zero-SNR": V_ZERO_SNR},
        draws=0,
    ),
    "UnCLIPScheduler": Cases(
        {"": dict(clip_sample_range=5.0)},
        EPS_X0,
        more=each("variance_type", "learned_range"),
    ),
    "PNDMScheduler": Cases(
        {name: SPACINGS[name] for name in ("leading", "trailing")},
        EPS_V,
        more={"to t = 0": dict(SD, set_alpha_to_one=True)},
    ),
    "PNDMScheduler:PLMS": Cases(
        {
            name: dict(SPACINGS[name], skip_prk_steps=True)
            for name in ("leading", "trailing")
        },
        EPS_V,
    ),
    "RePaintScheduler": Cases(
        {"": dict(SD, eta=0.7)},
        ITS_OWN,
        more={"unclipped": SD | NO_CLIP},
        timesteps=dict(jump_length=10, jump_n_sample=1),
        step=dict(original_image=KNOWN, mask=MASK),
        traced=dict(known=KNOWN, mask=MASK),
        static=dict(jump_n_sample=1),
        draws=2,
    ),
    "LCMScheduler": Cases(
        {"": {}},
        more=CLIPPED | {"zero-SNR": V_ZERO_SNR},
    ),
    "TCDScheduler": Cases({"": {}}),
}

# ---- in sigma / alpha ---------------------------------------------------------------

IN_RATIO = Cases(SPACINGS, in_ratio=True, more=on_sd(CURVES))
CONTINUOUS = dict(
    timestep_type="continuous",
    use_karras_sigmas=True,
    sigma_min=0.002,
    sigma_max=700.0,
    timestep_spacing="leading",
)
TO_SIGMA_MIN = dict(SPACINGS["trailing"], final_sigmas_type="sigma_min")
EULER_KIN = {
    "EulerDiscreteScheduler": IN_RATIO._replace(
        more=on_sd(CURVES)
        | {
            "cosine": dict(COSINE, timestep_spacing="leading"),
            "zero-SNR": V_ZERO_SNR,
            "to sigma_min": TO_SIGMA_MIN,
            "karras between": dict(
                SD, use_karras_sigmas=True, sigma_min=0.1, sigma_max=9.0
            ),
        },
    ),
    "EulerDiscreteScheduler:continuous": Cases(
        {"karras": CONTINUOUS}, V, in_ratio=True, time_scale=3.0
    ),
    "EulerAncestralDiscreteScheduler": IN_RATIO._replace(
        predictions=EPS_V, more={"zero-SNR": V_ZERO_SNR}
    ),
    "HeunDiscreteScheduler": IN_RATIO._replace(
        more=on_sd(CURVES) | {"clipped": CLIPPED["clipped"]}
    ),
    "LMSDiscreteScheduler": IN_RATIO,
    "KDPM2DiscreteScheduler": IN_RATIO._replace(predictions=EPS_V),
    "KDPM2AncestralDiscreteScheduler": IN_RATIO._replace(predictions=EPS_V),
    "DPMSolverSDEScheduler": IN_RATIO._replace(predictions=EPS_V),
}

# ---- multistep ----------------------------------------------------------------------

FLOW = dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
ORDERS = each("solver_order", 1, 3, **SD)
NOT_LOWER = dict(TO_SIGMA_MIN, lower_order_final=False)
SHAPES = on_sd(CURVES) | {"flow sigmas": FLOW, "thresholded": THRESHOLDED}
DPM = {
    f"{algorithm} {order} {solver}": dict(
        TO_SIGMA_MIN,
        algorithm_type=algorithm,
        solver_order=order,
        solver_type=solver,
    )
    for algorithm, order, solver in (
        ("dpmsolver", 2, "midpoint"),
        ("dpmsolver", 2, "heun"),
        ("dpmsolver", 3, "midpoint"),
        ("dpmsolver++", 2, "heun"),
        ("dpmsolver++", 3, "midpoint"),
        ("sde-dpmsolver", 1, "midpoint"),
        ("sde-dpmsolver", 2, "midpoint"),
        ("sde-dpmsolver", 2, "heun"),
        ("sde-dpmsolver++", 1, "midpoint"),
        ("sde-dpmsolver++", 2, "midpoint"),
        ("sde-dpmsolver++", 2, "heun"),
        ("sde-dpmsolver++", 3, "midpoint"),
    )
}
MULTISTEP = {
    "DPMSolverMultistepScheduler": Cases(
        SPACINGS,
        more=SHAPES
        | DPM
        | ORDERS
        | {
            "SDE to t = 0": dict(SD, algorithm_type="sde-dpmsolver++"),
            "not lower_order_final": NOT_LOWER,
            "euler_at_final": NOT_LOWER | dict(euler_at_final=True),
            "lu lambdas": dict(SD, use_lu_lambdas=True),
            "zero-SNR": V_ZERO_SNR,
            "lambda_min_clipped": dict(COSINE, lambda_min_clipped=-5.1),
        },
    ),
    "DPMSolverMultistepInverseScheduler": Cases(SPACINGS, more=ORDERS),
    "DPMSolverSinglestepScheduler": Cases(
        {"": SD},
        more=SHAPES
        | ORDERS
        | each("solver_type", "heun", **SD)
        | {
            "3, heun": dict(SD, solver_order=3, solver_type="heun"),
            "dpmsolver 2": dict(
                SD, algorithm_type="dpmsolver", final_sigmas_type="sigma_min"
            ),
            "dpmsolver 3": dict(
                SD,
                solver_order=3,
                algorithm_type="dpmsolver",
                final_sigmas_type="sigma_min",
                lower_order_final=True,
            ),
        },
    ),
    "UniPCMultistepScheduler": Cases(
        SPACINGS,
        more=SHAPES
        | ORDERS
        | each("disable_corrector", [0, 1], **SD)
        | {
            "bh1": dict(TO_SIGMA_MIN, solver_type="bh1"),
            "bh1 1": dict(TO_SIGMA_MIN, solver_type="bh1", solver_order=1),
            "predicts eps": dict(TO_SIGMA_MIN, predict_x0=False),
            "not lower_order_final": NOT_LOWER,
            "zero-SNR": V_ZERO_SNR,
        },
    ),
    "DEISMultistepScheduler": Cases(
        SPACINGS,
        more=SHAPES
        | ORDERS
        | {
            "not lower_order_final": SPACINGS["trailing"]
            | dict(lower_order_final=False)
        },
    ),
    "SASolverScheduler": Cases(
        SPACINGS,
        more=SHAPES
        | {
            f"orders {p} and {c}": dict(SD, predictor_order=p, corrector_order=c)
            for p, c in ((1, 1), (3, 3), (3, 4))
        }
        | each("algorithm_type", "noise_prediction", **SD),
    ),
}

# ---- EDM, flows, consistency --------------------------------------------------------

EDM = Cases(
    each("sigma_schedule", "karras", "exponential"),
    EPS_V,
    more=each("final_sigmas_type", "sigma_min"),
    time_scale=3.0,
)
SHIFTS = {"": {}, "shift 3": dict(shift=3.0)}
DYNAMIC = dict(use_dynamic_shifting=True)
TOKENS, MU = 2048, 0.5 + (1.15 - 0.5) * (2048 - 256) / (4096 - 256)
CONTINUOUS_TIME = {
    "EDMEulerScheduler": EDM,
    "EDMDPMSolverMultistepScheduler": EDM._replace(
        more=EDM.more
        | each("solver_order", 3)
        | each("algorithm_type", "sde-dpmsolver++")
        | each("thresholding", True)
    ),
    "CosineDPMSolverMultistepScheduler": EDM._replace(
        more=each("solver_type", "heun"), in_ratio=True
    ),
    "IPNDMScheduler": Cases({"": {}}, ITS_OWN, time_scale=3.0, silent_at=1.0),
    "CMStochasticIterativeScheduler": Cases(
        {"": {}}, ITS_OWN, more=each("clip_denoised", False)
    ),
    "FlowMatchEulerDiscreteScheduler": Cases(
        SHIFTS, ITS_OWN, more=CURVES | each("stochastic_sampling", True)
    ),
    "FlowMatchEulerDiscreteScheduler:dynamic": Cases(
        {"exponential": DYNAMIC},
        ITS_OWN,
        more={
            "linear, terminal": DYNAMIC
            | dict(time_shift_type="linear", shift_terminal=0.1)
        },
        timesteps=dict(mu=MU),
        tokens=TOKENS,
    ),
    "FlowMatchHeunDiscreteScheduler": Cases(SHIFTS, ITS_OWN),
    "FlowMatchLCMScheduler": Cases(SHIFTS, ITS_OWN),
}
NEED_TORCHSDE = {
    "DPMSolverSDEScheduler": "scheduling_dpmsolver_sde",
    "CosineDPMSolverMultistepScheduler": "scheduling_cosine_dpmsolver_multistep",
}
CASES = ANCESTRAL | EULER_KIN | MULTISTEP | CONTINUOUS_TIME
