"""The fields of every module, as far as the shapes of its weights tell them.

What they do not tell is the published family's: heads of width 64 (Stable Diffusion 1:
8 heads), norms in 32 groups, activations.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

HEAD_WIDTH = 64  # of Stable Diffusion 2 and XL, and of every text encoder
LEGACY_EOS = 2  # in the published configs: the end of text is the largest id
Shapes = Mapping[str, tuple[int, ...]]


def unet(shapes: Shapes, *, num_heads: int | None = None) -> dict[str, Any]:
    """`num_heads` of every level, or None: heads of width 64."""
    num_levels = count(shapes, r"down_blocks\.(\d+)\.")
    channels, attention, depth = [], [], []
    mid_depth = _depth(shapes, "mid_block")
    for i in range(num_levels):
        channels.append(shapes[f"down_blocks.{i}.resnets.0.conv1.weight"][0])
        found = _depth(shapes, f"down_blocks.{i}")
        attention.append("transformer" if found else "none")
        depth.append(found or (mid_depth if i == num_levels - 1 else 1))
    blocks = [
        count(shapes, rf"down_blocks\.{i}\.resnets\.(\d+)\.") for i in range(num_levels)
    ]
    is_even = len(set(blocks)) == 1
    projection = "mid_block.attentions.0.proj_in.weight"
    heads = num_heads or tuple(max(1, width // HEAD_WIDTH) for width in channels)
    made = dict(
        channels=tuple(channels),
        blocks_per_level=blocks[0] if is_even else tuple(blocks),
        attention=tuple(attention),
        mid_attention="transformer",
        num_heads=heads,
        transformer_depth=tuple(depth),
        linear_projection=len(shapes[projection]) == 2,
        out_channels=shapes["conv_out.weight"][0],
    )
    if "add_embedding.linear_1.weight" in shapes:
        made["vector"] = "add_embedding"
    return made


def autoencoder(shapes: Shapes) -> dict[str, Any]:
    num_levels = count(shapes, r"encoder\.down_blocks\.(\d+)\.")
    return dict(
        channels=tuple(
            shapes[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"][0]
            for i in range(num_levels)
        ),
        blocks_per_level=count(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        latent_channels=shapes["decoder.conv_in.weight"][1],
        image_channels=shapes["encoder.conv_in.weight"][1],
        use_quant_conv="quant_conv.weight" in shapes,
        use_post_quant_conv="post_quant_conv.weight" in shapes,
    )


def text(shapes: Shapes, *, activation: str) -> dict[str, Any]:
    """Of a text encoder whose names begin with `text_model.`."""
    embeddings = "text_model.embeddings"
    vocab_size, width = shapes[f"{embeddings}.token_embedding.weight"]
    return dict(
        vocab_size=vocab_size,
        context_length=shapes[f"{embeddings}.position_embedding.weight"][0],
        width=width,
        num_layers=count(shapes, r"text_model\.encoder\.layers\.(\d+)\."),
        num_heads=max(1, width // HEAD_WIDTH),
        mlp_width=shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0],
        activation=activation,
        eos_id=LEGACY_EOS,
    )


def count(keys: Iterable[str], pattern: str) -> int:
    """How many numbers the pattern's group takes; they must be 0, 1, 2, ..."""
    found = {int(m.group(1)) for key in keys if (m := re.match(pattern, key))}
    if found != set(range(len(found))):
        raise ValueError(f"the numbers of {pattern!r} have gaps: {sorted(found)}")
    return len(found)


def _depth(shapes: Shapes, block: str) -> int:
    return count(shapes, rf"{block}\.attentions\.0\.transformer_blocks\.(\d+)\.")
