"""What is read back is what was written, or an error says which part is not."""

import gc
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from diffusion_jax.training import checkpoint

# Orbax leaves coroutines behind when a restore fails; they complain when collected.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def collect_what_orbax_leaves():
    yield
    gc.collect()


def tree(seed):
    rng = np.random.default_rng(seed)
    return {
        "resnets.0": {"kernel": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)},
        "half": jnp.asarray(rng.normal(size=5), jnp.bfloat16),
        "count": jnp.int32(seed),
        "flag": jnp.array([True, False]),
    }


def target(like):
    single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=single), like
    )


def write(directory, steps, keep=3):
    with checkpoint.open_manager(directory, keep=keep) as manager:
        for step in steps:
            extra = {"mean": float("nan")}
            checkpoint.save(manager, step, tree(step), {"index": step}, extra)


def read(directory, like=None):
    with checkpoint.open_manager(directory, keep=3) as manager:
        wanted = target(tree(0)) if like is None else like
        return checkpoint.restore_newest(manager, wanted)


def largest_file(directory):
    return max(directory.rglob("d/*"), key=lambda path: path.stat().st_size)


def empty(directory):
    shutil.rmtree(directory)
    directory.mkdir()


def delete_state(directory):
    shutil.rmtree(directory / "state")


def truncate(directory):
    path = largest_file(directory / "state")
    path.write_bytes(path.read_bytes()[:20])


def flip(directory):
    """One bit of the second half of the stored kernel."""
    rng_kernel = np.asarray(tree(3)["resnets.0"]["kernel"]).tobytes()
    for path in (directory / "state").rglob("d/*"):
        content = bytearray(path.read_bytes())
        at = content.find(rng_kernel[:16])
        if at >= 0:
            content[at + 9] ^= 1
            path.write_bytes(content)
            return
    flip_compressed(directory)


def flip_compressed(directory):
    path = largest_file(directory / "state")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_newest_is_read_back_bit_for_bit(tmp_path):
    write(tmp_path, [1, 2, 3])
    found = read(tmp_path)
    assert found.step == 3
    assert toy.equal(found.state, tree(3))
    assert found.data == {"index": 3}
    assert np.isnan(found.extra["mean"])


def test_an_empty_directory_has_no_checkpoint(tmp_path):
    assert read(tmp_path) is None


def test_any_step_is_read_without_touching_the_directory(tmp_path):
    write(tmp_path, [1, 2, 3])
    before = sorted(tmp_path.rglob("*"))
    for step, wanted in ((2, 2), (None, 3)):
        found = checkpoint.read(tmp_path, target(tree(0)), step=step)
        assert found.step == wanted
        assert toy.equal(found.state, tree(wanted))
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(FileNotFoundError, match=r"no step 7 .* one of \[1, 2, 3\]"):
        checkpoint.read(tmp_path, target(tree(0)), step=7)


def test_only_the_newest_are_kept_and_the_trash_is_emptied(tmp_path):
    write(tmp_path, [1, 2, 3, 4], keep=2)
    kept = sorted(path.name for path in tmp_path.iterdir() if path.name.isdigit())
    assert kept == ["3", "4"]
    read(tmp_path)
    assert not (tmp_path / "_trash").exists()


@pytest.mark.parametrize(
    "damage", [empty, delete_state, truncate, flip], ids=lambda f: f.__name__
)
def test_a_broken_newest_falls_back_and_is_set_aside(tmp_path, damage):
    write(tmp_path, [1, 2, 3])
    damage(tmp_path / "3")
    with pytest.warns(UserWarning, match="/3 cannot be read"):
        found = read(tmp_path)
    assert found.step == 2
    assert toy.equal(found.state, tree(2))
    assert [p.name.split("-")[0] for p in (tmp_path / "_broken").iterdir()] == ["3"]
    write(tmp_path, [3])
    assert read(tmp_path).step == 3


def test_a_stray_directory_named_as_a_number_does_no_harm(tmp_path):
    write(tmp_path, [1, 2])
    (tmp_path / "999").mkdir()
    with pytest.warns(UserWarning, match="/999 cannot be read"):
        assert read(tmp_path).step == 2
    write(tmp_path, [3])
    assert read(tmp_path).step == 3


def test_if_none_can_be_read_nothing_is_moved(tmp_path):
    write(tmp_path, [1, 2])
    empty(tmp_path / "1")
    empty(tmp_path / "2")
    with pytest.warns(UserWarning), pytest.raises(OSError, match=r"steps \[1, 2\]"):
        read(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": jnp.float32(0)}, "count is int32.* and float32.* here"),
        ({"half": jnp.zeros(6, jnp.bfloat16)}, r"half is bfloat16\[5\] .* \[6\]"),
        ({"new": jnp.zeros(1)}, "new is absent there"),
    ],
)
def test_another_tree_is_refused_by_name(tmp_path, change, message):
    write(tmp_path, [1])
    message = message.replace(" .* \\[6\\]", r" there and bfloat16\[6\] here")
    with pytest.raises(checkpoint.MismatchError, match=message):
        read(tmp_path, like=target(tree(0) | change))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint8"])
def test_every_bit_of_every_value_is_in_the_fingerprint(dtype):
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.integers(0, 100, size=(3, 5)), dtype)
    before = checkpoint.fingerprint({"x": values})
    raw = np.asarray(values)
    for index in np.ndindex(raw.shape):
        for bit in range(8 * raw.itemsize):
            changed = raw.copy()
            words = changed.view(f"uint{8 * raw.itemsize}")
            words[index] ^= words.dtype.type(1 << bit)
            assert checkpoint.fingerprint({"x": jnp.asarray(changed)}) != before


def test_swapped_values_change_the_fingerprint():
    a, b = jnp.array([[1.0, 2.0]]), jnp.array([[2.0, 1.0]])
    assert checkpoint.fingerprint([a]) != checkpoint.fingerprint([b])
    assert checkpoint.fingerprint([a]) != checkpoint.fingerprint([-a])


def test_parameters_survive_a_round_trip_through_a_file(tmp_path):
    checkpoint.save_params(tmp_path / "model", tree(5))
    found = checkpoint.load_params(tmp_path / "model", like=tree(0))
    assert toy.equal(found, tree(5))
    assert [path.name for path in (tmp_path / "model").iterdir()] == [
        "params.safetensors"
    ]


def test_a_missing_file_of_parameters_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="params.safetensors"):
        checkpoint.load_params(tmp_path)


def test_damaged_parameters_are_refused(tmp_path):
    checkpoint.save_params(tmp_path, tree(5))
    path = tmp_path / "params.safetensors"
    content = bytearray(path.read_bytes())
    path.write_bytes(content[:-4])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        checkpoint.load_params(tmp_path)
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match="stored values of .* have changed"):
        checkpoint.load_params(tmp_path)


def test_parameters_of_another_shape_are_refused(tmp_path):
    checkpoint.save_params(tmp_path, tree(5))
    with pytest.raises(checkpoint.MismatchError, match="new is absent there"):
        checkpoint.load_params(tmp_path, like=tree(5) | {"new": jnp.zeros(1)})


def test_a_file_of_another_writer_is_loaded_without_a_fingerprint(tmp_path):
    checkpoint.save_params(tmp_path, tree(5))
    path = tmp_path / "params.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    del header["__metadata__"]
    head = json.dumps(header).encode().ljust(size)
    path.write_bytes(content[:8] + head + content[8 + size :])
    assert toy.equal(checkpoint.load_params(tmp_path), tree(5))
