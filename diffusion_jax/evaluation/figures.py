"""Matplotlib figures without pyplot: made, drawn by Agg and written with no global state."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from diffusion_jax.evaluation import grids

WIDTH = 9.0  # inches, shown about 900 pixels wide: one point is 1.4 pixels
DOTS_PER_INCH = 160  # enough for a display that has two dots per pixel
INK, PALE = "#24292f", "#d0d7de"
# Okabe and Ito (2008), then Tol's muted set: told apart by colour-blind readers.
PALETTE = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
    *("#332288", "#999933", "#882255", "#44aa99", "#ddcc77", "#117733"),
)


def new_figure(height: float) -> Figure:
    figure = Figure(figsize=(WIDTH, height), dpi=DOTS_PER_INCH, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes) -> None:
    """No box, pale grid lines behind the data, text in INK."""
    axes.set_axisbelow(True)
    axes.grid(color=PALE, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(color=PALE, labelcolor=INK, labelsize=9)


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name: its own if all are names of colours, else the PALETTE's."""
    names = sorted(set(names))
    if len(names) > len(PALETTE):
        raise ValueError(
            f"{len(names)} names, but only {len(PALETTE)} colours: {names}"
        )
    if all(name in colors.CSS4_COLORS for name in names):
        return {name: colors.CSS4_COLORS[name] for name in names}
    return dict(zip(names, PALETTE, strict=False))


def save_figure(
    figure: Figure, out_png: str | os.PathLike[str], *, metadata: Mapping[str, str]
) -> None:
    """Write the figure whole or not at all; the same figure gives the same bytes."""
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    grids.save_png(Image.fromarray(pixels.copy()), out_png, metadata=metadata)
