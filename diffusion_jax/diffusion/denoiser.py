"""Denoisers: (x, level) -> Prediction, made from a network and from one another."""

from __future__ import annotations

import math
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


# ---- denoisers that change x0 --------------------------------------------------------

# Of each, `rederive_eps` says whether eps follows the changed x0, so that they still
# make up x, or stays what the network said: `use_clipped_model_output` of the DDIM and
# DDPM code that others compare with.


def clipped(
    denoise: Denoiser,
    bound: Real | Float[Array, ""] = 1,
    *,
    rederive_eps: bool = True,
) -> Denoiser:
    """Keep x0 within [-bound, bound]."""

    def clipped_denoise(x: Float[Array, "B *d"], level: NoiseLevel) -> Prediction:
        pred = denoise(x, level)
        x0 = jnp.clip(pred.x0, -bound, bound)
        return _with_x0(pred, x0, x, level, rederive_eps)

    return clipped_denoise


def thresholded(
    denoise: Denoiser,
    *,
    quantile: Real | Float[Array, ""] = 0.995,
    largest: Real | Float[Array, ""] = math.inf,
    rederive_eps: bool = True,
) -> Denoiser:
    """Dynamic thresholding (Saharia et al., 2022, section 2.3; arXiv:2205.11487).

    x0 is clipped to [-s, s] and divided by s, where s is that quantile of |x0| in each
    example, no less than 1 and no more than `largest`. For data in [-1, 1].
    """

    def thresholded_denoise(x: Float[Array, "B *d"], level: NoiseLevel) -> Prediction:
        pred = denoise(x, level)
        magnitudes = jnp.abs(pred.x0).reshape(len(x), -1)
        s = jnp.clip(jnp.quantile(magnitudes, quantile, axis=1), 1, largest)
        s = process.align(s, x)
        return _with_x0(pred, jnp.clip(pred.x0, -s, s) / s, x, level, rederive_eps)

    return thresholded_denoise


def inpainted(
    denoise: Denoiser,
    known: Float[Array, "B *d"],
    mask: Float[Array, "..."],
    *,
    rederive_eps: bool = True,
) -> Denoiser:
    """Replace x0 by what is known of it, where `mask` is 1; 0 leaves it alone.

    With DDIM and `rederive_eps` the sample ends exactly on what is known. `mask`
    broadcasts against x.
    """

    def inpainted_denoise(x: Float[Array, "B *d"], level: NoiseLevel) -> Prediction:
        pred = denoise(x, level)
        x0 = mask * known + (1 - mask) * pred.x0
        return _with_x0(pred, x0, x, level, rederive_eps)

    return inpainted_denoise


def blended(
    denoise: Denoiser,
    known: Float[Array, "B *d"],
    mask: Float[Array, "..."],
    noise: Float[Array, "B *d"],
) -> Denoiser:
    """Paint around what is known (Avrahami et al., 2022, arXiv:2206.02779, alg. 1).

    Where `mask` is 1, the network sees `known` with `noise` on it, and that is what is
    predicted there; 0 leaves both alone. `mask` broadcasts against x. A deterministic
    sampler keeps to add_noise(known, noise, level) there, and ends on `known`.
    """

    def blended_denoise(x: Float[Array, "B *d"], level: NoiseLevel) -> Prediction:
        seen = mask * process.add_noise(known, noise, level) + (1 - mask) * x
        pred = denoise(seen, level)
        x0 = mask * known + (1 - mask) * pred.x0
        eps = mask * noise + (1 - mask) * pred.eps
        return pred._replace(x0=x0, eps=eps)

    return blended_denoise


CLIPPINGS = {"static": clipped, "dynamic": thresholded}


def _with_x0(
    pred: Prediction,
    x0: Float[Array, "B *d"],
    x: Float[Array, "B *d"],
    level: NoiseLevel,
    rederive_eps: bool,
) -> Prediction:
    if rederive_eps:
        return process.from_x0(x, x0, level, pred.variance)
    return pred._replace(x0=x0)
