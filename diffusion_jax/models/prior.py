"""The network of the diffusion prior: what a noised image embedding was, of a caption.

Ramesh et al. (2022, arXiv:2204.06125, section 2.2): a decoder-only transformer with a
causal mask reads the encoded text, the text embedding, the time, the noised image
embedding and one learned token, whose output is the prediction. Names are those of the
published Karlo; its clip_mean and clip_std are not here, but what `embedding_scale`
calls the scale of the embeddings.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.models import causal_transformer, layers
from diffusion_jax.models.unclip import Encoded
from diffusion_jax.types import Conditioning

NUM_EXTRA = 4  # text embedding, time, noised image embedding, learned token


def condition(text: Encoded) -> Conditioning:
    """The routes by which a caption enters the network of a prior."""
    return Conditioning(tokens=text.hidden, mask=text.mask, vector=text.embed)


class PriorTransformer(nn.Module):
    """A `Network`, told a caption: encoded as tokens, its CLIP embedding as vector."""

    embed_dim: int = 768
    num_layers: int = 20
    num_heads: int = 32
    head_width: int = 64
    num_tokens: int = 77  # of the longest encoded text, padding included
    time_width: int | None = None  # inside the time embedding; None: the transformer's
    norm_embedding: bool = False  # of the text embedding, for those of unit norm
    dtype: Any = "float32"

    def __call__(
        self, x: Float[Array, "B P"], time: Float[Array, "B"], cond: Conditioning
    ) -> Float[Array, "B P"]:
        """`cond` is a caption, or what `remember` made of one."""
        if x.shape[-1] != self.embed_dim:
            raise ValueError(
                f"image embeddings of width {x.shape[-1]}; the prior's: {self.embed_dim}"
            )
        if cond.keys_values is None:
            self.check(cond)
        return self._read(x, time, cond)

    def remember(self, cond: Conditioning) -> Conditioning:
        """The caption as keys and values, the same in every step of sampling."""
        self.check(cond)
        return self._read(None, None, cond)

    def check(self, cond: Conditioning) -> None:
        """Raises unless `cond` is a caption of the sizes that the prior reads."""
        if cond.tokens is None or cond.vector is None:
            raise ValueError("a prior needs the encoded text and the text embedding")
        if cond.tokens.shape[1] > self.num_tokens:
            raise ValueError(
                f"{cond.tokens.shape[1]} text tokens; the prior reads {self.num_tokens}"
            )
        if cond.vector.shape[-1] != self.embed_dim:
            raise ValueError(
                f"text embeddings of width {cond.vector.shape[-1]}; "
                f"the prior's: {self.embed_dim}"
            )

    @nn.compact
    def _read(
        self,
        x: Float[Array, "B P"] | None,
        time: Float[Array, "B"] | None,
        cond: Conditioning,
    ) -> Float[Array, "B P"] | Conditioning:
        width = self.num_heads * self.head_width
        kept, first, tokens = cond.keys_values, 0, []
        if kept is not None:
            length = kept["transformer_blocks.0"][0].shape[1]
            first = length - NUM_EXTRA + 1
        else:
            length = cond.tokens.shape[1] + NUM_EXTRA
            tokens.append(
                causal_transformer.embed_caption(
                    cond, width, norm_embedding=self.norm_embedding, dtype=self.dtype
                )
            )
        if x is not None:
            tokens += self._noised_tokens(x, time, width)
        elif kept is None:
            kept = causal_transformer.nothing_kept(
                self.num_layers, len(cond.tokens), length, width, self.dtype
            )
        h = jnp.concatenate(tokens, axis=1)
        shape = (1, self.num_tokens + NUM_EXTRA, width)
        init = nn.initializers.normal(0.01)
        positions = self.param("positional_embedding", init, shape)
        ends = jnp.split(positions, [self.num_tokens], axis=1)
        # Of a shorter text the extra tokens keep their places.
        places = jnp.concatenate([ends[0][:, : length - NUM_EXTRA], ends[1]], axis=1)
        h = h + places[:, first : first + h.shape[1]].astype(h.dtype)
        h, kept = causal_transformer.run_blocks(
            h,
            causal_transformer.mask_of(cond, length - NUM_EXTRA, length),
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            dtype=self.dtype,
            kept=kept,
            first=first,
        )
        if x is None:
            return Conditioning(mask=cond.mask, keys_values=kept)
        # In float32: eps magnifies the rounding of x0 by alpha / sigma.
        norm = nn.LayerNorm(epsilon=1e-5, dtype="float32", name="norm_out")
        project = nn.Dense(
            self.embed_dim,
            kernel_init=layers.fan_in_init,
            dtype="float32",
            name="proj_to_clip_embeddings",
        )
        return project(norm(h[:, -1]))

    def _noised_tokens(
        self, x: Float[Array, "B P"], time: Float[Array, "B"], width: int
    ) -> list[Float[Array, "B 1 E"]]:
        """Time, noised image embedding and the token whose output is read."""
        embed_time = layers.MLPEmbedding(
            width, self.dtype, self.time_width, name="time_embedding"
        )
        time = embed_time(layers.sinusoid(time, width))
        init = layers.fan_in_init
        embed = nn.Dense(width, kernel_init=init, dtype=self.dtype, name="proj_in")
        last = self.param(
            "prd_embedding", nn.initializers.normal(0.02), (1, 1, width)
        ).astype(time.dtype)
        last = jnp.broadcast_to(last, (len(x), 1, width))
        return [time[:, None], embed(x)[:, None], last]
