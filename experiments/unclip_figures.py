"""What the experiments on the small DALL·E 2 share: their rows, and lines drawn of them.

A row names all that it was measured with: weights, how every stage is sampled, and the
script's own options. Rows of others are kept, but neither taken for measured nor drawn.
"""

import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence

from diffusion_jax.evaluation import figures
from diffusion_jax.training import checkpoint
from experiments import tables
from experiments.sampler_figures import MARKERS
from experiments.scenes_stack import Subject

Rows = Sequence[Mapping[str, str]]
Setting = Mapping[str, object]

HASHES = ("weights", "sampling")
MEASURED = ("eps_power",)  # parameters that are measured of the others, for a sampler

# Columns whose values are shares of one, and drawn as such.
SHARES = {"accuracy", "success", "first", "second", "explained", "held_in", "held_out"}
SHARES |= {"as it is", "with the word", "accuracy_held_in", "accuracy_held_out"}


def setting_of(*subjects: Subject, **values: object) -> dict[str, object]:
    """What the rows of one figure share; several subjects if it is of several."""
    weights, sampling = zip(*map(_names_of, subjects), strict=True)
    return {"weights": _named(*weights), "sampling": _named(*sampling)} | values


@functools.cache
def _names_of(subject: Subject) -> tuple[str, str]:
    """Of the parameters, and of how the runs say that their stages are sampled."""
    trained = {k: v for k, v in subject.params.items() if k not in MEASURED}
    sums = json.dumps(checkpoint.fingerprint(trained), sort_keys=True)
    configs = subject.stack.configs.items()
    said = {name: config.sampling.to_dict() for name, config in configs}
    return sums, json.dumps(said, sort_keys=True)


def _named(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]


def is_measured(table: pathlib.Path, setting: Setting) -> bool:
    return tables.has_row(tables.read_rows(table), **setting)


def add(table: pathlib.Path, setting: Setting, **measured: float) -> None:
    """A row of the setting and what was measured, which is printed too."""
    values = {name: f"{value:.4f}" for name, value in measured.items()}
    tables.append_row(table, {**setting, **values, **tables.provenance()})
    print({name: setting[name] for name in setting if name not in HASHES} | values)


def rows_of(table: pathlib.Path, setting: Setting) -> list[dict[str, str]]:
    """The rows that were measured so."""
    return [row for row in tables.read_rows(table) if tables.has_row([row], **setting)]


def draw_lines(
    rows: Rows,
    x: tuple[str, str],
    panels: Mapping[str, str],
    out: pathlib.Path,
    *,
    lines: str | None = None,
    logarithmic: bool = False,
) -> None:
    """A panel for each column (name -> label) over the column `x`, (name, label).

    `lines` is the column that tells the lines of a panel apart.
    """
    figure = figures.new_figure(3.2)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    names = list(dict.fromkeys(row[lines] for row in rows)) if lines else [""]
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for (column, label), panel in zip(panels.items(), axes, strict=True):
        figures.tidy(panel)
        styles = zip(names, figures.PALETTE, MARKERS, strict=False)
        for name, colour, marker in styles:
            points = sorted(
                (float(row[x[0]]), float(row[column]))
                for row in rows
                if row[column] and (not lines or row[lines] == name)
            )
            style = dict(color=colour, marker=marker, markersize=4, linewidth=1.4)
            panel.plot(*zip(*points, strict=True), label=name, **style)
        if logarithmic:
            panel.set_xscale("log", base=2)
            panel.xaxis.set_major_formatter("{x:g}")
        if column in SHARES:
            panel.set_ylim(-0.03, 1.03)
        panel.set_xlabel(x[1], fontsize=9, color=figures.INK)
        panel.set_title(label, fontsize=10, color=figures.INK)
    if lines:
        handles, labels = axes[0].get_legend_handles_labels()
        style = dict(fontsize=9, frameon=False, labelcolor=figures.INK)
        figure.legend(
            handles, labels, loc="outside lower center", ncols=len(names), **style
        )
    figures.save_figure(figure, out, metadata={"rows": str(len(rows))})


def draw_bars(
    rows: Rows, name: str, panels: Mapping[str, str], out: pathlib.Path
) -> None:
    """A panel for each column (name -> label), in it a bar for each row, by its `name`."""
    figure = figures.new_figure(0.9 + 0.42 * len(rows))
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    labels, places = [row[name] for row in rows], range(len(rows))
    for (column, label), panel in zip(panels.items(), axes, strict=True):
        figures.tidy(panel)
        values = [float(row[column]) if row[column] else 0.0 for row in rows]
        bars = panel.barh(places, values, height=0.6, color=figures.PALETTE[0])
        panel.set_yticks(places, labels)
        panel.grid(visible=False, axis="y")
        texts = [f"{float(row[column]):.2f}" if row[column] else "-" for row in rows]
        panel.bar_label(bars, texts, padding=3, fontsize=8, color=figures.INK)
        panel.margins(x=0.25)
        if column in SHARES:
            panel.set_xlim(0, 1.25)
            panel.set_xticks((0, 0.5, 1))
        panel.set_title(label, fontsize=10, color=figures.INK)
    axes[0].invert_yaxis()
    figures.save_figure(figure, out, metadata={"rows": str(len(rows))})
