"""The autoencoder of latent diffusion: image <-> Gaussian over a small feature map.

Rombach et al. (2022, arXiv:2112.10752, section 3.1 and appendix G):
q(z | x) = N(mean(x), diag(exp(logvar(x)))), regularised towards N(0, I).
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

NORM_EPS = 1e-6  # everywhere in the autoencoder; the U-Net's resnets use 1e-5


class Encoder(nn.Module):
    """Image -> mean and log variance, side by side, before `quant_conv`."""

    channels: Sequence[int]
    blocks_per_level: int
    out_channels: int
    norm_groups: int
    mid_attention: bool
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w Z"]:
        h = layers.Conv(self.channels[0], dtype=self.dtype, name="conv_in")(x)
        for level, channels in enumerate(self.channels):
            is_last = level == len(self.channels) - 1
            down = functools.partial(
                blocks.Downsample, padding=(0, 1), dtype=self.dtype
            )
            block = blocks.DownBlock(
                self.blocks_per_level,
                make_resnet(channels, self.norm_groups, self.dtype),
                resample=None if is_last else down,
                name=f"down_blocks.{level}",
            )
            h = block(h, None, Conditioning())[-1]
        h = make_middle(self)(h, None, Conditioning())
        return norm_and_project(h, self.out_channels, self.norm_groups, self.dtype)


class Decoder(nn.Module):
    """Latent, after `post_quant_conv`, -> image."""

    channels: Sequence[int]
    blocks_per_level: int
    out_channels: int
    norm_groups: int
    mid_attention: bool
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, z: Float[Array, "B h w Z"]) -> Float[Array, "B H W C"]:
        h = layers.Conv(self.channels[-1], dtype=self.dtype, name="conv_in")(z)
        h = make_middle(self)(h, None, Conditioning())
        for i, channels in enumerate(reversed(self.channels)):
            is_last = i == len(self.channels) - 1
            block = blocks.UpBlock(
                self.blocks_per_level + 1,
                make_resnet(channels, self.norm_groups, self.dtype),
                resample=None
                if is_last
                else functools.partial(blocks.Upsample, dtype=self.dtype),
                name=f"up_blocks.{i}",
            )
            h = block(h, (), None, Conditioning())
        return norm_and_project(h, self.out_channels, self.norm_groups, self.dtype)


def make_resnet(channels: int, norm_groups: int, dtype: Any) -> Callable:
    """A factory of residual blocks that know no time."""
    return functools.partial(
        blocks.ResnetBlock,
        channels=channels,
        norm_groups=norm_groups,
        norm_eps=NORM_EPS,
        dtype=dtype,
    )


def make_middle(half: Encoder | Decoder) -> blocks.MidBlock:
    """The middle of both halves: single-head self-attention between two resnets."""
    attend = functools.partial(
        attention.AddedKVAttention,
        num_heads=1,
        norm_groups=half.norm_groups,
        norm_eps=NORM_EPS,
        dtype=half.dtype,
    )
    resnet = make_resnet(half.channels[-1], half.norm_groups, half.dtype)
    attend = attend if half.mid_attention else None
    return blocks.MidBlock(resnet, attend, name="mid_block")


def norm_and_project(
    h: Array, out_channels: int, norm_groups: int, dtype: Any
) -> Array:
    """The end of both halves."""
    norm = layers.GroupNorm(norm_groups, NORM_EPS, dtype, name="conv_norm_out")
    conv = layers.Conv(out_channels, dtype=dtype, name="conv_out")
    return conv(jax.nn.silu(norm(h)))


class AutoencoderKL(nn.Module):
    """Images in [-1, 1] to latents and back; unscaled, as the weights are published.

    The latent is smaller by 2**(len(channels) - 1) in height and width.
    """

    channels: Sequence[int] = (128, 256, 512, 512)
    blocks_per_level: int = 2  # encoding; one more decoding
    latent_channels: int = 4
    image_channels: int = 3
    norm_groups: int = 32
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    dtype: Any = "float32"

    @property
    def factor(self) -> int:
        """Pixels to a side of a latent."""
        return 2 ** (len(self.channels) - 1)

    def setup(self) -> None:
        shared = (self.norm_groups, self.mid_block_add_attention, self.dtype)
        latent = self.latent_channels
        self.encoder = Encoder(
            self.channels, self.blocks_per_level, 2 * latent, *shared
        )
        self.decoder = Decoder(
            self.channels, self.blocks_per_level, self.image_channels, *shared
        )
        pointwise = functools.partial(layers.Conv, kernel_size=1, dtype=self.dtype)
        if self.use_quant_conv:
            self.quant_conv = pointwise(2 * latent)
        if self.use_post_quant_conv:
            self.post_quant_conv = pointwise(latent)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """The reconstruction from the mean of q(z | x)."""
        return self.decode(self.encode(x)[0])

    def encode(
        self, x: Float[Array, "B H W C"]
    ) -> tuple[Float[Array, "B h w Z"], Float[Array, "B h w Z"]]:
        """Mean and log variance of q(z | x), float32."""
        convolution.check_halves(x, len(self.channels) - 1)
        moments = self.encoder(x)
        if self.use_quant_conv:
            moments = self.quant_conv(moments)
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, z: Float[Array, "B h w Z"]) -> Float[Array, "B H W C"]:
        """The image of a latent, float32."""
        z = self.post_quant_conv(z) if self.use_post_quant_conv else z
        return self.decoder(z).astype(jnp.float32)
