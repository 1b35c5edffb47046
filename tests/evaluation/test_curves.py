"""Reading metrics.csv and drawing it."""

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.evaluation import curves


def write(path, text):
    path.write_text(text)
    return path


def test_columns_come_back_with_blanks_as_nan(tmp_path):
    path = write(tmp_path / "m.csv", "step,loss,psnr\n1,0.5,\n2,0.25,20\n3,nan,21\n")
    table = curves.read_metrics(path)
    assert table["step"].tolist() == [1, 2, 3] and table["step"].dtype == np.int64
    np.testing.assert_array_equal(table["loss"], [0.5, 0.25, np.nan])
    np.testing.assert_array_equal(table["psnr"], [np.nan, 20, 21])


def test_every_float_survives_being_written_and_read(tmp_path):
    values = np.random.default_rng(0).normal(size=100) * 10.0 ** np.arange(-50, 50)
    rows = "".join(f"{i},{value!r}\n" for i, value in enumerate(values.tolist()))
    table = curves.read_metrics(write(tmp_path / "m.csv", "step,loss\n" + rows))
    np.testing.assert_array_equal(table["loss"], values)


@pytest.mark.parametrize("cut", ["3", "3,", "3,0.1", "3,0.12"])
def test_a_row_cut_short_by_a_kill_is_not_read(tmp_path, cut):
    path = write(tmp_path / "m.csv", "step,loss\n1,0.5\n2,0.25\n" + cut)
    assert curves.read_metrics(path)["step"].tolist() == [1, 2]


def test_a_table_without_rows_is_empty(tmp_path):
    table = curves.read_metrics(write(tmp_path / "m.csv", "step,loss\n"))
    assert table["step"].shape == table["loss"].shape == (0,)
    curves.plot_curves({"x": tmp_path / "m.csv"}, tmp_path / "x.png")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no column step"),
        ("loss\n1\n", "no column step"),
        ("step,loss\n1,2,3\n", "line 2: 3 values for 2 columns"),
        ("step,loss\n1,much\n", "much"),
    ],
)
def test_a_table_that_is_none_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        curves.read_metrics(write(tmp_path / "m.csv", text))


def test_smoothing_keeps_constants_and_passes_everything_at_width_one():
    x = np.random.default_rng(0).normal(size=50)
    np.testing.assert_allclose(curves.smooth(x, width=1), x, atol=1e-12)
    for width in (3, 9, 999):
        constant = curves.smooth(np.full(50, 0.7), width=width)
        np.testing.assert_allclose(constant, 0.7, atol=1e-12)


def test_smoothing_keeps_a_line_straight_but_for_its_end():
    line = 3 - 0.1 * np.arange(50)
    np.testing.assert_allclose(curves.smooth(line, width=9)[:46], line[:46], atol=1e-12)


def test_smoothing_divides_the_variance_of_noise_by_the_width():
    x = np.random.default_rng(0).normal(size=100_000)
    for width in (5, 25):
        smooth = curves.smooth(x, width=width)[50:-50]
        assert smooth.var() == pytest.approx(1 / width, rel=0.05)
    # The last value is the mean of half a window, and not a single draw.
    assert curves.smooth(x, width=25)[-1] == pytest.approx(x[-13:].mean())


def test_an_even_window_has_no_centre():
    with pytest.raises(ValueError, match="odd"):
        curves.smooth(np.ones(3), width=2)


@pytest.fixture
def run(tmp_path):
    rng = np.random.default_rng(0)

    def make(name, values, dips=None):
        rows = [f"{10 * i},{v},{'' if i % 5 else 20 + i}" for i, v in enumerate(values)]
        return write(tmp_path / f"{name}.csv", "\n".join(["step,loss,psnr", *rows, ""]))

    steep = 4 * np.exp(-np.arange(200) / 20) + 0.05 * rng.uniform(0.5, 1.5, 200)
    flat = 1 + 0.1 * rng.uniform(size=200)
    signed = rng.normal(size=200)
    return {
        "steep": make("steep", steep),
        "flat": make("flat", flat),
        "signed": make("signed", signed),
    }


def test_each_run_has_its_panel_and_a_logarithm_only_where_it_helps(
    tmp_path, run, monkeypatch
):
    drawn = []
    monkeypatch.setattr(
        curves.figures, "save_figure", lambda figure, *_, **__: drawn.append(figure)
    )
    curves.plot_curves(run, tmp_path / "x.png")
    (figure,) = drawn
    scales = {axes.get_title(): axes.get_yscale() for axes in figure.axes}
    assert scales == {"steep": "log", "flat": "linear", "signed": "linear"}
    for axes, path in zip(figure.axes, run.values(), strict=True):
        raw, smooth = axes.lines
        table = curves.read_metrics(path)
        np.testing.assert_array_equal(raw.get_xdata(), table["step"])
        np.testing.assert_array_equal(raw.get_ydata(), table["loss"])
        rough = [np.abs(np.diff(line.get_ydata())).sum() for line in (raw, smooth)]
        assert rough[1] < rough[0]


def test_values_that_were_not_logged_leave_no_hole_in_the_line(
    tmp_path, run, monkeypatch
):
    drawn = []
    monkeypatch.setattr(
        curves.figures, "save_figure", lambda figure, *_, **__: drawn.append(figure)
    )
    curves.plot_curves({"x": run["flat"]}, tmp_path / "x.png", metrics=("psnr",))
    raw = drawn[0].axes[0].lines[0]
    np.testing.assert_array_equal(raw.get_xdata(), np.arange(0, 2000, 50))
    assert np.isfinite(raw.get_ydata()).all()


def test_the_same_tables_give_the_same_bytes(tmp_path, run):
    for name in "ab":
        curves.plot_curves(run | {"again": run["flat"]}, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with Image.open(tmp_path / "a") as image:
        assert image.width >= 900


def test_a_metric_that_no_column_has_is_named(tmp_path, run):
    with pytest.raises(ValueError, match=r"none of \['fid'\], only \['loss'"):
        curves.plot_curves(run, tmp_path / "x.png", metrics=("fid",))
