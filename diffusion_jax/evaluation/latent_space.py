"""Where captions and images lie in a joint embedding space: principal components, how
well neighbourhoods agree with an attribute, and a picture of the first two components.

PCA: with the singular value decomposition X - mean = U S V^T, the rows of V^T are the
components and X's coordinates are (X - mean) V (Pearson, 1901; Hotelling, 1933).
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from diffusion_jax.evaluation import figures, grids, retrieval

Embeddings = Float[Array | np.ndarray, "N E"]

LABEL_LETTERS, LABEL_LINES = 24, 4  # a longer caption ends in "..."
THUMBNAIL = 20  # points


class PCA(NamedTuple):
    mean: Float[np.ndarray, "E"]
    components: Float[np.ndarray, "K E"]  # orthonormal rows, largest variance first
    variance: Float[np.ndarray, "K"]  # along each component
    explained: Float[np.ndarray, "K"]  # its share of the total


def fit_pca(points: Embeddings, *, num_components: int | None = None) -> PCA:
    """Principal components of `points`, all of them unless a number is given.

    Signs, which the decomposition leaves open, make each component's largest entry
    positive.
    """
    points = np.asarray(points, np.float64)
    most = min(points.shape)
    num_components = most if num_components is None else num_components
    if not 1 <= num_components <= most:
        raise ValueError(
            f"{points.shape[0]} points in {points.shape[1]} dimensions have 1 to "
            f"{most} components, not {num_components}"
        )
    mean = points.mean(axis=0)
    _, stretch, rows = np.linalg.svd(points - mean, full_matrices=False)
    largest = np.abs(rows).argmax(axis=1)
    signs = np.where(rows[np.arange(len(rows)), largest] < 0, -1.0, 1.0)
    variance = stretch**2 / max(len(points) - 1, 1)
    total = variance.sum()
    return PCA(
        mean,
        (signs[:, None] * rows)[:num_components],
        variance[:num_components],
        (variance / (total if total > 0 else 1.0))[:num_components],
    )


def project(pca: PCA, points: Embeddings) -> Float[np.ndarray, "N K"]:
    return (np.asarray(points, np.float64) - pca.mean) @ pca.components.T


def reconstruct(
    pca: PCA, coordinates: Float[Array | np.ndarray, "N K"]
) -> Float[np.ndarray, "N E"]:
    """The points at these coordinates; undoes `project` if all components were kept."""
    return np.asarray(coordinates, np.float64) @ pca.components + pca.mean


class JointView(NamedTuple):
    images: Float[np.ndarray, "N 2"]
    texts: Float[np.ndarray, "N 2"]
    explained: Float[np.ndarray, "2"]


def joint_view(
    image_embeddings: Embeddings,
    text_embeddings: Embeddings,
    *,
    center_each: bool = True,
) -> JointView:
    """Images and texts on the first two principal components of both together.

    Contrastive training leaves the two modalities on separate sides of the sphere (Liang
    et al., 2022, arXiv:2203.02053), and this gap would be the first component. With
    `center_each` the mean of either is taken to the origin first.
    """
    images = retrieval.unit_vectors(image_embeddings)
    texts = retrieval.unit_vectors(text_embeddings)
    if center_each:
        images, texts = images - images.mean(axis=0), texts - texts.mean(axis=0)
    pca = fit_pca(np.concatenate([images, texts]), num_components=2)
    return JointView(project(pca, images), project(pca, texts), pca.explained)


class Agreement(NamedTuple):
    neighbours: float  # share of points whose nearest neighbour has their attribute
    chance: float  # what the share would be if neighbours were drawn at random
    distance_within: float  # mean cosine distance of pairs that share the attribute
    distance_between: float  # and of pairs that do not


def attribute_agreement(
    embeddings: Embeddings,
    attributes: Sequence[str],
    *,
    captions: Sequence[str] | None = None,
) -> Agreement:
    """Whether points with the same attribute lie close together.

    Pairs with equal captions are left out where captions are given, for equal texts have
    equal embeddings whatever the model has learned.
    """
    vectors = retrieval.unit_vectors(embeddings)
    count = len(vectors)
    captions = [str(i) for i in range(count)] if captions is None else captions
    if not len(attributes) == len(captions) == count:
        raise ValueError(
            f"{count} embeddings, but {len(attributes)} attributes and "
            f"{len(captions)} captions"
        )
    distance = 1 - vectors @ vectors.T
    is_pair = ~_equal_pairs(captions)
    shares = _equal_pairs(attributes) & is_pair
    differs = ~_equal_pairs(attributes) & is_pair
    if not shares.any() or not differs.any():
        raise ValueError("needs pairs that share an attribute and pairs that do not")
    has_neighbour = is_pair.any(axis=1)
    nearest = np.where(is_pair, distance, np.inf).argmin(axis=1)
    agrees = shares[np.arange(count), nearest][has_neighbour]
    share = shares.sum(axis=1)[has_neighbour] / is_pair.sum(axis=1)[has_neighbour]
    return Agreement(
        neighbours=float(agrees.mean()),
        chance=float(share.mean()),
        distance_within=float(distance[shares].mean()),
        distance_between=float(distance[differs].mean()),
    )


def _equal_pairs(labels: Sequence[str]) -> np.ndarray:
    _, ids = np.unique(np.asarray(labels), return_inverse=True)
    return ids[:, None] == ids[None, :]


def plot_latent_space(
    view: JointView,
    captions: Sequence[str],
    attributes: Sequence[str],
    out_png: str | os.PathLike[str],
    *,
    num_labels: int = 12,
    thumbnails: Float[Array | np.ndarray, "N H W 3"] | None = None,
    title: str = "Captions and images in the joint space",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Scatter of captions (diamonds) and images (dots) coloured by an attribute.

    A few captions are written out at the sides, where they cannot overlap. With
    `thumbnails`, images are shown in place of their dots wherever there is room.
    """
    if not len(captions) == len(attributes) == len(view.texts):
        raise ValueError(
            f"{len(view.texts)} points, but {len(captions)} captions and "
            f"{len(attributes)} attributes"
        )
    colours = figures.colours_of(attributes)
    point_colours = [colours[name] for name in attributes]
    figure = figures.new_figure(6.4)
    legend_rows = _add_legend(figure, colours)
    bottom = 0.06 + 0.035 * legend_rows
    axes = figure.add_axes((0.235, bottom, 0.53, 0.93 - bottom))
    axes.set_title(title, fontsize=12, color=figures.INK, parse_math=False)
    first, second = view.explained
    axes.set_xlabel(
        f"first two principal components: {first:.0%} and {second:.0%} of the variance",
        fontsize=9,
        color=figures.INK,
    )
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color(figures.PALE)
    axes.set_aspect("equal", adjustable="datalim")  # a distance is one in any direction
    edge = {"edgecolors": figures.INK, "linewidths": 0.3}
    axes.scatter(*view.images.T, s=12, c=point_colours, alpha=0.6, **edge)
    axes.scatter(*view.texts.T, s=26, c=point_colours, marker="D", zorder=3, **edge)
    if thumbnails is not None:
        _add_thumbnails(axes, view.images, grids.to_uint8(thumbnails), point_colours)
    chosen = _spread_over(view.texts, captions, attributes, num_labels)
    _add_labels(axes, view.texts, captions, point_colours, chosen)
    figures.save_figure(figure, out_png, metadata=metadata or {})


