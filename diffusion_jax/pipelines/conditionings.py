"""What the decoder may hear of a caption (arXiv:2204.06125, section 5.1, figure 8).

One decoder, trained to do without caption or image embedding now and then, is told less
or more: the caption alone; beside it CLIP's embedding of the caption in place of that of
an image; or the embedding that the prior makes of it. All are alike: (pipeline, params,
keys, text, null, prior_scale) -> Heard, for `Dalle2.decode`.
"""

from __future__ import annotations

import jax.numpy as jnp

from diffusion_jax.diffusion.samplers.integrate import Keys
from diffusion_jax.pipelines import dalle2
from diffusion_jax.pipelines.dalle2 import Caption, Dalle2, Heard, Scale
from diffusion_jax.types import Params


def caption(
    pipeline: Dalle2,
    params: Params,
    keys: Keys,
    text: Caption,
    null: Caption,
    prior_scale: Scale | None = None,
) -> Heard:
    """The caption alone."""
    embed = jnp.zeros_like(dalle2.one_per_image(text.clip, len(keys)).embed)
    is_dropped = jnp.ones(len(keys), bool)
    return pipeline.hear(params, embed, text, null, is_dropped)


def text_embedding(
    pipeline: Dalle2,
    params: Params,
    keys: Keys,
    text: Caption,
    null: Caption,
    prior_scale: Scale | None = None,
) -> Heard:
    """The caption, and its own CLIP embedding in place of an image's."""
    embed = dalle2.one_per_image(text.clip, len(keys)).embed
    return pipeline.hear(params, embed, text, null)


def prior(
    pipeline: Dalle2,
    params: Params,
    keys: Keys,
    text: Caption,
    null: Caption,
    prior_scale: Scale | None = None,
) -> Heard:
    """The caption, and the prior's image embedding of it."""
    embed = pipeline.draw_embedding(params, keys, text, null, prior_scale)
    return pipeline.hear(params, embed, text, null)


CONDITIONINGS = {
    "caption": caption,
    "text_embedding": text_embedding,
    "prior": prior,
}
