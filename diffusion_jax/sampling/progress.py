"""What someone who waits is told: a bar over the steps, or a line where no terminal is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import NamedTuple, TextIO

WIDTH = 24


class Reporter(NamedTuple):
    """Functions that tell how far the work is."""

    begin: Callable[[int], None]  # a batch of so many images
    step: Callable[[int, int], None]  # so many steps, or others, are done, of how many
    end: Callable[[], None]  # the batch is done


def reporter(
    num_images: int, stream: TextIO | None = None, *, unit: str = "step"
) -> Reporter:
    """Says once that it compiles, then draws a bar, or writes a line per batch.

    `unit` is what the bar counts.
    """
    stream = sys.stderr if stream is None else stream
    is_terminal = stream.isatty()
    num_done = size = 0
    started = since = 0.0
    told: list[str] = []

    def say(text: str, *, is_final: bool) -> None:
        if is_terminal:
            stream.write(f"\r\x1b[K{text}" + "\n" * is_final)
        elif is_final:
            stream.write(f"{text}\n")
        stream.flush()

    def name() -> str:
        last = num_done + size
        what = f"image {last}" if size == 1 else f"images {num_done + 1}-{last}"
        return f"{what} of {num_images}"

    def begin(batch: int) -> None:
        nonlocal size, started
        size, started = batch, time.monotonic()
        if not told:
            told.append("compiling ...")
            say(told[0], is_final=not is_terminal)

    def step(done: int, total: int) -> None:
        nonlocal since
        now = time.monotonic()
        if done <= 1:  # the first step may have been compiled
            since = now
        pace = (now - since) / (done - 1) if done > 1 else None
        say(f"{name()} {bar(done, total, pace, unit)}", is_final=False)

    def end() -> None:
        nonlocal num_done
        say(f"{name()} in {time.monotonic() - started:.1f} s", is_final=True)
        num_done += size

    return Reporter(begin, step, end)


def bar(done: int, total: int, pace: float | None = None, unit: str = "step") -> str:
    """[####----] 2/4 steps, and what is left at `pace` seconds per step."""
    full = WIDTH * done // total
    drawn = f"[{'#' * full}{'-' * (WIDTH - full)}] {done}/{total} {unit}s"
    if pace is None:
        return drawn
    return f"{drawn}, {pace:.2f} s/{unit}, {pace * (total - done):.0f} s left"
