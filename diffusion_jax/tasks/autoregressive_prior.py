"""The autoregressive prior of unCLIP (Ramesh et al., 2022, arXiv:2204.06125, 2.2).

frozen = {"text_encoder": ..., "image_encoder": ..., "codes": embedding_codes.fit(...)}
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from diffusion_jax.models import embedding_codes
from diffusion_jax.models.autoregressive_prior import AutoregressiveTransformer
from diffusion_jax.models.clip_towers import ClipTowers
from diffusion_jax.models.prior import condition
from diffusion_jax.models.unclip import TextTransformer
from diffusion_jax.tasks import clip_batches, dropping
from diffusion_jax.tasks.prior import captions
from diffusion_jax.types import Batch, Key, Metrics, Params, Task


class Networks(NamedTuple):
    """What is trained; a parameter tree per field: "prior" and "text"."""

    prior: AutoregressiveTransformer
    text: TextTransformer | None = None  # None: the hidden states of CLIP's tower


def autoregressive_prior(
    networks: Networks,
    towers: ClipTowers,
    frozen: Params,
    null_tokens: Int[Array, "1 L"],
    *,
    caption_dropout: float = 0.1,
) -> Task:
    """Trains on batches as `tasks.prior` does; the loss is the cross-entropy of a code.

    A dropped caption takes the dot product of image and text with it.
    """
    dropping.check_rate("caption_dropout", caption_dropout)
    network = networks.prior
    embedding_codes.check(
        frozen["codes"], network.num_dims, network.num_buckets, network.num_dot_buckets
    )

    def init(key: Key) -> tuple[Params, Params]:
        keys = dict(zip(("prior", "text"), jax.random.split(key)))
        params: Params = {}
        if networks.text is not None:
            params["text"] = networks.text.init(keys["text"], null_tokens)["params"]
        text = captions(towers, networks.text, params, frozen, {"tokens": null_tokens})
        codes = jnp.zeros((1, network.num_dims), jnp.int32)
        dot = jnp.zeros(1, jnp.int32)
        made = network.init(keys["prior"], codes, dot, condition(text))
        return params | {"prior": made["params"]}, frozen

    def loss(
        params: Params, frozen: Params, key: Key, batch: Batch
    ) -> tuple[Float[Array, ""], Metrics]:
        image = clip_batches.image_embeddings(towers, frozen, batch)
        null = captions(towers, networks.text, params, frozen, {"tokens": null_tokens})
        text = captions(towers, networks.text, params, frozen, batch)
        codes = embedding_codes.encode(frozen["codes"], image)
        dot = embedding_codes.dot_bucket(frozen["codes"], image, text.embed)
        is_dropped = jax.random.bernoulli(key, caption_dropout, dot.shape)
        text = dropping.drop(is_dropped, text, null)
        dot = jnp.where(is_dropped, network.num_dot_buckets, dot)
        logits = network.apply({"params": params["prior"]}, codes, dot, condition(text))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, codes)
        value = losses.mean()
        accuracy = (logits.argmax(axis=-1) == codes).mean()
        return value, {"accuracy": accuracy, "perplexity": jnp.exp(value)}

    return Task(init, loss)
