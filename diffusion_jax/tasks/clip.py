"""Contrastive training of CLIP (Radford et al., 2021, arXiv:2103.00020, figure 3)."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from diffusion_jax.models.clip import CLIP
from diffusion_jax.types import Batch, Key, Metrics, Params, Task

MAX_LOGIT_SCALE = 100.0  # section 2.5: the temperature is clipped there


def contrastive_loss(
    image: Float[Array, "B E"], text: Float[Array, "B E"], scale: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The symmetric cross-entropy over all pairs, and how often the pair wins.

    `image` and `text` have unit norm; row i of one belongs to row i of the other.
    """
    logits = scale * image @ text.T
    labels = jnp.arange(len(image))
    losses = optax.softmax_cross_entropy_with_integer_labels
    loss = (losses(logits, labels).mean() + losses(logits.T, labels).mean()) / 2
    accuracy = (logits.argmax(axis=1) == labels).mean()
    return loss, accuracy


def clip(model: CLIP, *, image_size: int, context_length: int) -> Task:
    """Trains both towers on batches of `image` [-1, 1] and `tokens`."""

    def init(key: Key) -> tuple[Params, Params]:
        image = jnp.zeros((1, image_size, image_size, 3))
        tokens = jnp.zeros((1, context_length), jnp.int32)
        return model.init(key, image, tokens)["params"], {}

    def loss(
        params: Params, frozen: Params, key: Key, batch: Batch
    ) -> tuple[Float[Array, ""], Metrics]:
        image, text = embed(model, params, batch["image"], batch["tokens"])
        scale = jnp.minimum(jnp.exp(params["logit_scale"]), MAX_LOGIT_SCALE)
        value, accuracy = contrastive_loss(image, text, scale)
        return value, {"accuracy": accuracy, "logit_scale": scale}

    return Task(init, loss)


def embed(
    model: CLIP,
    params: Params,
    image: Float[Array, "B H W 3"],
    tokens: Int[Array, "B L"],
) -> tuple[Float[Array, "B E"], Float[Array, "B E"]]:
    """Unit-norm embeddings of images and of captions in the shared space."""
    variables = {"params": params}
    return (
        model.apply(variables, image, method="encode_image"),
        model.apply(variables, tokens, method="encode_text"),
    )
