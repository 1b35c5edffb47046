"""How the experiments on samplers group them, and the figure of error against effort."""

import pathlib
from collections.abc import Mapping, Sequence

import matplotlib.axes

from diffusion_jax.evaluation import figures

# Panel -> its samplers, a dozen lines at most.
FAMILIES = {
    "one step, deterministic": (
        "ddim euler flow_euler heun flow_heun dpm2 dpmpp_2s dpm_solver adaptive"
    ),
    "multistep, deterministic": (
        "lms plms pndm ipndm deis dpm_multistep dpmpp_2m dpmpp_3m dpm_singlestep unipc"
    ),
    "stochastic": (
        "ddpm euler_ancestral analytic_dpm dpm2_ancestral dpmpp_2s_ancestral edm "
        "dpmpp_sde dpmpp_2m_sde dpmpp_3m_sde dpm_multistep_sde sa_solver"
    ),
    "few steps, of a consistency model": "consistency lcm tcd",
}
FAMILIES = {family: tuple(names.split()) for family, names in FAMILIES.items()}
NAMES = tuple(name for names in FAMILIES.values() for name in names)
# Steps of these evaluate the network twice.
TWICE = {
    "heun",
    "flow_heun",
    "dpm2",
    "dpmpp_2s",
    "dpm_solver",
    "dpm2_ancestral",
    "dpmpp_2s_ancestral",
    "edm",
    "dpmpp_sde",
}
# EDM's sampler adds no noise unless it is told to churn, and SA-Solver only within an
# interval; without one it solves the equation of the other stochastic solvers.
OPTIONS = {
    "edm": {"s_churn": 40.0, "s_noise": 1.003},
    "sa_solver": {"tau_interval": (0.0, float("inf"))},
}
MARKERS = "os^vDPX*<>hd"


def family_of(name: str) -> str:
    return next(family for family, names in FAMILIES.items() if name in names)


def draw(
    rows: Sequence[Mapping[str, str]],
    columns: Mapping[str, str | Mapping[str, str]],
    out: pathlib.Path,
    *,
    families: Sequence[str] = tuple(FAMILIES),
    logarithmic: Sequence[str] = (),
) -> None:
    """One row of panels per family, one panel per column (name -> label) of the rows.

    A label may differ between families (family -> label). Rows whose value is blank are
    left out, and panels without any.
    """
    figure = figures.new_figure(3.4 * len(families))
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    panels = figure.subplots(len(families), len(columns), squeeze=False)
    for family, line in zip(families, panels, strict=True):
        chosen = [row for row in rows if row["sampler"] in FAMILIES[family]]
        for (column, label), panel in zip(columns.items(), line, strict=True):
            _draw_panel(panel, chosen, column, FAMILIES[family])
            panel.set_title(family, fontsize=11, color=figures.INK)
            text = label if isinstance(label, str) else label[family]
            panel.set_ylabel(text, fontsize=9, color=figures.INK)
            if column in logarithmic and panel.lines:
                panel.set_yscale("log")
            panel.set_visible(bool(panel.lines))
        for panel in [panel for panel in line if panel.lines][-1:]:
            style = dict(fontsize=8, frameon=False, labelcolor=figures.INK)
            panel.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), **style)
    figures.save_figure(figure, out, metadata={"rows": str(len(rows))})


def _draw_panel(
    panel: matplotlib.axes.Axes,
    rows: Sequence[Mapping[str, str]],
    column: str,
    names: Sequence[str],
) -> None:
    figures.tidy(panel)
    styles = zip(names, figures.PALETTE, MARKERS, strict=False)
    for name, colour, marker in styles:
        points = sorted(
            (float(row["nfe"]), float(row[column]))
            for row in rows
            if row["sampler"] == name and row[column]
        )
        if points:
            style = dict(color=colour, marker=marker, markersize=4, linewidth=1.2)
            panel.plot(*zip(*points, strict=True), label=name, **style)
    panel.set_xlabel("function evaluations", fontsize=9, color=figures.INK)
    if panel.lines:
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
