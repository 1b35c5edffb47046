"""The fields of a diffusers scheduler_config.json, in groups that many classes share.

A reader takes every field out of the dict; what is left at the end was not understood.
A value that has no counterpart here raises, and the error names the field.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from diffusion_jax.diffusion import denoiser, parameterization, schedules
from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.parameterization import Parameterization
from diffusion_jax.diffusion.schedules import Schedule
from diffusion_jax.weights import recipe

Fields = dict[str, Any]
Wrap = Callable[[Denoiser], Denoiser]

# What the classes of diffusers take a field to be that the file does not have.
BETAS = dict(
    num_train_timesteps=1000,
    beta_start=0.0001,
    beta_end=0.02,
    beta_schedule="linear",
    trained_betas=None,
)
STABLE_DIFFUSION_ENDS = dict(beta_start=0.00085, beta_end=0.012)
CLIP = dict(clip_sample=True, clip_sample_range=1.0)
THRESHOLD = dict(
    thresholding=False, dynamic_thresholding_ratio=0.995, sample_max_value=1.0
)
# The classes that convert sigmas also look for the last two, which few of them declare.
CURVES = dict(
    use_karras_sigmas=False,
    use_exponential_sigmas=False,
    use_beta_sigmas=False,
    sigma_min=None,
    sigma_max=None,
)
FLOW_SIGMAS = dict(use_flow_sigmas=False, flow_shift=1.0)

BETA_SCHEDULES = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
    "sigmoid": "sigmoid",
    "laplace": "laplace",
    "exp": "exp",
}
USUAL_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTIONS = {
    "epsilon": parameterization.eps,
    "sample": parameterization.x0,
    "v_prediction": parameterization.v,
    "flow_prediction": parameterization.flow,
}


def unsupported(
    fields: Fields, name: str, value: Any, choices: Collection
) -> Exception:
    """The error that names the class, the field and what it may be."""
    kind = fields.get("_class_name", "the scheduler")
    return ValueError(
        f"{kind}: {name} = {value!r} is not supported; one of {sorted(choices, key=str)}"
    )


def choose(fields: Fields, name: str, choices: Mapping[str, Any]) -> Any:
    """What the field's value stands for."""
    value = fields.pop(name)
    if value not in choices:
        raise unsupported(fields, name, value, choices)
    return choices[value]


def require(fields: Fields, name: str, *supported: Any) -> Any:
    """The field's value, which must be one of these."""
    value = fields.pop(name)
    if value not in supported:
        raise unsupported(fields, name, value, supported)
    return value


def schedule(
    fields: Fields,
    betas: Collection[str] = USUAL_BETAS,
    *,
    terminal_alpha2: float = 0.0,
) -> Schedule:
    """The table of betas; `terminal_alpha2` stands for a last alpha**2 rescaled to 0."""
    num_steps = fields.pop("num_train_timesteps")
    ends = dict(beta_start=fields.pop("beta_start"), beta_end=fields.pop("beta_end"))
    trained = fields.pop("trained_betas")
    name = choose(
        fields, "beta_schedule", {name: BETA_SCHEDULES[name] for name in betas}
    )
    if trained is not None:
        made = schedules.Discrete(trained_betas=tuple(trained), num_steps=len(trained))
    else:
        made = schedules.Discrete(betas=name, num_steps=num_steps, **ends)
    if fields.pop("rescale_betas_zero_snr", False):
        return schedules.ZeroTerminalSNR(made, terminal_alpha2=terminal_alpha2)
    return made


def prediction(fields: Fields, *names: str) -> Parameterization:
    """The parameterization, where the class has these."""
    choices = {name: PREDICTIONS[name] for name in names}
    return choose(fields, "prediction_type", choices)()


def clipping(fields: Fields, *, rederive_eps: bool = True) -> Wrap:
    """Clipping or dynamic thresholding of x0, where the class has them."""
    is_clipped = fields.pop("clip_sample", False)
    bound = fields.pop("clip_sample_range", 1.0)
    is_thresholded = fields.pop("thresholding", False)
    quantile = fields.pop("dynamic_thresholding_ratio", 0.995)
    largest = fields.pop("sample_max_value", 1.0)
    if is_thresholded:  # wins over clipping, as there
        return functools.partial(
            denoiser.thresholded,
            quantile=quantile,
            largest=largest,
            rederive_eps=rederive_eps,
        )
    if is_clipped:
        return functools.partial(
            denoiser.clipped, bound=bound, rederive_eps=rederive_eps
        )
    return recipe.kept


def betas_of_snr(table: Schedule, scale: float) -> tuple[float, ...]:
    """The betas of a table whose snr is that of another one divided by `scale`."""
    alpha2 = 1 / (1 + scale * np.exp(2 * table.log_ratios))
    return tuple(1 - alpha2 / np.concatenate([[1.0], alpha2[:-1]]))
