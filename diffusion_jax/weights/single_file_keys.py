"""Names of the layers in single-file checkpoints, and in directories.

The original code numbers a U-Net's blocks in the order in which they run, the downward
half with a number for every resampling; it counts the decoder's levels from the image,
and fuses queries, keys and values of OpenCLIP. Every table below says which layer of the
single file is which layer of a directory, and is made from the structure alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
VAE_RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "nin_shortcut": "conv_shortcut",
}
VAE_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}
OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
FUSED = ("q_proj", "k_proj", "v_proj")


class Level(NamedTuple):
    """One resolution of a U-Net: its blocks going down, and what follows each."""

    num_blocks: int
    has_attention: bool


def rename(keys: Iterable[str], table: Mapping[str, str]) -> dict[str, str]:
    """Key in the file -> key in a directory, by the longest layer that is in the table.

    Keys of layers that are in no table are left out.
    """
    renamed = {}
    for key in keys:
        parts = key.split(".")
        for length in range(len(parts), 0, -1):
            layer = ".".join(parts[:length])
            if layer in table:
                renamed[key] = ".".join([table[layer], *parts[length:]])
                break
    return renamed


def unet_levels(keys: Collection[str]) -> list[Level]:
    """The levels of a U-Net, by the keys of its downward half."""
    kinds: dict[int, set[str]] = {}
    for key in keys:
        match = re.match(r"input_blocks\.(\d+)\.(\d+)\.(\w+)", key)
        if match:
            number, place, part = match.groups()
            kind = "op" if part == "op" else {"0": "resnet"}.get(place, "attention")
            kinds.setdefault(int(number), set()).add(kind)
    levels = [Level(0, False)]
    for number in range(1, len(kinds)):
        found = kinds.get(number, set())
        if "op" in found:
            levels.append(Level(0, False))
        else:
            blocks, has_attention = levels[-1]
            levels[-1] = Level(blocks + 1, has_attention or "attention" in found)
    return levels


def unet_layers(levels: Sequence[Level], vector: str = "add_embedding") -> dict:
    """The layers of a U-Net; `label_emb` becomes the network of that name."""
    table = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "label_emb.0.0": f"{vector}.linear_1",
        "label_emb.0.2": f"{vector}.linear_2",
        "input_blocks.0.0": "conv_in",
        "middle_block.1": "mid_block.attentions.0",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }
    table |= _within("middle_block.0", "mid_block.resnets.0", RESNET)
    table |= _within("middle_block.2", "mid_block.resnets.1", RESNET)
    number = 1
    for i, level in enumerate(levels):
        for j in range(level.num_blocks):
            there = f"down_blocks.{i}"
            table |= _unet_block(level, f"input_blocks.{number}", there, j)
            number += 1
        table[f"input_blocks.{number}.0.op"] = f"down_blocks.{i}.downsamplers.0.conv"
        number += 1
    number = 0
    for i, level in enumerate(reversed(levels)):
        for j in range(level.num_blocks + 1):
            there = f"up_blocks.{i}"
            table |= _unet_block(level, f"output_blocks.{number}", there, j)
            number += 1
        place = 2 if level.has_attention else 1
        last = f"output_blocks.{number - 1}.{place}.conv"
        table[last] = f"up_blocks.{i}.upsamplers.0.conv"
    return table


def _unet_block(level: Level, here: str, there: str, place: int) -> dict[str, str]:
    table = _within(f"{here}.0", f"{there}.resnets.{place}", RESNET)
    if level.has_attention:
        table[f"{here}.1"] = f"{there}.attentions.{place}"
    return table


def vae_layers(num_levels: int, num_blocks: int) -> dict[str, str]:
    """The layers of an autoencoder; `num_blocks` per level encoding, one more decoding."""
    table = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for half in ("encoder", "decoder"):
        table |= _within(
            half,
            half,
            {
                "conv_in": "conv_in",
                "norm_out": "conv_norm_out",
                "conv_out": "conv_out",
            },
        )
        mid, block = f"{half}.mid", f"{half}.mid_block"
        table |= _within(f"{mid}.block_1", f"{block}.resnets.0", VAE_RESNET)
        table |= _within(f"{mid}.block_2", f"{block}.resnets.1", VAE_RESNET)
        table |= _within(f"{mid}.attn_1", f"{block}.attentions.0", VAE_ATTENTION)
    for i in range(num_levels):
        down, up = f"encoder.down.{i}", f"decoder.up.{num_levels - 1 - i}"
        encoding, decoding = f"encoder.down_blocks.{i}", f"decoder.up_blocks.{i}"
        table[f"{down}.downsample.conv"] = f"{encoding}.downsamplers.0.conv"
        table[f"{up}.upsample.conv"] = f"{decoding}.upsamplers.0.conv"
        for j in range(num_blocks + 1):
            table |= _within(f"{down}.block.{j}", f"{encoding}.resnets.{j}", VAE_RESNET)
            table |= _within(f"{up}.block.{j}", f"{decoding}.resnets.{j}", VAE_RESNET)
    return table


def open_clip_layers(num_layers: int) -> dict[str, str]:
    """The layers of an OpenCLIP text tower, apart from those that are fused."""
    embeddings = "text_model.embeddings"
    table = {
        "token_embedding": f"{embeddings}.token_embedding",
        "positional_embedding": f"{embeddings}.position_embedding.weight",
        "ln_final": "text_model.final_layer_norm",
    }
    for i in range(num_layers):
        block, layer = f"transformer.resblocks.{i}", f"text_model.encoder.layers.{i}"
        table |= _within(block, layer, OPEN_CLIP_LAYER)
    return table


def open_clip_fused(num_layers: int) -> dict[str, tuple[str, str, str]]:
    """Fused tensor -> the three that it is made of, top to bottom."""
    fused = {}
    for i in range(num_layers):
        block = f"transformer.resblocks.{i}.attn.in_proj"
        layer = f"text_model.encoder.layers.{i}.self_attn"
        for end in ("weight", "bias"):
            fused[f"{block}_{end}"] = tuple(f"{layer}.{name}.{end}" for name in FUSED)
    return fused


def _within(before: str, after: str, parts: Mapping[str, str]) -> dict[str, str]:
    return {f"{before}.{old}": f"{after}.{new}" for old, new in parts.items()}
