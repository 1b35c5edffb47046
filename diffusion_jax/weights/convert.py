"""Published torch weights <-> parameters, strictly.

The modules are named as in the published checkpoints, so a path of names joined by dots
is the state-dict key, apart from kernel, scale, embedding -> weight. Layouts: linear
(O, I) <-> (I, O), convolution (O, I, h, w) <-> (h, w, I, O), all else as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from diffusion_jax.types import Params

LEAF_NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


def torch_key(path: tuple[str, ...]) -> str:
    """The state-dict key of the parameter at a path."""
    return ".".join((*path[:-1], LEAF_NAMES.get(path[-1], path[-1])))


def load_torch(
    tensors: Mapping[str, np.ndarray],
    like: Params,
    *,
    rename: Sequence[tuple[str, str]] = (),
    prefix: str = "",
) -> Params:
    """Parameters shaped and typed `like` (arrays or `jax.eval_shape`'s stand-ins).

    Only keys that start with `prefix` are looked at. Each pair of `rename` is a regular
    expression and its replacement, applied in turn to the key behind the prefix; a key
    that becomes empty is dropped. Every other tensor must be used exactly once and
    every parameter filled, or a ValueError lists all that do not fit.
    """
    found = rename_keys(tensors, rename, prefix)
    wanted = traverse_util.flatten_dict(like)
    keys = {path: torch_key(path) for path in wanted}
    missing = sorted(set(keys.values()) - set(found))
    unused = sorted(set(found) - set(keys.values()))
    filled, misshapen = {}, []
    for path, target in wanted.items():
        if keys[path] not in found:
            continue
        stored = np.asarray(tensors[found[keys[path]]])
        value = from_torch(path, stored, len(target.shape))
        if value is None or value.shape != target.shape:
            misshapen.append(f"{keys[path]} {stored.shape} for {target.shape}")
        else:
            filled[path] = np.asarray(value, target.dtype, order="C")
    problems = {"missing": missing, "unused": unused, "misshapen": misshapen}
    if any(problems.values()):
        lines = [f"{kind}: {', '.join(k)}" for kind, k in problems.items() if k]
        raise ValueError("weights do not fit the model; " + "; ".join(lines))
    return traverse_util.unflatten_dict(filled)


def save_torch(params: Params, *, prefix: str = "") -> dict[str, np.ndarray]:
    """The state dict of parameters: the inverse of `load_torch`."""
    flat = traverse_util.flatten_dict(params)
    return {
        prefix + torch_key(path): np.asarray(to_torch(path, value), order="C")
        for path, value in flat.items()
    }


def rename_keys(
    tensors: Mapping[str, Any], rename: Sequence[tuple[str, str]], prefix: str
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


def from_torch(
    path: tuple[str, ...], stored: np.ndarray, rank: int
) -> np.ndarray | None:
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


def to_torch(path: tuple[str, ...], value: Any) -> np.ndarray:
    """A parameter in torch's layout."""
    value = np.asarray(value)
    if path[-1] != "kernel":
        return value
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
