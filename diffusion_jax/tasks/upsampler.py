"""Diffusion upsamplers: a larger image, given a smaller one.

Ramesh et al. (2022, arXiv:2204.06125, section 2.1) and Saharia et al. (2021,
arXiv:2104.07636): the small image, enlarged bicubically, is stacked on the noisy one,
and nothing else is told. A network without attention learns it from crops and is
applied to whole images.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.tasks.objective import Objective
from diffusion_jax.types import Batch, Conditioning, Key, Metrics, Params, Task


def upsampler(unet: nn.Module, objective: Objective, *, size: int) -> Task:
    """Trains params["upsampler"] on batches of `image` and `low_res`, equally large.

    `size` is the number of pixels a side for which parameters are made; it does not
    limit that of the batches.
    """

    def init(key: Key) -> tuple[Params, Params]:
        x = jnp.zeros((1, size, size, 3))
        params = unet.init(key, x, jnp.zeros(1), Conditioning(image=x))["params"]
        return {"upsampler": params}, {}

    def loss(
        params: Params, frozen: Params, key: Key, batch: Batch
    ) -> tuple[Float[Array, ""], Metrics]:
        x0, cond = batch["image"], Conditioning(image=batch["low_res"])
        key_dropout, key_noise = jax.random.split(key)

        def network(x: Array, time: Array, cond: Conditioning) -> Array:
            rngs = {"dropout": key_dropout}
            variables = {"params": params["upsampler"]}
            return unet.apply(variables, x, time, cond, train=True, rngs=rngs)

        return objective.of_batch(key_noise, network, x0, cond)

    return Task(init, loss)
