"""A tiny CLIP's losses and gradients on all devices of this process; also a script.

python tests/tasks/clip_losses.py OUT.npz
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.models.clip import CLIP, CLIPText, CLIPVision
from diffusion_jax.tasks import clip
from diffusion_jax.training import sharding

MODEL = CLIP(
    CLIPText(
        vocab_size=20,
        context_length=4,
        width=16,
        num_layers=1,
        num_heads=2,
        mlp_width=16,
        eos_id=19,
    ),
    CLIPVision(
        image_size=8, patch_size=4, width=16, num_layers=1, num_heads=2, mlp_width=16
    ),
    projection_dim=8,
)
BATCH = 32
VARIANTS = {
    "plain": {},
    "sharp in parts": dict(sam_rho=0.1, samples_per_replica=2, num_parts=2),
}


def task(**options):
    return clip.clip(MODEL, image_size=8, context_length=4, **options)


def batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 19, (BATCH, 4)).astype(np.int32)
    tokens[:, 3] = 19
    image = np.tanh(rng.standard_normal((BATCH, 8, 8, 3), "float32"))
    return {"image": image, "tokens": tokens}


@functools.cache
def parameters():
    """Larger than at the start, so that the loss is not flat."""
    shapes, _ = jax.eval_shape(task().init, jax.random.key(0))
    rng = np.random.default_rng(1)

    def draw(path, like):
        value = 0.2 * rng.standard_normal(like.shape).astype("float32")
        return jnp.asarray(value + {"scale": 1, "logit_scale": 2}.get(path[-1].key, 0))

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def compiled(**options):
    """The gradient of a batch that is split over all devices."""
    gradient = jax.value_and_grad(task(**options).loss, has_aux=True)
    placed = sharding.shard_batch(batch(), sharding.make_mesh())
    arguments = parameters(), {}, jax.random.key(0), placed
    return jax.jit(gradient).lower(*arguments).compile()


def run(params=None, **options):
    """The loss, then the gradients."""
    params = parameters() if params is None else params
    placed = sharding.shard_batch(batch(), sharding.make_mesh())
    program = compiled(**options)
    (value, _), grads = program(params, {}, jax.random.key(0), placed)
    return [np.asarray(x) for x in (value, *jax.tree.leaves(grads))]


def main(path):
    found = {
        f"{name}/{i:03d}": x
        for name, options in VARIANTS.items()
        for i, x in enumerate(run(**options))
    }
    np.savez(path, num_devices=jax.device_count(), **found)


if __name__ == "__main__":
    main(sys.argv[1])
