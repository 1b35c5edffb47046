"""The two towers of a trained CLIP, as what is built on its embeddings sees them."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_jax.models import clip, layers, unclip
from diffusion_jax.models.clip import ProjectedVision
from diffusion_jax.models.text import ProjectedText
from diffusion_jax.models.unclip import Encoded
from diffusion_jax.types import Params

# Of the published weights, of values in [0, 1] (Radford et al., released code).
PUBLISHED_MEAN = (0.48145466, 0.4578275, 0.40821073)
PUBLISHED_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class ClipTowers:
    """Holds no weights: `params` has "text_encoder" and, with images, "image_encoder".

    `image_mean` and `image_std` are of values in [0, 1]; the defaults leave [-1, 1].
    """

    text: ProjectedText
    image: ProjectedVision | None = None
    unit_norm: bool = True  # of all embeddings; else they are as projected
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def encode_text(self, params: Params, tokens: Int[Array, "B L"]) -> Encoded:
        """Hidden states behind the final norm, embedding, and which tokens are text.

        The tower itself reads all tokens: being causal, it cannot see padding anyway.
        """
        variables = {"params": params["text_encoder"]}
        hidden, embed = self.text.apply(variables, tokens)
        embed = clip.to_unit_norm(embed) if self.unit_norm else embed
        return Encoded(hidden, embed, self.text_mask(tokens))

    def encode_image(
        self, params: Params, images: Float[Array, "B H W 3"]
    ) -> Float[Array, "B P"]:
        """The embedding of square images in [-1, 1], resized to the tower's size."""
        if self.image is None:
            raise ValueError("these CLIP towers have none for images")
        pixels = resized(images, self.image.vision_model.image_size)
        mean, std = jnp.array(self.image_mean), jnp.array(self.image_std)
        pixels = ((pixels + 1) / 2 - mean) / std
        embed = self.image.apply({"params": params["image_encoder"]}, pixels)
        return clip.to_unit_norm(embed) if self.unit_norm else embed

    def text_mask(self, tokens: Int[Array, "B L"]) -> Bool[Array, "B L"]:
        """True up to the end of the text, that token included."""
        eos_id = self.text.text_model.eos_id
        if eos_id != clip.LEGACY_EOS:
            return unclip.text_mask(tokens, eos_id)
        is_largest = tokens == tokens.max(axis=1, keepdims=True)
        return unclip.text_mask(is_largest.astype(jnp.int32), 1)


def resized(images: Float[Array, "B H W 3"], size: int) -> Float[Array, "B S S 3"]:
    """Square images at `size` pixels a side: bicubic, antialiased, within [-1, 1]."""
    height, width = images.shape[1:3]
    if height != width:
        raise ValueError(f"images are {height}x{width}, not square")
    if height == size:
        return images
    return jnp.clip(layers.bicubic(images, size), -1.0, 1.0)
