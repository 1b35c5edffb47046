"""CLIP image embeddings as a short sequence of integers, for the autoregressive prior.

Ramesh et al. (2022, arXiv:2204.06125, section 2.2): principal components in the order of
their variance, of which 319 of 1024 lose less than 1 % of it, each cut into 1024 buckets.

The buckets of a component are equally wide, from the least to the largest value in the
data that `fit` saw; what lies outside falls into the first or last. So no value inside
is off by more than half a bucket, however few embeddings there are, where buckets of
equal mass would be wide in the tails. The dot product with the text embedding has
buckets of equal mass: the top half of its distribution is the upper half of its buckets.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax.types import Params

NOTHING = 1e-12  # share of the first variance that rounding leaves of none


def fit(
    image_embed: Float[Array | np.ndarray, "N P"],
    text_embed: Float[Array | np.ndarray, "M P"],
    *,
    num_dims: int | None = None,
    explained: float = 0.99,
    num_buckets: int = 1024,
    num_dot_buckets: int = 100,
) -> Params:
    """params["codes"] of pairs of the data; on the host, in float64.

    As many components K as explain that share of the variance around the mean, unless
    `num_dims` is given. How many there are of all is in the shapes: mean [P],
    axes [P, K], centres [num_buckets, K], dot_edges [num_dot_buckets - 1].
    """
    if num_buckets < 2 or num_dot_buckets < 1:
        raise ValueError(
            f"num_buckets={num_buckets}, num_dot_buckets={num_dot_buckets}; "
            "2 and 1 at least"
        )
    if len(image_embed) != len(text_embed) or len(image_embed) < 2:
        raise ValueError(
            f"codes of {len(image_embed)} images and {len(text_embed)} texts; "
            "they must be pairs, and 2 at least"
        )
    if not 0 < explained <= 1:
        raise ValueError(f"explained={explained}; a share of the variance in (0, 1]")
    z = np.asarray(image_embed, np.float64)
    mean = z.mean(axis=0)
    variances, axes = principal_components(z)
    if num_dims is None:
        num_dims = num_explaining(variances, explained)
    if not 1 <= num_dims <= len(variances):
        raise ValueError(f"num_dims={num_dims} of embeddings of {len(variances)}")
    if variances[num_dims - 1] <= NOTHING * variances[0]:
        raise ValueError(
            f"num_dims={num_dims}: the last component of {len(z)} embeddings is 0; "
            "take fewer, or more embeddings"
        )
    axes = axes[:, :num_dims]
    values = (z - mean) @ axes
    low, high = values.min(axis=0), values.max(axis=0)
    width = np.maximum((high - low) / num_buckets, 1e-12)
    centres = low + width * (np.arange(num_buckets)[:, None] + 0.5)
    dots = np.sum(z * np.asarray(text_embed, np.float64), axis=1)
    shares = np.arange(1, num_dot_buckets) / num_dot_buckets
    arrays = {
        "mean": mean,
        "axes": axes,
        "centres": centres,
        "dot_edges": np.quantile(dots, shares),
    }
    return {name: jnp.asarray(a, "float32") for name, a in arrays.items()}


def principal_components(
    z: Float[np.ndarray, "N P"],
) -> tuple[Float[np.ndarray, "P"], Float[np.ndarray, "P P"]]:
    """Variances, largest first, and the directions in which they are, as columns."""
    centred = z - z.mean(axis=0)
    variances, axes = np.linalg.eigh(centred.T @ centred / len(z))
    return np.maximum(variances[::-1], 0), axes[:, ::-1]


def num_explaining(variances: Float[np.ndarray, "P"], explained: float) -> int:
    """How many of the largest variances make up that share of their sum."""
    total = variances.sum()
    if total == 0:
        raise ValueError("the embeddings are all the same; they have no components")
    shares = np.cumsum(variances) / total
    # The rounding of the sum must not ask for one more component than there is.
    return min(int(np.searchsorted(shares, explained - 1e-12)) + 1, len(variances))


def num_dims(codes: Params) -> int:
    """How many components `fit` kept."""
    return codes["axes"].shape[1]


def check(codes: Params, num_dims: int, num_buckets: int, num_dot_buckets: int) -> None:
    """Raises unless the codes are of these numbers, which a network was made for."""
    found = (*codes["centres"].shape[::-1], len(codes["dot_edges"]) + 1)
    wanted = (num_dims, num_buckets, num_dot_buckets)
    if found != wanted:
        raise ValueError(
            "codes of {} components, {} buckets and {} of dot products".format(*found)
            + "; the prior's: {}, {} and {}".format(*wanted)
        )


def project(codes: Params, embedding: Float[Array, "B P"]) -> Float[Array, "B K"]:
    """The components of embeddings."""
    width = len(codes["mean"])
    if embedding.shape[-1] != width:
        raise ValueError(
            f"embeddings of width {embedding.shape[-1]}; the codes are of {width}"
        )
    centred = embedding.astype(jnp.float32) - codes["mean"]
    return jnp.matmul(centred, codes["axes"], precision="highest")


def encode(codes: Params, embedding: Float[Array, "B P"]) -> Int[Array, "B K"]:
    """The bucket of every component."""
    first, width = codes["centres"][0], bucket_width(codes)
    nearest = jnp.round((project(codes, embedding) - first) / width)
    return jnp.clip(nearest, 0, len(codes["centres"]) - 1).astype(jnp.int32)


def decode(codes: Params, buckets: Int[Array, "B K"]) -> Float[Array, "B P"]:
    """The embedding whose components are the centres of those buckets."""
    values = jnp.take_along_axis(codes["centres"], buckets, axis=0)
    return codes["mean"] + jnp.matmul(values, codes["axes"].T, precision="highest")


def bucket_width(codes: Params) -> Float[Array, "K"]:
    """How wide the buckets of each component are."""
    centres = codes["centres"]
    return (centres[-1] - centres[0]) / (len(centres) - 1)


def dot_bucket(
    codes: Params, image_embed: Float[Array, "B P"], text_embed: Float[Array, "B P"]
) -> Int[Array, "B"]:
    """The bucket of the dot product of image and text, 0 for the least alike."""
    dots = jnp.sum(
        image_embed.astype(jnp.float32) * text_embed.astype(jnp.float32), axis=1
    )
    return jnp.searchsorted(codes["dot_edges"], dots, side="right").astype(jnp.int32)
