"""Weights into files, one tensor at a time, whole or not at all.

A safetensors file is the length of a JSON header, the header, and the bytes of every
tensor. What is written appears under its name when it is complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from diffusion_jax.types import Params
from diffusion_jax.weights import tensors as stored
from diffusion_jax.weights.convert import to_torch, torch_key

METADATA = {"format": "pt"}  # without it, transformers refuses a file
MAX_SHARD_SIZE = 10 * 10**9  # bytes; what published models are cut into
NAMES = {dtype: name for name, dtype in stored.DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class TorchLayout:
    """A parameter as torch stores it; transposed and converted when it is read."""

    path: tuple[str, ...]
    value: Any
    to_dtype: np.dtype | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        shape = tuple(self.value.shape)
        if self.path[-1] != "kernel":
            return shape
        return (*shape[:-3:-1], *shape[:-2])  # (h, w, I, O) -> (O, I, h, w)

    @property
    def dtype(self) -> np.dtype:
        return self.to_dtype or np.dtype(self.value.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(to_torch(self.path, self.value), dtype or self.dtype)


def write_file(
    path: str | pathlib.Path,
    tensors: Mapping[str, Any],
    *,
    metadata: Mapping[str, str] = METADATA,
) -> None:
    """Writes a safetensors file; a tensor is read when its turn comes.

    Tensors are arrays, or anything with a shape and a dtype that numpy can read.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    order = sorted(tensors, key=lambda name: (-_dtype(tensors, name).itemsize, name))
    place = 0
    for name in order:
        end = place + _num_bytes(tensors[name])
        header[name] = {
            "dtype": NAMES[_dtype(tensors, name)],
            "shape": list(tensors[name].shape),
            "data_offsets": [place, end],
        }
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with appearing(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in order:
            array = np.ascontiguousarray(np.asarray(tensors[name]))
            file.write(array.reshape(-1).view(np.uint8).data)


def write_tensors(
    directory: str | pathlib.Path,
    stem: str,
    tensors: Mapping[str, Any],
    *,
    variant: str | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
) -> None:
    """One file, or several and their index where they are larger than `max_shard_size`.

    They are named as published: stem[.variant].safetensors, or
    stem[.variant]-00001-of-00002.safetensors.
    """
    directory = pathlib.Path(directory)
    shards = _shards(tensors, max_shard_size)
    ending = f".{variant}" if variant else ""
    if len(shards) == 1:
        write_file(directory / f"{stem}{ending}.safetensors", tensors)
        return
    places = {}
    for i, shard in enumerate(shards, 1):
        file = f"{stem}{ending}-{i:05d}-of-{len(shards):05d}.safetensors"
        write_file(directory / file, shard)
        places |= dict.fromkeys(shard, file)
    size = sum(map(_num_bytes, tensors.values()))
    index = {"metadata": {"total_size": size}, "weight_map": places}
    middle = f"{ending}.json" if variant else ".json"
    write_json(directory / f"{stem}.safetensors.index{middle}", index)


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """As published configs are: two spaces, keys in order."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def state_dict(
    params: Params, *, prefix: str = "", dtype: Any = None
) -> dict[str, TorchLayout]:
    """torch's names and layouts of parameters, in `dtype`; none is copied yet."""
    flat = traverse_util.flatten_dict(params)
    to_dtype = None if dtype is None else np.dtype(dtype)
    return {
        prefix + torch_key(path): TorchLayout(path, flat[path], to_dtype)
        for path in sorted(flat)
    }


@contextlib.contextmanager
def appearing(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary name beside `path`, which takes its place when all went well."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def appearing_directory(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """A new directory that takes its name when all went well; `path` must be empty."""
    path = pathlib.Path(path).absolute()
    check_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        temporary.chmod(0o755)  # mkdtemp's is for its owner alone
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_free(path: str | pathlib.Path) -> None:
    """Raises unless nothing is at `path`, or a directory with nothing in it."""
    path = pathlib.Path(path)
    if path.is_symlink() or path.is_file():
        raise ValueError(
            f"{path} exists and is not a directory; nothing is overwritten"
        )
    if path.is_dir() and any(path.iterdir()):
        raise ValueError(f"{path} is not empty; nothing is overwritten")


def _shards(tensors: Mapping[str, Any], most: int) -> list[dict[str, Any]]:
    shards: list[dict[str, Any]] = [{}]
    room = most
    for name, tensor in tensors.items():
        size = _num_bytes(tensor)
        if size > room and shards[-1]:
            shards.append({})
            room = most
        shards[-1][name] = tensor
        room -= size
    return shards


def _dtype(tensors: Mapping[str, Any], name: str) -> np.dtype:
    dtype = np.dtype(tensors[name].dtype)
    if dtype not in NAMES:
        choices = sorted(map(str, NAMES))
        raise ValueError(f"{name} is {dtype}, which is not written; one of {choices}")
    return dtype


def _num_bytes(tensor: Any) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64)) * np.dtype(tensor.dtype).itemsize
