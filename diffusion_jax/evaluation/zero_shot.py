"""Zero-shot classification, retrieval and ranking by a joint embedding of both kinds.

Radford et al. (2021, arXiv:2103.00020, section 3.1): a class is the mean of the unit
embeddings of its prompts, scaled to unit length; probabilities are the softmax of the
scaled cosines. Networks stay outside: everything here is of embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax.evaluation.retrieval import unit_vectors

# A prompt for every class in turn; "{}" is where its name goes.
TEMPLATES = ("a photo of a {}.",)

# Widths are checked by name: two that differ are of two models.
Images = Float[Array | np.ndarray, "N _"]
Texts = Float[Array | np.ndarray, "T _"]
Queries = Float[Array | np.ndarray, "Q _"]
Candidates = Float[Array | np.ndarray, "C _"]


class Ranked(NamedTuple):
    """Candidates, the likeliest first."""

    order: list[int]  # which candidate
    probabilities: list[float]  # in this order; they sum to 1


class Recall(NamedTuple):
    """How often the right one is among the k nearest, by k."""

    image_to_text: dict[int, float]
    text_to_image: dict[int, float]


def prompts(names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> list[str]:
    """Every class in every template: those of the first class first."""
    if not names or not templates:
        raise ValueError(f"{len(names)} classes in {len(templates)} templates")
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"the template {template!r} has no {{}} for the class")
    return [template.replace("{}", name) for name in names for template in templates]


def class_vectors(
    prompt_embeddings: Texts, num_templates: int
) -> Float[np.ndarray, "C E"]:
    """A unit vector for every class, of what `prompts` made of it."""
    vectors = unit_vectors(prompt_embeddings)
    if num_templates < 1 or len(vectors) % num_templates:
        raise ValueError(f"{len(vectors)} prompts in {num_templates} templates")
    grouped = vectors.reshape(-1, num_templates, vectors.shape[1])
    return unit_vectors(grouped.mean(axis=1))


def probabilities(
    queries: Queries, candidates: Candidates, scale: float = 100.0
) -> Float[np.ndarray, "Q C"]:
    """Of every candidate for every query; `scale` is CLIP's learned one."""
    check_widths(queries, candidates)
    logits = scale * unit_vectors(queries) @ unit_vectors(candidates).T
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def rank(
    query: Float[Array | np.ndarray, "_"], candidates: Candidates, scale: float = 100.0
) -> Ranked:
    """Captions for an image, or images for a caption; equals stay in their order."""
    shares = probabilities(np.asarray(query)[None], candidates, scale)[0]
    order = np.argsort(-shares, kind="stable")
    return Ranked(order.tolist(), shares[order].tolist())


def accuracy(
    images: Images,
    classes: Candidates,
    labels: Int[Array | np.ndarray, "N"] | Sequence[int],
    ks: Sequence[int] = (1, 5),
) -> dict[int, float]:
    """How often the right class is among the k nearest, for every k."""
    labels = np.asarray(labels)
    if labels.shape != (len(images),):
        raise ValueError(f"{len(images)} images, labels of shape {labels.shape}")
    if labels.size and not 0 <= labels.min() <= labels.max() < len(classes):
        raise ValueError(
            f"labels {labels.min()}..{labels.max()} of {len(classes)} classes"
        )
    is_right = np.arange(len(classes)) == labels[:, None]
    return _among_nearest(_cosines(images, classes), is_right, ks)


def recall(
    images: Images,
    texts: Texts,
    owners: Int[Array | np.ndarray, "T"] | Sequence[int] | None = None,
    ks: Sequence[int] = (1, 5, 10),
) -> Recall:
    """Recall@k in both directions; `owners[j]` is the image of text j, else image j.

    An image with several captions counts as found by the first of them that is near.
    """
    owners = np.arange(len(texts)) if owners is None else np.asarray(owners)
    if owners.shape != (len(texts),):
        raise ValueError(f"{len(texts)} texts, owners of shape {owners.shape}")
    missing = np.setdiff1d(np.arange(len(images)), owners)
    if missing.size or np.setdiff1d(owners, np.arange(len(images))).size:
        raise ValueError(f"{len(images)} images and {len(texts)} texts are not paired")
    is_right = np.arange(len(images))[:, None] == owners
    cosines = _cosines(images, texts)
    return Recall(
        _among_nearest(cosines, is_right, ks),
        _among_nearest(cosines.T, is_right.T, ks),
    )


def check_widths(queries: Queries, candidates: Candidates) -> None:
    """Raises unless both are of one space."""
    if np.shape(queries)[1] != np.shape(candidates)[1]:
        raise ValueError(
            f"embeddings of width {np.shape(queries)[1]} and {np.shape(candidates)[1]}"
        )


def _cosines(queries: Queries, candidates: Candidates) -> np.ndarray:
    check_widths(queries, candidates)
    return unit_vectors(queries) @ unit_vectors(candidates).T


def _among_nearest(
    cosines: np.ndarray, is_right: np.ndarray, ks: Sequence[int]
) -> dict[int, float]:
    """For every k, the share of rows with a right one among the k largest."""
    if min(ks) < 1:
        raise ValueError(f"the {min(ks)} nearest; at least 1")
    order = np.argsort(-cosines, axis=1, kind="stable")
    in_order = np.take_along_axis(is_right, order, axis=1)
    return {k: float(in_order[:, :k].any(axis=1).mean()) for k in ks}
