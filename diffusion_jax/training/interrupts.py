"""Ctrl-C and SIGTERM: finish the step, save, leave."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax


@contextlib.contextmanager
def deferred() -> Iterator[list[int]]:
    """Collects the first Ctrl-C or SIGTERM instead of dying of it; a second one kills.

    Runs of several processes are left alone: there `jax.distributed` notes SIGTERM, and
    Orbax's `reached_preemption` agrees with all of them on the step at which to stop.
    """
    received: list[int] = []
    previous: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, previous[number])
        # print() is not safe in a signal handler
        os.write(2, b"\nstopping: finishing the step, then saving\n")

    is_main = threading.current_thread() is threading.main_thread()
    if is_main and jax.process_count() == 1:
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if handler not in (signal.SIG_IGN, None):
                previous[number] = handler
                signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
