"""Can each image find its caption among N by cosine similarity, and each caption its image?

The zero-shot matching of Radford et al. (2021, arXiv:2103.00020), in groups of N pairs,
so that the score does not depend on the size of the test set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

GROUP_SIZE = 64  # captions to choose from


class Retrieval(NamedTuple):
    image_to_text: float  # share of images whose nearest caption is right
    text_to_image: float
    chance: float  # what random embeddings would get: 1/N where captions differ
    num_groups: int


def retrieval_accuracy(
    image_embeddings: Float[Array | np.ndarray, "N E"],
    text_embeddings: Float[Array | np.ndarray, "N E"],
    captions: Sequence[str] | Sequence[int] | Int[Array | np.ndarray, "N"],
    *,
    group_size: int = GROUP_SIZE,
    is_true: Callable[[int, int], bool] | None = None,
) -> Retrieval:
    """Top-1 accuracy in both directions over groups of consecutive pairs.

    Pairs whose captions (texts or ids) are equal count as right for each other; with
    `is_true(image, caption)`, so does every chosen caption that is true of the image.
    Shuffle pairs that are in an order; those after the last whole group are left out.
    """
    count = len(captions)
    if not len(image_embeddings) == len(text_embeddings) == count:
        raise ValueError(
            f"{len(image_embeddings)} images, {len(text_embeddings)} texts and "
            f"{count} captions are not pairs"
        )
    num_groups = count // group_size if group_size > 0 else 0
    if num_groups == 0:
        raise ValueError(f"{count} pairs do not fill a group of {group_size}")
    grouped = num_groups, group_size
    used = num_groups * group_size
    images = unit_vectors(image_embeddings)[:used].reshape(*grouped, -1)
    texts = unit_vectors(text_embeddings)[:used].reshape(*grouped, -1)
    _, ids = np.unique(np.asarray(captions), return_inverse=True)
    ids = ids[:used].reshape(grouped)
    similarity = images @ texts.swapaxes(1, 2)
    first_of_group = np.arange(0, used, group_size)[:, None]
    chosen_texts = (similarity.argmax(axis=2) + first_of_group).ravel().tolist()
    chosen_images = (similarity.argmax(axis=1) + first_of_group).ravel().tolist()

    def is_right(image: int, text: int) -> bool:
        if ids.flat[image] == ids.flat[text]:
            return True
        return is_true is not None and bool(is_true(image, text))

    return Retrieval(
        image_to_text=float(np.mean([is_right(*p) for p in enumerate(chosen_texts)])),
        text_to_image=float(
            np.mean([is_right(i, text) for text, i in enumerate(chosen_images)])
        ),
        chance=float(np.mean(ids[:, :, None] == ids[:, None, :])),
        num_groups=num_groups,
    )


def unit_vectors(
    embeddings: Float[Array | np.ndarray, "N E"],
) -> Float[np.ndarray, "N E"]:
    """Rows of length one, in float64; an embedding without a direction is an error."""
    vectors = np.asarray(embeddings, np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    aimless = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if aimless.size:
        raise ValueError(f"embedding {aimless[0]} is zero or not finite")
    return vectors / lengths
