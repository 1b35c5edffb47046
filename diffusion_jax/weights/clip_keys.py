"""OpenAI's and OpenCLIP's names of CLIP's tensors -> those of transformers.

visual.{conv1, class_embedding, positional_embedding, ln_pre, ln_post, proj}
visual.transformer.resblocks.N.*     transformer.resblocks.N.*
token_embedding  positional_embedding  ln_final  text_projection  logit_scale

Queries, keys and values are one tensor; both projections are transposed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from diffusion_jax.models.clip import LEGACY_EOS
from diffusion_jax.weights import single_file, single_file_fields, single_file_keys
from diffusion_jax.weights.single_file_fields import HEAD_WIDTH
from diffusion_jax.weights.tensors import Stored

# Of the image towers H, g, bigG and e of OpenCLIP, by their widths.
LARGE_HEADS = dict.fromkeys((1280, 1408, 1664, 1792), 16)
FIRST = "visual.conv1.weight"
RESNET = "visual.layer1.0.conv1.weight"
PROJECTIONS = {
    "text_projection": "text_projection.weight",
    "visual.proj": "visual_projection.weight",
}
# Numbers and masks that the original code keeps among the tensors.
SIZES = ("input_resolution", "context_length", "vocab_size")
UNUSED = (*SIZES, "attn_mask")
VISION = "vision_model"
VISION_LAYERS = {
    "visual.conv1": f"{VISION}.embeddings.patch_embedding",
    "visual.class_embedding": f"{VISION}.embeddings.class_embedding",
    "visual.positional_embedding": f"{VISION}.embeddings.position_embedding.weight",
    "visual.ln_pre": f"{VISION}.pre_layrnorm",
    "visual.ln_post": f"{VISION}.post_layernorm",
    "logit_scale": "logit_scale",
}


def rename(header: Mapping[str, Stored]) -> dict[str, Any]:
    """The tensors by transformers' names, not read; unknown ones keep their names."""
    text = single_file_fields.count(header, r"transformer\.resblocks\.(\d+)\.")
    vision = single_file_fields.count(
        header, r"visual\.transformer\.resblocks\.(\d+)\."
    )
    table = single_file_keys.open_clip_layers(text) | VISION_LAYERS
    fused = single_file_keys.open_clip_fused(text)
    start = "transformer.resblocks."
    for old, new in single_file_keys.open_clip_layers(vision).items():
        if old.startswith(start):
            table[f"visual.{old}"] = _of_vision(new)
    for old, names in single_file_keys.open_clip_fused(vision).items():
        fused[f"visual.{old}"] = tuple(map(_of_vision, names))
    names = single_file_keys.rename(header, table)
    found: dict[str, Any] = {}
    for key, stored in header.items():
        if key in UNUSED:
            continue
        if key in fused:
            found.update(zip(fused[key], single_file.thirds(stored)))
        elif key in PROJECTIONS:
            found[PROJECTIONS[key]] = single_file.Transposed(stored)
        else:
            found[names.get(key, key)] = stored
    return found


def _of_vision(name: str) -> str:
    return VISION + name.removeprefix("text_model")


def vision_heads(width: int) -> int:
    """How many heads an image tower of this width has, which no shape tells.

    They are 64 wide in all published towers but the largest of OpenCLIP.
    """
    return LARGE_HEADS.get(width, max(1, width // HEAD_WIDTH))


def fields(header: Mapping[str, Stored], activation: str) -> dict[str, Any]:
    """`text`, `vision` and `projection_dim`, by the shapes."""
    found = rename(header)
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    text = single_file_fields.text(shapes, activation=activation)
    embeddings = f"{VISION}.embeddings"
    width, _, _, patch_size = shapes[f"{embeddings}.patch_embedding.weight"]
    num_patches = shapes[f"{embeddings}.position_embedding.weight"][0] - 1
    return dict(
        text=text | dict(eos_id=LEGACY_EOS),
        vision=dict(
            image_size=math.isqrt(num_patches) * patch_size,
            patch_size=patch_size,
            width=width,
            num_layers=single_file_fields.count(
                shapes, rf"{VISION}\.encoder\.layers\.(\d+)\."
            ),
            num_heads=vision_heads(width),
            mlp_width=shapes[f"{VISION}.encoder.layers.0.mlp.fc1.weight"][0],
            activation=activation,
        ),
        projection_dim=shapes["text_projection.weight"][0],
    )
