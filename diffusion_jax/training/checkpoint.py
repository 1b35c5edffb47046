"""Checkpoints of a run (Orbax), and finished parameters as safetensors.

A checkpoint `workdir/checkpoints/STEP` has the items `state` (the TrainState), `data`
(where the batches were, as JSON) and `meta` (JSON: shapes, a fingerprint, what the loop
adds). Orbax stores no checksum of array data, so the fingerprint is checked on restore.
Per array of words w_0, w_1, ... it is

    sum_i mix(w_i + 0x9E3779B9 i)   mod 2**32

with the finaliser of MurmurHash3 (Appleby, 2011) as `mix`. Integer sums are exact, so it
is the same on any number of devices, and `mix` is invertible, so every change of one
word changes it.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import safetensors
import safetensors.numpy
from etils import epath
from flax import traverse_util
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from diffusion_jax.types import Params

TRASH, BROKEN = "_trash", "_broken"
PARAMS_FILE = "params.safetensors"


class Restored(NamedTuple):
    """A checkpoint that was read back: the state, the data position, the loop's own."""

    step: int
    state: PyTree
    data: Any
    extra: dict[str, Any]


def open_manager(directory: epath.PathLike, *, keep: int) -> ocp.CheckpointManager:
    """A context manager; only leaving it makes sure that the last save is on disk."""
    directory = epath.Path(directory).absolute()
    if jax.process_index() == 0 and (directory / TRASH).exists():
        (directory / TRASH).rmtree()
    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(keep),
        todelete_subdir=TRASH,  # a kill while deleting must not leave half a step
        cleanup_tmp_directories=True,
    )
    return ocp.CheckpointManager(directory, options=options)


@jax.jit
def _fingerprints(leaves: list[jax.Array]) -> list[jax.Array]:
    def words(x: jax.Array) -> jax.Array:
        if x.dtype == jnp.bool_:
            return x.astype(jnp.uint32)
        unsigned = jnp.dtype(f"uint{8 * min(x.dtype.itemsize, 4)}")
        return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)

    def mix(h: jax.Array) -> jax.Array:
        h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
        h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
        return h ^ (h >> 16)

    def one(x: jax.Array) -> jax.Array:
        w, stride = words(x), 0x9E3779B9
        for axis in reversed(range(w.ndim)):
            index = jax.lax.broadcasted_iota(jnp.uint32, w.shape, axis)
            w += index * jnp.uint32(stride % 2**32)
            stride *= w.shape[axis]
        return jnp.sum(mix(w), dtype=jnp.uint32)

    return [one(x) for x in leaves]


def fingerprint(tree: PyTree) -> dict[str, int]:
    """The sum of this file's docstring for every array, by its path."""
    names = [name for name, _ in _named_leaves(tree)]
    sums = jax.device_get(
        _fingerprints([jnp.asarray(x) for x in jax.tree.leaves(tree)])
    )
    return {name: int(value) for name, value in zip(names, sums, strict=True)}


def _named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _describe(tree: PyTree) -> dict[str, str]:
    return {
        name: f"{jnp.dtype(leaf.dtype).name}{list(leaf.shape)}"
        for name, leaf in _named_leaves(tree)
    }


def save(
    manager: ocp.CheckpointManager,
    step: int,
    state: PyTree,
    data: Any,
    extra: Mapping[str, Any],
) -> None:
    """Copies `state` to the host, then writes in the background."""
    if manager.latest_step() == step:
        return
    meta = {
        "shapes": _describe(state),
        "fingerprint": fingerprint(state),
        "extra": dict(extra),
    }
    items = ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        data=ocp.args.JsonSave({"position": data}),
        meta=ocp.args.JsonSave(meta),
    )
    manager.save(step, args=items, force=True)


class MismatchError(ValueError):
    """What is stored belongs to another model or optimizer."""


def _check_shapes(saved: Mapping[str, str], target: PyTree, where: str) -> None:
    wanted = _describe(target)
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise MismatchError(
                f"{where} is of another model or optimizer: {name} is "
                f"{saved.get(name, 'absent')} there and {wanted.get(name, 'absent')} "
                "here; use another directory, or the settings it was saved with"
            )


def _check_fingerprint(saved: Mapping[str, int], tree: PyTree) -> None:
    found = fingerprint(tree)
    for name in saved:
        if saved[name] != found.get(name):
            raise OSError(f"the stored values of {name} have changed since the save")


