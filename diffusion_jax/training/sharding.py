"""Where arrays live: one mesh, and rules from an array's path to its layout.

The mesh has the axes "data" and "fsdp". Batches are split over both; parameters and
optimizer state are copied along "data" and may be split along "fsdp" (Rajbhandari et
al., 2019, arXiv:1910.02054, stage 3). The compiler inserts the communication.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from diffusion_jax.types import Batch

Rules = Sequence[tuple[str, str]]  # (regular expression, tactic)
AnyMesh = Mesh | AbstractMesh  # layouts can be inferred for devices that are not here


def make_mesh(axes: Mapping[str, int] | None = None) -> Mesh:
    """A mesh over all devices; one size may be -1, "all that are left".

    The default is {"data": -1, "fsdp": 1}.
    """
    axes = dict(axes or {"data": -1, "fsdp": 1})
    num_devices = jax.device_count()
    known = math.prod(size for size in axes.values() if size != -1)
    if list(axes.values()).count(-1) == 1 and known > 0:
        axes = {k: num_devices // known if v == -1 else v for k, v in axes.items()}
    if math.prod(axes.values()) != num_devices or min(axes.values()) < 1:
        raise ValueError(
            f"mesh {axes} does not fill {num_devices} devices; the product of the "
            "sizes must be that number, and one size may be -1"
        )
    types = (AxisType.Auto,) * len(axes)
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=types)


def replicate(shape: tuple[int, ...], mesh: AnyMesh) -> PartitionSpec:
    """A full copy on every device."""
    return PartitionSpec()


def fsdp(shape: tuple[int, ...], mesh: AnyMesh) -> PartitionSpec:
    """The largest axis that divides is split along "fsdp"; if none does, a copy."""
    size = mesh.shape["fsdp"]
    fitting = [axis for axis, length in enumerate(shape) if length % size == 0]
    if size == 1 or not fitting:
        return PartitionSpec()
    chosen = max(fitting, key=lambda axis: shape[axis])
    return PartitionSpec(*(None,) * chosen, "fsdp")


TACTICS = {"replicate": replicate, "fsdp": fsdp}


def infer_shardings(shapes: PyTree, rules: Rules, mesh: AnyMesh) -> PyTree:
    """A NamedSharding per array, by the first rule found in its "/"-joined path.

    The path of a parameter ends alike in `params`, `ema_params` and `opt_state`, so
    one rule serves all three. What no rule matches is replicated.
    """
    for _, tactic in rules:
        if tactic not in TACTICS:
            raise ValueError(f"unknown tactic {tactic!r}; one of {sorted(TACTICS)}")

    def choose(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        tactics = (tactic for pattern, tactic in rules if re.search(pattern, name))
        spec = TACTICS[next(tactics, "replicate")](leaf.shape, mesh)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(choose, shapes)


def place(tree: PyTree, shardings: PyTree) -> PyTree:
    """Arrays that every process holds in full -> global arrays."""

    def put(x, sharding):
        if sharding.is_fully_addressable:
            return jax.device_put(x, sharding)
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree, shardings)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis over every device of the mesh."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> Batch:
    """Each process's part of a batch -> global arrays, split over all devices."""
    sharding = batch_sharding(mesh)
    num_local = len(mesh.local_devices)
    for name, value in batch.items():
        if not np.ndim(value) or np.asarray(value).dtype.kind in "OSU":
            raise ValueError(f"batch entry {name!r} is not an array of numbers")
        if len(value) % num_local:
            raise ValueError(
                f"a batch of {len(value)} ({name!r}) does not divide over "
                f"{num_local} devices"
            )
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(value))
        for name, value in batch.items()
    }
