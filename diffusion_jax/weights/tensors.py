"""Safetensors files: which tensors there are, and the bytes of each when it is read.

A file is the length of a JSON header (8 bytes), the header, and the tensors' bytes one
after another. A component of a model is one file, or several and an index of them.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
import pathlib
import re
from collections.abc import Collection, Iterable
from typing import Any

import ml_dtypes
import numpy as np

STEMS = ("diffusion_pytorch_model", "model")  # of diffusers, of transformers
PICKLE_ENDINGS = (".bin", ".ckpt", ".pt", ".pth", ".th", ".pkl")
CONVERTER = "python -m diffusion_jax.convert_pickle"
# Linux maps all pages of a tensor at once, which is faster than one by one.
MAPPING: dict[str, Any] = {"access": mmap.ACCESS_READ}
if hasattr(mmap, "MAP_POPULATE"):
    MAPPING = {"flags": mmap.MAP_SHARED | mmap.MAP_POPULATE, "prot": mmap.PROT_READ}
MAX_HEADER = 100_000_000  # bytes; the format's own limit
DTYPES = {
    name: np.dtype(item)
    for name, item in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U64": np.uint64,
        "U32": np.uint32,
        "U16": np.uint16,
        "U8": np.uint8,
        "BOOL": np.bool_,
    }.items()
}


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a file; `np.asarray(stored)` is read-only and lives in the file."""

    path: pathlib.Path
    offset: int  # of its first byte in the file
    shape: tuple[int, ...]
    dtype: np.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = np.empty(self.shape, self.dtype) if self.num_bytes == 0 else self._map()
        if copy or dtype not in (None, self.dtype):
            return array.astype(dtype or self.dtype)
        return array

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def _map(self) -> np.ndarray:
        """The bytes where the system has them, given back when the array is dropped."""
        before = self.offset % mmap.ALLOCATIONGRANULARITY
        start, length = self.offset - before, before + self.num_bytes
        try:
            with self.path.open("rb") as file:
                pages = mmap.mmap(file.fileno(), length, offset=start, **MAPPING)
        except ValueError:  # a map would be longer than the file
            raise ValueError(f"{self.path} has become shorter") from None
        size = self.num_bytes // self.dtype.itemsize
        return np.frombuffer(pages, self.dtype, size, before).reshape(self.shape)


# ---- one file -----------------------------------------------------------------------


def read_metadata(path: str | pathlib.Path) -> dict[str, str]:
    """The free text of a safetensors file's header."""
    with pathlib.Path(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)).get("__metadata__") or {}


def read_header(path: str | pathlib.Path) -> dict[str, Stored]:
    """The tensors of a safetensors file, not read yet."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(256)
        length = int.from_bytes(start[:8], "little")
        check_kind(path, start, size)
        file.seek(8)
        text = file.read(length)
    if len(text) < length:
        raise ValueError(f"{path} is truncated: its header alone is {length} bytes")
    header = _parse(path, text)
    found = {name: _stored(path, name, header[name], 8 + length) for name in header}
    _check_places(path, found, 8 + length, size)
    return found


def check_kind(path: pathlib.Path, start: bytes, size: int) -> None:
    """Raises, by the first bytes of a file, unless it may be of safetensors."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    reason = None
    if not size:
        reason = "is empty"
    elif text.startswith((b"<!doctype", b"<html", b"<?xml")):
        reason = "is a web page, not weights; download the file itself"
    elif text.startswith(b"version https://git-lfs"):
        reason = "is a git-lfs pointer, not weights; run `git lfs pull` there"
    elif start.startswith(b"PK") or (start[:1] == b"\x80" and start[1:2] in b"\2\3\4"):
        target = path.with_suffix(".safetensors")
        if target == path:
            target = path.with_name(f"converted_{path.name}")
        reason = f"is a torch pickle; make it safe with `{CONVERTER} {path} {target}`"
    else:
        length = int.from_bytes(start[:8], "little")
        if size < 8 or not 2 <= length <= MAX_HEADER or start[8:9] not in (b"{", b""):
            reason = f"is not a safetensors file; it begins with {start[:16]!r}"
    if reason is not None:
        raise ValueError(f"{path} {reason}")


def _parse(path: pathlib.Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a name is there twice")
        return dict(pairs)

    try:
        header = json.loads(text, object_pairs_hook=unique)
        header.pop("__metadata__", None)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} has a damaged header: {error}") from None
    return header


def _stored(path: pathlib.Path, name: str, entry: Any, start: int) -> Stored:
    try:
        dtype, shape, (begin, end) = (
            entry[key] for key in ("dtype", "shape", "data_offsets")
        )
        shape = tuple(shape)
        known = dtype in DTYPES
        num_bytes = int(np.prod(shape, dtype=object)) if shape else 1
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path}: {name} has a damaged entry {entry}") from None
    if not known:
        raise ValueError(f"{path}: {name} is {dtype}; one of {sorted(DTYPES)}")
    if end - begin != num_bytes * DTYPES[dtype].itemsize or begin < 0:
        raise ValueError(f"{path}: {name} {dtype} {shape} has {end - begin} bytes")
    return Stored(path, start + begin, shape, DTYPES[dtype])


