"""Residual blocks and resampling, and the levels that the U-Net and autoencoder share.

The residual block is that of Dhariwal and Nichol (2021, arXiv:2105.05233): norm, SiLU,
conv, time, norm, SiLU, dropout, conv. Module names are those of the published weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.models import convolution, layers
from diffusion_jax.types import Conditioning


def average_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B P Q C"]:
    """The mean of every 2x2 square."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return x.mean((2, 4))


class ResnetBlock(nn.Module):
    """Two convolutions around the time embedding, plus the input.

    `resample` "up" or "down" changes the resolution inside the block, before the first
    convolution and on the shortcut.
    """

    channels: int
    norm_groups: int
    norm_eps: float = 1e-5
    time_modulation: str = "add"  # or "scale_shift"
    resample: str = "none"  # or "up", "down"
    dropout: float = 0.0
    dtype: Any = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        emb: Float[Array, "B E"] | None,
        *,
        train: bool = False,
    ) -> Float[Array, "B P Q O"]:
        def norm(name: str, y: Array) -> Array:
            return layers.GroupNorm(
                self.norm_groups, self.norm_eps, self.dtype, name=name
            )(y)

        move = {
            "none": lambda y: y,
            "up": convolution.repeat_pixels,
            "down": average_pool,
        }
        h = move[self.resample](jax.nn.silu(norm("norm1", x)))
        x = move[self.resample](x)
        h = layers.Conv(self.channels, dtype=self.dtype, name="conv1")(h)
        if emb is None:
            h = norm("norm2", h)
        elif self.time_modulation == "add":
            h = norm("norm2", h + self._time(emb, self.channels))
        else:
            time = self._time(emb, 2 * self.channels)
            scale, shift = jnp.split(time, 2, axis=-1)
            h = norm("norm2", h) * (1 + scale) + shift
        h = nn.Dropout(self.dropout, deterministic=not train)(jax.nn.silu(h))
        h = layers.Conv(
            self.channels,
            kernel_init=layers.zero_init,
            dtype=self.dtype,
            name="conv2",
        )(h)
        if x.shape[-1] != self.channels:
            x = layers.Conv(
                self.channels, kernel_size=1, dtype=self.dtype, name="conv_shortcut"
            )(x)
        return x + h

    def _time(self, emb: Array, features: int) -> Array:
        dense = nn.Dense(
            features,
            kernel_init=layers.fan_in_init,
            dtype=self.dtype,
            name="time_emb_proj",
        )
        return dense(jax.nn.silu(emb))[:, None, None, :]


class Downsample(nn.Module):
    """Half the resolution by a convolution of stride 2; called like a ResnetBlock."""

    padding: tuple[int, int] = (1, 1)  # the autoencoder pads (0, 1)
    dtype: Any = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], emb: Array | None, *, train: bool = False
    ) -> Float[Array, "B P Q C"]:
        conv = layers.Conv(
            x.shape[-1], stride=2, padding=self.padding, dtype=self.dtype, name="conv"
        )
        return conv(x)


class Upsample(nn.Module):
    """Nearest neighbours, then a convolution; called like a ResnetBlock.

    `size` is that of the result where it is not twice that of the input.
    """

    size: tuple[int, int] | None = None
    dtype: Any = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], emb: Array | None, *, train: bool = False
    ) -> Float[Array, "B P Q C"]:
        conv = layers.Conv(
            x.shape[-1],
            repeats=True,
            repeated_size=self.size,
            dtype=self.dtype,
            name="conv",
        )
        return conv(x)


class DownBlock(nn.Module):
    """Residual blocks, each followed by attention, then half the resolution.

    `resnet`, `attend` and `resample` make the layers, given their names.
    """

    num_blocks: int
    resnet: Callable[..., nn.Module]
    attend: Callable[..., nn.Module] | None = None
    resample: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        emb: Float[Array, "B E"] | None,
        cond: Conditioning,
        *,
        train: bool = False,
    ) -> list[Float[Array, "B _ _ _"]]:
        """Every map that a skip may take; the last is the result."""
        maps = []
        for i in range(self.num_blocks):
            x = self.resnet(name=f"resnets.{i}")(x, emb, train=train)
            if self.attend is not None:
                x = self.attend(name=f"attentions.{i}")(x, cond)
            maps.append(x)
        if self.resample is not None:
            maps.append(self.resample(name="downsamplers.0")(x, emb, train=train))
        return maps


class MidBlock(nn.Module):
    """Residual block, attention, residual block, at the lowest resolution."""

    resnet: Callable[..., nn.Module]
    attend: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        emb: Float[Array, "B E"] | None,
        cond: Conditioning,
        *,
        train: bool = False,
    ) -> Float[Array, "B H W C"]:
        x = self.resnet(name="resnets.0")(x, emb, train=train)
        if self.attend is not None:
            x = self.attend(name="attentions.0")(x, cond)
        return self.resnet(name="resnets.1")(x, emb, train=train)


class UpBlock(nn.Module):
    """Residual blocks that also see the skips, last first, then twice the resolution."""

    num_blocks: int
    resnet: Callable[..., nn.Module]
    attend: Callable[..., nn.Module] | None = None
    resample: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        skips: Sequence[Float[Array, "B H W _"]],
        emb: Float[Array, "B E"] | None,
        cond: Conditioning,
        *,
        train: bool = False,
    ) -> Float[Array, "B P Q O"]:
        for i in range(self.num_blocks):
            if skips:
                x = jnp.concatenate([x, skips[-1 - i]], axis=-1)
            x = self.resnet(name=f"resnets.{i}")(x, emb, train=train)
            if self.attend is not None:
                x = self.attend(name=f"attentions.{i}")(x, cond)
        if self.resample is not None:
            x = self.resample(name="upsamplers.0")(x, emb, train=train)
        return x
