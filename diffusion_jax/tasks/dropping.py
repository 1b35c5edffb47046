"""Conditions dropped at random, so that one network learns to do without them too.

What guidance compares the condition with (Ho and Salimans, 2022, arXiv:2207.12598).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree


def drop(is_dropped: Bool[Array, "B"], given: PyTree, null: PyTree) -> PyTree:
    """Row by row what is given, or the one row of `null`; in the types of `null`."""

    def choose(rows: Array, empty: Array) -> Array:
        where = is_dropped.reshape(-1, *(1,) * (rows.ndim - 1))
        return jnp.where(where, empty, rows.astype(empty.dtype))

    return jax.tree.map(choose, given, null)


def check_rate(name: str, rate: float) -> None:
    """Raises unless the rate is a share."""
    if not 0 <= rate <= 1:
        raise ValueError(f"{name} is {rate}; it must lie in [0, 1]")