def restore(manager: ocp.CheckpointManager, step: int, target: PyTree) -> Restored:
    """Reads one step; raises if it is damaged or not shaped as `target`."""
    json_args = ocp.args.JsonRestore()
    items = manager.restore(
        step, args=ocp.args.Composite(data=json_args, meta=json_args)
    )
    meta = items["meta"]
    _check_shapes(meta["shapes"], target, f"checkpoint {manager.directory / str(step)}")
    state = manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
    )["state"]
    _check_fingerprint(meta["fingerprint"], state)
    return Restored(step, state, items["data"]["position"], meta["extra"])


def _set_aside(manager: ocp.CheckpointManager, steps: Sequence[int]) -> None:
    """Moves broken steps out of the way of the saves to come."""
    if not steps:
        return
    if jax.process_index() == 0:
        for step in steps:
            source = manager.directory / str(step)
            (manager.directory / BROKEN).mkdir(exist_ok=True)
            source.rename(manager.directory / BROKEN / f"{step}-{time.time_ns()}")
    multihost_utils.sync_global_devices("broken checkpoints set aside")
    manager.reload()


def restore_newest(manager: ocp.CheckpointManager, target: PyTree) -> Restored | None:
    """The newest checkpoint that can be read; None if there is no checkpoint at all.

    `target` has ShapeDtypeStructs with shardings. A broken checkpoint is warned of and
    moved to `_broken` once an older one has proved good. One of another model raises.
    """
    failures: dict[int, Exception] = {}
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            restored = restore(manager, step, target)
        except MismatchError:
            raise
        except Exception as error:  # noqa: BLE001  Orbax raises it bare for damage
            failures[step] = error
            reason = str(error).strip().split("\n")[0]
            warnings.warn(
                f"checkpoint {manager.directory / str(step)} cannot be read "
                f"({type(error).__name__}: {reason})",
                stacklevel=2,
            )
            continue
        _set_aside(manager, list(failures))
        return restored
    if failures:
        raise OSError(
            f"no checkpoint in {manager.directory} can be read, of steps "
            f"{sorted(failures)}; move them away to begin again"
        ) from failures[max(failures)]
    return None


def read(
    directory: epath.PathLike, target: PyTree, *, step: int | None = None
) -> Restored:
    """The checkpoint of `step`, or the newest; changes nothing, beside a training too."""
    directory = epath.Path(directory).absolute()
    if not directory.exists():
        raise FileNotFoundError(f"there is no checkpoint in {directory}")
    options = ocp.CheckpointManagerOptions(read_only=True)
    with ocp.CheckpointManager(directory, options=options) as manager:
        steps = sorted(manager.all_steps())
        if not steps:
            raise FileNotFoundError(f"there is no checkpoint in {directory}")
        if step is not None and step not in steps:
            raise FileNotFoundError(f"no step {step} in {directory}; one of {steps}")
        return restore(manager, steps[-1] if step is None else step, target)


def save_params(directory: epath.PathLike, params: Params) -> None:
    """Writes `directory/params.safetensors`, named by "/"-joined path."""
    metadata = {"fingerprint": json.dumps(fingerprint(params))}
    leaves = traverse_util.flatten_dict(jax.tree.map(jnp.asarray, params))
    if not all(leaf.is_fully_addressable for leaf in leaves.values()):
        leaves = multihost_utils.process_allgather(leaves, tiled=True)
    tensors = {"/".join(path): np.asarray(leaf) for path, leaf in leaves.items()}
    if jax.process_index() == 0:
        path = epath.Path(directory) / PARAMS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        safetensors.numpy.save_file(tensors, unfinished, metadata)
        unfinished.replace(path)


def stored_fingerprint(directory: epath.PathLike) -> dict[str, int]:
    """The fingerprint of what `save_params` wrote; only the file's header is read."""
    path = epath.Path(directory) / PARAMS_FILE
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}; save_params writes it")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    return json.loads(metadata.get("fingerprint", "{}"))


def load_params(directory: epath.PathLike, like: PyTree | None = None) -> Params:
    """What `save_params` wrote; raises if it is damaged or not shaped as `like`."""
    path = epath.Path(directory) / PARAMS_FILE
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}; save_params writes it")
    try:
        with safetensors.safe_open(path, framework="flax") as file:
            metadata = file.metadata() or {}
            leaves = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    params = traverse_util.unflatten_dict(
        {tuple(name.split("/")): leaf for name, leaf in leaves.items()}
    )
    if like is not None:
        _check_shapes(_describe(params), like, str(path))
    _check_fingerprint(json.loads(metadata.get("fingerprint", "{}")), params)
    return params
