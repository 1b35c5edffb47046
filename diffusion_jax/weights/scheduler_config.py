"""Published scheduler_config.json files, read as recipes.

The file names a class of diffusers and some of its fields; a field that is missing
takes the default of today's class. Classes, fields and values that have no counterpart
here raise, naming the field. Fields of other classes, which diffusers keeps in the file
without using them, and fields that a class has but never looks at are listed in the
recipe's `unused`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from diffusion_jax.diffusion.samplers import (
    Sampler,
    ancestral,
    dpm2,
    dpmpp_sde,
    heun,
    lms,
)
from diffusion_jax.weights import (
    scheduler_families,
    scheduler_flows,
    scheduler_multistep,
)
from diffusion_jax.weights.recipe import Recipe
from diffusion_jax.weights.scheduler_fields import (
    BETAS,
    CLIP,
    CURVES,
    FLOW_SIGMAS,
    STABLE_DIFFUSION_ENDS,
    THRESHOLD,
)


class Class(NamedTuple):
    """One class of diffusers: its fields with their defaults, and who reads them."""

    read: Callable[..., Recipe]
    fields: dict[str, Any]
    inert: tuple[str, ...] = ()  # fields that the class has and does not use
    counts_tokens: bool = False  # the reader takes the number of image tokens


def read(config: Mapping[str, Any], *, tokens: int | None = None) -> Recipe:
    """The recipe that a scheduler_config.json describes.

    `tokens` is the number of image tokens, which only `use_dynamic_shifting` needs.
    """
    name = config.get("_class_name")
    if name in WITHOUT_COUNTERPART:
        why = WITHOUT_COUNTERPART[name]
        raise ValueError(f"_class_name = {name!r} is not supported: {why}")
    if name not in CLASSES:
        raise ValueError(f"_class_name = {name!r} is unknown; one of {sorted(CLASSES)}")
    kind = CLASSES[name]
    given = {key: config[key] for key in config if not key.startswith("_")}
    unknown = sorted(set(given) - set(kind.fields) - FOREIGN)
    if unknown:
        choices = sorted(kind.fields)
        raise ValueError(f"{name} has no field {unknown[0]!r}; one of {choices}")
    unused = tuple(
        sorted(set(given) & ((FOREIGN - set(kind.fields)) | set(kind.inert)))
    )
    used = [field for field in kind.fields if field not in kind.inert]
    fields = {field: given.get(field, kind.fields[field]) for field in used}
    fields["_class_name"] = name
    options = {"tokens": tokens} if kind.counts_tokens else {}
    made = kind.read(fields, **options)
    left = sorted(set(fields) - {"_class_name"})
    if left:
        raise ValueError(f"{name}: {left} are known but were not read")
    return made._replace(unused=unused)


# ---- the classes and their fields ---------------------------------------------------

_SPACED = dict(timestep_spacing="leading", steps_offset=0)
_OPEN = dict(timestep_spacing="linspace", steps_offset=0)
_PREDICTION = dict(prediction_type="epsilon")
_RESCALED = dict(rescale_betas_zero_snr=False)
# Not declared, but looked for: `CURVES` has sigma_min and sigma_max, and pipelines
# compute the shift of these from four fields that only the flow classes declare.
_SEQUENCE = dict(
    base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
)
_SHIFTED = FLOW_SIGMAS | _SEQUENCE
_SHIFTED |= dict(use_dynamic_shifting=False, time_shift_type="exponential")
_TABLE = BETAS | _PREDICTION
_IN_RATIO = _TABLE | _OPEN | CURVES
_KARRAS = _IN_RATIO | STABLE_DIFFUSION_ENDS
_SOLVER = dict(
    solver_order=2,
    algorithm_type="dpmsolver++",
    solver_type="midpoint",
    lower_order_final=True,
    euler_at_final=False,
)
_CLIPPED_LAMBDA = dict(lambda_min_clipped=-math.inf, variance_type=None)
_DDPM = _TABLE | _SPACED | CLIP | THRESHOLD | _RESCALED
_DDIM = _DDPM | dict(set_alpha_to_one=True)
_DDPM |= dict(variance_type="fixed_small")
_COGVIDEOX = _TABLE | _SPACED | CLIP | _RESCALED | STABLE_DIFFUSION_ENDS
_COGVIDEOX |= dict(
    beta_schedule="scaled_linear",
    set_alpha_to_one=True,
    sample_max_value=1.0,
    snr_shift_scale=3.0,
)
_MULTISTEP = _TABLE | _OPEN | THRESHOLD | CURVES
_FEW_STEPS = _DDIM | STABLE_DIFFUSION_ENDS
_FEW_STEPS |= dict(
    beta_schedule="scaled_linear",
    original_inference_steps=50,
    clip_sample=False,
    timestep_scaling=10.0,
)
_EDM = _PREDICTION | dict(
    sigma_min=0.002,
    sigma_max=80.0,
    sigma_data=0.5,
    sigma_schedule="karras",
    num_train_timesteps=1000,
    rho=7.0,
    final_sigmas_type="zero",
)
_FLOW = dict(num_train_timesteps=1000, shift=1.0)
_FLOW_MATCH = _FLOW | _SEQUENCE
_FLOW_MATCH |= {name: CURVES[name] for name in CURVES if name.startswith("use_")}
_FLOW_MATCH |= dict(
    use_dynamic_shifting=False,
    time_shift_type="exponential",
    invert_sigmas=False,
    shift_terminal=None,
)


def _in_ratio(sampler: Sampler, **options: Any) -> Callable[..., Recipe]:
    return functools.partial(
        scheduler_families.read_in_ratio, sampler=sampler, **options
    )


CLASSES = {
    "DDPMScheduler": Class(scheduler_families.read_ddpm, _DDPM),
    "DDPMParallelScheduler": Class(scheduler_families.read_ddpm, _DDPM),
    "DDIMScheduler": Class(scheduler_families.read_ddim, _DDIM),
    "DDIMParallelScheduler": Class(scheduler_families.read_ddim, _DDIM),
    "DDIMInverseScheduler": Class(
        scheduler_families.read_ddim_inverse,
        _TABLE | _SPACED | CLIP | _RESCALED | dict(set_alpha_to_one=True),
    ),
    "CogVideoXDDIMScheduler": Class(
        scheduler_families.read_cogvideox_ddim,
        _COGVIDEOX,
        inert=("clip_sample", "clip_sample_range", "sample_max_value"),
    ),
    "CogVideoXDPMScheduler": Class(
        scheduler_families.read_cogvideox_dpm,
        _COGVIDEOX,
        inert=("clip_sample", "clip_sample_range", "sample_max_value"),
    ),
    "UnCLIPScheduler": Class(
        scheduler_families.read_unclip,
        _PREDICTION
        | CLIP
        | dict(
            num_train_timesteps=1000,
            variance_type="fixed_small_log",
            beta_schedule="squaredcos_cap_v2",
        ),
    ),
    "PNDMScheduler": Class(
        scheduler_families.read_pndm,
        _TABLE | _SPACED | dict(skip_prk_steps=False, set_alpha_to_one=False),
    ),
    "RePaintScheduler": Class(
        scheduler_families.read_repaint, BETAS | dict(eta=0.0, clip_sample=True)
    ),
    "EulerDiscreteScheduler": Class(
        scheduler_families.read_euler,
        _IN_RATIO
        | _RESCALED
        | dict(
            interpolation_type="linear",
            timestep_type="discrete",
            final_sigmas_type="zero",
        ),
    ),
    "EulerAncestralDiscreteScheduler": Class(
        _in_ratio(ancestral.euler_ancestral), _TABLE | _OPEN | _RESCALED
    ),
    "HeunDiscreteScheduler": Class(
        _in_ratio(
            heun.heun,
            predictions=("epsilon", "sample", "v_prediction"),
            betas=("linear", "scaled_linear", "squaredcos_cap_v2", "exp"),
        ),
        _KARRAS | CLIP | dict(clip_sample=False),
    ),
    "LMSDiscreteScheduler": Class(
        _in_ratio(lms.lms, predictions=("epsilon", "sample", "v_prediction")), _IN_RATIO
    ),
    "KDPM2DiscreteScheduler": Class(_in_ratio(dpm2.dpm2, rounds_karras=True), _KARRAS),
    "KDPM2AncestralDiscreteScheduler": Class(
        _in_ratio(dpm2.dpm2_ancestral, rounds_karras=True), _KARRAS
    ),
    "DPMSolverSDEScheduler": Class(
        _in_ratio(dpmpp_sde.dpmpp_sde),
        _KARRAS | dict(noise_sampler_seed=None),
        inert=("noise_sampler_seed",),
    ),
    "DPMSolverMultistepScheduler": Class(
        scheduler_multistep.read_dpm_multistep,
        _MULTISTEP
        | _SOLVER
        | _SHIFTED
        | _CLIPPED_LAMBDA
        | _RESCALED
        | dict(use_lu_lambdas=False, final_sigmas_type="zero"),
        counts_tokens=True,
    ),
    "DPMSolverMultistepInverseScheduler": Class(
        scheduler_multistep.read_dpm_multistep_inverse,
        _MULTISTEP | _SOLVER | FLOW_SIGMAS | _CLIPPED_LAMBDA,
    ),
    "DPMSolverSinglestepScheduler": Class(
        scheduler_multistep.read_dpm_singlestep,
        {name: value for name, value in _MULTISTEP.items() if name not in _OPEN}
        | {name: value for name, value in _SOLVER.items() if name != "euler_at_final"}
        | _SHIFTED
        | _CLIPPED_LAMBDA
        | dict(lower_order_final=False, final_sigmas_type="zero"),
        counts_tokens=True,
    ),
    "UniPCMultistepScheduler": Class(
        scheduler_multistep.read_unipc,
        _MULTISTEP
        | _SHIFTED
        | _RESCALED
        | dict(
            solver_order=2,
            predict_x0=True,
            solver_type="bh2",
            lower_order_final=True,
            disable_corrector=(),
            solver_p=None,
            final_sigmas_type="zero",
            shift_terminal=None,
        ),
        counts_tokens=True,
    ),
    "DEISMultistepScheduler": Class(
        scheduler_multistep.read_deis,
        _MULTISTEP
        | _SHIFTED
        | dict(
            solver_order=2,
            algorithm_type="deis",
            solver_type="logrho",
            lower_order_final=True,
        ),
        counts_tokens=True,
    ),
    "SASolverScheduler": Class(
        scheduler_multistep.read_sa_solver,
        _MULTISTEP
        | FLOW_SIGMAS
        | _CLIPPED_LAMBDA
        | dict(
            predictor_order=2,
            corrector_order=2,
            tau_func=None,
            algorithm_type="data_prediction",
            lower_order_final=True,
        ),
    ),
    "EDMEulerScheduler": Class(
        functools.partial(scheduler_flows.read_edm, sampler=heun.euler), _EDM
    ),
    "EDMDPMSolverMultistepScheduler": Class(
        scheduler_multistep.read_edm_dpm, _EDM | _SOLVER | THRESHOLD
    ),
    "CosineDPMSolverMultistepScheduler": Class(
        scheduler_multistep.read_cosine_dpm,
        _EDM
        | {name: value for name, value in _SOLVER.items() if name != "algorithm_type"}
        | dict(
            sigma_min=0.3,
            sigma_max=500.0,
            sigma_data=1.0,
            sigma_schedule="exponential",
            prediction_type="v_prediction",
        ),
    ),
    "IPNDMScheduler": Class(
        scheduler_flows.read_ipndm, dict(num_train_timesteps=1000, trained_betas=None)
    ),
    "LCMScheduler": Class(
        scheduler_families.read_lcm,
        _FEW_STEPS,
        inert=("set_alpha_to_one", "steps_offset", "timestep_spacing"),
    ),
    "TCDScheduler": Class(
        scheduler_families.read_tcd,
        _FEW_STEPS,
        inert=(
            *("set_alpha_to_one", "steps_offset", "timestep_spacing"),
            *("timestep_scaling", *CLIP, *THRESHOLD),
        ),
    ),
    "CMStochasticIterativeScheduler": Class(
        scheduler_flows.read_consistency,
        dict(
            num_train_timesteps=40,
            sigma_min=0.002,
            sigma_max=80.0,
            sigma_data=0.5,
            s_noise=1.0,
            rho=7.0,
            clip_denoised=True,
        ),
    ),
    "FlowMatchEulerDiscreteScheduler": Class(
        functools.partial(scheduler_flows.read_flow, renewed=0.0),
        _FLOW_MATCH | dict(stochastic_sampling=False),
        counts_tokens=True,
    ),
    "FlowMatchHeunDiscreteScheduler": Class(scheduler_flows.read_flow_heun, _FLOW),
    "FlowMatchLCMScheduler": Class(
        scheduler_flows.read_flow_lcm,
        _FLOW_MATCH | dict(scale_factors=None, upscale_mode="bicubic"),
        inert=("upscale_mode",),
        counts_tokens=True,
    ),
}
UNDECLARED = ("sigma_min", "sigma_max", *_SEQUENCE)
FOREIGN = frozenset().union(*(kind.fields for kind in CLASSES.values()))

_TOKENS = "it samples discrete tokens"
WITHOUT_COUNTERPART = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "VQDiffusionScheduler": _TOKENS,
    "ConsistencyDecoderScheduler": "it belongs to one decoder and its two times",
    "DDPMWuerstchenScheduler": "its cosine is clamped at 1e-4 and bent by `scaler`",
    "FlowMapEulerDiscreteScheduler": "its network hears two times",
    "HeliosDMDScheduler": "it changes the resolution between stages",
    "HeliosScheduler": "it changes the resolution between stages",
    "KarrasVeScheduler": "its correction is a call of its own; take the sampler edm",
    "LTXEulerAncestralRFScheduler": "its noise is split in t, not in sigma / alpha",
    "MiniMaxH3Scheduler": "its velocity points to the data, and time is 1 - t",
    "PiflowScheduler": "its network predicts a policy for many steps",
    "RFD4ProteinaScheduler": "it steps proteins, with a score scale of its own",
    "SCMScheduler": "its times are arguments of a call, not in its config",
    "ScoreSdeVeScheduler": "its Langevin corrector is a call of its own",
    "ScoreSdeVpScheduler": "Euler-Maruyama in time; take the sampler ddpm",
}
