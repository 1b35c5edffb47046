"""Any number of images through one compiled program, over all devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from diffusion_jax.pipelines.stable_diffusion import StableDiffusion
from diffusion_jax.pipelines.stage import image_keys
from diffusion_jax.types import Params

Generate = Callable[..., Iterator[Float[np.ndarray, "b H W 3"]]]


def text_to_image(pipeline: StableDiffusion, *, batch_size: int) -> Generate:
    """A function of (params, tokens, null_tokens, seed, scale) that yields batches.

    It compiles once. Image i depends on the seed, i and its prompt alone: the batch
    size and the number of devices change it by rounding only. The last batch is
    padded and cut, and so is a batch that the devices do not divide.
    """
    mesh = Mesh(np.array(jax.devices()), ("data",))
    by_image = NamedSharding(mesh, PartitionSpec("data"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    padded_size = -(-batch_size // mesh.size) * mesh.size

    def make(params, seed, indices, tokens, null_tokens, scale):
        keys = image_keys(jax.random.key(seed), indices)
        return pipeline(params, keys, tokens, null_tokens, scale)

    shardings = (everywhere, everywhere, by_image, by_image, everywhere, everywhere)
    compiled = jax.jit(make, in_shardings=shardings, out_shardings=by_image)

    def generate(
        params: Params,
        tokens: Int[Array, "N L"] | Int[np.ndarray, "N L"],
        null_tokens: Int[Array, "1 L"] | Int[np.ndarray, "1 L"],
        *,
        seed: int = 0,
        scale: float | None = None,
    ) -> Iterator[Float[np.ndarray, "b H W 3"]]:
        scale = jnp.float32(pipeline.unet.guidance if scale is None else scale)
        params = jax.device_put(params, everywhere)
        for start in range(0, len(tokens), batch_size):
            rows = np.arange(start, start + padded_size)
            batch = np.asarray(tokens)[np.minimum(rows, len(tokens) - 1)]
            images = compiled(params, seed, rows, batch, null_tokens, scale)
            stop = min(batch_size, len(tokens) - start)
            yield np.asarray(images)[:stop]

    return generate
