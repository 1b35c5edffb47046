"""What the frozen towers say of every record, computed once and kept on disk.

One `.npy` file per array, row i for record i, read through memory maps. A `done.json`
beside them is written last and tells what they were made of.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from etils import epath
from jaxtyping import Array

from diffusion_jax.types import Batch

DONE = "done.json"
DTYPE = np.float16  # of floats: its rounding is far below what they are used for


def read(
    directory: epath.PathLike, origin: Mapping[str, object]
) -> dict[str, np.ndarray] | None:
    """The arrays, memory-mapped; None unless they were made of the same `origin`."""
    directory = epath.Path(directory)
    done = directory / DONE
    if not done.exists():
        return None
    record = json.loads(done.read_text())
    if record["origin"] != json.loads(json.dumps(origin)):
        return None
    return {
        name: np.load(directory / f"{name}.npy", mmap_mode="r")
        for name in record["names"]
    }


def write(
    directory: epath.PathLike,
    origin: Mapping[str, object],
    batches: Iterable[Batch],
    encode: Callable[[Batch], Mapping[str, Array]],
    num_records: int,
) -> dict[str, np.ndarray]:
    """Encodes all batches, in order, into the files that `read` finds."""
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / DONE).unlink(missing_ok=True)
    files: dict[str, np.memmap] = {}
    start = 0
    for batch in batches:
        rows = {name: np.asarray(x) for name, x in encode(batch).items()}
        stop = start + len(next(iter(rows.values())))
        for name, values in rows.items():
            if name not in files:
                files[name] = np.lib.format.open_memmap(
                    directory / f"{name}.npy",
                    mode="w+",
                    dtype=DTYPE if values.dtype.kind == "f" else values.dtype,
                    shape=(num_records, *values.shape[1:]),
                )
            files[name][start:stop] = values
        start = stop
    if start != num_records:
        raise ValueError(f"{start} records encoded, {num_records} expected")
    for file in files.values():
        file.flush()
    record = {"origin": dict(origin), "names": sorted(files)}
    (directory / DONE).write_text(json.dumps(record))
    return read(directory, origin)


def latent_scale(mean: np.ndarray, std: np.ndarray) -> float:
    """1 / standard deviation of the latents' draws (Rombach et al., 2022, app. G)."""
    mean, std = mean.astype(np.float64), std.astype(np.float64)
    return float(1 / np.sqrt(mean.var() + np.mean(std**2)))
