"""The diffusion prior of unCLIP (Ramesh et al., 2022, arXiv:2204.06125, section 2.2).

Frozen CLIP towers and the scale of the embeddings arrive as an argument:

    frozen = {"text_encoder": ..., "image_encoder": ..., "embedding": {"mean", "std"}}
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.models import embedding_scale
from diffusion_jax.models.clip import to_unit_norm
from diffusion_jax.models.clip_towers import ClipTowers
from diffusion_jax.models.prior import PriorTransformer, condition
from diffusion_jax.models.unclip import Encoded, TextTransformer
from diffusion_jax.tasks import clip_batches, dropping
from diffusion_jax.tasks.objective import Objective
from diffusion_jax.types import Batch, Conditioning, Key, Metrics, Params, Task


class Networks(NamedTuple):
    """What is trained; a parameter tree per field: "prior" and "text"."""

    prior: PriorTransformer
    text: TextTransformer | None = None  # None: the hidden states of CLIP's tower


def prior(
    networks: Networks,
    towers: ClipTowers,
    objective: Objective,
    frozen: Params,
    null_tokens: Int[Array, "1 L"],
    *,
    caption_dropout: float = 0.1,
) -> Task:
    """Trains on batches of `image` and `tokens`.

    A batch may bring `image_embed` and the captions as CLIP tells them, computed once;
    see `clip_batches`. An own text encoder reads the tokens in any case. A dropped
    caption loses its encoded text and its embedding together.
    """
    dropping.check_rate("caption_dropout", caption_dropout)

    def init(key: Key) -> tuple[Params, Params]:
        keys = dict(zip(("prior", "text"), jax.random.split(key)))
        params: Params = {}
        if networks.text is not None:
            params["text"] = networks.text.init(keys["text"], null_tokens)["params"]
        text = captions(towers, networks.text, params, frozen, {"tokens": null_tokens})
        x = jnp.zeros((1, networks.prior.embed_dim))
        made = networks.prior.init(keys["prior"], x, jnp.zeros(1), condition(text))
        return params | {"prior": made["params"]}, frozen

    def loss(
        params: Params, frozen: Params, key: Key, batch: Batch
    ) -> tuple[Float[Array, ""], Metrics]:
        key_drop, key_noise = jax.random.split(key)
        image = clip_batches.image_embeddings(towers, frozen, batch)
        null = captions(towers, networks.text, params, frozen, {"tokens": null_tokens})
        text = captions(towers, networks.text, params, frozen, batch)
        is_dropped = jax.random.bernoulli(key_drop, caption_dropout, (len(image),))
        given = dropping.drop(is_dropped, text, null)

        def network(x: Array, time: Array, cond: Conditioning) -> Array:
            return networks.prior.apply({"params": params["prior"]}, x, time, cond)

        def measure(x0: Array) -> Metrics:
            drawn = embedding_scale.restore(frozen["embedding"], x0)
            return cosines(drawn, image, text.embed)

        x0 = embedding_scale.standardize(frozen["embedding"], image)
        cond = condition(given)
        return objective.of_batch(key_noise, network, x0, cond, measure=measure)

    return Task(init, loss)


def captions(
    towers: ClipTowers,
    encoder: TextTransformer | None,
    params: Params,
    frozen: Params,
    batch: Batch,
) -> Encoded:
    """What a prior is told: CLIP's embedding, and the states of CLIP or of an own encoder."""
    if encoder is None:
        return clip_batches.captions(towers, frozen, batch)
    own = encoder.apply({"params": params["text"]}, batch["tokens"])
    if "text_embed" in batch:
        embed = batch["text_embed"].astype(jnp.float32)
    else:
        embed = towers.encode_text(frozen, batch["tokens"]).embed
    return Encoded(own.hidden, embed, own.mask)


def cosines(
    predicted: Float[Array, "B P"],
    image: Float[Array, "B P"],
    text: Float[Array, "B P"],
) -> Metrics:
    """Mean cosines of predicted image embeddings while they are learned.

    To the true one, to the text embedding and to another image of the batch; and the
    baseline of no prediction at all, that of the mean of all others to each true one.
    The first must beat the last two. Predictions are of all noise levels, and of
    dropped captions too.
    """

    def mean_cosine(a: Array, b: Array) -> Array:
        return jnp.sum(to_unit_norm(a) * to_unit_norm(b), axis=-1).mean()

    image, text = image.astype(jnp.float32), text.astype(jnp.float32)
    predicted = jax.lax.stop_gradient(predicted)
    return {
        "cos_image": mean_cosine(predicted, image),
        "cos_text": mean_cosine(predicted, text),
        "cos_unrelated": mean_cosine(predicted, jnp.roll(image, 1, axis=0)),
        "cos_baseline": mean_cosine(image.sum(axis=0) - image, image),
    }
