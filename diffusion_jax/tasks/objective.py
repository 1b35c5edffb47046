"""What a diffusion network is trained to predict, whatever it is a network of."""

from __future__ import annotations

from typing import NamedTuple

from diffusion_jax.diffusion import (
    losses,
    parameterization,
    schedules,
    time_samplers,
    weightings,
)


class Objective(NamedTuple):
    """What the network is trained to predict, at which times, with which loss.

    values, metrics = objective.loss(key, network, *objective[:-1], x0, cond)
    """

    schedule: schedules.Schedule
    parameterization: parameterization.Parameterization
    weighting: weightings.Weighting
    sample_times: time_samplers.TimeSampler
    loss: losses.Loss = losses.diffusion_loss
