"""A published unCLIP: what its files say of each part, and their tensors, not yet read.

published = karlo.read("karlo-v1-alpha")
decoder = modules(published)["decoder"]
params = load_params(published, dtype="bfloat16")
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from diffusion_jax.models import clip_towers
from diffusion_jax.models.clip import CLIPText, CLIPVision, ProjectedVision
from diffusion_jax.models.prior import PriorTransformer
from diffusion_jax.models.text import ProjectedText
from diffusion_jax.models.unclip import Encoded, TextImageProjection
from diffusion_jax.models.unet import UNet
from diffusion_jax.types import Conditioning, Params
from diffusion_jax.weights import components
from diffusion_jax.weights.components import Component, Place
from diffusion_jax.weights.published import PROJECTED_RENAME

EMBEDDING = "embedding"  # the scale in which the prior sees embeddings; no module
EMBEDDING_RENAME = ((r"^clip_", ""),)
VISION_RENAME = (
    (r"^(vision_model\.)?embeddings\.position_ids$", ""),  # 0, 1, 2, ...
    (r"^(?=embeddings|encoder|pre_layrnorm|post_layernorm)", "vision_model."),
)
RENAME = {
    EMBEDDING: EMBEDDING_RENAME,
    "text_encoder": PROJECTED_RENAME,
    "image_encoder": VISION_RENAME,
}


class PublishedUnclip(NamedTuple):
    """A published unCLIP; `tensors` have diffusers' names, and anything of shape and
    dtype that numpy can read.
    """

    text: dict[str, Any]  # of CLIPText, and projection_dim
    text_proj: dict[str, Any]  # of models.unclip.TextImageProjection
    decoder: dict[str, Any]  # of models.unet.UNet
    super_res: dict[str, dict[str, Any]]  # "super_res_first" and "_last", of UNet
    size: int  # pixels a side, of the decoder
    super_res_size: int
    tokenizer: pathlib.Path
    schedulers: dict[str, dict[str, Any]]  # "decoder_scheduler" -> what its file says
    tensors: dict[str, Mapping[str, Any]]  # of every module, and "embedding"
    prior: dict[str, Any] | None = None  # of models.prior.PriorTransformer
    image: dict[str, Any] | None = None  # of CLIPVision, and projection_dim
    image_mean: tuple[float, ...] = clip_towers.PUBLISHED_MEAN
    image_std: tuple[float, ...] = clip_towers.PUBLISHED_STD


@dataclasses.dataclass(frozen=True)
class Row:
    """The only row of a stored matrix, not yet read."""

    stored: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Without the first axis, if that is of one row."""
        shape = tuple(self.stored.shape)
        return shape[1:] if shape[:1] == (1,) else shape

    @property
    def dtype(self) -> np.dtype:
        """As stored."""
        return self.stored.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.stored, dtype).reshape(self.shape)


def modules(
    published: PublishedUnclip, *, dtype: str = "float32"
) -> dict[str, nn.Module]:
    """The modules by the names of their directories; they compute in `dtype`."""

    def split(fields: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        fields = dict(fields)
        projection_dim = fields.pop("projection_dim")
        return fields, projection_dim

    text, projection_dim = split(published.text)
    made: dict[str, nn.Module] = {
        "text_encoder": ProjectedText(CLIPText(**text, dtype=dtype), projection_dim),
        "text_proj": TextImageProjection(**published.text_proj, dtype=dtype),
        "decoder": UNet(**published.decoder, dtype=dtype),
    }
    for name, fields in published.super_res.items():
        made[name] = UNet(**fields, dtype=dtype)
    if published.prior is not None:
        made["prior"] = PriorTransformer(**published.prior, dtype=dtype)
    if published.image is not None:
        image, projection_dim = split(published.image)
        tower = CLIPVision(**image, dtype=dtype)
        made["image_encoder"] = ProjectedVision(tower, projection_dim)
    return made


def shapes(published: PublishedUnclip, *, dtype: str = "float32") -> Params:
    """The shapes of all parameters, which are neither initialised nor read.

    The scale of embeddings is float32 whatever the rest is.
    """
    like = {
        name: components.shape(module, *_inputs(published, name), dtype=dtype)
        for name, module in modules(published).items()
    }
    if published.prior is not None:
        row = jax.ShapeDtypeStruct((published.prior["embed_dim"],), np.float32)
        like[EMBEDDING] = {"mean": row, "std": row}
    return like


def load_params(
    published: PublishedUnclip,
    *,
    dtype: str = "float32",
    place: Place | None = None,
    names: Collection[str] | None = None,
) -> Params:
    """Parameters of every module in `dtype`, and "embedding", the prior's scale.

    `place` and `names` as of `components.load`.
    """
    like = shapes(published, dtype=dtype)
    parts = {
        name: Component(like[name], published.tensors[name], RENAME.get(name, ()))
        for name in like
    }
    return components.load(parts, place=place, names=names)


def _inputs(published: PublishedUnclip, name: str) -> tuple[Any, ...]:
    """What a module is called with, as small as can be."""
    text, projection = published.text, published.text_proj
    if name == "text_encoder":
        return (components.token_ids(),)
    if name == "image_encoder":
        size = published.image["image_size"]
        return (components.numbers(size, size, 3),)
    if name == "decoder":
        widths = (projection["context_width"], projection["time_width"])
        return components.unet_inputs(len(published.decoder["channels"]), 3, *widths)
    if name in published.super_res:
        return components.unet_inputs(len(published.super_res[name]["channels"]), 6)
    embed = components.numbers(text["projection_dim"])
    hidden = components.numbers(text["context_length"], text["width"])
    if name == "text_proj":
        return embed, Encoded(hidden, embed)
    return embed, components.numbers(), Conditioning(tokens=hidden, vector=embed)