def _check_places(
    path: pathlib.Path, found: dict[str, Stored], start: int, size: int
) -> None:
    """Tensors lie one behind the other, from the header to the end of the file."""
    place = start
    for name, stored in sorted(found.items(), key=lambda item: _extent(item[1])):
        begin, end = _extent(stored)
        if begin != place:
            raise ValueError(f"{path}: {name} begins at byte {begin}, not {place}")
        place = end
    if size < place:
        raise ValueError(f"{path} is truncated: {size} of {place} bytes")
    if size > place:
        raise ValueError(f"{path} has {size - place} bytes that are no tensor's")


def _extent(stored: Stored) -> tuple[int, int]:
    return stored.offset, stored.offset + stored.num_bytes


# ---- a component of a model ---------------------------------------------------------


def open_component(
    directory: str | pathlib.Path, *, variant: str | None = None
) -> dict[str, Stored]:
    """The tensors of a directory such as unet/, not read yet.

    `variant` names one of the sets of files that may lie side by side: "fp16" means
    model.fp16.safetensors; None, those without such a word.
    """
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"no directory {directory}")
    names = [path.name for path in directory.iterdir()]
    main = choose(names, variant, directory)
    if not main.endswith(".json"):
        return read_header(directory / main)
    return _open_shards(directory, main)


def choose(names: Iterable[str], variant: str | None, where: Any) -> str:
    """Of the names in a directory, the file of all tensors or the index of shards."""
    names = set(names)
    found = variants(names)
    if variant in found:
        return found[variant]
    said = sorted(f"variant={name!r}" if name else "no variant" for name in found)
    if found:
        wanted = f"of variant {variant!r}" if variant else "without a variant"
        raise ValueError(f"{where} has no weights {wanted}; choose {', '.join(said)}")
    pickles = sorted(name for name in names if name.endswith(PICKLE_ENDINGS))
    if any(re.search(r"-\d+-of-\d+", name) for name in pickles):
        raise ValueError(
            f"{where} has only pickles in shards ({shown(pickles)}), which are not "
            f"converted together; load and save it in torch with safe_serialization"
        )
    if pickles:
        source = pathlib.Path(str(where), pickles[0])
        target = source.with_name(target_name(pickles[0]))
        raise ValueError(
            f"{where} has only pickles ({', '.join(pickles)}); make one safe with "
            f"`{CONVERTER} {source} {target}`"
        )
    expected = " or ".join(f"{stem}.safetensors" for stem in STEMS)
    there = ", ".join(sorted(names)) or "nothing"
    raise FileNotFoundError(f"{where} has no {expected}; it has {there}")


def variants(names: Collection[str]) -> dict[str | None, str]:
    """Variant -> its file, or the index of its shards where it has no single file."""
    found: dict[str | None, str] = {}
    for stem in reversed(STEMS):
        patterns = (
            rf"{stem}\.safetensors\.index(?:\.([^.]+))?\.json",
            rf"{stem}(?:\.([^.]+))?\.safetensors",
        )
        for pattern in patterns:
            for name in sorted(names):
                match = re.fullmatch(pattern, name)
                if match and not re.search(r"-\d+-of-\d+", name):
                    found[match[1]] = name
    return found


def target_name(pickle: str) -> str:
    """The name under which a converted pickle is found."""
    return pathlib.Path(pickle).stem.removeprefix("pytorch_") + ".safetensors"


def shards(directory: pathlib.Path, index: str) -> dict[str, str]:
    """Name of a tensor -> name of its file, as an index says."""
    path = directory / index
    try:
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = {str(name): str(file) for name, file in places.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is not an index of shards (no weight_map)") from None
    for file in sorted(set(files.values())):
        if pathlib.PurePath(file).name != file:
            raise ValueError(f"{path} names a file elsewhere: {file!r}")
    return files


def _open_shards(directory: pathlib.Path, index: str) -> dict[str, Stored]:
    places = shards(directory, index)
    files = sorted(set(places.values()))
    missing = [file for file in files if not (directory / file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{directory} lacks {', '.join(missing)} of the {len(files)} shards that "
            f"{index} names"
        )
    headers = {file: read_header(directory / file) for file in files}
    found: dict[str, Stored] = {}
    for file, header in headers.items():
        if wrong := [name for name in header if places.get(name) != file]:
            raise ValueError(
                f"{directory / file} has {shown(wrong)}, which {index} does not say"
            )
        found |= header
    if absent := sorted(set(places) - set(found)):
        raise ValueError(f"{directory / index}: no shard has {shown(absent)}")
    return found


def shown(names: Collection[str], most: int = 12) -> str:
    """The names, joined; the rest of many as a number."""
    text = ", ".join(list(names)[:most])
    return f"{text} and {len(names) - most} more" if len(names) > most else text
