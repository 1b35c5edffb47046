"""What the experiments on samplers measure and keep, at a size that takes seconds."""

import numpy as np
import pytest

from diffusion_jax.diffusion import process, schedules
from diffusion_jax.diffusion.samplers import SAMPLERS
from experiments import fig_sampler_order, sampler_figures, tables

# Methods of another kind: they fill in an image, or need a network that learned variances.
NOT_COMPARED = {"repaint", "ddpm_learned"}


def test_every_sampler_is_compared():
    assert set(sampler_figures.NAMES) == SAMPLERS.keys() - NOT_COMPARED
    assert sampler_figures.TWICE <= set(sampler_figures.NAMES)


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_measured_errors_fall_with_the_evaluations(name):
    schedule = schedules.VarianceExploding()
    kind, few, coarse = fig_sampler_order.measure(name, 8, schedule)
    _, many, fine = fig_sampler_order.measure(name, 32, schedule)
    assert kind == "flow"
    assert (few, many) == ((8, 32) if name == "euler" else (16, 64))
    assert fine < coarse / 2


def test_a_stochastic_sampler_is_measured_by_its_distribution():
    kind, calls, error = fig_sampler_order.measure("ddpm", 64, schedules.Cosine())
    assert (kind, calls) == ("distribution", 64)
    assert error < 0.1


def test_the_grid_of_the_comparison_ends_on_noise():
    for schedule in (schedules.Discrete(), schedules.RectifiedFlow()):
        level = schedule(fig_sampler_order.times(schedule, 5))
        ratios = np.asarray(level.sigma / level.alpha)
        ends = fig_sampler_order.RATIOS
        np.testing.assert_allclose(ratios, np.geomspace(*ends, 6), rtol=1e-3)
        assert np.all(np.isfinite(process.logsnr(level)))


def test_rows_are_kept_and_found_and_one_cut_short_is_not(tmp_path):
    table = tmp_path / "results" / "a.csv"
    assert tables.read_rows(table) == []
    tables.append_row(table, {"name": "ddim", "steps": 5})
    tables.append_row(table, {"name": "a, b", "steps": 6})
    with table.open("a") as file:
        file.write("heun,1")  # killed while writing
    assert [row["name"] for row in tables.read_rows(table)] == ["ddim", "a, b"]
    tables.append_row(table, {"name": "heun", "steps": 12})
    rows = tables.read_rows(table)
    assert tables.has_row(rows, name="heun", steps=12)
    assert not tables.has_row(rows, name="heun", steps=1)
    with pytest.raises(ValueError, match="move it away"):
        tables.append_row(table, {"name": "ddim"})


def test_the_figure_shows_every_row_that_has_a_value(tmp_path):
    rows = [
        dict(sampler=name, nfe=str(nfe), error=str(1 / nfe), accuracy="")
        for name in ("ddim", "heun", "ddpm")
        for nfe in (4, 8)
    ]
    out = tmp_path / "a.png"
    panels = {"error": "error", "accuracy": "accuracy"}
    sampler_figures.draw(rows, panels, out, logarithmic=["error"])
    assert out.stat().st_size > 10_000
