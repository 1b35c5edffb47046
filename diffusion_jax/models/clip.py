"""CLIP: a text and an image transformer that embed into one space.

Radford et al. (2021, arXiv:2103.00020). Pre-norm transformers (section 2.4), causal in
text; initialised as in section 2.4 and the released code: residual branches start
smaller by sqrt(2 * num_layers), and the learned temperature at 0.07 (section 2.5).
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_jax.models import attention, layers

LEGACY_EOS = 2  # old configs name this id; their end of text is the largest id
MAX_SCALE = 100.0  # of the logits; section 2.5: the temperature is clipped there
MAX_LOG_SCALE = math.log(MAX_SCALE)


class Layer(nn.Module):
    """Self-attention and a two-layer perceptron, each pre-normed and residual."""

    num_layers: int  # of the whole transformer, for the initialisation
    num_heads: int
    mlp_width: int
    activation: str
    causal: bool
    dtype: Any = "float32"
    norm_eps: float = 1e-5

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L E"], mask: Bool[Array, "B L"] | None
    ) -> Float[Array, "B L E"]:
        norm = nn.LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name="layer_norm1")
        attend = SelfAttention(
            self.num_layers, self.num_heads, self.causal, self.dtype, name="self_attn"
        )
        x = x + attend(norm(x), mask)
        norm = nn.LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name="layer_norm2")
        mlp = Perceptron(
            self.num_layers, self.mlp_width, self.activation, self.dtype, name="mlp"
        )
        return x + mlp(norm(x))


class SelfAttention(nn.Module):
    """Multi-head self-attention, all projections biased."""

    num_layers: int
    num_heads: int
    causal: bool
    dtype: Any = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L E"], mask: Bool[Array, "B L"] | None
    ) -> Float[Array, "B L E"]:
        width = x.shape[-1]
        std = width**-0.5

        def project(name: str) -> Array:
            linear = nn.Dense(
                width,
                kernel_init=nn.initializers.normal(std),
                dtype=self.dtype,
                name=name,
            )
            return attention.split_heads(linear(x), self.num_heads)

        q, k, v = project("q_proj"), project("k_proj"), project("v_proj")
        y = attention.attend(q, k, v, mask=mask, causal=self.causal)
        return nn.Dense(
            width,
            kernel_init=nn.initializers.normal(std * (2 * self.num_layers) ** -0.5),
            dtype=self.dtype,
            name="out_proj",
        )(y.reshape(x.shape))


class Perceptron(nn.Module):
    """Linear, activation, linear."""

    num_layers: int
    hidden_width: int
    activation: str
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B L E"]) -> Float[Array, "B L E"]:
        width = x.shape[-1]
        if self.activation not in layers.ACTIVATIONS:
            raise ValueError(
                f"unknown activation {self.activation!r}; "
                f"one of {sorted(layers.ACTIVATIONS)}"
            )
        x = nn.Dense(
            self.hidden_width,
            kernel_init=nn.initializers.normal((2 * width) ** -0.5),
            dtype=self.dtype,
            name="fc1",
        )(x)
        return nn.Dense(
            width,
            kernel_init=nn.initializers.normal((2 * self.num_layers * width) ** -0.5),
            dtype=self.dtype,
            name="fc2",
        )(layers.ACTIVATIONS[self.activation](x))


class Transformer(nn.Module):
    """A stack of layers."""

    num_layers: int
    num_heads: int
    mlp_width: int
    activation: str
    causal: bool
    dtype: Any = "float32"
    norm_eps: float = 1e-5

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L E"], mask: Bool[Array, "B L"] | None = None
    ) -> list[Float[Array, "B L E"]]:
        """The hidden states: the input, then the output of every layer."""
        hidden = [x]
        for i in range(self.num_layers):
            layer = Layer(
                self.num_layers,
                self.num_heads,
                self.mlp_width,
                self.activation,
                self.causal,
                self.dtype,
                self.norm_eps,
                name=f"layers.{i}",
            )
            hidden.append(layer(hidden[-1], mask))
        return hidden


class TextEmbeddings(nn.Module):
    """Token and position, summed."""

    vocab_size: int
    context_length: int
    width: int
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L E"]:
        length = tokens.shape[1]
        if length > self.context_length:
            raise ValueError(f"{length} tokens; the model has {self.context_length}")
        token = nn.Embed(
            self.vocab_size,
            self.width,
            embedding_init=nn.initializers.normal(0.02),
            dtype=self.dtype,
            name="token_embedding",
        )
        position = nn.Embed(
            self.context_length,
            self.width,
            embedding_init=nn.initializers.normal(0.01),
            dtype=self.dtype,
            name="position_embedding",
        )
        return token(tokens) + position(jnp.arange(length))


class CLIPText(nn.Module):
    """Token ids -> (hidden states, state at the end of the text).

    The hidden states leave out the last `skip_layers` layers and are normed by the
    final LayerNorm unless `norm_hidden` is false (Stable Diffusion XL: 1, False).
    """

    vocab_size: int = 49408
    context_length: int = 77
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_width: int = 3072
    activation: str = "quick_gelu"
    eos_id: int = 49407
    skip_layers: int = 0
    norm_hidden: bool = True
    norm_eps: float = 1e-5
    dtype: Any = "float32"

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "B L"], mask: Bool[Array, "B L"] | None = None
    ) -> tuple[Float[Array, "B L E"], Float[Array, "B E"]]:
        if not 0 <= self.skip_layers <= self.num_layers:
            raise ValueError(
                f"skip_layers={self.skip_layers} of {self.num_layers} layers"
            )
        embed = TextEmbeddings(
            self.vocab_size,
            self.context_length,
            self.width,
            self.dtype,
            name="embeddings",
        )
        transformer = Transformer(
            self.num_layers,
            self.num_heads,
            self.mlp_width,
            self.activation,
            True,
            self.dtype,
            self.norm_eps,
            name="encoder",
        )
        norm = nn.LayerNorm(
            epsilon=self.norm_eps, dtype=self.dtype, name="final_layer_norm"
        )
        states = transformer(embed(tokens), mask)
        hidden = states[self.num_layers - self.skip_layers]
        hidden = norm(hidden) if self.norm_hidden else hidden
        is_eos = tokens if self.eos_id == LEGACY_EOS else tokens == self.eos_id
        end = jnp.argmax(is_eos, axis=1)
        pooled = norm(states[-1])[jnp.arange(len(tokens)), end]
        return hidden.astype(jnp.float32), pooled.astype(jnp.float32)


class VisionEmbeddings(nn.Module):
    """One token per patch behind a learned one, plus positions."""

    image_size: int
    patch_size: int
    width: int
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, images: Float[Array, "B H W C"]) -> Float[Array, "B L E"]:
        height, width, size = *images.shape[1:3], self.image_size
        if (height, width) != (size, size):
            raise ValueError(f"images are {height}x{width}, the model's {size}x{size}")
        std = self.width**-0.5
        patches = layers.Conv(
            self.width,
            kernel_size=self.patch_size,
            stride=self.patch_size,
            padding=(0, 0),
            use_bias=False,
            dtype=self.dtype,
            name="patch_embedding",
        )(images)
        patches = patches.reshape(len(images), -1, self.width)
        first = self.param(
            "class_embedding", nn.initializers.normal(std), (self.width,)
        )
        first = jnp.broadcast_to(first, (len(images), 1, self.width))
        x = jnp.concatenate([first.astype(patches.dtype), patches], axis=1)
        position = nn.Embed(
            x.shape[1],
            self.width,
            embedding_init=nn.initializers.normal(std),
            dtype=self.dtype,
            name="position_embedding",
        )
        return x + position(jnp.arange(x.shape[1]))


class CLIPVision(nn.Module):
    """Images, normalised as CLIP's are, -> (hidden states, normed first state)."""

    image_size: int = 224
    patch_size: int = 14
    width: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    mlp_width: int = 4096
    activation: str = "quick_gelu"
    dtype: Any = "float32"

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W C"]
    ) -> tuple[Float[Array, "B L E"], Float[Array, "B E"]]:
        embed = VisionEmbeddings(
            self.image_size,
            self.patch_size,
            self.width,
            self.dtype,
            name="embeddings",
        )
        # Spelt as in the published weights.
        norm = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="pre_layrnorm")
        transformer = Transformer(
            self.num_layers,
            self.num_heads,
            self.mlp_width,
            self.activation,
            False,
            self.dtype,
            name="encoder",
        )
        hidden = transformer(norm(embed(images)))[-1]
        norm = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="post_layernorm")
        pooled = norm(hidden[:, 0])
        return hidden.astype(jnp.float32), pooled.astype(jnp.float32)


