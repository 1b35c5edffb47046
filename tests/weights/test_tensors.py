"""Safetensors files are read exactly, and whatever is not one is named in one line."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from diffusion_jax.weights import tensors, writing

RNG = np.random.default_rng(0)
STEM = "diffusion_pytorch_model"
TWO = {"a": np.ones(3, np.float32), "b": np.zeros((2, 2), np.float32)}


def message_of(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def failing(path, kind=ValueError):
    with pytest.raises(kind) as error:
        tensors.read_header(path)
    assert str(path) in message_of(error)
    return message_of(error)


@pytest.mark.parametrize("name", sorted(tensors.DTYPES))
def test_every_type_is_read_as_it_was_written(tmp_path, name):
    dtype = tensors.DTYPES[name]
    values = RNG.integers(0, 2, (3, 5)).astype(dtype)
    path = tmp_path / "x.safetensors"
    stored = {"odd": values[0, :3], "matrix": values, "one": np.asarray(values[0, 0])}
    if name.startswith("F8"):
        header, data = {}, b""
        for key, value in stored.items():
            place = [len(data), len(data) + value.nbytes]
            header[key] = dict(dtype=name, shape=value.shape, data_offsets=place)
            data += value.tobytes()
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    else:
        save_file(stored, path)
    found = tensors.read_header(path)
    assert found.keys() == stored.keys()
    for key, value in stored.items():
        read = np.asarray(found[key])
        assert (read.shape, read.dtype) == (value.shape, value.dtype)
        assert (found[key].shape, found[key].dtype) == (value.shape, value.dtype)
        assert read.tobytes() == value.tobytes()


def test_numbers_agree_with_the_library_of_the_format(tmp_path):
    path = tmp_path / "x.safetensors"
    made = {f"t{i}": RNG.standard_normal((i, 7)).astype("f4") for i in range(4)}
    made["half"] = RNG.standard_normal(5).astype(np.float16)
    made["brain"] = RNG.standard_normal(5).astype(ml_dtypes.bfloat16)
    save_file(made, path, metadata={"format": "pt"})
    found = tensors.read_header(path)
    for key, expected in load_file(path).items():
        np.testing.assert_array_equal(np.asarray(found[key]), expected)
        wide = np.asarray(found[key], np.float64)
        np.testing.assert_array_equal(wide, expected.astype(np.float64))


def test_what_is_read_cannot_change_the_file(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(TWO, path)
    before = path.read_bytes()
    read = np.asarray(tensors.read_header(path)["a"])
    with pytest.raises(ValueError, match="read-only"):
        read[0] = 2
    copy = np.array(tensors.read_header(path)["a"])
    copy[0] = 2
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>\n<html>...", "is a web page"),
        (b"\n  <html lang='en'>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid ...", "git lfs pull"),
        (b"PK\x03\x04 and a zip archive", "convert_pickle"),
        (b"\x80\x02}q\x00(X\x05", "convert_pickle"),
        (b"GGUF and more", "is not a safetensors file"),
        (b"\x05", "is not a safetensors file"),
        ((20).to_bytes(8, "little") + b'{"a"', "truncated"),
        ((2).to_bytes(8, "little") + b"{}" + b"rest", "4 bytes that are no tensor's"),
        ((4).to_bytes(8, "little") + b"{x}}", "damaged header"),
        ((2).to_bytes(8, "little") + b"[]", "is not a safetensors file"),
    ],
)
def test_what_is_no_safetensors_file_is_named(tmp_path, content, reason):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert reason in failing(path)


def test_a_truncated_file_is_known_before_it_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(TWO, path)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert f"truncated: {len(content) - 1} of {len(content)} bytes" in failing(path)
    path.write_bytes(content)
    stored = tensors.read_header(path)["b"]
    path.write_bytes(content[:-10])
    with pytest.raises(ValueError, match="has become shorter"):
        np.asarray(stored)


@pytest.mark.parametrize(
    "entry, reason",
    [
        (dict(dtype="F4", shape=[2], data_offsets=[0, 8]), "a is F4; one of"),
        (dict(dtype="F32", shape=[3], data_offsets=[0, 8]), "has 8 bytes"),
        (dict(dtype="F32", shape=[2]), "damaged entry"),
        (dict(dtype="F32", shape=[2], data_offsets=[4, 12]), "begins at byte"),
        (7, "damaged entry"),
    ],
)
def test_an_entry_that_contradicts_itself_is_named(tmp_path, entry, reason):
    text = json.dumps({"a": entry}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    assert reason in failing(path)


def test_a_name_that_is_there_twice_is_an_error(tmp_path):
    entry = '{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'
    text = f'{{"a": {entry}, "a": {entry}}}'.encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    assert "twice" in failing(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    failing(tmp_path / "x.safetensors", FileNotFoundError)


# ---- variants and shards ------------------------------------------------------------


def write(directory, **options):
    writing.write_tensors(directory, options.pop("stem", STEM), TWO, **options)


def read_all(directory, variant=None):
    found = tensors.open_component(directory, variant=variant)
    return {key: np.asarray(value) for key, value in found.items()}


def assert_two(found):
    assert found.keys() == TWO.keys()
    for key, value in TWO.items():
        np.testing.assert_array_equal(found[key], value)


@pytest.mark.parametrize("stem", tensors.STEMS)
@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("size", [10**6, 14])
def test_whole_and_sharded_files_are_found_by_their_variant(
    tmp_path, stem, variant, size
):
    write(tmp_path, stem=stem, variant=variant, max_shard_size=size)
    assert len(list(tmp_path.iterdir())) == (1 if size > 100 else 3)
    assert_two(read_all(tmp_path, variant))


def test_shards_of_older_names_are_those_of_the_index(tmp_path):
    write(tmp_path, variant="fp16", max_shard_size=14)
    path = tmp_path / f"{STEM}.safetensors.index.fp16.json"
    index = json.loads(path.read_text())
    for key, file in index["weight_map"].items():
        old = file.replace(".fp16", "").replace(".safetensors", ".fp16.safetensors")
        (tmp_path / file).rename(tmp_path / old)
        index["weight_map"][key] = old
    path.write_text(json.dumps(index))
    assert_two(read_all(tmp_path, "fp16"))


def test_without_a_choice_the_plain_file_is_read(tmp_path):
    write(tmp_path)
    other = {key: value + 1 for key, value in TWO.items()}
    writing.write_tensors(tmp_path, STEM, other, variant="fp16")
    assert_two(read_all(tmp_path))
    np.testing.assert_array_equal(read_all(tmp_path, "fp16")["a"], TWO["a"] + 1)


def test_variants_that_are_there_are_listed_when_another_is_wanted(tmp_path):
    write(tmp_path, variant="fp16")
    write(tmp_path, variant="non_ema", max_shard_size=14)
    with pytest.raises(ValueError) as error:
        tensors.open_component(tmp_path)
    assert "variant='fp16', variant='non_ema'" in message_of(error)
    write(tmp_path)
    with pytest.raises(ValueError, match="no weights of variant 'fp8'; .*no variant"):
        tensors.open_component(tmp_path, variant="fp8")


def test_missing_shards_are_named(tmp_path):
    write(tmp_path, max_shard_size=14)
    (tmp_path / f"{STEM}-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError) as error:
        tensors.open_component(tmp_path)
    assert f"lacks {STEM}-00002-of-00002.safetensors" in message_of(error)


def test_shards_and_their_index_must_agree(tmp_path):
    write(tmp_path, max_shard_size=14)
    path = tmp_path / f"{STEM}.safetensors.index.json"
    index = json.loads(path.read_text())
    places = index["weight_map"]
    for wrong, reason in {
        "{": "is not an index",
        '{"metadata": {}}': "no weight_map",
        json.dumps({"weight_map": places | {"c": places["a"]}}): "no shard has c",
        json.dumps({"weight_map": {"a": places["a"], "c": places["b"]}}): "has b",
        json.dumps({"weight_map": places | {"a": "../x.safetensors"}}): "elsewhere",
    }.items():
        path.write_text(wrong)
        with pytest.raises(ValueError, match=reason) as error:
            tensors.open_component(tmp_path)
        message_of(error)


@pytest.mark.parametrize(
    "pickle, target",
    [
        (f"{STEM}.bin", f"{STEM}.safetensors"),
        ("pytorch_model.bin", "model.safetensors"),
    ],
)
def test_only_pickles_name_the_command_that_makes_them_safe(tmp_path, pickle, target):
    (tmp_path / pickle).write_bytes(b"PK")
    with pytest.raises(ValueError) as error:
        tensors.open_component(tmp_path)
    command = f"python -m diffusion_jax.convert_pickle {tmp_path / pickle}"
    assert f"`{command} {tmp_path / target}`" in message_of(error)
    save_file(TWO, tmp_path / target)
    assert_two(read_all(tmp_path))


def test_pickles_in_shards_are_not_said_to_be_converted_one_by_one(tmp_path):
    for i in (1, 2):
        (tmp_path / f"{STEM}-0000{i}-of-00002.bin").write_bytes(b"PK")
    (tmp_path / f"{STEM}.bin.index.json").write_text("{}")
    with pytest.raises(ValueError, match="pickles in shards") as error:
        tensors.open_component(tmp_path)
    assert "convert_pickle" not in message_of(error)


def test_a_directory_without_weights_says_what_it_has(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        FileNotFoundError, match=rf"no {STEM}.safetensors .*config.json"
    ):
        tensors.open_component(tmp_path)
    with pytest.raises(FileNotFoundError, match="no directory"):
        tensors.open_component(tmp_path / "none")
