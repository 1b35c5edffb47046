"""Texts -> what a U-Net attends to and hears: one or two CLIP text towers.

Emphasis of a token multiplies its hidden state, z <- z * w, after which every chunk is
scaled to the mean it had before. Stable Diffusion 1 and 2 have one tower; XL joins the
widths of two and hears the projected end of text of the last (arXiv:2307.01952, 2.1).
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_jax.models.clip import CLIPText
from diffusion_jax.types import Params, Prompt


class ProjectedText(nn.Module):
    """A text tower whose state at the end of the text is projected, without a norm."""

    text_model: CLIPText
    projection_dim: int = 1280

    def setup(self) -> None:
        self.text_projection = nn.Dense(
            self.projection_dim,
            use_bias=False,
            kernel_init=nn.initializers.normal(self.text_model.width**-0.5),
            dtype=self.text_model.dtype,
        )

    def __call__(
        self, tokens: Int[Array, "B L"], mask: Bool[Array, "B L"] | None = None
    ) -> tuple[Float[Array, "B L E"], Float[Array, "B P"]]:
        hidden, pooled = self.text_model(tokens, mask)
        return hidden, self.text_projection(pooled).astype(jnp.float32)


Tower = CLIPText | ProjectedText


@dataclasses.dataclass(frozen=True)
class TextEncoders:
    """Holds no weights: `params` has one entry per name, and may have others."""

    towers: tuple[Tower, ...]
    names: tuple[str, ...] = ("text_encoder",)
    zero_empty: bool = False  # the empty text is all zeros, as in SDXL

    def __post_init__(self) -> None:
        if len(self.towers) != len(self.names) or not self.names:
            raise ValueError(f"{len(self.towers)} text towers named {self.names}")

    def __call__(
        self, params: Params, prompt: Prompt
    ) -> tuple[Float[Array, "B NL E"], Float[Array, "B P"]]:
        """(hidden states, pooled): towers joined in width, chunks in length.

        Pooled is the last tower's, of the first chunk.
        """
        batch, num_towers, num_chunks, length = prompt.tokens.shape
        if num_towers != len(self.towers):
            raise ValueError(
                f"a prompt for {num_towers} text encoders, there are {self.names}"
            )
        if prompt.weights.shape != prompt.tokens.shape:
            raise ValueError(
                f"{prompt.weights.shape} weights for {prompt.tokens.shape} tokens"
            )
        states = []
        for i, (tower, name) in enumerate(zip(self.towers, self.names)):
            tokens = jnp.asarray(prompt.tokens[:, i]).reshape(-1, length)
            hidden, pooled = tower.apply({"params": params[name]}, tokens)
            weights = jnp.asarray(prompt.weights[:, i]).reshape(-1, length)
            states.append(emphasise(hidden, weights))
        hidden = jnp.concatenate(states, axis=-1)
        hidden = hidden.reshape(batch, num_chunks * length, -1)
        pooled = pooled.reshape(batch, num_chunks, -1)[:, 0]
        if self.zero_empty:
            is_empty = jnp.asarray(prompt.is_empty)[:, None]
            hidden = jnp.where(is_empty[..., None], 0.0, hidden)
            pooled = jnp.where(is_empty, 0.0, pooled)
        return hidden, pooled


def emphasise(
    hidden: Float[Array, "B L E"], weights: Float[Array, "B L"]
) -> Float[Array, "B L E"]:
    """hidden * weights with the mean of every row's hidden states as it was.

    Bit for bit `hidden` in rows of weights 1, and unscaled where the mean vanishes.
    """
    weighted = hidden * weights[..., None]
    before = jnp.mean(hidden, axis=(1, 2), keepdims=True)
    after = jnp.mean(weighted, axis=(1, 2), keepdims=True)
    scale = before / jnp.where(after == 0, 1.0, after)
    weighted = weighted * jnp.where(after == 0, 1.0, scale)
    is_plain = jnp.all(weights == 1, axis=1)[:, None, None]
    return jnp.where(is_plain, hidden, weighted)


def skipping(encoders: TextEncoders, clip_skip: int) -> TextEncoders:
    """The encoders without their last `clip_skip` layers, besides those left out anyway.

    The final LayerNorm stays where it was: after the last layer that is kept in Stable
    Diffusion 1 and 2, nowhere in XL. Pooled states are those of all layers.
    """
    towers = tuple(_skip(tower, clip_skip) for tower in encoders.towers)
    return dataclasses.replace(encoders, towers=towers)


def _skip(tower: Tower, clip_skip: int) -> Tower:
    if isinstance(tower, ProjectedText):
        return tower.clone(text_model=_skip(tower.text_model, clip_skip))
    most = tower.num_layers - tower.skip_layers
    if not 0 <= clip_skip <= most:
        raise ValueError(
            f"clip_skip={clip_skip} of a text encoder of {tower.num_layers} layers; "
            f"one of 0..{most}"
        )
    return tower.clone(skip_layers=tower.skip_layers + clip_skip)
