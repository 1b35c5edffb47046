"""The KL-regularised autoencoder of latent diffusion (Rombach et al., 2022, app. G)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.models.autoencoder import AutoencoderKL
from diffusion_jax.types import Batch, Key, Metrics, Params, Task

Distance = {"l1": jnp.abs, "l2": jnp.square}


def kl_to_standard_normal(
    mean: Float[Array, "B *d"], logvar: Float[Array, "B *d"]
) -> Float[Array, "B"]:
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats, summed over each example."""
    terms = mean**2 + jnp.exp(logvar) - 1.0 - logvar
    return terms.reshape(len(terms), -1).sum(axis=1) / 2


def sample_latent(
    key: Key, mean: Float[Array, "*d"], logvar: Float[Array, "*d"]
) -> Float[Array, "*d"]:
    """A draw of the posterior, differentiable in its mean and variance."""
    return mean + jnp.exp(logvar / 2) * jax.random.normal(key, mean.shape, mean.dtype)


def autoencoder(
    model: AutoencoderKL,
    *,
    image_size: int,
    distance: str = "l1",
    kl_weight: float = 1e-6,
) -> Task:
    """Reconstruction + KL, both summed over an image as the paper's weight means it.

    The loss is divided by the number of values of an image, so that it reads as the
    mean `distance` ("l1" or "l2") per value.
    """
    if distance not in Distance:
        raise ValueError(f"unknown distance {distance!r}; one of {sorted(Distance)}")

    def init(key: Key) -> tuple[Params, Params]:
        image = jnp.zeros((1, image_size, image_size, 3))
        return model.init(key, image)["params"], {}

    def loss(
        params: Params, frozen: Params, key: Key, batch: Batch
    ) -> tuple[Float[Array, ""], Metrics]:
        variables, image = {"params": params}, batch["image"]
        mean, logvar = model.apply(variables, image, method="encode")
        latent = sample_latent(key, mean, logvar)
        output = model.apply(variables, latent, method="decode")
        error = Distance[distance](output - image).mean()
        kl = kl_to_standard_normal(mean, logvar).mean()
        value = error + kl_weight * kl / image[0].size
        mse = jnp.mean((output - image) ** 2)
        return value, {distance: error, "kl": kl, "psnr": 10 * jnp.log10(4 / mse)}

    return Task(init, loss)
