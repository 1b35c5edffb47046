"""Tar shards read in place: an index of byte ranges, and nothing is ever extracted.

A shard holds `<key>.<image extension>` and `<key>.txt` (and `<key>.json`, ignored), as
img2dataset and WebDataset write them. Members that could only do harm are refused.
"""

from __future__ import annotations

import glob
import pathlib
import tarfile
from collections.abc import Sequence
from typing import NamedTuple

from diffusion_jax.data import records

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
TEXT = ".txt"


class Member(NamedTuple):
    """Where the bytes of one file lie in its shard."""

    name: str
    offset: int
    size: int


class Pair(NamedTuple):
    """An image and its caption."""

    shard: str
    image: Member
    text: Member | None


def find_shards(paths: str | pathlib.Path | Sequence[str | pathlib.Path]) -> list[str]:
    """The sorted files of one or several patterns; each must match something."""
    patterns = [paths] if isinstance(paths, (str, pathlib.Path)) else list(paths)
    shards = []
    for pattern in patterns:
        found = sorted(glob.glob(str(pathlib.Path(pattern).expanduser())))
        if not found:
            raise FileNotFoundError(f"no tar shard matches {str(pattern)!r}")
        shards += found
    return list(dict.fromkeys(shards))


def _refuse(shard: str, member: tarfile.TarInfo) -> None:
    path = pathlib.PurePosixPath(member.name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or path.parts[:1] == ("~",):
        reason = "lies outside of its folder"
    elif not (member.isreg() or member.isdir()) or member.issparse():
        reason = "is a link, a device or a sparse file"
    else:
        return
    raise ValueError(f"tar shard {shard}: member {member.name!r} {reason}")


def index(shard: str) -> list[Pair]:
    """The pairs of one shard, in the order of their images."""
    images: dict[str, Member] = {}
    texts: dict[str, Member] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                _refuse(shard, member)
                path = pathlib.PurePosixPath(member.name)
                found = Member(member.name, member.offset_data, member.size)
                extension, key = path.suffix.lower(), str(path.with_suffix(""))
                if not member.isreg():
                    continue
                if extension == TEXT:
                    texts[key] = found
                elif extension in IMAGES and key in images:
                    raise ValueError(f"tar shard {shard}: two images are named {key!r}")
                elif extension in IMAGES:
                    images[key] = found
    except tarfile.TarError as error:
        raise ValueError(f"{shard} is not an uncompressed tar file: {error}") from error
    return [Pair(shard, image, texts.get(key)) for key, image in images.items()]


def read(shard: str, member: Member) -> bytes:
    """The bytes of one member."""
    with open(shard, "rb") as file:
        file.seek(member.offset)
        data = file.read(member.size)
    if len(data) < member.size:
        raise records.BadRecord(f"{shard} ends within {member.name}")
    return data
