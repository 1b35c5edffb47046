"""Batches as CLIP sees them: what the priors and the decoder are trained on.

A batch has `image` and `tokens`, or what the frozen towers make of them, computed once:

    image_embed   the image's embedding      text_embed   the caption's
    text          the caption's states       text_mask    where it has tokens
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.models.clip_towers import ClipTowers
from diffusion_jax.models.unclip import Encoded
from diffusion_jax.types import Batch, Params


def image_embeddings(
    towers: ClipTowers, frozen: Params, batch: Batch
) -> Float[Array, "B P"]:
    """The embeddings of the images, cached or computed."""
    if "image_embed" in batch:
        return batch["image_embed"].astype(jnp.float32)
    return towers.encode_image(frozen, batch["image"])


def captions(towers: ClipTowers, frozen: Params, batch: Batch) -> Encoded:
    """The captions as the text tower tells them, cached or computed."""
    if "text" not in batch:
        return towers.encode_text(frozen, batch["tokens"])
    hidden, embed = (batch[k].astype(jnp.float32) for k in ("text", "text_embed"))
    return Encoded(hidden, embed, batch["text_mask"].astype(bool))


def as_batch(text: Encoded) -> Batch:
    """The entries by which a batch brings captions; `captions` reads them back."""
    return {"text": text.hidden, "text_embed": text.embed, "text_mask": text.mask}
