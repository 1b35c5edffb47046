"""What a source yields, and how a record says that it cannot be used."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Record(NamedTuple):
    """An encoded image, what it shows, and a name to find it again by."""

    image: bytes
    caption: str
    name: str


class BadRecord(Exception):
    """The record is unreadable: it is to be skipped and counted, not to stop a run."""


@dataclasses.dataclass(frozen=True)
class Source(Sequence):
    """Random access to `read(row)` for every row; picklable if both parts are."""

    rows: Any
    read: Callable[[int, Any], Record]
    length: int = dataclasses.field(init=False)  # TFDS counts anew each time

    def __post_init__(self):
        object.__setattr__(self, "length", len(self.rows))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.length:
            raise IndexError(f"record {index} of {self.length}")
        return self.read(index, self.rows[index])
