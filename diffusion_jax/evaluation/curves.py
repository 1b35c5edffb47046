"""Training curves out of the metrics.csv files that runs write."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Num
from matplotlib import ticker
from matplotlib.axes import Axes

from diffusion_jax.evaluation import figures

SMOOTHING = 0.03  # share of a run that one point of its smooth curve averages


def read_metrics(csv_path: str | os.PathLike[str]) -> dict[str, Num[np.ndarray, "N"]]:
    """Column name -> values; `step` is int64, the others float64 with NaN for blanks.

    A last row that is cut short, as a killed run leaves it, is not read.
    """
    with open(csv_path, newline="") as file:
        text = file.read()
    header, *rows = list(csv.reader(text.splitlines())) or [[]]
    if "step" not in header:
        raise ValueError(f"{csv_path} has no column step, only {header}")
    if rows and not text.endswith("\n"):
        rows.pop()
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise ValueError(
                f"{csv_path}, line {number}: {len(row)} values for {len(header)} columns"
            )
    try:
        table = np.array([[float(v) if v else np.nan for v in row] for row in rows])
    except ValueError as error:
        raise ValueError(f"{csv_path}: {error}") from error
    table = table.reshape(len(rows), len(header))
    metrics = dict(zip(header, table.T, strict=True))
    return metrics | {"step": metrics["step"].astype(np.int64)}


def smooth(values: Float[np.ndarray, "N"], *, width: int) -> Float[np.ndarray, "N"]:
    """Mean over a centred window of `width` values, an odd number.

    It narrows towards the first value, where losses fall steeply, and is cut off at the
    last, where a narrow one would let noise decide how the curve ends.
    """
    if width < 1 or width % 2 == 0:
        raise ValueError(f"the window needs an odd width, not {width}")
    index = np.arange(len(values))
    reach = np.minimum(width // 2, index)
    first, end = index - reach, np.minimum(index + reach + 1, len(values))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[end] - sums[first]) / (end - first)


def plot_curves(
    runs: Mapping[str, str | os.PathLike[str]],
    out_png: str | os.PathLike[str],
    *,
    metrics: Sequence[str] = ("loss",),
    metadata: Mapping[str, str] | None = None,
) -> None:
    """One panel for each run: its metrics over its steps, as logged and smoothed."""
    if not runs or not metrics:
        raise ValueError("nothing to plot: no runs or no metrics")
    columns = min(len(runs), 3)
    rows = -(-len(runs) // columns)
    figure = figures.new_figure(2.9 * rows + 0.1)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for panel, (name, csv_path) in zip(panels, runs.items(), strict=False):
        table = read_metrics(csv_path)
        known = [metric for metric in metrics if metric in table]
        if not known:
            raise ValueError(
                f"{csv_path} has none of {list(metrics)}, only {sorted(table)}"
            )
        panel.set_title(name, fontsize=11, color=figures.INK, parse_math=False)
        _draw_panel(panel, table, known)
    for panel in list(figure.axes)[len(runs) :]:
        panel.remove()
    figures.save_figure(figure, out_png, metadata=metadata or {})


def _draw_panel(
    axes: Axes, table: Mapping[str, Num[np.ndarray, "N"]], metrics: Sequence[str]
) -> None:
    figures.tidy(axes)
    lowest, highest = np.inf, -np.inf
    for metric, colour in zip(metrics, figures.PALETTE, strict=False):
        logged = np.isfinite(table[metric])
        steps, values = table["step"][logged], table[metric][logged]
        if not len(values):
            continue
        curve = smooth(values, width=2 * int(SMOOTHING / 2 * len(values)) + 1)
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        label = f"{metric} {curve[-1]:.3g}"
        axes.plot(steps, curve, color=colour, linewidth=1.6, label=label)
        lowest, highest = min(lowest, values.min()), max(highest, values.max())
    if lowest > 0 and highest >= 10 * lowest:
        _use_logarithm(axes, decades=np.log10(highest / lowest))
    axes.xaxis.set_major_locator(
        ticker.MaxNLocator(4, steps=[1, 2, 5, 10], integer=True)
    )
    axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    axes.set_xlabel("step", fontsize=9, color=figures.INK)
    if axes.lines:
        axes.legend(fontsize=9, frameon=False, labelcolor=figures.INK)


def _use_logarithm(axes: Axes, *, decades: float) -> None:
    axes.set_yscale("log")
    marks = (1, 2, 5) if decades < 2.5 else (1,)
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=marks, numticks=12))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
