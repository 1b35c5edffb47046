"""Pickled checkpoints are read as torch reads them, and never run."""

import collections
import os
import pickle
import subprocess
import sys
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from diffusion_jax.convert_pickle import convert
from diffusion_jax.weights import pickles

torch = pytest.importorskip("torch")
load_file = pytest.importorskip("safetensors.torch").load_file

DTYPES = [
    *("float64", "float32", "float16", "bfloat16"),
    *("int64", "int32", "int16", "int8", "uint8", "uint16", "bool"),
]


def numbers(tensor):
    """A tensor's bits as numpy has them."""
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.detach().numpy()


def check_read(path, state):
    found = pickles.tensors(pickles.read(path))
    expected = torch.load(path, weights_only=True)
    expected = expected.get("state_dict", expected)
    assert found.keys() == state.keys()
    for name, tensor in found.items():
        wanted = numbers(expected[name])
        assert tensor.shape == wanted.shape and tensor.dtype == wanted.dtype
        read = np.asarray(tensor)
        assert read.dtype == wanted.dtype
        np.testing.assert_array_equal(read, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_read_as_torch_reads_it(tmp_path, dtype):
    torch.manual_seed(0)
    values = (100 * torch.randn(3, 4, 2)).abs().to(getattr(torch, dtype))
    state = {"w": values, "scalar": values[0, 0, 0].clone(), "empty": values[:0]}
    torch.save(state, tmp_path / "x.ckpt")
    check_read(tmp_path / "x.ckpt", state)


def test_strides_offsets_and_shared_storages(tmp_path):
    base = torch.arange(60.0)
    state = collections.OrderedDict(
        all=base,
        some=base[7:19],
        transposed=base.view(5, 12).t(),
        spaced=base.view(5, 12)[1::2, 2:9:3],
        conv=base.view(1, 3, 4, 5).to(memory_format=torch.channels_last),
        repeated=base[3:4].expand(6),
        parameter=torch.nn.Parameter(base[:4].view(2, 2)),
    )
    torch.save(state, tmp_path / "x.pt")
    check_read(tmp_path / "x.pt", state)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_module_beside_the_notes_of_its_trainer(tmp_path, protocol):
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    state = module.state_dict()  # has the attribute _metadata
    notes = dict(
        epoch=3,
        global_step=2**40,
        lr=1e-4,
        callbacks={"ModelCheckpoint": {"best": None, "paths": ["a", ("b",)]}},
        optimizer_states=[{"state": {0: {"exp_avg": torch.ones(2)}}, "betas": (0.9,)}],
        size=torch.Size([1, 2]),
        dtype=torch.float16,
        names={"x", "y"},
        raw=b"bytes",
        yes=True,
    )
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": state, **notes}, path, pickle_protocol=protocol)
    content = pickles.read(path)
    for name in ("epoch", "global_step", "lr", "callbacks", "names", "raw", "yes"):
        assert content[name] == notes[name]
    assert content["size"] == (1, 2)
    found = pickles.tensors(content)
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(np.asarray(found[name]), tensor.numpy())


def write_archive(path, data, **entries):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", data)
        for name, content in entries.items():
            archive.writestr(f"x/{name}", content)


class Runs:
    def __reduce__(self):
        return os.system, ("touch was_run",)


class Evaluates:
    def __reduce__(self):
        return eval, ("__import__('os').mkdir('was_run')",)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("malice", [Runs, Evaluates])
def test_nothing_is_executed(tmp_path, monkeypatch, malice, protocol):
    monkeypatch.chdir(tmp_path)
    write_archive("x.ckpt", pickle.dumps({"state_dict": malice()}, protocol=protocol))
    with pytest.raises(ValueError, match=r"(system|eval).* not data"):
        pickles.read("x.ckpt")
    assert not os.path.exists("was_run")
    with zipfile.ZipFile("x.ckpt") as archive:  # the same pickle, as pickle reads it
        pickle.loads(archive.read("x/data.pkl"))
    assert os.path.exists("was_run")


MALICIOUS = {
    "an instance": b"(S'touch was_run'\nios\nsystem\n.",
    "an object": b"(cos\nsystem\nS'touch was_run'\no.",
    "a class": b"ctorch\nFloatStorage\n)\x81.",
    "a call of a storage": b"ctorch\nFloatStorage\n)R.",
    "a call of a string": b"\x8c\x06system\x8c\x04true\x85R.",
    "a loader": b"ctorch.storage\n_load_from_bytes\n(C\x01xtR.",
    "attributes of a tensor's shape": b"ctorch\nSize\n)\x85R}b.",
    "an extension": b"\x82\x01.",
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_other_ways_to_run_code_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_archive("x.ckpt", MALICIOUS[name])
    with pytest.raises(ValueError, match=r"x\.ckpt .*(not data|calls|sets attributes)"):
        pickles.read("x.ckpt")
    assert not os.path.exists("was_run")


def tensor_pickle(offset, shape, strides):
    parts = [b"ctorch._utils\n_rebuild_tensor_v2\n(("]
    parts += [b"S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI4\ntQ"]
    parts += [b"I%d\n" % offset]
    for sizes in (shape, strides):
        parts += [b"(", *(b"I%d\n" % size for size in sizes), b"t"]
    return b"".join([*parts, b"I00\n}tR."])


@pytest.mark.parametrize(
    "window", [(0, (5,), (1,)), (3, (2,), (1,)), (4, (2,), (-1,)), (0, (2, 2), (3, 2))]
)
def test_a_tensor_never_leaves_its_storage(tmp_path, window):
    storage = np.arange(4, dtype=np.float32)
    path = tmp_path / "x.ckpt"
    write_archive(path, tensor_pickle(1, (3,), (1,)), **{"data/0": storage.tobytes()})
    np.testing.assert_array_equal(np.asarray(pickles.read(path)), storage[1:])
    path = tmp_path / "y.ckpt"
    write_archive(path, tensor_pickle(*window), **{"data/0": storage.tobytes()})
    with pytest.raises(ValueError, match="damaged"):
        pickles.read(path)


def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path):
    good = tmp_path / "good.ckpt"
    torch.save({"w": torch.ones(1000)}, good)
    legacy = tmp_path / "legacy.ckpt"
    torch.save({"w": torch.ones(2)}, legacy, _use_new_zipfile_serialization=False)
    whole = good.read_bytes()
    html = b"<!DOCTYPE html><html></html>"
    pointer = b"version https://git-lfs.github.com/spec/v1\n"
    bad = {
        legacy: "before 1.6.*torch.save",
        "html": (html, "HTML"),
        "pointer": (pointer, "git-lfs"),
        "half": (whole[: len(whole) // 2], "truncated"),
        "text": (b"hello", "not a checkpoint"),
    }
    safetensors.numpy.save_file({"w": np.ones(2)}, tmp_path / "tensors")
    bad[tmp_path / "tensors"] = "safetensors file already"
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("readme", "hello")
    bad[tmp_path / "zip"] = "not a checkpoint"
    for name, reason in bad.items():
        path = tmp_path / name
        if isinstance(reason, tuple):
            path.write_bytes(reason[0])
            reason = reason[1]
        with pytest.raises(ValueError, match=reason) as raised:
            pickles.read(path)
        assert str(path) in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        pickles.read(tmp_path / "nowhere")


def test_the_state_dict_is_found_or_asked_for(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"params": {"w": torch.ones(2)}, "epoch": 1, "other": {}}, path)
    with pytest.raises(ValueError, match=r"give --key, one of \['params'\]"):
        pickles.tensors(pickles.read(path))
    assert pickles.tensors(pickles.read(path), key="params").keys() == {"w"}
    with pytest.raises(ValueError, match="no dict 'parms'"):
        pickles.tensors(pickles.read(path), key="parms")
    torch.save([torch.ones(2)], path)
    with pytest.raises(ValueError, match="a list, not a state dict"):
        pickles.tensors(pickles.read(path))


def test_the_command_writes_the_same_tensors_as_safetensors(tmp_path):
    torch.manual_seed(0)
    source, target = tmp_path / "x.ckpt", tmp_path / "x.safetensors"
    state = {f"w{i}": torch.randn(5, i).bfloat16() for i in range(3)}
    state["odd"] = torch.randn(3).half()
    state["tied"] = state["w2"]
    torch.save({"state_dict": state, "global_step": 7}, source)
    command = [sys.executable, "-m", "diffusion_jax.convert_pickle", source, target]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "5 tensors" in done.stdout and "dropped: global_step" in done.stdout
    read = load_file(target)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)
    with safetensors.safe_open(target, "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 1 and "exists" in again.stderr
    assert "Traceback" not in again.stderr


def test_memory_holds_one_tensor_at_a_time(tmp_path):
    source, target = tmp_path / "x.ckpt", tmp_path / "x.safetensors"
    torch.save({f"w{i}": torch.full((1000, 1000), float(i)) for i in range(16)}, source)
    tracemalloc.start()
    convert(str(source), str(target))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 4_000_000 < os.path.getsize(target) / 2
    read = safetensors.numpy.load_file(target)
    assert [read[f"w{i}"][0, 0] for i in range(16)] == list(range(16))
    assert sorted(os.listdir(tmp_path)) == ["x.ckpt", "x.safetensors"]
