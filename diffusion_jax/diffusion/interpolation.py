"""From one point to another: on a line, and on a sphere (Shoemake, 1985, eq. 2).

Gaussian noise of d dimensions has norm sqrt(d), so what lies between two draws of it is
on the arc between them, not on the line, where it would be too short.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


def slerp(
    a: Float[Array, "*d"], b: Float[Array, "*d"], share: float | Float[Array, ""]
) -> Float[Array, "*d"]:
    """sin((1 - s) w) / sin(w) a + sin(s w) / sin(w) b, with w the angle between them.

    `share` s = 0 is a, 1 is b. Vectors that are parallel are mixed on the line.
    """
    norms = jnp.linalg.norm(a.ravel()) * jnp.linalg.norm(b.ravel())
    cos = jnp.vdot(a, b) / jnp.where(norms == 0, 1.0, norms)
    angle = jnp.arccos(jnp.clip(cos, -1.0, 1.0))
    is_parallel = jnp.abs(cos) > 1 - 1e-6
    safe = jnp.where(is_parallel, 1.0, angle)
    on_sphere = (jnp.sin((1 - share) * safe) * a + jnp.sin(share * safe) * b) / jnp.sin(
        safe
    )
    return jnp.where(is_parallel, lerp(a, b, share), on_sphere)


def lerp(a: PyTree, b: PyTree, share: float | Float[Array, "..."]) -> PyTree:
    """(1 - s) a + s b of every array: conditions, say."""
    return jax.tree.map(lambda x, y: (1 - share) * x + share * y, a, b)
