"""The network of the autoregressive prior: the code of an image, one number at a time.

Ramesh et al. (2022, arXiv:2204.06125, section 2.2): a causal transformer reads the
caption, its CLIP embedding, the quantised dot product of that and the image embedding,
and then the codes of `embedding_codes`, of each of which it says the distribution.

The paper's table 3 gives it a context of 384, which a caption of 256 tokens and 319
codes do not fit into, and leaves the length of the caption's part open. Here it reads
the first `num_tokens` states of an encoder that saw the whole caption: 64, so that with
the text embedding, the dot product and the 318 codes that others follow it reads 384.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.models import causal_transformer
from diffusion_jax.types import Conditioning, KeysValues


class AutoregressiveTransformer(nn.Module):
    """Codes, dot product and caption (tokens, mask, vector) -> logits of every code.

    All components share one table of buckets; which one a code is of, its place says.
    A dot product of `num_dot_buckets` means that it is unknown.
    """

    embed_dim: int = 1024
    num_dims: int = 319
    num_buckets: int = 1024
    num_dot_buckets: int = 100
    num_layers: int = 24
    num_heads: int = 26
    head_width: int = 64
    num_tokens: int = 64  # of the encoded text, padding included; more are not read
    norm_embedding: bool = False  # of the text embedding, for those of unit norm
    dtype: Any = "float32"

    def __call__(
        self, codes: Int[Array, "B D"], dot: Int[Array, "B"], cond: Conditioning
    ) -> Float[Array, "B D N"]:
        """Logits of each code given those before it; the last is not read."""
        if codes.shape[1] != self.num_dims:
            raise ValueError(f"{codes.shape[1]} codes; the prior's: {self.num_dims}")
        logits, _ = self._read(codes[:, :-1], dot, cond)
        return logits

    def begin(
        self, dot: Int[Array, "B"], cond: Conditioning
    ) -> tuple[Float[Array, "B N"], KeysValues]:
        """Logits of the first code, and the keys and values of what was read."""
        kept = causal_transformer.nothing_kept(
            self.num_layers, len(dot), self.length, self.width, self.dtype
        )
        logits, kept = self._read(None, dot, cond, kept)
        return logits[:, -1], kept

    def extend(
        self,
        code: Int[Array, "B"],
        index: Int[Array, ""],
        cond: Conditioning,
        kept: KeysValues,
    ) -> tuple[Float[Array, "B N"], KeysValues]:
        """Logits of the code behind `code`, whose place among them is `index`."""
        first = self.num_tokens + 2 + index
        logits, kept = self._read(code[:, None], None, cond, kept, first)
        return logits[:, -1], kept

    @property
    def width(self) -> int:
        """That of the transformer."""
        return self.num_heads * self.head_width

    @property
    def length(self) -> int:
        """Of the sequence: text, its embedding, the dot product, codes but the last."""
        return self.num_tokens + 2 + self.num_dims - 1

    @nn.compact
    def _read(
        self,
        codes: Int[Array, "B C"] | None,
        dot: Int[Array, "B"] | None,
        cond: Conditioning,
        kept: KeysValues | None = None,
        first: int | Int[Array, ""] = 0,
    ) -> tuple[Float[Array, "B C1 N"], KeysValues | None]:
        """Logits behind the dot product and behind every code."""
        read = []
        if dot is not None:
            read += [self._embed_text(cond), self._embed("dot", 1, dot[:, None])]
        if codes is not None:
            read.append(self._embed("code", 0, codes))
        h = jnp.concatenate(read, axis=1)
        positions = nn.Embed(
            self.length,
            self.width,
            embedding_init=nn.initializers.normal(0.01),
            dtype=self.dtype,
            name="position_embedding",
        )
        h = h + positions(first + jnp.arange(h.shape[1]))
        h, kept = causal_transformer.run_blocks(
            h,
            causal_transformer.mask_of(cond, self.num_tokens, self.length),
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            dtype=self.dtype,
            kept=kept,
            first=first,
        )
        if dot is not None:
            h = h[:, self.num_tokens + 1 :]
        norm = nn.LayerNorm(epsilon=1e-5, dtype="float32", name="norm_out")
        project = nn.Dense(
            self.num_buckets,
            kernel_init=nn.initializers.normal(0.02),
            dtype="float32",
            name="proj_to_buckets",
        )
        return project(norm(h)), kept

    def _embed(
        self, name: str, extra: int, indices: Int[Array, "B C"]
    ) -> Float[Array, "B C E"]:
        sizes = {"dot": self.num_dot_buckets, "code": self.num_buckets}
        table = nn.Embed(
            sizes[name] + extra,
            self.width,
            embedding_init=nn.initializers.normal(0.02),
            dtype=self.dtype,
            name=f"{name}_embedding",
        )
        return table(indices)

    def _embed_text(self, cond: Conditioning) -> Float[Array, "B L E"]:
        if cond.tokens is None or cond.vector is None:
            raise ValueError("a prior needs the encoded text and the text embedding")
        if cond.tokens.shape[1] < self.num_tokens:
            raise ValueError(
                f"{cond.tokens.shape[1]} text tokens; the prior reads {self.num_tokens}"
            )
        if cond.vector.shape[-1] != self.embed_dim:
            raise ValueError(
                f"text embeddings of width {cond.vector.shape[-1]}; "
                f"the prior's: {self.embed_dim}"
            )
        return causal_transformer.embed_caption(
            cond._replace(tokens=cond.tokens[:, : self.num_tokens]),
            self.width,
            norm_embedding=self.norm_embedding,
            dtype=self.dtype,
        )
