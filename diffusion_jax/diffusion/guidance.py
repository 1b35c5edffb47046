"""Guidance: from a conditional denoiser to a denoiser that exaggerates its condition."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.diffusion import process
from diffusion_jax.diffusion.denoiser import ConditionalDenoiser, Denoiser
from diffusion_jax.diffusion.process import NoiseLevel, Prediction, Real
from diffusion_jax.types import Conditioning


def classifier_free(
    denoise: ConditionalDenoiser,
    cond: Conditioning,
    null: Conditioning,
    scale: Real | Float[Array, "*b"],
) -> Denoiser:
    """null + scale * (cond - null) (Ho and Salimans, 2022, eq. 6; arXiv:2207.12598).

    In the convention of Stable Diffusion: 1 is the conditional model, 0 the
    unconditional one (the paper's w is scale - 1). `scale` may be traced and may be one
    number per example; `null` may have batch 1. The network runs once, on the doubled
    batch [null, cond]. x0 and eps are both extrapolated, so x = alpha * x0 + sigma * eps
    still holds; a learned variance is that of the condition.
    """

    def guided(x: Float[Array, "B *d"], level: NoiseLevel) -> Prediction:
        both = _stack(null, cond, len(x))
        # A level per example is doubled with the batch; one for all stays as it is.
        doubled = jax.tree.map(lambda a: jnp.tile(a, 2) if a.ndim else a, level)
        pred = denoise(jnp.concatenate([x, x]), doubled, both)
        by_example = process.align(jnp.asarray(scale, pred.x0.dtype), x)

        def extrapolate(halves: Float[Array, "B2 *d"]) -> Float[Array, "B *d"]:
            without, given = jnp.split(halves, 2)
            # Exactly `given` at scale 1.
            return given + (by_example - 1) * (given - without)

        variance = None if pred.variance is None else pred.variance[len(x) :]
        return Prediction(extrapolate(pred.x0), extrapolate(pred.eps), variance)

    return guided


def _stack(null: Conditioning, cond: Conditioning, batch: int) -> Conditioning:
    """The conditioning of the doubled batch, both halves broadcast to `batch`."""
    fields = {}
    for name, without, given in zip(Conditioning._fields, null, cond):
        if (without is None) != (given is None):
            raise ValueError(f"cond and null must both have {name!r}, or neither")
        if given is None:
            continue
        if without.shape[1:] != given.shape[1:]:
            shapes = f"{given.shape} and {without.shape}"
            raise ValueError(f"cond and null differ in the shape of {name!r}: {shapes}")
        halves = [jnp.broadcast_to(a, (batch, *a.shape[1:])) for a in (without, given)]
        fields[name] = jnp.concatenate(halves)
    return Conditioning(**fields)