def _add_legend(figure: Figure, colours: Mapping[str, str]) -> int:
    """Returns the number of rows it takes."""

    def entry(label: str, marker: str, colour: str) -> Line2D:
        look = {"markeredgecolor": figures.INK, "markeredgewidth": 0.3}
        return Line2D(
            [], [], ls="", marker=marker, color=colour, label=label, ms=6, **look
        )

    handles = [entry("caption", "D", "white"), entry("image", "o", "white")]
    handles += [entry(name, "s", colour) for name, colour in colours.items()]
    longest = max(len(handle.get_label()) for handle in handles)
    columns = max(1, min(len(handles), 110 // (longest + 6)))
    legend = figure.legend(
        handles=handles,
        loc="lower center",
        ncols=columns,
        fontsize=9,
        frameon=False,
        labelcolor=figures.INK,
        handletextpad=0.1,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return -(-len(handles) // columns)


def _spread_over(
    points: Float[np.ndarray, "N 2"],
    captions: Sequence[str],
    attributes: Sequence[str],
    count: int,
) -> list[int]:
    """Indices of different captions, attributes in turn, far from those already chosen."""
    _, firsts = np.unique(np.asarray(captions), return_index=True)
    waiting = {name: [] for name in sorted(set(attributes))}
    for index in sorted(firsts.tolist()):
        waiting[attributes[index]].append(index)
    chosen: list[int] = []
    while len(chosen) < count and any(waiting.values()):
        for indices in [each for each in waiting.values() if each]:
            # The first of all is the one nearest to the middle of its kind.
            here = points[indices]
            near = points[chosen] if chosen else here.mean(axis=0, keepdims=True)
            gaps = np.linalg.norm(here[:, None] - near[None], axis=-1).min(axis=1)
            best = gaps.argmax() if chosen else gaps.argmin()
            chosen.append(indices.pop(int(best)))
    return chosen[:count]


def _add_labels(
    axes: Axes,
    points: Float[np.ndarray, "N 2"],
    captions: Sequence[str],
    colours: Sequence[str],
    chosen: Sequence[int],
) -> None:
    """Captions in a column at either side, in the order of their points' heights."""
    axes.scatter(
        *points[chosen].T,
        s=44,
        c=[colours[index] for index in chosen],
        marker="D",
        edgecolors=figures.INK,
        zorder=5,
    )
    by_x = sorted(chosen, key=lambda index: points[index, 0])
    half = len(by_x) // 2
    for side, column in ((0, by_x[:half]), (1, by_x[half:])):
        column = sorted(column, key=lambda index: points[index, 1])
        for slot, index in enumerate(column):
            lines = textwrap.wrap(captions[index], LABEL_LETTERS, max_lines=LABEL_LINES)
            axes.annotate(
                "\n".join(lines),
                xy=tuple(points[index]),
                xytext=(1.04 if side else -0.06, (slot + 0.5) / len(column)),
                textcoords="axes fraction",
                ha="left" if side else "right",
                va="center",
                fontsize=9,
                color=figures.INK,
                parse_math=False,
                arrowprops={
                    "arrowstyle": "-",
                    "color": figures.INK,
                    "linewidth": 0.6,
                    "alpha": 0.6,
                    "relpos": (0 if side else 1, 0.5),
                    "shrinkB": 3,
                },
            )


def _add_thumbnails(
    axes: Axes,
    points: Float[np.ndarray, "N 2"],
    pixels: np.ndarray,
    colours: Sequence[str],
) -> None:
    axes.apply_aspect()
    where = axes.transData.transform(points) * 72 / axes.figure.dpi  # in points
    taken: list[int] = []
    for index, centre in enumerate(where):
        # Squares overlap where both coordinates are nearer than their side.
        gaps = np.abs(where[taken] - centre).max(axis=1)
        if (gaps < THUMBNAIL + 5).any():
            continue
        taken.append(index)
        picture = OffsetImage(pixels[index], zoom=THUMBNAIL / pixels.shape[2])
        frame = {"edgecolor": colours[index], "linewidth": 1.2}
        box = AnnotationBbox(
            picture, tuple(points[index]), pad=0.05, bboxprops=frame, zorder=4
        )
        axes.add_artist(box)
