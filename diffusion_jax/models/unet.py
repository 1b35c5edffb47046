"""The one U-Net: Stable Diffusion 1, 2, XL, the unCLIP decoder and its upsamplers.

Ronneberger et al. (2015, arXiv:1505.04597) with the residual blocks of Dhariwal and
Nichol (2021, arXiv:2105.05233). Three switches per level make the published variants:

                        attention     resample   time_modulation
    Stable Diffusion    transformer   conv       add
    unCLIP decoder      added_kv      resnet     scale_shift
    unCLIP upsamplers   none          resnet     add
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.models import attention, blocks, convolution, layers
from diffusion_jax.types import Conditioning

ATTENTIONS = ("none", "added_kv", "transformer")
CHOICES = {
    "attention": ATTENTIONS,
    "mid_attention": ATTENTIONS,
    "resample": ("conv", "resnet"),
    "time_modulation": ("add", "scale_shift"),
    "vector": ("none", "identity", "add_embedding", "class_embedding", "table"),
}


class UNet(nn.Module):
    """(noisy image, time, conditioning) -> what the network is trained to output.

    The last level does not change the resolution. Fields that say "or one per level"
    take a number or a tuple as long as `channels`. `vector` says how `cond.vector`
    joins the time embedding: as it is, through a two-layer network under one of the two
    published names, or (one-hot) as rows of a table. `upcast_attention` compares
    queries and keys of the transformers in float32, whatever `dtype` is.
    """

    channels: Sequence[int] = (320, 640, 1280, 1280)
    blocks_per_level: int | Sequence[int] = 2  # going down; one more going up
    attention: Sequence[str] = ("transformer",) * 3 + ("none",)
    mid_attention: str = "transformer"
    num_heads: int | Sequence[int] = 8
    transformer_depth: int | Sequence[int] = 1
    linear_projection: bool = False
    upcast_attention: bool = False
    resample: str = "conv"
    time_modulation: str = "add"
    vector: str = "none"
    out_channels: int = 4
    norm_groups: int = 32
    norm_eps: float = 1e-5
    dropout: float = 0.0
    dtype: Any = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        time: Float[Array, "B"],
        cond: Conditioning,
        *,
        train: bool = False,
    ) -> Float[Array, "B H W O"]:
        num_levels = len(self.channels)
        self._check_fields()
        if self.resample == "resnet":
            convolution.check_halves(x, num_levels - 1)
        if cond.image is not None:
            x = jnp.concatenate([x, cond.image.astype(x.dtype)], axis=-1)
        emb = self._time_embedding(time, cond)

        h = layers.Conv(self.channels[0], dtype=self.dtype, name="conv_in")(x)
        skips = [h]
        for level in range(num_levels):
            is_last = level == num_levels - 1
            block = blocks.DownBlock(
                self._at("blocks_per_level", level),
                self._resnet(level),
                self._attend(self._at("attention", level), level),
                None if is_last else self._downsample(level),
                name=f"down_blocks.{level}",
            )
            skips += block(h, emb, cond, train=train)
            h = skips[-1]

        bottom = num_levels - 1
        attend = self._attend(self.mid_attention, bottom)
        mid = blocks.MidBlock(self._resnet(bottom), attend, name="mid_block")
        h = mid(h, emb, cond, train=train)

        for i, level in enumerate(reversed(range(num_levels))):
            num_blocks = self._at("blocks_per_level", level) + 1
            finer = skips[: len(skips) - num_blocks]
            block = blocks.UpBlock(
                num_blocks,
                self._resnet(level),
                self._attend(self._at("attention", level), level),
                None if level == 0 else self._upsample(level, finer[-1].shape[1:3]),
                name=f"up_blocks.{i}",
            )
            h = block(h, skips[-num_blocks:], emb, cond, train=train)
            skips = finer

        norm = layers.GroupNorm(
            self.norm_groups, self.norm_eps, self.dtype, name="conv_norm_out"
        )
        h = layers.Conv(
            self.out_channels,
            kernel_init=layers.zero_init,
            dtype=self.dtype,
            name="conv_out",
        )(jax.nn.silu(norm(h)))
        return h.astype(jnp.float32)

    def _check_fields(self) -> None:
        for field, choices in CHOICES.items():
            value = getattr(self, field)
            for choice in [value] if isinstance(value, str) else value:
                if choice not in choices:
                    raise ValueError(f"unknown {field} {choice!r}; one of {choices}")

    def _at(self, field: str, level: int) -> Any:
        value = getattr(self, field)
        if not isinstance(value, Sequence):
            return value
        if len(value) != len(self.channels):
            raise ValueError(f"{field}={value} for {len(self.channels)} levels")
        return value[level]

    def _resnet(self, level: int) -> Callable[..., nn.Module]:
        return functools.partial(
            blocks.ResnetBlock,
            channels=self.channels[level],
            norm_groups=self.norm_groups,
            norm_eps=self.norm_eps,
            time_modulation=self.time_modulation,
            dropout=self.dropout,
            dtype=self.dtype,
        )

    def _downsample(self, level: int) -> Callable[..., nn.Module]:
        if self.resample == "resnet":
            return functools.partial(self._resnet(level), resample="down")
        return functools.partial(blocks.Downsample, dtype=self.dtype)

    def _upsample(self, level: int, size: tuple[int, int]) -> Callable[..., nn.Module]:
        """To the size of the skip that comes next: odd where that was halved up."""
        if self.resample == "resnet":
            return functools.partial(self._resnet(level), resample="up")
        return functools.partial(blocks.Upsample, size=size, dtype=self.dtype)

    def _attend(self, kind: str, level: int) -> Callable[..., nn.Module] | None:
        options = dict(
            num_heads=self._at("num_heads", level),
            norm_groups=self.norm_groups,
            dtype=self.dtype,
        )
        if kind == "none":
            return None
        if kind == "added_kv":
            return functools.partial(attention.AddedKVAttention, **options)
        return functools.partial(
            attention.SpatialTransformer,
            depth=self._at("transformer_depth", level),
            linear_projection=self.linear_projection,
            upcast=self.upcast_attention,
            **options,
        )

    def _time_embedding(self, time: Array, cond: Conditioning) -> Array:
        width = 4 * self.channels[0]
        embed = functools.partial(layers.MLPEmbedding, width, self.dtype)
        emb = embed(name="time_embedding")(layers.sinusoid(time, self.channels[0]))
        if self.vector == "none" and cond.vector is None:
            return emb
        if self.vector == "none" or cond.vector is None:
            raise ValueError(
                f"vector={self.vector!r}, but cond.vector is "
                f"{'absent' if cond.vector is None else 'given'}"
            )
        if self.vector == "identity":
            return emb + cond.vector.astype(emb.dtype)
        if self.vector == "table":
            table = nn.Embed(cond.vector.shape[-1], width, name="class_embedding")
            return emb + (cond.vector @ table.embedding).astype(emb.dtype)
        return emb + embed(name=self.vector)(cond.vector)
