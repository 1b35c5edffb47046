"""Tables can be cut and widened; the progress line is rewritten on a terminal."""

import io

import numpy as np
import pytest

from diffusion_jax.training import metrics


def text(path):
    return path.read_text().splitlines()


def test_a_table_cut_and_continued_equals_the_uninterrupted_one(tmp_path):
    rows = [(10, {"loss": 0.5}), (20, {"loss": 0.25, "fid": 7.0}), (30, {"loss": 0.1})]

    def write(path, rows, resume_step=0):
        table = metrics.Table(path, resume_step)
        for step, values in rows:
            table.write(step, values)

    write(tmp_path / "whole.csv", rows)
    for cut in (0, 10, 20, 30):
        path = tmp_path / f"{cut}.csv"
        write(path, rows)
        write(tmp_path / "early.csv", [row for row in rows if row[0] <= cut])
        metrics.Table(path, cut)
        if cut:
            assert path.read_bytes() == (tmp_path / "early.csv").read_bytes()
        write(path, [row for row in rows if row[0] > cut], resume_step=cut)
        assert path.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_new_column_is_empty_in_older_rows(tmp_path):
    table = metrics.Table(tmp_path / "t.csv", 0)
    table.write(1, {"loss": 0.5})
    table.write(2, {"loss": 0.25, "fid": 7})
    assert text(tmp_path / "t.csv") == ["step,loss,fid", "1,0.5,", "2,0.25,7"]


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("step,loss\n1,0.5\n2,0.2")
    metrics.Table(path, 5).write(2, {"loss": 0.25})
    assert text(path) == ["step,loss", "1,0.5", "2,0.25"]


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e-20, 3e38, np.nan, np.inf])
def test_numbers_read_back_the_same(tmp_path, value):
    table = metrics.Table(tmp_path / "t.csv", 0)
    table.write(1, {"loss": np.float32(value)})
    found = text(tmp_path / "t.csv")[1].split(",")[1]
    np.testing.assert_equal(np.float32(found), np.float32(value))


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0, "0:00"), (59.6, "1:00"), (3599.0, "59:59"), (7265.0, "2:01:05")],
)
def test_durations_read_as_a_clock(seconds, shown):
    assert metrics.duration(seconds) == shown


class Terminal(io.StringIO):
    def isatty(self):
        return True


def play(progress):
    progress.begin(0)
    for step in range(1, 5):
        progress.shown = 0.0
        progress.add(step, 1 / step, {"steps": step // 4, "records": 0}, 32)
    progress.log(0.5)
    progress.end()


def test_a_terminal_shows_one_line_that_is_rewritten():
    stream = Terminal()
    play(metrics.Progress("toy", 4, is_silent=False, stream=stream))
    first, rest = stream.getvalue().split("\n", 1)
    assert "compiling" in first
    assert rest.count("\n") == 1
    assert rest.count("\r") == 6
    last = rest.split("\r")[-1]
    for word in ("toy", "4/4", "images/s", "0:00 left", "1 steps skipped"):
        assert word in last


def test_elsewhere_a_line_is_printed_per_logged_step():
    stream = io.StringIO()
    play(metrics.Progress("toy", 4, is_silent=False, stream=stream))
    assert "\r" not in stream.getvalue()
    assert stream.getvalue().count("\n") == 2


def test_other_processes_are_silent(tmp_path):
    stream = io.StringIO()
    play(metrics.Progress("toy", 4, is_silent=True, stream=stream))
    assert stream.getvalue() == ""
    writer = metrics.Writer(tmp_path / "none", 0, is_silent=True)
    writer.write(1, {"loss": 0.5}, {})
    writer.close()
    assert not (tmp_path / "none").exists()
