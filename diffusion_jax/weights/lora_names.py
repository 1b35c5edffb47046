"""How files of low-rank adaptations spell the layers of a model.

Every layer of a given model is spelt in all known ways, and a file's names are looked up
among those, so that underscores ("to_out_0", "proj_in") are never interpreted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from flax import traverse_util

from diffusion_jax.types import Params

Place = tuple[str, str]  # component, "/"-joined path of the layer

KOHYA_PREFIXES = {
    "unet": ("lora_unet_",),
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_",),
}
OLD_LEAVES = {  # of attention, in the first files of diffusers
    "to_q": "to_q",
    "to_k": "to_k",
    "to_v": "to_v",
    "to_out.0": "to_out",
    "q_proj": "to_q",
    "k_proj": "to_k",
    "v_proj": "to_v",
    "out_proj": "to_out",
}
LDM_LAYERS = {  # of a residual block, as latent-diffusion names them
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
LDM_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def kernels(like: Params) -> dict[Place, Any]:
    """The kernel of every linear layer and convolution of every component."""
    found = {}
    for component, params in like.items():
        flat = traverse_util.flatten_dict(params) if isinstance(params, dict) else {}
        for path, leaf in flat.items():
            if path[-1] == "kernel":
                found[component, "/".join(path[:-1])] = leaf
    return found


def spellings(like: Params) -> dict[str, list[Place]]:
    """Every spelling of a layer -> the layers that it may mean."""
    places = list(kernels(like))
    blocks = _ldm_blocks([path for component, path in places if component == "unet"])
    found: dict[str, list[Place]] = {}
    for component, path in places:
        for spelling in set(_spell(component, path.replace("/", "."), blocks)):
            found.setdefault(spelling, []).append((component, path))
    return found


def published(component: str, path: str) -> str:
    """The layer's name as transformers and diffusers publish it."""
    name = path.replace("/", ".")
    if component.startswith("text_encoder") and not name.startswith("text_"):
        return f"text_model.{name}"
    return name


def _spell(component: str, name: str, blocks: dict[str, str]) -> Iterator[str]:
    names = {name}
    if component.startswith("text_encoder"):
        names = {name.removeprefix("text_model.")}
        names |= {f"text_model.{bare}" for bare in names}
    for one in names:
        for old in (one, *_old_spellings(one)):
            yield from (old, f"{component}.{old}")
        for prefix in KOHYA_PREFIXES.get(component, ()):
            yield prefix + one.replace(".", "_")
    ldm = _ldm_spelling(name, blocks) if component == "unet" else None
    if ldm is not None:
        yield "lora_unet_" + ldm.replace(".", "_")


def _old_spellings(name: str) -> Iterator[str]:
    for leaf, old in OLD_LEAVES.items():
        if name.endswith(f".{leaf}"):
            parent = name.removesuffix(leaf)
            yield from (f"{parent}{old}", f"{parent}processor.{old}")


def _ldm_spelling(name: str, blocks: dict[str, str]) -> str | None:
    if name in LDM_ENDS:
        return LDM_ENDS[name]
    block = re.match(r".*?\.(resnets|attentions|downsamplers|upsamplers)\.\d+", name)
    if block is None or block[0] not in blocks:
        return None
    layer = name.removeprefix(block[0]).removeprefix(".")
    if block[1] == "resnets":
        layer = LDM_LAYERS.get(layer, layer)
    elif block[1] == "downsamplers":
        layer = "op"
    return f"{blocks[block[0]]}.{layer}"


def _ldm_blocks(paths: list[str]) -> dict[str, str]:
    """Our name of a block -> latent-diffusion's, which numbers blocks of all levels."""
    names = {path.replace("/", ".") for path in paths}

    def has(block: str) -> bool:
        return any(name.startswith(f"{block}.") for name in names)

    found = {
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }
    for way, ldm, number in (("down", "input", 1), ("up", "output", 0)):
        level = 0
        while has(f"{way}_blocks.{level}"):
            here, block = f"{way}_blocks.{level}", 0
            while has(f"{here}.resnets.{block}"):
                found[f"{here}.resnets.{block}"] = f"{ldm}_blocks.{number}.0"
                found[f"{here}.attentions.{block}"] = f"{ldm}_blocks.{number}.1"
                block, number = block + 1, number + 1
            if has(f"{here}.downsamplers.0"):
                found[f"{here}.downsamplers.0"] = f"{ldm}_blocks.{number}.0"
                number += 1
            # After the attention, where the level has any, in the last block's list.
            place = 1 + has(f"{here}.attentions.0")
            found[f"{here}.upsamplers.0"] = f"{ldm}_blocks.{number - 1}.{place}"
            level += 1
    return found
