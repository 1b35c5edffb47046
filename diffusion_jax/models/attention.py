"""Attention: softmax(q k^T / sqrt(d)) v, and the layers of the U-Net built on it.

Vaswani et al. (2017, arXiv:1706.03762, eq. 1). `attend` is the only place that chooses
an implementation: cuDNN's flash attention (arXiv:2205.14135) on a GPU where it applies,
else blocks of queries. `reference_attention` is the equation written down.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_jax.models import convolution, layers
from diffusion_jax.types import Conditioning

NOTHING = Conditioning()
HIDDEN = -1e30  # finite, so that a row without any key averages instead of being nan
MAX_SCORES = {"cpu": 2**22, "gpu": 2**28}  # 16 MB stay in a cache; 1 GB


def reference_attention(
    q: Float[Array, "B Q N D"],
    k: Float[Array, "B K N D"],
    v: Float[Array, "B K N D"],
    *,
    mask: Bool[Array, "B K"] | None = None,
    causal: bool = False,
) -> Float[Array, "B Q N D"]:
    """The equation, in float32, with every score in memory."""
    scores = jnp.einsum("bqnd,bknd->bnqk", q, k, preferred_element_type=jnp.float32)
    scores = hide(scores * q.shape[-1] ** -0.5, mask, causal)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bnqk,bknd->bqnd", weights, v)


def attend(
    q: Float[Array, "B Q N D"],
    k: Float[Array, "B K N D"],
    v: Float[Array, "B K N D"],
    *,
    mask: Bool[Array, "B K"] | None = None,
    causal: bool = False,
) -> Float[Array, "B Q N D"]:
    """Attention; `mask` says which keys exist, `causal` hides later ones.

    A query that sees no key gets the mean of all values.
    """
    target = convolution.platform()
    if target == "gpu" and fits_cudnn(q, mask):
        return jax.nn.dot_product_attention(
            q, k, v, is_causal=causal, implementation="cudnn"
        )
    max_scores = MAX_SCORES.get(target, MAX_SCORES["gpu"])
    return blocked_attention(
        q,
        k,
        v,
        mask=mask,
        causal=causal,
        max_scores=max_scores,
        by_head=target == "cpu",
    )


def fits_cudnn(q: Float[Array, "B Q N D"], mask: Bool[Array, "B K"] | None) -> bool:
    """Whether cuDNN's flash attention takes these heads, in training too."""
    is_half = q.dtype in (jnp.bfloat16, jnp.float16)
    return is_half and mask is None and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128


