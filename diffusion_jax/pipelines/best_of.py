"""Which image shows a caption best, by CLIP; and which label CLIP sees in an image.

Of n images for a caption, that with the largest product of CLIP embeddings z_i . z_t
(Ramesh et al., 2021, arXiv:2102.12092, section 2.6). Labels as in zero-shot
classification (Radford et al., 2021, arXiv:2103.00020, section 3.1), by which figure 6
of arXiv:2204.06125 shows that a written word deceives CLIP.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.diffusion.samplers.integrate import Keys
from diffusion_jax.models import clip
from diffusion_jax.pipelines.dalle2 import Dalle2, Scale
from diffusion_jax.types import Params


class Ranked(NamedTuple):
    """n images for each of B captions, the best first."""

    images: Float[Array, "B n H W 3"]
    scores: Float[Array, "B n"]  # cosines
    order: Int[Array, "B n"]  # which of those that were drawn


def best_of(
    pipeline: Dalle2,
    params: Params,
    keys: Keys,
    tokens: Int[Array, "B L"],
    null_tokens: Int[Array, "1 L"],
    **scales: Scale | None,
) -> Ranked:
    """As many images of every caption as there are keys for each: n for the first first.

    `scales` are those of `Dalle2.__call__`.
    """
    num = images_for_each(len(keys), len(tokens))
    tokens = jnp.asarray(tokens)
    repeated = jnp.repeat(tokens, num, axis=0)
    images = pipeline(params, keys, repeated, null_tokens, **scales)
    text = pipeline.clip.encode_text(params, tokens)
    return ranked(images, pipeline.encode_image(params, images), text.embed)


def ranked(
    images: Float[Array, "N H W 3"],
    image_embed: Float[Array, "N P"],
    text_embed: Float[Array, "B P"],
) -> Ranked:
    """Images by the cosine to their caption; those of a caption follow one another."""
    num = images_for_each(len(images), len(text_embed))
    of_images = clip.to_unit_norm(image_embed).reshape(len(text_embed), num, -1)
    of_texts = clip.to_unit_norm(text_embed)
    scores = jnp.einsum("bnp,bp->bn", of_images, of_texts, precision="highest")
    order = jnp.argsort(-scores, axis=1, stable=True)
    images = images.reshape(len(text_embed), num, *images.shape[1:])
    index = order.reshape(*order.shape, 1, 1, 1)
    return Ranked(
        jnp.take_along_axis(images, index, axis=1),
        jnp.take_along_axis(scores, order, axis=1),
        order,
    )


def num_before_choice(pipeline: Dalle2, num_upsamplers: int | None = None) -> int:
    """How many upsamplers come before CLIP chooses, so that the others enlarge the best.

    As many as make images no smaller than CLIP sees them; all, if none is as large.
    """
    num = pipeline.num_upsamplers(num_upsamplers)
    sizes = [pipeline.size, *(one.size for one in pipeline.upsamplers[:num])]
    seen = pipeline.clip.image.vision_model.image_size
    return next((i for i, size in enumerate(sizes) if size >= seen), num)


def images_for_each(num_images: int, num_captions: int) -> int:
    """n of n * B images."""
    if not num_images or num_images % num_captions:
        raise ValueError(
            f"{num_images} images for {num_captions} captions; as many for each"
        )
    return num_images // num_captions


def label_probabilities(
    image_embed: Float[Array, "N P"],
    label_embed: Float[Array, "K Q"],
    temperature: float | Float[Array, ""],
) -> Float[Array, "N K"]:
    """How probable each label is for each image: softmax of cosines / temperature.

    The temperature is one over the scale that CLIP learned.
    """
    if image_embed.shape[-1] != label_embed.shape[-1]:
        raise ValueError(
            f"image embeddings of width {image_embed.shape[-1]}, "
            f"label embeddings of {label_embed.shape[-1]}"
        )
    embeds = clip.to_unit_norm(image_embed), clip.to_unit_norm(label_embed).T
    cosines = jnp.matmul(*embeds, precision="highest")
    return jax.nn.softmax(cosines / temperature, axis=-1)
