"""The causal transformer of both priors of unCLIP, whose keys and values can be kept.

Ramesh et al. (2022, arXiv:2204.06125, section 2.2). Pre-norm blocks with exact GELU,
named as those of the published Karlo, initialised as CLIP's (arXiv:2103.00020, 2.4):
residual branches start smaller by sqrt(2 * num_layers). What a causal transformer says
of a token does not depend on later ones, so whoever reads a sequence again with other
tokens at its end needs only the keys and values of its beginning.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_jax.models import attention, layers
from diffusion_jax.types import Conditioning, KeysValues

Kept = tuple[Float[Array, "B K E"], Float[Array, "B K E"]]  # keys, values


class CausalAttention(nn.Module):
    """Multi-head self-attention to what came before, all projections biased."""

    num_layers: int  # of the whole transformer, for the initialisation
    num_heads: int
    dtype: Any = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B Q E"],
        mask: Bool[Array, "B K"] | None,
        kept: Kept | None = None,
        first: int | Int[Array, ""] = 0,
    ) -> tuple[Float[Array, "B Q E"], Kept]:
        width = x.shape[-1]
        std = width**-0.5

        def project(name: str) -> Array:
            init = nn.initializers.normal(std)
            linear = nn.Dense(width, kernel_init=init, dtype=self.dtype, name=name)
            return linear(x)

        q, k, v = project("to_q"), project("to_k"), project("to_v")
        if kept is not None:
            k, v = (
                jax.lax.dynamic_update_slice_in_dim(old, new, first, axis=1)
                for old, new in zip(kept, (k, v))
            )
        heads = (attention.split_heads(y, self.num_heads) for y in (q, k, v))
        if kept is None:
            y = attention.attend(*heads, mask=mask, causal=True)
        else:
            heads = (h.swapaxes(1, 2) for h in heads)
            y = attention.attend_at_once(*heads, mask, True, first).swapaxes(1, 2)
        init = nn.initializers.normal(std * (2 * self.num_layers) ** -0.5)
        out = nn.Dense(width, kernel_init=init, dtype=self.dtype, name="to_out.0")
        return out(y.reshape(x.shape)), (k, v)


class FeedForward(nn.Module):
    """Linear to four times the width, GELU, and back."""

    num_layers: int
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B Q E"]) -> Float[Array, "B Q E"]:
        width = x.shape[-1]
        inner = nn.Dense(
            4 * width,
            kernel_init=nn.initializers.normal((2 * width) ** -0.5),
            dtype=self.dtype,
            name="net.0.proj",
        )
        outer = nn.Dense(
            width,
            kernel_init=nn.initializers.normal((2 * self.num_layers * width) ** -0.5),
            dtype=self.dtype,
            name="net.2",
        )
        return outer(layers.gelu(inner(x)))


class CausalBlock(nn.Module):
    """Attention and feed-forward, each pre-normed and residual."""

    num_layers: int
    num_heads: int
    dtype: Any = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B Q E"],
        mask: Bool[Array, "B K"] | None,
        kept: Kept | None = None,
        first: int | Int[Array, ""] = 0,
    ) -> tuple[Float[Array, "B Q E"], Kept]:
        def norm(name: str, y: Array) -> Array:
            return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)(y)

        attend = CausalAttention(
            self.num_layers, self.num_heads, self.dtype, name="attn1"
        )
        y, kept = attend(norm("norm1", x), mask, kept, first)
        x = x + y
        feed_forward = FeedForward(self.num_layers, self.dtype, name="ff")
        return x + feed_forward(norm("norm3", x)), kept


def run_blocks(
    x: Float[Array, "B Q E"],
    mask: Bool[Array, "B K"] | None,
    *,
    num_layers: int,
    num_heads: int,
    dtype: Any,
    kept: KeysValues | None = None,
    first: int | Int[Array, ""] = 0,
) -> tuple[Float[Array, "B Q E"], KeysValues | None]:
    """The blocks of the module in whose compact method this is called.

    With `kept`, x is the part of the sequence that begins at `first`, and the keys and
    values of it are added to those kept of the tokens before; `mask` is that of the
    whole sequence.
    """
    after = {}
    for i in range(num_layers):
        name = f"transformer_blocks.{i}"
        block = CausalBlock(num_layers, num_heads, dtype, name=name)
        x, after[name] = block(x, mask, None if kept is None else kept[name], first)
    return x, None if kept is None else after


def nothing_kept(
    num_layers: int, batch: int, length: int, width: int, dtype: Any
) -> KeysValues:
    """Room for the keys and values of a sequence of which nothing was read yet."""
    empty = jnp.zeros((batch, length, width), dtype)
    return {f"transformer_blocks.{i}": (empty, empty) for i in range(num_layers)}


def embed_caption(
    cond: Conditioning, width: int, *, norm_embedding: bool, dtype: Any
) -> Float[Array, "B L E"]:
    """Encoded text and behind it the text embedding, as tokens.

    Its layers are of the module in whose compact method this is called. With
    `norm_embedding` the text embedding passes through a LayerNorm, without which one of
    unit norm is a faint token.
    """

    def project(name: str, y: Array) -> Array:
        init = layers.fan_in_init
        return nn.Dense(width, kernel_init=init, dtype=dtype, name=name)(y)

    text, vector = cond.tokens, cond.vector
    if norm_embedding:
        name = "embedding_proj_norm"
        vector = nn.LayerNorm(epsilon=1e-5, dtype=dtype, name=name)(vector)
    text = project("encoder_hidden_states_proj", text)
    return jnp.concatenate([text, project("embedding_proj", vector)[:, None]], axis=1)


def mask_of(
    cond: Conditioning, num_tokens: int, length: int
) -> Bool[Array, "B K"] | None:
    """Which of the whole sequence exist: of the text what its mask says, then all."""
    if cond.mask is None:
        return None
    mask = cond.mask[:, :num_tokens]
    return jnp.pad(mask, ((0, 0), (0, length - num_tokens)), constant_values=True)
