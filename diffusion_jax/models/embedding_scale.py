"""The scale in which a prior sees CLIP embeddings: x = (z - mean) / std, elementwise.

Ramesh et al. (2022, arXiv:2204.06125) multiply embeddings of unit norm by 17.2, which
gives each of 1024 numbers the spread of a pixel in [-1, 1], 0.54. At other widths
sqrt(width) is the factor that gives a spread of 1. The published Karlo, whose embeddings
have any norm, uses the mean and standard deviation of every number. A prior that is
told x in another scale than it was trained in fails silently, so the scale is a part of
its parameters.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.types import Params

SMALLEST = 1e-3  # standard deviation of a number, as a share of the mean of all


def paper(
    embeddings: Float[Array | np.ndarray, "N P"], *, factor: float = 17.2
) -> Params:
    """x = 17.2 z, whatever the embeddings are."""
    return _times(factor, embeddings)


def sqrt_dim(embeddings: Float[Array | np.ndarray, "N P"]) -> Params:
    """x = sqrt(P) z: embeddings of unit norm get numbers of mean square 1."""
    return _times(embeddings.shape[-1] ** 0.5, embeddings)


def statistics(embeddings: Float[Array | np.ndarray, "N P"]) -> Params:
    """Every number gets mean 0 and standard deviation 1 over the embeddings given.

    One that hardly varies is not blown up: see SMALLEST.
    """
    if len(embeddings) < 2:
        raise ValueError(f"statistics of {len(embeddings)} embeddings; it needs 2")
    embeddings = np.asarray(embeddings, np.float64)
    std = embeddings.std(axis=0)
    std = np.maximum(std, SMALLEST * std.mean())
    return _params(embeddings.mean(axis=0), std)


EMBEDDING_SCALES = {"paper": paper, "sqrt_dim": sqrt_dim, "statistics": statistics}


def standardize(scale: Params, embedding: Float[Array, "B P"]) -> Float[Array, "B P"]:
    """CLIP's embedding -> the prior's x; float32."""
    width = len(scale["mean"])
    if embedding.shape[-1] != width:
        raise ValueError(
            f"embeddings of width {embedding.shape[-1]}; their scale is of {width}"
        )
    return (embedding.astype(jnp.float32) - scale["mean"]) / scale["std"]


def restore(scale: Params, x: Float[Array, "B P"]) -> Float[Array, "B P"]:
    """The prior's x -> CLIP's embedding."""
    return x * scale["std"] + scale["mean"]


def _times(factor: float, embeddings: Float[Array | np.ndarray, "N P"]) -> Params:
    width = embeddings.shape[-1]
    return _params(np.zeros(width), np.full(width, 1 / factor))


def _params(mean: Float[np.ndarray, "P"], std: Float[np.ndarray, "P"]) -> Params:
    return {"mean": jnp.asarray(mean, "float32"), "std": jnp.asarray(std, "float32")}
