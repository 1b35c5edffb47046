"""Published torch weights <-> parameters, strictly.

The modules are named as in the published checkpoints, so a path of names joined by dots
is the state-dict key, apart from kernel, scale, embedding -> weight. Layouts: linear
(O, I) <-> (I, O), convolution (O, I, h, w) <-> (h, w, I, O), all else as it is.
"""

from __future__ import annotations

import collections
import concurrent.futures
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from diffusion_jax.types import Params

LEAF_NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
MAX_SHOWN = 40  # names of a kind in an error
NUM_THREADS = 4  # that read, and mostly wait; each holds a tensor or two
ROWS = 16  # of a matrix that are transposed at once: as many floats as a cache line has
ALIGNMENT = 64  # bytes; JAX takes an aligned array on a CPU without a copy

Path = tuple[str, ...]
Place = Callable[[Path, np.ndarray], Any]
Rename = Sequence[tuple[str, str]]


def torch_key(path: Path) -> str:
    """The state-dict key of the parameter at a path."""
    return ".".join((*path[:-1], LEAF_NAMES.get(path[-1], path[-1])))


def load_torch(
    tensors: Mapping[str, Any],
    like: Params,
    *,
    rename: Rename = (),
    prefix: str = "",
    place: Place | None = None,
) -> Params:
    """Parameters shaped and typed `like` (arrays or `jax.eval_shape`'s stand-ins).

    Only keys that start with `prefix` are looked at. Each pair of `rename` is a regular
    expression and its replacement, applied in turn to the key behind the prefix; a key
    that becomes empty is dropped. Every other tensor must be used exactly once and
    every parameter filled, or a ValueError lists all that do not fit. A tensor is an
    array, or anything with a shape and a dtype that numpy can read; none is read before
    all are known to fit, then a few at a time, each given to `place` for good.
    """
    found, problems = match(tensors, like, rename=rename, prefix=prefix)
    refuse(problems)
    return fill(tensors, like, found, place)


def match(
    tensors: Mapping[str, Any],
    like: Params,
    *,
    rename: Rename = (),
    prefix: str = "",
) -> tuple[dict[Path, str], dict[str, list[str]]]:
    """Path -> stored key, and what does not fit, by kind; reads no tensor."""
    found = rename_keys(tensors, rename, prefix)
    wanted = traverse_util.flatten_dict(like)
    keys = {path: torch_key(path) for path in wanted}
    misshapen = []
    for path, target in wanted.items():
        if keys[path] not in found:
            continue
        stored = tensors[found[keys[path]]]
        shape, dtype = np.shape(stored), stored.dtype
        if converted_shape(path, shape, len(target.shape)) != target.shape:
            misshapen.append(f"{keys[path]} {shape} for {target.shape}")
        elif not jnp.issubdtype(dtype, jnp.floating):
            misshapen.append(f"{keys[path]} {dtype} for {np.dtype(target.dtype)}")
    problems = {
        "missing": sorted(set(keys.values()) - set(found)),
        "unused": sorted(set(found) - set(keys.values())),
        "misshapen": misshapen,
    }
    return {path: found[key] for path, key in keys.items() if key in found}, problems


def refuse(problems: Mapping[str, Sequence[str]]) -> None:
    """Raises a ValueError that lists the problems, unless there is none."""
    if not any(problems.values()):
        return
    lines = []
    for kind, names in problems.items():
        more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
        if names:
            lines.append(f"{kind}: {', '.join(names[:MAX_SHOWN])}{more}")
    raise ValueError("weights do not fit the model; " + "; ".join(lines))


def fill(
    tensors: Mapping[str, Any],
    like: Params,
    found: Mapping[Path, str],
    place: Place | None = None,
) -> Params:
    """Parameters of tensors that `match`; reads ahead, but places one after another."""
    wanted = traverse_util.flatten_dict(like)

    def read(path: Path) -> np.ndarray:
        target, stored = wanted[path], np.asarray(tensors[found[path]])
        value = from_torch(path, stored, len(target.shape))
        return contiguous(value, target.dtype)

    filled = {}
    for path, value in in_order(read, list(wanted)):
        filled[path] = value if place is None else place(path, value)
        del value  # of which no second one is held while the next is waited for
    return traverse_util.unflatten_dict(filled)


def in_order(
    read: Callable[[Path], np.ndarray], paths: Sequence[Path]
) -> Iterator[tuple[Path, np.ndarray]]:
    """Each path and what it reads as; threads read a few ahead."""
    with concurrent.futures.ThreadPoolExecutor(NUM_THREADS) as pool:
        ahead: collections.deque = collections.deque()
        for path in paths:
            ahead.append((path, pool.submit(read, path)))
            if len(ahead) > NUM_THREADS:
                path, future = ahead.popleft()
                yield path, future.result()
                del future
        while ahead:
            path, future = ahead.popleft()
            yield path, future.result()
            del future


def save_torch(params: Params, *, prefix: str = "") -> dict[str, np.ndarray]:
    """The state dict of parameters: the inverse of `load_torch`."""
    flat = traverse_util.flatten_dict(params)
    return {
        prefix + torch_key(path): np.asarray(to_torch(path, value), order="C")
        for path, value in flat.items()
    }


def rename_keys(
    tensors: Mapping[str, Any], rename: Rename, prefix: str
) -> dict[str, str]:
    """Renamed key -> stored key, of the tensors behind the prefix."""
    found: dict[str, str] = {}
    for stored in tensors:
        if not stored.startswith(prefix):
            continue
        key = stored.removeprefix(prefix)
        for pattern, replacement in rename:
            key = re.sub(pattern, replacement, key)
        if key in found:
            raise ValueError(f"{stored} and {found[key]} are both renamed to {key}")
        if key:
            found[key] = stored
    return found


def from_torch(path: Path, stored: np.ndarray, rank: int) -> np.ndarray | None:
    """A stored tensor in the layout of a parameter of this rank, or None.

    A linear layer may be stored as a convolution of size one, and the reverse.
    """
    if path[-1] != "kernel":
        return stored
    sizes = stored.shape[2:]
    if rank == 4 and stored.ndim == 4:
        return stored.transpose(2, 3, 1, 0)
    if stored.ndim < 2 or any(size != 1 for size in sizes):
        return None
    matrix = stored.reshape(stored.shape[:2]).T
    return matrix[None, None] if rank == 4 else matrix


def converted_shape(
    path: Path, shape: tuple[int, ...], rank: int
) -> tuple[int, ...] | None:
    """The shape of what `from_torch` makes of a tensor of this shape, or None."""
    empty = np.broadcast_to(np.False_, shape)  # one byte, however large
    converted = from_torch(path, empty, rank)
    return None if converted is None else converted.shape


def contiguous(array: np.ndarray, dtype: Any) -> np.ndarray:
    """`np.asarray(array, dtype, order="C")`, where kernels are transposed fast."""
    out = aligned(array.shape, np.dtype(dtype))
    if array.ndim < 2 or array.flags.c_contiguous:
        out[...] = array
        return out
    for start in range(0, array.shape[-1], ROWS):
        rows = (..., slice(start, start + ROWS))
        out[rows] = array[rows]
    return out


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array that begins at a multiple of `ALIGNMENT` bytes."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def to_torch(path: Path, value: Any) -> np.ndarray:
    """A parameter in torch's layout."""
    value = np.asarray(value)
    if path[-1] != "kernel":
        return value
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