def blocked_attention(
    q: Float[Array, "B Q N D"],
    k: Float[Array, "B K N D"],
    v: Float[Array, "B K N D"],
    *,
    mask: Bool[Array, "B K"] | None = None,
    causal: bool = False,
    max_scores: int,
    by_head: bool = False,
) -> Float[Array, "B Q N D"]:
    """Attention for a block of queries at a time, of at most `max_scores` scores.

    Where there are more, `by_head` takes one head of one example after the other: a CPU
    multiplies two matrices at twice the speed of a batch of small ones.
    """
    batch, num_queries, num_heads, _ = q.shape
    num_keys = k.shape[1]
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    scores_of_a_query = batch * num_heads * num_keys
    if num_queries * scores_of_a_query <= max_scores:
        return attend_at_once(q, k, v, mask, causal, 0).swapaxes(1, 2)
    if not by_head:
        rows = max_scores // scores_of_a_query
        return attend_in_blocks(q, k, v, mask, causal, rows).swapaxes(1, 2)

    def split(x: Array) -> Array:
        return x.reshape(batch * num_heads, 1, 1, *x.shape[2:])

    if mask is not None:
        mask = jnp.repeat(mask, num_heads, axis=0)[:, None]
    y = jax.lax.map(
        lambda head: attend_in_blocks(*head, causal, max_scores // num_keys),
        (split(q), split(k), split(v), mask),
    )
    return y.reshape(q.shape).swapaxes(1, 2)


def attend_in_blocks(
    q: Float[Array, "B N Q D"],
    k: Float[Array, "B N K D"],
    v: Float[Array, "B N K D"],
    mask: Bool[Array, "B K"] | None,
    causal: bool,
    rows: int,
) -> Float[Array, "B N Q D"]:
    """Attention of `rows` queries after the other, or of one where that is 0.

    The gradient computes the scores of a block again, so that they never all exist.
    """
    batch, num_heads, num_queries, width = q.shape
    num_blocks = -(-num_queries // max(1, rows))
    rows = -(-num_queries // num_blocks)
    padding = num_blocks * rows - num_queries
    q = jnp.pad(q, ((0, 0), (0, 0), (0, padding), (0, 0)))
    q = jnp.moveaxis(q.reshape(batch, num_heads, num_blocks, rows, width), 2, 0)

    @jax.checkpoint
    def attend_block(block: Array, first: Array) -> Array:
        return attend_at_once(block, k, v, mask, causal, first)

    starts = jnp.arange(num_blocks) * rows
    y = jax.lax.map(lambda block: attend_block(*block), (q, starts))
    y = jnp.moveaxis(y, 0, 2).reshape(batch, num_heads, -1, width)
    return y[:, :, :num_queries]


def attend_at_once(
    q: Float[Array, "B N Q D"],
    k: Float[Array, "B N K D"],
    v: Float[Array, "B N K D"],
    mask: Bool[Array, "B K"] | None,
    causal: bool,
    first: int | Int[Array, ""],
) -> Float[Array, "B N Q D"]:
    """Attention of the queries from `first` on; divided by the row sums last."""
    q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    scores = jnp.einsum("bnqd,bnkd->bnqk", q, k, preferred_element_type=jnp.float32)
    scores = hide(scores, mask, causal, first)
    highest = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.exp(scores - highest)
    y = jnp.einsum(
        "bnqk,bnkd->bnqd",
        weights.astype(v.dtype),
        v,
        preferred_element_type=jnp.float32,
    )
    return (y / weights.sum(-1, keepdims=True)).astype(v.dtype)


def hide(
    scores: Float[Array, "B N Q K"],
    mask: Bool[Array, "B K"] | None,
    causal: bool,
    first: int | Int[Array, ""] = 0,
) -> Float[Array, "B N Q K"]:
    """Scores, but `HIDDEN` where a key does not exist or comes after the query."""
    if mask is not None:
        scores = jnp.where(mask[:, None, None, :], scores, HIDDEN)
    if causal:
        queries = first + jnp.arange(scores.shape[2])
        seen = queries[:, None] >= jnp.arange(scores.shape[3])
        scores = jnp.where(seen, scores, HIDDEN)
    return scores


def split_heads(x: Float[Array, "B L E"], num_heads: int) -> Float[Array, "B L N D"]:
    """The width as `num_heads` heads, which are contiguous."""
    if x.shape[-1] % num_heads:
        raise ValueError(f"width {x.shape[-1]} does not split in {num_heads} heads")
    return x.reshape(*x.shape[:2], num_heads, -1)


def context_of(
    path: tuple[str, ...], cond: Conditioning
) -> tuple[Float[Array, "B L E"], Float[Array, "B L E"]] | None:
    """The keys and values that `context.with_keys_values` made for the layer at a path."""
    if cond.keys_values is None:
        return None
    name = "/".join(path)
    if name not in cond.keys_values:
        made = sorted(cond.keys_values)
        raise ValueError(f"no keys and values for {name!r}, but for {made}")
    return cond.keys_values[name]


class CrossAttention(nn.Module):
    """Multi-head attention of x to the tokens (to itself without any)."""

    num_heads: int
    upcast: bool = False  # queries and keys are compared in float32
    dtype: Any = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L E"],
        cond: Conditioning = NOTHING,
    ) -> Float[Array, "B L E"]:
        width = x.shape[-1]

        def project(name: str, y: Array) -> Array:
            linear = nn.Dense(
                width,
                use_bias=False,
                kernel_init=layers.fan_in_init,
                dtype=self.dtype,
                name=name,
            )
            return linear(y)

        kept = context_of(self.path, cond)
        if kept is None:
            tokens = x if cond.tokens is None else cond.tokens
            kept = project("to_k", tokens), project("to_v", tokens)
        heads = (project("to_q", x), *kept)
        q, k, v = (split_heads(h, self.num_heads) for h in heads)
        if self.upcast:
            q, k = q.astype(jnp.float32), k.astype(jnp.float32)
        y = attend(q, k, v, mask=cond.mask).reshape(x.shape)
        return nn.Dense(
            width, kernel_init=layers.fan_in_init, dtype=self.dtype, name="to_out.0"
        )(y)


class FeedForward(nn.Module):
    """GEGLU (arXiv:2002.05202): hidden * gelu(gate), four times as wide, then back."""

    dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B L E"]) -> Float[Array, "B L E"]:
        width = x.shape[-1]
        x = nn.Dense(
            8 * width,
            kernel_init=layers.fan_in_init,
            dtype=self.dtype,
            name="net.0.proj",
        )(x)
        hidden, gate = jnp.split(x, 2, axis=-1)
        x = hidden * layers.gelu(gate)
        return nn.Dense(
            width, kernel_init=layers.fan_in_init, dtype=self.dtype, name="net.2"
        )(x)


class TransformerBlock(nn.Module):
    """Self-attention, attention to the tokens, feed-forward; each pre-normed."""

    num_heads: int
    upcast: bool = False
    dtype: Any = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L E"],
        cond: Conditioning,
    ) -> Float[Array, "B L E"]:
        def norm(name: str, y: Array) -> Array:
            return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)(y)

        attend_to = functools.partial(
            CrossAttention, self.num_heads, self.upcast, self.dtype
        )
        x = x + attend_to(name="attn1")(norm("norm1", x))
        x = x + attend_to(name="attn2")(norm("norm2", x), cond)
        return x + FeedForward(self.dtype, name="ff")(norm("norm3", x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map (arXiv:2112.10752, app. E.2.1)."""

    num_heads: int
    depth: int
    linear_projection: bool
    norm_groups: int
    upcast: bool = False
    dtype: Any = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], cond: Conditioning
    ) -> Float[Array, "B H W C"]:
        batch, height, width, channels = x.shape

        def project(name: str, kernel_init: Any, y: Array) -> Array:
            options = dict(kernel_init=kernel_init, dtype=self.dtype, name=name)
            if self.linear_projection:
                return nn.Dense(channels, **options)(y)
            return layers.Conv(channels, kernel_size=1, **options)(y)

        # The published transformers norm with 1e-6, their resnets with 1e-5.
        h = layers.GroupNorm(self.norm_groups, 1e-6, self.dtype, name="norm")(x)
        h = project("proj_in", layers.fan_in_init, h)
        h = h.reshape(batch, height * width, channels)
        for i in range(self.depth):
            block = TransformerBlock(
                self.num_heads, self.upcast, self.dtype, name=f"transformer_blocks.{i}"
            )
            h = block(h, cond)
        h = project("proj_out", layers.zero_init, h.reshape(x.shape))
        return x + h


class AddedKVAttention(nn.Module):
    """Self-attention whose keys and values are preceded by those of the tokens.

    One softmax over both (GLIDE, arXiv:2112.10741, section 4.1); without tokens, plain
    self-attention, as in the middle of the autoencoder.
    """

    num_heads: int
    norm_groups: int
    norm_eps: float = 1e-5
    dtype: Any = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], cond: Conditioning
    ) -> Float[Array, "B H W C"]:
        batch, height, width, channels = x.shape

        def project(name: str, y: Array) -> Array:
            linear = nn.Dense(
                channels, kernel_init=layers.fan_in_init, dtype=self.dtype, name=name
            )
            return linear(y)

        norm = layers.GroupNorm(
            self.norm_groups, self.norm_eps, self.dtype, name="group_norm"
        )
        h = norm(x).reshape(batch, height * width, channels)
        q, k, v = project("to_q", h), project("to_k", h), project("to_v", h)
        mask = None
        kept = context_of(self.path, cond)
        if kept is None and cond.tokens is not None:
            kept = tuple(project(f"add_{n}_proj", cond.tokens) for n in "kv")
        if kept is not None:
            k, v = (jnp.concatenate(pair, axis=1) for pair in zip(kept, (k, v)))
        if kept is not None and cond.mask is not None:
            pixels = jnp.ones((batch, height * width), bool)
            mask = jnp.concatenate([cond.mask, pixels], axis=1)
        q, k, v = (split_heads(y, self.num_heads) for y in (q, k, v))
        h = attend(q, k, v, mask=mask).reshape(x.shape)
        return x + nn.Dense(
            channels, kernel_init=layers.zero_init, dtype=self.dtype, name="to_out.0"
        )(h)
