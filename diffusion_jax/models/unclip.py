"""What the unCLIP networks are told: CLIP's view of a caption and of an image.

Ramesh et al. (2022, arXiv:2204.06125, section 2.1): the decoder hears the CLIP image
embedding twice, projected and added to the time embedding, and projected to four more
tokens of context beside those of the caption. Names are those of the published Karlo.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_jax.models import clip, layers
from diffusion_jax.types import Conditioning

NULLS = ("learned", "zero")


class Encoded(NamedTuple):
    """A caption as a text encoder tells it."""

    hidden: Float[Array, "B L E"]
    embed: Float[Array, "B P"]  # of the whole caption
    mask: Bool[Array, "B L"] | None = None  # True where a token exists


def text_mask(tokens: Int[Array, "B L"], eos_id: int) -> Bool[Array, "B L"]:
    """True up to the first end of text; what follows is padding, whatever its id."""
    end = jnp.argmax(tokens == eos_id, axis=1)
    return jnp.arange(tokens.shape[1]) <= end[:, None]


class TextTransformer(nn.Module):
    """The text encoder that is trained with a prior or a decoder (arXiv:2112.10741, 4.1).

    Every token sees every other; the caption as a whole is the state of its end. With
    no layers it is the embedding of tokens and their places.
    """

    vocab_size: int
    eos_id: int
    context_length: int = 256
    width: int = 2048
    num_layers: int = 24
    num_heads: int = 32
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, tokens: Int[Array, "B L"]) -> Encoded:
        mask = text_mask(tokens, self.eos_id)
        embed = clip.TextEmbeddings(
            self.vocab_size,
            self.context_length,
            self.width,
            self.dtype,
            name="embeddings",
        )
        transformer = clip.Transformer(
            self.num_layers,
            self.num_heads,
            4 * self.width,
            "gelu",
            False,
            self.dtype,
            name="encoder",
        )
        norm = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="final_layer_norm")
        hidden = norm(transformer(embed(tokens), mask)[-1]).astype(jnp.float32)
        end = mask.sum(axis=1) - 1
        return Encoded(hidden, hidden[jnp.arange(len(tokens)), end], mask)


class TextImageProjection(nn.Module):
    """(CLIP image embedding, caption) -> what the decoder attends to and hears.

    Where `is_dropped`, the image embedding is replaced by a `null` one, learned or zero.
    """

    context_width: int  # of the tokens
    time_width: int  # of the decoder's time embedding
    num_tokens: int = 4
    null: str = "learned"
    dtype: Any = "float32"

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "B P"],
        text: Encoded,
        is_dropped: Bool[Array, "B"] | None = None,
    ) -> Conditioning:
        def project(name: str, width: int, x: Array) -> Array:
            return nn.Dense(
                width, kernel_init=layers.fan_in_init, dtype=self.dtype, name=name
            )(x)

        if self.null not in NULLS:
            raise ValueError(f"unknown null {self.null!r}; one of {NULLS}")
        batch, width = image.shape
        nothing = jnp.zeros(width)
        if self.null == "learned":
            nothing = self.param(
                "learned_classifier_free_guidance_embeddings",
                nn.initializers.zeros_init(),
                (width,),
            )
        if is_dropped is not None:
            image = jnp.where(is_dropped[:, None], nothing, image)
        vector = project("embedding_proj", self.time_width, text.embed)
        name = "clip_image_embeddings_project_to_time_embeddings"
        vector = vector + project(name, self.time_width, image)
        name = "clip_extra_context_tokens_proj"
        extra = project(name, self.num_tokens * self.context_width, image)
        # The published weights keep the tokens of one channel together.
        extra = extra.reshape(batch, self.context_width, self.num_tokens)
        hidden = project("encoder_hidden_states_proj", self.context_width, text.hidden)
        norm = nn.LayerNorm(
            epsilon=1e-5, dtype=self.dtype, name="text_encoder_hidden_states_norm"
        )
        tokens = jnp.concatenate([extra.swapaxes(1, 2), norm(hidden)], axis=1)
        mask = text.mask
        if mask is not None:
            ones = jnp.ones((batch, self.num_tokens), bool)
            mask = jnp.concatenate([ones, mask], axis=1)
        return Conditioning(tokens=tokens, mask=mask, vector=vector)
