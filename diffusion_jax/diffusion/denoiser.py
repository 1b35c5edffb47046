"""Denoisers: (x, level) -> Prediction, made from a network and from one another."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.diffusion import parameterization, process
from diffusion_jax.diffusion.parameterization import Parameterization
from diffusion_jax.diffusion.process import NoiseLevel, Prediction, Real
from diffusion_jax.types import Conditioning, Network

Denoiser = Callable[[Float[Array, "B *d"], NoiseLevel], Prediction]
ConditionalDenoiser = Callable[
    [Float[Array, "B *d"], NoiseLevel, Conditioning], Prediction
]


def from_network(
    network: Network, p: Parameterization, *, learned_variance: bool = False
) -> ConditionalDenoiser:
    """Read a network's output as p says; `level` is one for all or one per example.

    With `learned_variance` the last axis is twice as long and its second half is
    handed on as it is. Whatever the network computes in, the prediction is float32.
    """

    def denoise(
        x: Float[Array, "B *d"], level: NoiseLevel, cond: Conditioning
    ) -> Prediction:
        scaled = process.align(p.input_scale(level), x) * x
        output = network(scaled, jnp.broadcast_to(level.time, x.shape[:1]), cond)
        output = output.astype(jnp.promote_types(x.dtype, jnp.float32))
        channels = x.shape[-1] * (2 if learned_variance else 1)
        if output.shape != (*x.shape[:-1], channels):
            raise ValueError(
                f"the network maps {x.shape} to {output.shape}, expected "
                f"{channels} channels with learned_variance={learned_variance}"
            )
        if not learned_variance:
            return parameterization.read(p, output, x, level)
        output, variance = jnp.split(output, 2, axis=-1)
        return parameterization.read(p, output, x, level)._replace(variance=variance)

    return denoise


def clipped(denoise: Denoiser, bound: Real = 1) -> Denoiser:
    """Keep x0 within [-bound, bound]; eps is derived again from the clipped x0."""

    def clipped_denoise(x: Float[Array, "B *d"], level: NoiseLevel) -> Prediction:
        pred = denoise(x, level)
        x0 = jnp.clip(pred.x0, -bound, bound)
        return process.from_x0(x, x0, level, pred.variance)

    return clipped_denoise
