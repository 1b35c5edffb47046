"""Random inputs, and random parameters without compiling an initialiser."""

import jax
import jax.numpy as jnp
import numpy as np


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, "float32"))


def draw_params(module, *inputs):
    """Parameters none of which is zero: of order 1 / sqrt(fan in)."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(0)

    def draw_one(path, like):
        value = rng.standard_normal(like.shape, "float32")
        if path[-1].key == "scale":
            return jnp.asarray(1 + 0.1 * value)
        return jnp.asarray(0.1 * value)

    return jax.tree_util.tree_map_with_path(draw_one, shapes)
