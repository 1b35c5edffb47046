"""PNG files: what they say comes back, and they are there whole or not at all."""

import json
import os
import stat
import struct

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.evaluation import grids


@pytest.fixture
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


TEXTS = [
    "a small red circle",
    "it's a \"dog\" \\ {'a': 1} <b>&amp;</b>",
    "é ü ß ñ",
    "猫 🙂 Ж — “quoted”",
    "two\nlines\tand a tab",
    "",
    " spaces ",
    json.dumps({"prompt": 'say "ü"', "seed": 0, "config": {"lr": 3e-4}}),
    "and/or, 1/2/3, http://host/a/b/c, gs://bucket/a/b, ./a/b, ~/a/b, /imagine a cat",
]


@pytest.mark.parametrize("text", TEXTS)
def test_metadata_comes_back_as_it_was(tmp_path, image, text):
    path = tmp_path / "x.png"
    metadata = {"prompt": text, "other": "plain"}
    grids.save_png(image, path, metadata=metadata)
    assert grids.read_metadata(path) == metadata
    with Image.open(path) as found:
        np.testing.assert_array_equal(np.asarray(found), np.asarray(image))


def chunks(path):
    data = path.read_bytes()[8:]
    while data:
        (length,) = struct.unpack(">I", data[:4])
        yield data[4:8], data[8 : 8 + length]
        data = data[12 + length :]


def test_unicode_is_stored_as_the_format_wants_it(tmp_path, image):
    grids.save_png(image, tmp_path / "x.png", metadata={"a": "plain", "b": "猫"})
    found = dict(chunks(tmp_path / "x.png"))
    assert found[b"tEXt"] == b"a\0plain"
    assert found[b"iTXt"].startswith(b"b\0") and "猫".encode() in found[b"iTXt"]


@pytest.mark.parametrize("letter", ["x", "é", "猫", "🙂"])
def test_long_values_end_at_the_cap_between_letters(tmp_path, image, letter):
    grids.save_png(image, tmp_path / "x.png", metadata={"prompt": letter * 100_000})
    found = grids.read_metadata(tmp_path / "x.png")["prompt"]
    assert set(found) == {letter}
    size = len(letter.encode())
    assert grids.MAX_TEXT_BYTES - size < len(found) * size <= grids.MAX_TEXT_BYTES


@pytest.mark.parametrize(
    "text, kept",
    [
        ("/home/alice/runs/x", "x"),
        ("/home/alice/runs/", "runs"),
        ("--workdir=/home/alice/x.py --seed 0", "--workdir=x.py --seed 0"),
        ('{"workdir": "/srv/alice/r", "seed": 1}', '{"workdir": "r", "seed": 1}'),
        ("file:///home/alice/b", "b"),
        (r"C:\Users\alice\y.png", "y.png"),
        (json.dumps({"at": r"C:\Users\alice\y"}), '{"at": "y"}'),
    ],
)
def test_of_absolute_paths_only_the_last_part_is_kept(tmp_path, image, text, kept):
    grids.save_png(image, tmp_path / "x.png", metadata={"a": text})
    assert grids.read_metadata(tmp_path / "x.png") == {"a": kept}


def test_text_that_png_cannot_hold_is_replaced(tmp_path, image):
    grids.save_png(image, tmp_path / "x.png", metadata={"a": "x\0y", "b": "\ud800"})
    assert grids.read_metadata(tmp_path / "x.png") == {
        "a": "x\N{REPLACEMENT CHARACTER}y",
        "b": "?",
    }


@pytest.mark.parametrize("key", ["", "k" * 80, "ключ", "a\0b"])
def test_a_keyword_that_png_forbids_is_refused(tmp_path, image, key):
    with pytest.raises(ValueError, match="PNG keyword"):
        grids.save_png(image, tmp_path / "x.png", metadata={key: "v"})
    assert not list(tmp_path.iterdir())


def test_the_same_picture_gives_the_same_bytes(tmp_path, image):
    for name in "ab":
        grids.save_png(image, tmp_path / name, metadata={"prompt": "猫"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path, image, monkeypatch
):
    path = tmp_path / "x.png"
    grids.save_png(image, path, metadata={"version": "old"})

    def half_written(self, target, **_):
        target.write_bytes(b"\x89PNG")
        raise OSError("no space left on device")

    monkeypatch.setattr(Image.Image, "save", half_written)
    with pytest.raises(OSError, match="no space"):
        grids.save_png(image, path, metadata={"version": "new"})
    assert grids.read_metadata(path) == {"version": "old"}
    assert list(tmp_path.iterdir()) == [path]


def test_the_folder_is_made_and_others_may_read_the_file(tmp_path, image):
    path = tmp_path / "new" / "folder" / "x.png"
    mask = os.umask(0o022)
    try:
        grids.save_png(image, path, metadata={})
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert grids.read_metadata(str(path)) == {}
