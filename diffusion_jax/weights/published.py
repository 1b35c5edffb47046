"""A published model: what its files say of each module, and their tensors, not yet read.

published = directory.read("stable-diffusion-v1-5")      or single_file.read(...)
unet = modules(published)["unet"]
params = load_params(published, dtype="bfloat16")
"""

from __future__ import annotations

import pathlib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from diffusion_jax.models.autoencoder import AutoencoderKL
from diffusion_jax.models.clip import CLIPText
from diffusion_jax.models.text import ProjectedText
from diffusion_jax.models.unet import UNet
from diffusion_jax.types import Params
from diffusion_jax.weights import components, convert
from diffusion_jax.weights.components import Component, Place

# Spellings of other versions -> ours; a key that becomes empty is not needed.
VAE_RENAME = (
    (r"(mid_block\.attentions\.0\.)query\b", r"\1to_q"),
    (r"(mid_block\.attentions\.0\.)key\b", r"\1to_k"),
    (r"(mid_block\.attentions\.0\.)value\b", r"\1to_v"),
    (r"(mid_block\.attentions\.0\.)proj_attn\b", r"\1to_out.0"),
)
TOKENIZER_FILES = (  # of a CLIP tokenizer, in any of its published forms
    *("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json"),
)
POSITIONS = (r"^(text_model\.)?embeddings\.position_ids$", "")  # 0, 1, 2, ...
PLAIN_RENAME = (POSITIONS, (r"^text_model\.", ""))
PROJECTED_RENAME = (POSITIONS, (r"^(?=embeddings|encoder|final)", "text_model."))


class Published(NamedTuple):
    """A published model; `tensors` have diffusers' names, and anything of shape and
    dtype that numpy can read.
    """

    unet: dict[str, Any]  # of models.unet.UNet
    vae: dict[str, Any]  # of models.autoencoder.AutoencoderKL
    texts: dict[str, dict[str, Any]]  # of CLIPText; with projection_dim, ProjectedText
    tokenizers: dict[str, pathlib.Path]  # "tokenizer", "tokenizer_2" -> directory
    scheduler: dict[str, Any]  # the content of scheduler_config.json
    tensors: dict[str, Mapping[str, Any]]  # "unet", "vae", "text_encoder", ...
    latent_scale: float = 0.18215
    latent_shift: float = 0.0
    sample_size: int = 64  # latents a side, where none are chosen
    num_size_ids: int = 0  # SDXL: 6 (h, w, top, left, h, w); its refiner: 5
    size_id_width: int = 256  # of the sinusoid of each
    zero_empty: bool = False  # the empty text is all zeros
    force_upcast: bool = True  # the autoencoder overflows float16

    @property
    def factor(self) -> int:
        """Pixels to a side of a latent."""
        return AutoencoderKL(**self.vae).factor

    @property
    def in_channels(self) -> int:
        """What the U-Net sees at every pixel."""
        first = self.tensors["unet"].get("conv_in.weight")
        return self.vae["latent_channels"] if first is None else first.shape[1]

    @property
    def inpaints(self) -> bool:
        """Whether the U-Net also sees a mask and what it leaves of the latents."""
        return self.in_channels == 2 * self.vae["latent_channels"] + 1


def modules(published: Published, *, dtype: str = "float32") -> dict[str, nn.Module]:
    """The modules by the names of their directories; they compute in `dtype`.

    The autoencoder computes in float32 instead of float16, unless it is known to bear it.
    """
    is_fragile = dtype == "float16" and published.force_upcast
    made = {
        "unet": UNet(**published.unet, dtype=dtype),
        "vae": AutoencoderKL(**published.vae, dtype="float32" if is_fragile else dtype),
    }
    for name, fields in published.texts.items():
        fields = dict(fields)
        projection_dim = fields.pop("projection_dim", None)
        tower = CLIPText(**fields, dtype=dtype)
        if projection_dim is not None:
            tower = ProjectedText(tower, projection_dim)
        made[name] = tower
    return made


def shapes(published: Published, *, dtype: str = "float32") -> Params:
    """The shapes of all parameters, which are neither initialised nor read."""
    return {name: shape(published, name, dtype=dtype) for name in modules(published)}


def shape(published: Published, name: str, *, dtype: str = "float32") -> Params:
    """The shapes of one module's parameters."""
    module, inputs = modules(published)[name], _inputs(published, name)
    return components.shape(module, *inputs, dtype=dtype)


def load_params(
    published: Published,
    *,
    dtype: str = "float32",
    place: Place | None = None,
    names: Collection[str] | None = None,
) -> Params:
    """Parameters of every module in `dtype`, and "latent_scale", a number.

    Every tensor must be used exactly once, or one error lists all that do not fit.
    `place` puts the array of a path (("unet", "conv_in", "kernel")) on its devices,
    where not given the default one; it is called once for each, in turn. With `names`
    only the tensors of these modules are read, though all must fit.
    """
    like = shapes(published, dtype=dtype)
    parts = {
        name: Component(like[name], published.tensors[name], _rename(published, name))
        for name in like
    }
    params = components.load(parts, place=place, names=names)
    params["latent_scale"] = jnp.asarray(published.latent_scale, jnp.float32)
    return params


def _rename(published: Published, name: str) -> convert.Rename:
    if name == "vae":
        return VAE_RENAME
    if name == "unet":
        return ()
    is_projected = "projection_dim" in published.texts[name]
    return PROJECTED_RENAME if is_projected else PLAIN_RENAME


def _inputs(published: Published, name: str) -> tuple[Any, ...]:
    """What a module is called with, as small as can be."""
    if name == "vae":
        side = published.factor
        return (components.numbers(side, side, published.vae["image_channels"]),)
    if name != "unet":
        return (components.token_ids(),)
    widths = [fields["width"] for fields in published.texts.values()]
    vector = None
    if published.num_size_ids:
        last = list(published.texts.values())[-1]
        size_ids = published.num_size_ids * published.size_id_width
        vector = last["projection_dim"] + size_ids
    num_levels = len(published.unet["channels"])
    return components.unet_inputs(
        num_levels, published.in_channels, sum(widths), vector
    )
