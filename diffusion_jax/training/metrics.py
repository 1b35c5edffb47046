"""What a run tells the outside: tables, TensorBoard events and a progress line.

`workdir/metrics.csv` has a row per logged step and no times, so that a resumed run
writes byte for byte what the uninterrupted one would have; times are in `timing.csv`,
both and the images in `workdir/tensorboard`. Only process 0 writes.
"""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorboardX
from etils import epath
from jaxtyping import Float, UInt8

Image = Float[np.ndarray, "H W 3"] | UInt8[np.ndarray, "H W 3"]


def _text(value: Any) -> str:
    if np.asarray(value).dtype.kind in "iub":
        return str(int(value))
    return str(np.float32(value))  # the shortest text that reads back the same


class Table:
    """A CSV file with the column `step` first; later rows may bring new columns.

    Rows of steps after `resume_step` are cut off: the steps will be run again.
    """

    def __init__(self, path: epath.PathLike, resume_step: int):
        self.path = epath.Path(path)
        self.columns = ["step"]
        self.rows: list[dict[str, str]] = []
        if self.path.exists():
            self._read(self.path.read_text(), resume_step)
            self._rewrite()

    def _read(self, text: str, resume_step: int) -> None:
        whole = text[: text.rfind("\n") + 1]  # a kill may have cut the last line
        for row in csv.DictReader(io.StringIO(whole)):
            if int(row["step"]) <= resume_step:
                filled = {k: v for k, v in row.items() if v}
                self.rows.append(filled)
                self._widen(filled)

    def _widen(self, row: Mapping[str, str]) -> bool:
        new = [name for name in row if name not in self.columns]
        self.columns += new
        return bool(new)

    def _format(self, rows: list[dict[str, str]], *, header: bool) -> str:
        out = io.StringIO()
        writer = csv.DictWriter(out, self.columns, restval="", lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return out.getvalue()

    def _rewrite(self) -> None:
        unfinished = self.path.with_suffix(".unfinished")
        unfinished.write_text(self._format(self.rows, header=True))
        unfinished.replace(self.path)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds a row, on disk when this returns."""
        row = {"step": str(step)} | {k: _text(v) for k, v in values.items()}
        is_first = not self.rows
        self.rows.append(row)
        if self._widen(row) or is_first or "://" in str(self.path):
            self._rewrite()  # object stores cannot append
            return
        with self.path.open("a") as file:
            file.write(self._format([row], header=False))


class Writer:
    """The tables and event files of one run; `close` it."""

    def __init__(self, workdir: epath.PathLike, resume_step: int, *, is_silent: bool):
        self.is_silent = is_silent
        if is_silent:
            return
        workdir = epath.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        self.metrics = Table(workdir / "metrics.csv", resume_step)
        self.timing = Table(workdir / "timing.csv", resume_step)
        self.board = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"),
            purge_step=resume_step + 1,
            filename_suffix=f".{resume_step}",  # or a quick restart would overwrite
        )

    def close(self) -> None:
        """Finishes the event file."""
        if not self.is_silent:
            self.board.close()

    def write(
        self, step: int, values: Mapping[str, Any], timing: Mapping[str, float]
    ) -> None:
        """Writes a step's numbers and images (H W 3, uint8 or float in [-1, 1])."""
        if self.is_silent:
            return
        numbers = {name: v for name, v in values.items() if np.ndim(v) == 0}
        if numbers:
            self.metrics.write(step, numbers)
        if timing:
            self.timing.write(step, timing)
        for name, value in (numbers | dict(timing)).items():
            if np.isfinite(value):  # TensorBoard draws a gap
                self.board.add_scalar(name, float(value), step)
        for name in values.keys() - numbers.keys():
            self.board.add_image(name, _pixels(values[name]), step, dataformats="HWC")
        if values:
            self.board.flush()


def _pixels(image: Image) -> UInt8[np.ndarray, "H W 3"]:
    image = np.asarray(image)
    if image.dtype == np.uint8:
        return image
    return np.clip(np.round((image + 1) * 127.5), 0, 255).astype(np.uint8)


def duration(seconds: float) -> str:
    """h:mm:ss, or m:ss below an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    head = f"{hours}:{minutes:02d}" if hours else str(minutes)
    return f"{head}:{seconds:02d}"


class Progress:
    """One line that tells where the run is.

    On a terminal it is rewritten in place a few times a second; elsewhere it is a line
    per logged step. The clock starts after the first step, which compiles.
    """

    def __init__(
        self,
        name: str,
        num_steps: int,
        *,
        is_silent: bool,
        stream: io.TextIOBase | None = None,
    ):
        self.name, self.num_steps, self.is_silent = name, num_steps, is_silent
        self.stream = stream or sys.stderr
        self.is_live = self.stream.isatty()

    def begin(self, step: int) -> None:
        """Says that the first step after `step` takes long."""
        self.num_examples = self.num_examples_logged = 0
        self.first, self.step = step + 1, step
        self.began = self.logged = self.shown = time.perf_counter()
        self.say(f"{self.name}: compiling step {self.first} of {self.num_steps}")

    def add(
        self, step: int, loss: float, skipped: Mapping[str, int], num_examples: int
    ) -> None:
        """Takes note of a finished step."""
        now = time.perf_counter()
        self.step, self.loss, self.skipped = step, loss, skipped
        if step == self.first:
            self.began = self.logged = now
        else:
            self.num_examples += num_examples
        if self.is_live and now - self.shown > 0.2:
            self._show(self.line(loss), "")

    def line(self, loss: float) -> str:
        """Name, step, loss, speed, time left, what was skipped."""
        parts = [self.name, f"{self.step}/{self.num_steps}", f"loss {loss:.4g}"]
        seconds = time.perf_counter() - self.began
        if self.num_examples:
            left = seconds / (self.step - self.first) * (self.num_steps - self.step)
            parts += [f"{self.num_examples / seconds:.4g} images/s"]
            parts += [f"{duration(left)} left"]
        parts += [
            f"{count} {what} skipped" for what, count in self.skipped.items() if count
        ]
        return "  ".join(parts)

    def log(self, loss: float) -> dict[str, float]:
        """Shows the line with an interval's mean loss; returns the timing row."""
        now = time.perf_counter()
        timing = {"seconds": now - self.began}
        num_examples = self.num_examples - self.num_examples_logged
        if num_examples:
            timing["images_per_second"] = num_examples / (now - self.logged)
        self.logged, self.num_examples_logged = now, self.num_examples
        self._show(self.line(loss), "" if self.is_live else "\n")
        return timing

    def say(self, text: str) -> None:
        """A line that stays."""
        self._show(text, "\n")

    def end(self) -> None:
        """Leaves the last line standing."""
        if self.is_live:
            self._show(self.line(self.loss), "\n")

    def _show(self, text: str, end: str) -> None:
        if self.is_silent:
            return
        self.shown = time.perf_counter()
        live = ("\r", "\x1b[K") if self.is_live else ("", "")
        self.stream.write(live[0] + text + live[1] + end)
        self.stream.flush()
