"""How near the image embeddings that a prior draws are to what they should be near to.

What users of priors watch (arXiv:2204.06125 has no such table): a prior in the wrong
scale, or one that ignores its caption, still has a falling loss, but not these cosines.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.evaluation.retrieval import unit_vectors

Embeddings = Float[Array | np.ndarray, "_ _"]  # rows; checked to be as many


class PriorCosines(NamedTuple):
    """Means over a set; a prior that works has `image` above the three behind `text`."""

    image: float  # of the drawn embedding to the caption's true image
    text: float  # of the drawn embedding to the caption's text embedding
    unrelated: float  # of the drawn embedding to another caption's image
    text_baseline: float  # of the text embedding, taken for a draw, to the true image
    mean_baseline: float  # of the mean embedding, taken for a draw, to the true image


def prior_cosines(
    drawn: Embeddings,
    image_embed: Embeddings,
    text_embed: Embeddings,
    mean: Float[Array | np.ndarray, "P"],
) -> PriorCosines:
    """Row i of all belongs to one caption; another caption's image is the next row's.

    `mean` is that of the training images' embeddings.
    """
    shapes = {np.shape(a) for a in (drawn, image_embed, text_embed)}
    if len(shapes) != 1 or len(drawn) < 2:
        raise ValueError(f"embeddings of shapes {sorted(shapes)}; two rows at least")
    if np.shape(mean) != np.shape(drawn)[1:]:
        raise ValueError(
            f"a mean of shape {np.shape(mean)} of embeddings of {np.shape(drawn)}"
        )
    drawn, image, text = map(unit_vectors, (drawn, image_embed, text_embed))
    centre = unit_vectors(np.asarray(mean)[None])

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sum(a * b, axis=1).mean())

    return PriorCosines(
        image=cosine(drawn, image),
        text=cosine(drawn, text),
        unrelated=cosine(drawn, np.roll(image, -1, axis=0)),
        text_baseline=cosine(text, image),
        mean_baseline=cosine(np.broadcast_to(centre, image.shape), image),
    )
