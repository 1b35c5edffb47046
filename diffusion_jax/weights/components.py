"""The parts of a published model: every stored tensor fills exactly one parameter."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.types import Conditioning, Params
from diffusion_jax.weights import convert

Place = Callable[[tuple[str, ...], np.ndarray], Any]


class Component(NamedTuple):
    """What a part's parameters are to be, and what is stored of it, not yet read."""

    like: Params  # shapes and dtypes
    tensors: Mapping[str, Any]
    rename: convert.Rename = ()


def load(
    components: Mapping[str, Component],
    *,
    place: Place | None = None,
    names: Collection[str] | None = None,
) -> Params:
    """Parameters of every component, or one error that lists all that do not fit.

    `place` puts the array of a path (("unet", "conv_in", "kernel")) on its devices,
    where not given the default one; it is called once for each, in turn. With `names`
    only the tensors of these components are read, though all must fit.
    """
    found: dict[str, dict] = {}
    problems: dict[str, list[str]] = {}
    for name, part in components.items():
        found[name], wrong = convert.match(part.tensors, part.like, rename=part.rename)
        for kind, keys in wrong.items():
            problems.setdefault(kind, []).extend(f"{name}/{key}" for key in keys)
    convert.refuse(problems)
    params: Params = {}
    for name in components if names is None else names:
        part = components[name]
        put = _within(name, place)
        params[name] = convert.fill(part.tensors, part.like, found[name], put)
    return params


def shape(module: nn.Module, *inputs: Any, dtype: str = "float32") -> Params:
    """The shapes of a module's parameters, which are neither initialised nor read."""
    like = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, dtype), like)


# ---- what modules are called with, as small as can be -------------------------------


def numbers(*shape: int) -> jax.ShapeDtypeStruct:
    """One row of float32."""
    return jax.ShapeDtypeStruct((1, *shape), jnp.float32)


def token_ids(length: int = 2) -> jax.ShapeDtypeStruct:
    """One row of them."""
    return jax.ShapeDtypeStruct((1, length), jnp.int32)


def unet_inputs(
    num_levels: int,
    in_channels: int,
    tokens: int | None = None,
    vector: int | None = None,
) -> tuple[Any, ...]:
    """Of a U-Net that attends to `tokens` and hears a `vector` of these widths."""
    side = 2 ** (num_levels - 1)
    cond = Conditioning(
        tokens=None if tokens is None else numbers(2, tokens),
        vector=None if vector is None else numbers(vector),
    )
    return numbers(side, side, in_channels), numbers(), cond


def _within(name: str, place: Place | None) -> Place:
    def put(path: tuple[str, ...], array: np.ndarray) -> Any:
        return jax.device_put(array) if place is None else place((name, *path), array)

    return put
