"""Published CLIP weights in three layouts; nothing is read before all is known to fit.

transformers   config.json, model.safetensors           (openai/clip-vit-large-patch14)
OpenCLIP       open_clip_config.json, open_clip_model.safetensors       (laion/CLIP-...)
OpenAI         one file of the original state dict, its sizes told by the shapes
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from diffusion_jax.models.clip import CLIP, CLIPText, CLIPVision
from diffusion_jax.models.clip_towers import PUBLISHED_MEAN, PUBLISHED_STD
from diffusion_jax.types import Params
from diffusion_jax.weights import (
    clip_config,
    clip_keys,
    components,
    config_fields,
    image_config,
    open_clip_config,
    tensors,
)
from diffusion_jax.weights.components import Component, Place

CONFIG = "config.json"
OPEN_CLIP_CONFIG, OPEN_CLIP_STEM = "open_clip_config.json", "open_clip_model"
OPEN_CLIP_PICKLE = "open_clip_pytorch_model.bin"
TOKENIZER_FILES = ("vocab.json", "tokenizer.json")
ACTIVATIONS = ("quick_gelu", "gelu")
# Position numbers, which old files hold among the tensors.
RENAME = ((r"^(text|vision)_model\.embeddings\.position_ids$", ""),)


class PublishedClip(NamedTuple):
    """A published CLIP; `tensors` have transformers' names and are not read yet."""

    text: dict[str, Any]  # of models.clip.CLIPText
    vision: dict[str, Any]  # of models.clip.CLIPVision
    projection_dim: int
    tensors: Mapping[str, Any]
    image_mean: tuple[float, ...] = PUBLISHED_MEAN  # of values in [0, 1]
    image_std: tuple[float, ...] = PUBLISHED_STD
    tokenizer: pathlib.Path | None = None  # a directory, if there is one


def read(
    path: str | pathlib.Path,
    *,
    variant: str | None = None,
    activation: str | None = None,
) -> PublishedClip:
    """The CLIP of a directory, or of a file of OpenAI's or OpenCLIP's names.

    A file does not say its `activation`, unless it holds OpenAI's own numbers: it is
    "quick_gelu" for OpenAI's weights and "gelu" for most of OpenCLIP's. Only a directory
    of transformers has a `variant`.
    """
    path = pathlib.Path(path)
    if path.is_file():
        _check_no_variant(path, variant)
        return _of_file(path, activation)
    if not path.is_dir():
        raise FileNotFoundError(f"no directory and no file {path}")
    if activation is not None:
        raise ValueError(f"{path} is a directory, whose config says its activation")
    is_open_clip = (path / OPEN_CLIP_CONFIG).is_file()
    names = [file.name for file in path.iterdir()]
    has_both = CONFIG in names and tensors.variants(names)
    if is_open_clip and not has_both:
        _check_no_variant(path, variant)
        made = _open_clip(path)
    else:
        made = _whole(path, variant)
    if any((path / name).is_file() for name in TOKENIZER_FILES):
        made = made._replace(tokenizer=path)
    return made


def module(published: PublishedClip, *, dtype: str = "float32") -> CLIP:
    """Without weights; the towers compute in `dtype`."""
    return CLIP(
        CLIPText(**published.text, dtype=dtype),
        CLIPVision(**published.vision, dtype=dtype),
        published.projection_dim,
    )


def load_params(
    published: PublishedClip, *, dtype: str = "float32", place: Place | None = None
) -> Params:
    """Parameters of `module`; every tensor is used exactly once, or an error lists all.

    `place` puts the array of a path (("clip", "text_projection", "kernel")) on its
    devices, where not given the default one.
    """
    size = published.vision["image_size"]
    inputs = components.numbers(size, size, 3), components.token_ids()
    like = components.shape(module(published), *inputs, dtype=dtype)
    part = Component(like, published.tensors, RENAME)
    return components.load({"clip": part}, place=place)["clip"]


def _check_no_variant(path: pathlib.Path, variant: str | None) -> None:
    if variant is not None:
        raise ValueError(f"variant {variant!r} of {path}, which has only one")


def _whole(path: pathlib.Path, variant: str | None) -> PublishedClip:
    fields = clip_config.read(config_fields.read_json(path / CONFIG))
    found = tensors.open_component(path, variant=variant)
    pixels = {}
    if (path / image_config.FILE).is_file():
        given = config_fields.read_json(path / image_config.FILE)
        size = fields["vision"]["image_size"]
        read = image_config.read(given, size=size)
        pixels = dict(image_mean=read.mean, image_std=read.std)
    return PublishedClip(**fields, **pixels, tensors=found)


def _open_clip(path: pathlib.Path) -> PublishedClip:
    fields = open_clip_config.read(config_fields.read_json(path / OPEN_CLIP_CONFIG))
    file = path / f"{OPEN_CLIP_STEM}.safetensors"
    if not file.is_file() and (path / OPEN_CLIP_PICKLE).is_file():
        raise ValueError(
            f"{path} has only a pickle; make it safe with "
            f"`{tensors.CONVERTER} {path / OPEN_CLIP_PICKLE} {file}`"
        )
    header = tensors.read_header(file)
    _check_names(file, header)
    return PublishedClip(**fields, tensors=clip_keys.rename(header))


def _of_file(path: pathlib.Path, activation: str | None) -> PublishedClip:
    header = tensors.read_header(path)
    _check_names(path, header)
    if activation is None and clip_keys.SIZES[0] in header:
        activation = "quick_gelu"
    if activation not in ACTIVATIONS:
        said = "" if activation is None else f"; {activation!r} is not known"
        raise ValueError(
            f"{path} does not say its activation: 'quick_gelu' for OpenAI's weights, "
            f"'gelu' for most of OpenCLIP's{said}"
        )
    try:
        fields = clip_keys.fields(header, activation)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{path}: layers are missing or misshapen: {error}") from error
    return PublishedClip(**fields, tensors=clip_keys.rename(header))


def _check_names(path: pathlib.Path, header: Mapping[str, Any]) -> None:
    """Raises unless it is a CLIP of two transformers by the original names."""
    if clip_keys.FIRST in header and clip_keys.RESNET not in header:
        return
    if clip_keys.RESNET in header:
        raise ValueError(f"{path} is a CLIP with a ResNet; only transformers are read")
    if any(key.startswith(("text_model.", "vision_model.")) for key in header):
        raise ValueError(f"{path} has transformers' names; give its directory")
    raise ValueError(
        f"{path} is no CLIP: it has no {clip_keys.FIRST}; it begins with "
        f"{tensors.shown(list(header), 3)}"
    )
