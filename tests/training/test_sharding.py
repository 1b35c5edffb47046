"""The mesh changes where arrays live, not what comes out."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from diffusion_jax.training import checkpoint, sharding, state


def abstract(data, fsdp):
    axes = ("data", "fsdp")
    return AbstractMesh((data, fsdp), axes, axis_types=(AxisType.Auto,) * 2)


def shapes(tree):
    return jax.eval_shape(lambda: jax.tree.map(jnp.zeros, tree, is_leaf=is_shape))


def is_shape(x):
    return isinstance(x, tuple)


def test_fsdp_splits_the_largest_axis_that_divides():
    mesh = abstract(2, 4)
    assert sharding.fsdp((3, 3, 8, 16), mesh) == PartitionSpec(None, None, None, "fsdp")
    assert sharding.fsdp((16, 6), mesh) == PartitionSpec("fsdp")
    assert sharding.fsdp((6, 5), mesh) == PartitionSpec()
    assert sharding.fsdp((), mesh) == PartitionSpec()
    assert sharding.fsdp((16, 16), abstract(8, 1)) == PartitionSpec()


def test_one_rule_serves_parameters_averages_and_moments():
    params = shapes({"a": {"kernel": (8, 4), "bias": (4,)}})
    tree = jax.eval_shape(lambda: state.init_state(toy.adamw(), zeros(params)))
    found = sharding.infer_shardings(tree, [("kernel$", "fsdp")], abstract(1, 4))
    specs = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), place.spec)
        for path, place in jax.tree_util.tree_leaves_with_path(found)
    ]
    split = [name for name, spec in specs if spec == PartitionSpec("fsdp")]
    assert len(split) == 4  # parameters, average, two moments
    assert all(name.endswith("a/kernel") for name in split)


def zeros(tree):
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), tree)


def test_the_first_rule_that_matches_wins():
    tree = shapes({"norm": {"kernel": (8,)}, "a": {"kernel": (8,)}})
    rules = [("^norm/", "replicate"), ("kernel", "fsdp")]
    found = sharding.infer_shardings(tree, rules, abstract(1, 4))
    assert found["norm"]["kernel"].spec == PartitionSpec()
    assert found["a"]["kernel"].spec == PartitionSpec("fsdp")


def test_an_unknown_tactic_is_named():
    with pytest.raises(ValueError, match="'fdsp'; one of .*'fsdp'"):
        sharding.infer_shardings({}, [("", "fdsp")], abstract(1, 1))


@pytest.mark.parametrize("axes", [{"data": 3}, {"data": -1, "fsdp": -1}, {"data": 0}])
def test_a_mesh_must_fill_the_devices(axes):
    with pytest.raises(ValueError, match=re.escape(str(axes))):
        sharding.make_mesh(axes)


def test_batches_must_be_arrays_of_numbers():
    mesh = sharding.make_mesh()
    with pytest.raises(ValueError, match="'caption'"):
        sharding.shard_batch({"caption": np.array(["a"])}, mesh)
    with pytest.raises(ValueError, match="'count'"):
        sharding.shard_batch({"count": np.array(1)}, mesh)


@pytest.fixture(scope="module")
def on_eight(run_toy, tmp_path_factory):
    """Two runs on eight devices: one from step 0, one from step 20 of one device."""
    fresh, resumed = (tmp_path_factory.mktemp(name) for name in ("fresh", "resumed"))
    with pytest.raises(SystemExit):
        toy.train(resumed, toy.Stream(toy.signal_at(20)))
    done = run_toy(fresh, resumed, "--fsdp", 4, num_devices=8)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["8", "fsdp"]
    assert "compiling step 21" in done.stderr
    return fresh, resumed


def read(path):
    return np.genfromtxt(path / "metrics.csv", delimiter=",", skip_header=1)


def test_eight_devices_give_the_losses_of_one(straight, on_eight):
    workdir, _ = straight
    for other in on_eight:
        np.testing.assert_allclose(read(other), read(workdir), rtol=2e-5)


def test_checkpoints_of_eight_devices_are_those_of_one(straight, on_eight):
    _, expected = straight
    single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=single), expected
    )
    for workdir in on_eight:
        with checkpoint.open_manager(workdir / "checkpoints", keep=3) as manager:
            restored = checkpoint.restore(manager, 40, target).state
        for leaf, other in zip(
            jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True
        ):
            np.testing.assert_allclose(leaf, other, rtol=2e-4, atol=1e-6)


def test_a_run_of_eight_devices_goes_on_with_one(on_eight):
    state, _ = toy.train(on_eight[0], toy.Stream(), num_steps=42)
    assert int(state.step) == 42
