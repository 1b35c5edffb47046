"""What a diffusion network is trained to predict, whatever it is a network of."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Array, Float

from diffusion_jax.diffusion import (
    losses,
    parameterization,
    schedules,
    time_samplers,
    weightings,
)
from diffusion_jax.types import Conditioning, Key, Metrics, Network


class Objective(NamedTuple):
    """What the network is trained to predict, at which times, with which loss."""

    schedule: schedules.Schedule
    parameterization: parameterization.Parameterization
    weighting: weightings.Weighting
    sample_times: time_samplers.TimeSampler
    loss: losses.Loss = losses.diffusion_loss

    def of_batch(
        self,
        key: Key,
        network: Network,
        x0: Float[Array, "B *d"],
        cond: Conditioning,
        **options: Any,
    ) -> tuple[Float[Array, ""], Metrics]:
        """The mean loss of a batch, and its metrics beside that; `options` of `loss`."""
        values, metrics = self.loss(key, network, *self[:-1], x0, cond, **options)
        return values.mean(), {k: v for k, v in metrics.items() if k != "loss"}
