"""The smallest pieces: convolution, group norm, sinusoids, activations, initialisers.

Arrays are NHWC; kernels are HWIO. Parameters are float32 and named `kernel`, `bias`,
`scale`, so that a path of names is the published state-dict key (weights/convert.py).
Epsilons are torch's, not Flax's: 1e-5 unless the published model says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.models import convolution

fan_in_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what the published networks started from."""

zero_init = nn.initializers.zeros_init()
"""Last layer of a residual branch: the branch starts as zero (arXiv:2105.05233)."""


def gelu(x: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """x * Phi(x), exactly; by erf, which XLA computes in half the time of erfc."""
    exact = x.astype(jnp.float32)
    return (0.5 * exact * (1 + jax.lax.erf(exact * 0.5**0.5))).astype(x.dtype)


def quick_gelu(x: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """The sigmoid approximation of GELU that OpenAI's CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable] = {
    "gelu": gelu,
    "quick_gelu": quick_gelu,
}


def sinusoid(position: Float[Array, "B"], width: int) -> Float[Array, "B E"]:
    """[cos, sin] of position * 10000**(-i / half), i = 0 .. half - 1.

    Vaswani et al. (2017, arXiv:1706.03762, section 3.5), cosines first, as in
    Dhariwal and Nichol (2021).
    """
    if width % 2:
        raise ValueError(f"a sinusoid needs an even width, not {width}")
    half = width // 2
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half) / half)
    angles = position.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def bicubic(
    images: Float[Array, "B h w C"], size: int
) -> Float[Array, "B size size C"]:
    """Square images of another size; antialiased where that is smaller."""
    shape = (len(images), size, size, images.shape[-1])
    return jax.image.resize(images, shape, "cubic", antialias=True)


class GroupNorm(nn.Module):
    """Group normalisation (arXiv:1803.08494) over space and the channels of a group.

    One pass in float32 for sum and sum of squares; scale and shift are folded into one
    multiply-add per element.
    """

    groups: int
    eps: float = 1e-5
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B *space C"]) -> Float[Array, "B *space C"]:
        batch, channels = x.shape[0], x.shape[-1]
        if channels % self.groups:
            raise ValueError(
                f"{channels} channels do not split in {self.groups} groups"
            )
        scale = self.param("scale", nn.initializers.ones_init(), (channels,))
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,))

        x = x.astype(jnp.float32)
        space = tuple(range(1, x.ndim - 1))
        sums = jnp.stack([x.sum(space), jnp.square(x).sum(space)])
        sums = sums.reshape(2, batch, self.groups, -1).sum(-1, keepdims=True)
        mean, square = sums * (self.groups * batch / x.size)
        variance = jnp.maximum(square - jnp.square(mean), 0.0)
        factor = jax.lax.rsqrt(variance + self.eps) * scale.reshape(self.groups, -1)
        shift = bias.reshape(self.groups, -1) - mean * factor
        per_channel = (batch, *(1 for _ in space), channels)
        y = x * factor.reshape(per_channel) + shift.reshape(per_channel)
        return y.astype(self.dtype)


class Conv(nn.Module):
    """Square convolution, NHWC; `padding` (before, after) is that of both axes."""

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: tuple[int, int] | None = None  # None: kernel_size // 2 on both sides
    repeats: bool = False  # every pixel becomes a 2x2 square first
    repeated_size: tuple[int, int] | None = None  # to which the squares are then cut
    use_bias: bool = True
    kernel_init: Callable = fan_in_init
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B P Q O"]:
        size = self.kernel_size
        shape = (size, size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        half = size // 2
        padding = (half, half) if self.padding is None else self.padding
        x = jnp.asarray(x, self.dtype)
        if self.repeats:
            y = convolution.repeat_and_convolve(
                x, jnp.asarray(kernel), self.repeated_size
            )
        else:
            kernel = jnp.asarray(kernel, self.dtype)
            y = convolution.convolve(x, kernel, self.stride, padding)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
            y = y + jnp.asarray(bias, self.dtype)
        return y


class MLPEmbedding(nn.Module):
    """Linear, SiLU, linear: from a sinusoid or a vector to the time embedding."""

    features: int
    dtype: Any = "float32"
    hidden_width: int | None = None  # None: as many as features

    @nn.compact
    def __call__(self, x: Float[Array, "B D"]) -> Float[Array, "B E"]:
        hidden = self.hidden_width or self.features
        x = nn.Dense(
            hidden, kernel_init=fan_in_init, dtype=self.dtype, name="linear_1"
        )(x)
        return nn.Dense(
            self.features, kernel_init=fan_in_init, dtype=self.dtype, name="linear_2"
        )(jax.nn.silu(x))
