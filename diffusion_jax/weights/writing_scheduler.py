"""A schedule and what the network predicts, as a scheduler_config.json of diffusers.

Its classes know tables of betas that the network hears as 0, 1, 2, ... A continuous
schedule with alpha**2 + sigma**2 = 1 becomes the table of its levels at the times that
the network hears as those numbers, the first of them (no noise at all) excepted: it is
the level at half a step. A rectified flow has a class of its own.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion import schedules
from diffusion_jax.diffusion.schedules import Schedule
from diffusion_jax.weights.scheduler_fields import BETA_SCHEDULES

PREDICTIONS = {
    "eps": "epsilon",
    "v": "v_prediction",
    "x0": "sample",
    "flow": "flow_prediction",
}
SPACINGS = ("leading", "trailing", "linspace")
MOST_STEPS = 1000
LEAST_STEPS = 10  # fewer numbers heard than that are times in [0, 1]


def scheduler_config(
    schedule: Schedule, parameterization: str, *, grid: str = "trailing"
) -> dict[str, Any]:
    """The config of DDIM, or for a rectified flow of DPM-Solver++.

    `grid` is kept where diffusers has it, else it is "trailing". Raises for what no
    class of diffusers can say.
    """
    if parameterization not in PREDICTIONS:
        raise ValueError(
            f"diffusers has no scheduler for the parameterization {parameterization!r}; "
            f"one of {sorted(PREDICTIONS)}"
        )
    prediction = PREDICTIONS[parameterization]
    spacing = grid if grid in SPACINGS else "trailing"
    if isinstance(schedule, schedules.WholeTimes):
        schedule = schedule.wrapped  # a way to sample, not to train
    if isinstance(schedule, schedules.RectifiedFlow):
        return _flow(schedule, prediction, spacing)
    if prediction == "flow_prediction":
        raise ValueError(
            f"diffusers predicts a flow in rectified flows, not {schedule}"
        )
    is_rescaled = isinstance(schedule, schedules.ZeroTerminalSNR)
    return {
        "_class_name": "DDIMScheduler",
        **_betas(schedule.wrapped if is_rescaled else schedule),
        "rescale_betas_zero_snr": is_rescaled,
        "prediction_type": prediction,
        "timestep_spacing": spacing,
        "set_alpha_to_one": spacing != "leading",
        "steps_offset": 1,  # without which pipelines warn; of "leading" only
        "clip_sample": False,
    }


def _flow(schedule: Schedule, prediction: str, spacing: str) -> dict[str, Any]:
    if prediction != "flow_prediction" or schedule.time_scale != MOST_STEPS:
        raise ValueError(
            f"diffusers knows rectified flows of which the network predicts the flow and "
            f"hears {MOST_STEPS} t, not {schedule} and {prediction!r}"
        )
    return {
        "_class_name": "DPMSolverMultistepScheduler",
        "num_train_timesteps": MOST_STEPS,
        "prediction_type": prediction,
        "timestep_spacing": spacing,
        "use_flow_sigmas": True,
        "flow_shift": 1.0,
    }


def _betas(schedule: Schedule) -> dict[str, Any]:
    is_named = isinstance(schedule, schedules.Discrete)
    if is_named and schedule.trained_betas is None:
        names = {ours: theirs for theirs, ours in BETA_SCHEDULES.items()}
        return {
            "beta_schedule": names[schedule.betas],
            "beta_start": float(schedule.beta_start),
            "beta_end": float(schedule.beta_end),
            "num_train_timesteps": schedule.num_steps,
            "trained_betas": None,
        }
    if is_named:
        betas = schedule.trained_betas
    elif schedule.num_steps is not None:
        betas = _from_log_ratios(schedule.log_ratios)
    else:
        betas = _from_times(schedule)
    return {
        "beta_schedule": "linear",
        "num_train_timesteps": len(betas),
        "trained_betas": [float(beta) for beta in betas],
    }


def _from_log_ratios(log_ratios: np.ndarray) -> np.ndarray:
    noise = 1 / (1 + np.exp(-2 * log_ratios))  # sigma**2
    before = np.concatenate([[0.0], noise[:-1]])
    return (noise - before) / (1 - before)


def _from_times(schedule: Schedule) -> np.ndarray:
    scale = float(schedule(jnp.asarray(schedule.t_max)).time) / schedule.t_max
    number = min(MOST_STEPS, int(np.floor(scale * schedule.t_max + 1e-3)) + 1)
    heard = np.arange(number, dtype=np.float64)
    heard[0] = 0.5
    level = schedule(jnp.asarray(heard / scale, jnp.float32))
    alpha, sigma, time = (np.asarray(part, np.float64) for part in level)
    is_preserving = np.allclose(alpha**2 + sigma**2, 1, atol=1e-5)
    if number < LEAST_STEPS or not is_preserving or not np.allclose(time, heard):
        raise ValueError(
            "diffusers has schedules with alpha**2 + sigma**2 = 1 that the network hears "
            f"as 0, 1, 2, ... up to {MOST_STEPS}, not {schedule}"
        )
    return _from_log_ratios(np.log(sigma) - np.log(alpha))
