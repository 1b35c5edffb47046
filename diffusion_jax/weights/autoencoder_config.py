"""vae/config.json of diffusers' AutoencoderKL -> fields of models.autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from diffusion_jax.weights import config_fields
from diffusion_jax.weights.config_fields import Field, honoured, only, without_effect

CLASS = "AutoencoderKL"
DOWN_BLOCK, UP_BLOCK = "DownEncoderBlock2D", "UpDecoderBlock2D"

TABLE: dict[str, Field] = {
    "in_channels": honoured(3, "image_channels"),
    "out_channels": honoured(3, "image_channels; must be in_channels"),
    "down_block_types": honoured((DOWN_BLOCK,), f"must all be {DOWN_BLOCK}"),
    "up_block_types": honoured((UP_BLOCK,), f"must all be {UP_BLOCK}"),
    "block_out_channels": honoured((64,), "channels"),
    "layers_per_block": honoured(1, "blocks_per_level"),
    "latent_channels": honoured(4, "latent_channels"),
    "norm_num_groups": honoured(32, "norm_groups"),
    "scaling_factor": honoured(0.18215, "latent_scale"),
    "shift_factor": honoured(None, "latent_shift"),
    "force_upcast": honoured(True, "computes in float32 where all else is float16"),
    "use_quant_conv": honoured(True, "use_quant_conv"),
    "use_post_quant_conv": honoured(True, "use_post_quant_conv"),
    "mid_block_add_attention": honoured(True, "mid_block_add_attention"),
    "act_fn": only("silu", "swish"),
    "latents_mean": only(None, note="(a mean for each channel)"),
    "latents_std": only(None, note="(a scale for each channel)"),
    "sample_size": without_effect("of tiles, which are chosen elsewhere", 32),
    **config_fields.OF_DIFFUSERS,
}


class Read(NamedTuple):
    """What a config says: the fields of our module, and how latents are scaled."""

    fields: dict[str, Any]  # of models.autoencoder.AutoencoderKL
    latent_scale: float
    latent_shift: float
    force_upcast: bool


def read(config: Mapping[str, Any]) -> Read:
    """Raises a `Refused` that lists every field that we would not honour."""
    given, problems = config_fields.read(config, TABLE)
    channels = given["block_out_channels"]
    for name, kind in {
        "down_block_types": DOWN_BLOCK,
        "up_block_types": UP_BLOCK,
    }.items():
        blocks = given[name]
        if any(block != kind for block in blocks):
            problems.append(f"{name} = {list(blocks)} (only {kind})")
        if len(blocks) != len(channels):
            problems.append(f"{name} has {len(blocks)} blocks of {len(channels)}")
    if given["in_channels"] != given["out_channels"]:
        problems.append(
            f"out_channels = {given['out_channels']} (only {given['in_channels']}, as in)"
        )
    if isinstance(given["layers_per_block"], tuple):
        problems.append("layers_per_block has a list")
    if problems:
        raise config_fields.Refused(CLASS, problems)
    fields = dict(
        channels=channels,
        blocks_per_level=given["layers_per_block"],
        latent_channels=given["latent_channels"],
        image_channels=given["in_channels"],
        norm_groups=given["norm_num_groups"],
        use_quant_conv=given["use_quant_conv"],
        use_post_quant_conv=given["use_post_quant_conv"],
        mid_block_add_attention=given["mid_block_add_attention"],
    )
    return Read(
        fields,
        float(given["scaling_factor"]),
        float(given["shift_factor"] or 0.0),
        given["force_upcast"],
    )
