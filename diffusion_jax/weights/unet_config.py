"""unet/config.json of diffusers' UNet2DConditionModel -> fields of models.unet.UNet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from diffusion_jax.weights import config_fields
from diffusion_jax.weights.config_fields import Field, honoured, only, without_effect

CLASS = "UNet2DConditionModel"
DOWN_BLOCKS = {"CrossAttnDownBlock2D": "transformer", "DownBlock2D": "none"}
UP_BLOCKS = {"CrossAttnUpBlock2D": "transformer", "UpBlock2D": "none"}
TIME_MODULATION = {"default": "add", "scale_shift": "scale_shift"}
SAMPLE_SIZE = 64  # where the file does not say

# Models of the family that are read by other means, by what gives them away.
_LCM = "(distilled with a guidance embedding, such as LCM)"
_UNCLIP = "(Stable unCLIP and others that hear a class or an image)"
_IF = "(DeepFloyd IF, Kandinsky)"
_UPSCALER = "(the x4 upscaler)"
_K = "(the latent upscaler)"
NOT_YET = {  # input channels for four of the latent
    5: "depth-to-image",
    7: "the x4 upscaler",
    8: "InstructPix2Pix",
}

TABLE: dict[str, Field] = {
    "sample_size": honoured(None, "height and width where none are chosen"),
    "in_channels": honoured(4, "of the latent; of it, a mask and it again: inpainting"),
    "out_channels": honoured(4, "out_channels"),
    "down_block_types": honoured(
        ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), "attention"
    ),
    "mid_block_type": only("UNetMidBlock2DCrossAttn"),
    "up_block_types": honoured(
        ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, "attention; must mirror the downs"
    ),
    "block_out_channels": honoured((320, 640, 1280, 1280), "channels"),
    "layers_per_block": honoured(2, "blocks_per_level", also=(tuple,)),
    "attention_head_dim": honoured(
        8, "num_heads, as in diffusers, despite its name", also=(tuple,)
    ),
    "num_attention_heads": only(None, note="(diffusers refuses it, too)"),
    "transformer_layers_per_block": honoured(1, "transformer_depth", also=(tuple,)),
    "reverse_transformer_layers_per_block": only(None),
    "cross_attention_dim": honoured(
        1280, "must be the text encoders' width", also=(tuple,)
    ),
    "use_linear_projection": honoured(False, "linear_projection", also=(type(None),)),
    "upcast_attention": honoured(False, "upcast_attention", also=(type(None),)),
    "resnet_time_scale_shift": honoured("default", "time_modulation"),
    "norm_num_groups": honoured(32, "norm_groups"),
    "norm_eps": honoured(1e-5, "norm_eps"),
    "dropout": honoured(0.0, "dropout, in training"),
    "addition_embed_type": only(None, "text_time", note=_IF),
    "addition_time_embed_dim": honoured(None, "size_id_width, with text_time"),
    "projection_class_embeddings_input_dim": honoured(
        None, "how many size ids, with text_time"
    ),
    "addition_embed_type_num_heads": without_effect("of other embed types only", 64),
    "act_fn": only("silu", "swish"),
    "center_input_sample": only(False),
    "flip_sin_to_cos": only(True),
    "freq_shift": only(0),
    "only_cross_attention": only(False, note=_UPSCALER),
    "mid_block_only_cross_attention": only(None, False, note=_UPSCALER),
    "dual_cross_attention": only(False, note="(Versatile Diffusion)"),
    "downsample_padding": only(1),
    "mid_block_scale_factor": only(1),
    "resnet_skip_time_act": only(False, note=_IF),
    "resnet_out_scale_factor": only(1.0, note=_IF),
    "encoder_hid_dim": only(None, note=_IF),
    "encoder_hid_dim_type": only(None, note=_IF),
    "cross_attention_norm": only(None, note=_IF),
    "class_embed_type": only(None, note=_UNCLIP),
    "num_class_embeds": only(None, note=_UPSCALER),
    "class_embeddings_concat": only(False, note=_K),
    "time_embedding_type": only("positional", note=_K),
    "time_embedding_dim": honoured(None, "must be four times the first channels"),
    "time_embedding_act_fn": only(None, note=_K),
    "timestep_post_act": only(None, note=_K),
    "time_cond_proj_dim": only(None, note=_LCM),
    "conv_in_kernel": only(3, note=_K),
    "conv_out_kernel": only(3, note=_K),
    "attention_type": only("default", note="(GLIGEN)"),
    **config_fields.OF_DIFFUSERS,
}


class Read(NamedTuple):
    """What a config says: the fields of our module, and what it is fed."""

    fields: dict[str, Any]  # of models.unet.UNet
    in_channels: int
    context_width: int  # of the tokens that it attends to
    vector_width: int | None  # of what it hears beside the time; None: nothing
    size_id_width: int | None
    sample_size: int


def read(config: Mapping[str, Any], *, latent_channels: int = 4) -> Read:
    """Raises a `Refused` that lists every field that we would not honour."""
    given, problems = config_fields.read(config, TABLE)
    fields = _levels(given, problems)
    fields |= dict(
        mid_attention="transformer",
        linear_projection=bool(given["use_linear_projection"]),
        upcast_attention=bool(given["upcast_attention"]),
        out_channels=given["out_channels"],
        norm_groups=given["norm_num_groups"],
        norm_eps=float(given["norm_eps"]),
        dropout=float(given["dropout"]),
    )
    modulation = given["resnet_time_scale_shift"]
    if modulation not in TIME_MODULATION:
        choices = ", ".join(TIME_MODULATION)
        problems.append(f"resnet_time_scale_shift = {modulation} (only {choices})")
    fields["time_modulation"] = TIME_MODULATION.get(modulation)
    vector_width, size_id_width = _hears(given, problems)
    if vector_width is not None:
        fields["vector"] = "add_embedding"
    _check_channels(given, latent_channels, problems)
    context_width = given["cross_attention_dim"]
    if isinstance(context_width, tuple):
        if len(set(context_width)) > 1:
            problems.append(f"cross_attention_dim = {list(context_width)} (only equal)")
        context_width = context_width[0]
    sample_size = _sample_size(given, problems)
    if problems:
        raise config_fields.Refused(CLASS, problems)
    return Read(
        fields,
        given["in_channels"],
        context_width,
        vector_width,
        size_id_width,
        sample_size,
    )


def _levels(given: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    channels = given["block_out_channels"]
    attention = attention_of(given, DOWN_BLOCKS, UP_BLOCKS, problems)
    made = dict(channels=channels, attention=attention)
    for theirs, ours in {
        "layers_per_block": "blocks_per_level",
        "attention_head_dim": "num_heads",
        "transformer_layers_per_block": "transformer_depth",
    }.items():
        values = config_fields.per_level(given[theirs], len(channels), theirs, problems)
        if any(isinstance(value, tuple) for value in values):
            problems.append(f"{theirs} has lists in a list")
        made[ours] = values[0] if len(set(values)) == 1 else values
    return made


def attention_of(
    given: Mapping[str, Any],
    down: Mapping[str, str],
    up: Mapping[str, str],
    problems: list[str],
) -> tuple[str, ...]:
    """The attention of every level, from blocks of these kinds."""
    found = []
    for name, kinds in {"down_block_types": down, "up_block_types": up}.items():
        blocks, num_levels = given[name], len(given["block_out_channels"])
        unknown = [block for block in blocks if block not in kinds]
        if unknown:
            problems.append(f"{name} has {unknown[0]} (only {', '.join(kinds)})")
        if len(blocks) != num_levels:
            problems.append(f"{name} has {len(blocks)} blocks of {num_levels}")
        found.append(tuple(kinds.get(block, "?") for block in blocks))
    if found[0] != found[1][::-1] and not any("block_types" in p for p in problems):
        problems.append("up_block_types do not mirror down_block_types")
    return found[0]


def _hears(
    given: Mapping[str, Any], problems: list[str]
) -> tuple[int | None, int | None]:
    """Width of the vector beside the time, and of the sinusoid of each size in it."""
    if given["addition_embed_type"] is None:
        return None, None
    names = ("projection_class_embeddings_input_dim", "addition_time_embed_dim")
    for name in names:
        if not given[name]:
            problems.append(f"{name} = null with addition_embed_type = text_time")
    return given[names[0]], given[names[1]]


def _check_channels(
    given: Mapping[str, Any], latent_channels: int, problems: list[str]
) -> None:
    in_channels, inpainting = given["in_channels"], 2 * latent_channels + 1
    if in_channels not in (latent_channels, inpainting):
        what = NOT_YET.get(in_channels) if latent_channels == 4 else None
        problems.append(
            f"in_channels = {in_channels} (only {latent_channels}, or {inpainting} for "
            f"inpainting){f' ({what})' if what else ''}"
        )
    width = 4 * given["block_out_channels"][0]
    if given["time_embedding_dim"] not in (None, width):
        problems.append(
            f"time_embedding_dim = {given['time_embedding_dim']} (only {width}) {_K}"
        )


def _sample_size(given: Mapping[str, Any], problems: list[str]) -> int:
    size = given["sample_size"]
    sides = set(size) if isinstance(size, tuple) else {size}
    if len(sides) > 1:
        problems.append(f"sample_size = {list(size)} (only squares)")
    side = sides.pop() or SAMPLE_SIZE
    # The first configs said less than the models were trained for, as diffusers knows.
    is_early = _version(given["_diffusers_version"]) < (0, 9)
    return SAMPLE_SIZE if is_early and side < SAMPLE_SIZE else side


def _version(text: str | None) -> tuple[int, ...]:
    parts = (text or "999").split(".")[:2]
    return tuple(int(part) for part in parts if part.isdecimal())