class ProjectedVision(nn.Module):
    """Images, normalised as CLIP's are, -> projected embeddings of any norm."""

    vision_model: CLIPVision
    projection_dim: int = 768

    def setup(self) -> None:
        self.visual_projection = nn.Dense(
            self.projection_dim,
            use_bias=False,
            kernel_init=nn.initializers.normal(self.vision_model.width**-0.5),
            dtype=self.vision_model.dtype,
        )

    def __call__(self, images: Float[Array, "B H W C"]) -> Float[Array, "B P"]:
        _, pooled = self.vision_model(images)
        return self.visual_projection(pooled).astype(jnp.float32)


class CLIP(nn.Module):
    """Both towers, their projections to one space, and the learned temperature."""

    text_model: CLIPText
    vision_model: CLIPVision
    projection_dim: int = 768
    init_logit_scale: float = 1 / 0.07  # the inverse temperature before training

    def setup(self) -> None:
        def projection(tower: CLIPText | CLIPVision) -> nn.Module:
            return nn.Dense(
                self.projection_dim,
                use_bias=False,
                kernel_init=nn.initializers.normal(tower.width**-0.5),
            )

        self.text_projection = projection(self.text_model)
        self.visual_projection = projection(self.vision_model)
        self.logit_scale = self.param(
            "logit_scale", nn.initializers.constant(math.log(self.init_logit_scale)), ()
        )

    def __call__(
        self, images: Float[Array, "B H W C"], tokens: Int[Array, "B L"]
    ) -> tuple[Float[Array, "B P"], Float[Array, "B P"], Float[Array, ""]]:
        """Unit-norm image and text embeddings, and the scale of their products."""
        scale = jnp.exp(jnp.minimum(self.logit_scale, MAX_LOG_SCALE))
        return self.encode_image(images), self.encode_text(tokens), scale

    def encode_text(
        self, tokens: Int[Array, "B L"], *, unit_norm: bool = True
    ) -> Float[Array, "B P"]:
        """The embedding of a text."""
        y = self.text_projection(self.text_model(tokens)[1])
        return to_unit_norm(y) if unit_norm else y

    def encode_image(
        self, images: Float[Array, "B H W C"], *, unit_norm: bool = True
    ) -> Float[Array, "B P"]:
        """The embedding of an image."""
        y = self.visual_projection(self.vision_model(images)[1])
        return to_unit_norm(y) if unit_norm else y


def to_unit_norm(x: Float[Array, "B E"]) -> Float[Array, "B E"]:
    """x / |x|, whose gradient is finite even at zero."""
    return x * jnp.reciprocal(
        jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)
    )
