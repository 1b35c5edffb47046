"""The unCLIP decoder: images of CLIP image embeddings and captions.

Ramesh et al. (2022, arXiv:2204.06125, section 2.1): the image embedding is dropped in
10 % of the examples and, independently, the caption in 50 %, so that one network also
serves each of them alone and, with neither, guides both.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.models import clip_towers
from diffusion_jax.models.clip_towers import ClipTowers
from diffusion_jax.models.unclip import Encoded, TextImageProjection, TextTransformer
from diffusion_jax.tasks import clip_batches, dropping
from diffusion_jax.tasks.objective import Objective
from diffusion_jax.types import Batch, Conditioning, Key, Metrics, Params, Task


class Networks(NamedTuple):
    """What is trained; a parameter tree per field: "decoder", "text_proj", "text"."""

    decoder: nn.Module
    projection: TextImageProjection
    text: TextTransformer | None = None  # None: the hidden states of CLIP's tower


def decoder(
    networks: Networks,
    towers: ClipTowers,
    objective: Objective,
    frozen: Params,
    null_tokens: Int[Array, "1 L"],
    *,
    size: int,
    image_dropout: float = 0.1,
    text_dropout: float = 0.5,
) -> Task:
    """Trains on batches of `image` and `tokens`, images of `size` pixels a side.

    A batch may bring `image_embed` and the captions as CLIP tells them, computed once;
    see `clip_batches`. Larger images are resized.
    """
    dropping.check_rate("image_dropout", image_dropout)
    dropping.check_rate("text_dropout", text_dropout)

    def init(key: Key) -> tuple[Params, Params]:
        keys = dict(zip(("decoder", "text_proj", "text"), jax.random.split(key, 3)))
        params: Params = {}
        if networks.text is not None:
            params["text"] = networks.text.init(keys["text"], null_tokens)["params"]
        text = captions(networks, towers, params, frozen, {"tokens": null_tokens})
        image = jnp.zeros((1, towers.text.projection_dim))
        cond, made = networks.projection.init_with_output(
            keys["text_proj"], image, text, jnp.zeros(1, bool)
        )
        x = jnp.zeros((1, size, size, 3))
        made_decoder = networks.decoder.init(keys["decoder"], x, jnp.zeros(1), cond)
        params |= {"text_proj": made["params"], "decoder": made_decoder["params"]}
        return params, frozen

    def loss(
        params: Params, frozen: Params, key: Key, batch: Batch
    ) -> tuple[Float[Array, ""], Metrics]:
        key_image, key_text, key_dropout, key_noise = jax.random.split(key, 4)
        x0 = clip_towers.resized(batch["image"].astype(jnp.float32), size)
        image = clip_batches.image_embeddings(towers, frozen, batch)
        null, text = (
            captions(networks, towers, params, frozen, told)
            for told in ({"tokens": null_tokens}, batch)
        )
        has_no_text = jax.random.bernoulli(key_text, text_dropout, (len(x0),))
        has_no_image = jax.random.bernoulli(key_image, image_dropout, (len(x0),))
        text = dropping.drop(has_no_text, text, null)
        projection = {"params": params["text_proj"]}
        cond = networks.projection.apply(projection, image, text, has_no_image)
        variables = {"params": params["decoder"]}

        def network(x: Array, time: Array, cond: Conditioning) -> Array:
            options = dict(train=True, rngs={"dropout": key_dropout})
            return networks.decoder.apply(variables, x, time, cond, **options)

        return objective.of_batch(key_noise, network, x0, cond)

    return Task(init, loss)


def captions(
    networks: Networks,
    towers: ClipTowers,
    params: Params,
    frozen: Params,
    batch: Batch,
) -> Encoded:
    """The captions as the decoder reads them: by its own text encoder, or CLIP's."""
    if networks.text is None:
        return clip_batches.captions(towers, frozen, batch)
    return networks.text.apply({"params": params["text"]}, batch["tokens"])
