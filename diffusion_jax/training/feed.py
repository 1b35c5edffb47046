"""From a stream of host batches to global arrays, one batch ahead of the step."""

from __future__ import annotations

import json
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jax.sharding import Mesh

from diffusion_jax.training import sharding
from diffusion_jax.types import Batch


@runtime_checkable
class Batches(Protocol):
    """An endless stream of batches that knows where it is.

    Each process draws its own part; the state, which JSON can hold, is that of all.
    A stream that leaves out bad records counts them in the attribute `num_skipped`.
    """

    def __next__(self) -> dict[str, np.ndarray]: ...
    def get_state(self) -> Any: ...
    def set_state(self, state: Any) -> None: ...


class Drawn(NamedTuple):
    """A batch on its way to the devices, and where the stream stood after it."""

    batch: Batch
    position: str  # JSON at once, because iterators reuse their state objects
    num_skipped: int  # records left out since step 0
    num_examples: int


def draw(batches: Batches, mesh: Mesh) -> Drawn:
    """Takes the next batch; the transfer runs beside the step in progress."""
    try:
        batch = next(batches)
    except StopIteration:
        raise ValueError(
            "the batches ended before num_steps; the stream must repeat for ever"
        ) from None
    arrays = sharding.shard_batch(batch, mesh)
    num_examples = len(next(iter(arrays.values())))
    num_skipped = int(getattr(batches, "num_skipped", 0))
    return Drawn(arrays, json.dumps(batches.get_state()), num_skipped, num_examples)
