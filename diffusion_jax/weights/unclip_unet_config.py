"""config.json of Karlo's decoder and super-resolution networks -> fields of models.unet.

diffusers has the decoder as a UNet2DConditionModel with other blocks than those of
Stable Diffusion, and what enlarges its images as a UNet2DModel without attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from diffusion_jax.weights import config_fields, unet_config
from diffusion_jax.weights.config_fields import Field, honoured, only, without_effect

DECODER, UPSAMPLER = unet_config.CLASS, "UNet2DModel"
CHANNELS = 3
RESNET_DOWN, RESNET_UP = "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"
DECODER_DOWN = {"SimpleCrossAttnDownBlock2D": "added_kv", RESNET_DOWN: "none"}
DECODER_UP = {"SimpleCrossAttnUpBlock2D": "added_kv", RESNET_UP: "none"}
UPSAMPLER_DOWN = {RESNET_DOWN: "none"}
UPSAMPLER_UP = {RESNET_UP: "none"}
_SIMPLE = "not of these blocks"


def _without_default(default: Any, *accepted: Any) -> Field:
    """A field that has to be given, as what the class assumes is refused."""
    return Field(default, "", accepted)


DECODER_TABLE: dict[str, Field] = unet_config.TABLE | {
    "sample_size": honoured(None, "pixels a side; must be given"),
    "in_channels": honoured(4, "must be those of an image"),
    "out_channels": honoured(4, "out_channels; twice those of an image"),
    "mid_block_type": _without_default(
        "UNetMidBlock2DCrossAttn", "UNetMidBlock2DSimpleCrossAttn"
    ),
    "attention_head_dim": honoured(
        8, "the width of a head, here as named", also=(tuple,)
    ),
    "class_embed_type": _without_default(None, "identity"),
    "cross_attention_dim": honoured(1280, "must be the width of text_proj's tokens"),
    "addition_embed_type": only(None),
    "addition_time_embed_dim": without_effect(_SIMPLE),
    "projection_class_embeddings_input_dim": without_effect(_SIMPLE),
    "transformer_layers_per_block": without_effect(_SIMPLE, 1),
    "reverse_transformer_layers_per_block": without_effect(_SIMPLE),
    "use_linear_projection": without_effect(_SIMPLE, False),
    "upcast_attention": without_effect(_SIMPLE, False),
    "downsample_padding": without_effect(_SIMPLE, 1),
}
UPSAMPLER_TABLE: dict[str, Field] = {
    "sample_size": honoured(None, "pixels a side; must be given"),
    "in_channels": honoured(3, "of the noisy image and of the small one, enlarged"),
    "out_channels": honoured(3, "must be those of an image"),
    "center_input_sample": only(False),
    "time_embedding_type": only("positional"),
    "time_embedding_dim": honoured(None, "must be four times the first channels"),
    "freq_shift": only(0),
    "flip_sin_to_cos": only(True),
    "down_block_types": honoured(
        ("DownBlock2D",) + ("AttnDownBlock2D",) * 3, "attention: none, resample"
    ),
    "mid_block_type": only("UNetMidBlock2D"),
    "up_block_types": honoured(
        ("AttnUpBlock2D",) * 3 + ("UpBlock2D",), "must mirror the downs"
    ),
    "block_out_channels": honoured((224, 448, 672, 896), "channels"),
    "layers_per_block": honoured(2, "blocks_per_level"),
    "mid_block_scale_factor": only(1),
    "downsample_padding": without_effect(_SIMPLE, 1),
    "downsample_type": without_effect(_SIMPLE, "conv"),
    "upsample_type": without_effect(_SIMPLE, "conv"),
    "dropout": honoured(0.0, "dropout, in training"),
    "act_fn": only("silu", "swish"),
    "attention_head_dim": without_effect("there is no attention", 8),
    "norm_num_groups": honoured(32, "norm_groups"),
    "attn_norm_num_groups": without_effect("there is no attention"),
    "norm_eps": honoured(1e-5, "norm_eps"),
    "resnet_time_scale_shift": honoured("default", "time_modulation"),
    "add_attention": _without_default(True, False),
    "class_embed_type": only(None),
    "num_class_embeds": only(None),
    "num_train_timesteps": without_effect("of embeddings of classes only"),
    **config_fields.OF_DIFFUSERS,
}


class Read(NamedTuple):
    """What a config says: the fields of our module, and what it is fed."""

    fields: dict[str, Any]  # of models.unet.UNet
    size: int  # pixels a side
    context_width: int | None = None  # of the tokens that it attends to

    @property
    def time_width(self) -> int:
        """Of the time embedding, to which a decoder adds what it hears."""
        return 4 * self.fields["channels"][0]


def read_decoder(config: Mapping[str, Any]) -> Read:
    """Raises a `Refused` that lists every field that we would not honour."""
    given, problems = config_fields.read(config, DECODER_TABLE)
    fields = _shared(given, DECODER_DOWN, DECODER_UP, problems)
    fields |= dict(
        mid_attention="added_kv",
        num_heads=_num_heads(given, problems),
        vector="identity",
    )
    _check_channels(given, CHANNELS, 2 * CHANNELS, problems)
    if problems:
        raise config_fields.Refused(DECODER, problems)
    return Read(fields, given["sample_size"], given["cross_attention_dim"])


def read_upsampler(config: Mapping[str, Any]) -> Read:
    """Raises a `Refused` that lists every field that we would not honour."""
    given, problems = config_fields.read(config, UPSAMPLER_TABLE)
    fields = _shared(given, UPSAMPLER_DOWN, UPSAMPLER_UP, problems)
    fields["mid_attention"] = "none"
    _check_channels(given, 2 * CHANNELS, CHANNELS, problems)
    if problems:
        raise config_fields.Refused(UPSAMPLER, problems)
    return Read(fields, given["sample_size"])


def _shared(
    given: Mapping[str, Any],
    down: Mapping[str, str],
    up: Mapping[str, str],
    problems: list[str],
) -> dict[str, Any]:
    channels, layers = given["block_out_channels"], given["layers_per_block"]
    layers = config_fields.per_level(
        layers, len(channels), "layers_per_block", problems
    )
    modulation = given["resnet_time_scale_shift"]
    if modulation not in unet_config.TIME_MODULATION:
        choices = ", ".join(unet_config.TIME_MODULATION)
        problems.append(f"resnet_time_scale_shift = {modulation} (only {choices})")
    groups = given["norm_num_groups"]
    if uneven := [width for width in channels if width % max(groups, 1)]:
        problems.append(f"norm_num_groups = {groups} for {uneven[0]} channels")
    if given["time_embedding_dim"] not in (None, 4 * channels[0]):
        problems.append(
            f"time_embedding_dim = {given['time_embedding_dim']} (only {4 * channels[0]})"
        )
    return dict(
        channels=channels,
        blocks_per_level=layers[0] if len(set(layers)) == 1 else layers,
        attention=unet_config.attention_of(given, down, up, problems),
        resample="resnet",
        time_modulation=unet_config.TIME_MODULATION.get(modulation),
        out_channels=given["out_channels"],
        norm_groups=groups,
        norm_eps=float(given["norm_eps"]),
        dropout=float(given["dropout"]),
    )


def _num_heads(given: Mapping[str, Any], problems: list[str]) -> int | tuple[int, ...]:
    """Of every level, from the width of a head.

    A list is read backwards by only half of diffusers' network, so it must be even.
    """
    widths = given["attention_head_dim"]
    widths = set(widths) if isinstance(widths, tuple) else {widths}
    if len(widths) > 1:
        problems.append(
            f"attention_head_dim = {list(given['attention_head_dim'])} (only equal)"
        )
    width, channels = max(1, widths.pop()), given["block_out_channels"]
    attending = {
        level
        for level, block in zip(channels, given["down_block_types"])
        if DECODER_DOWN.get(block) == "added_kv"
    }
    for level in sorted(attending | {channels[-1]}):  # the middle attends, too
        if level % width:
            problems.append(f"attention_head_dim = {width} for {level} channels")
    return tuple(max(1, level // width) for level in channels)


def _check_channels(
    given: Mapping[str, Any], received: int, made: int, problems: list[str]
) -> None:
    """The size, too."""
    for name, expected in {"in_channels": received, "out_channels": made}.items():
        if given[name] != expected:
            problems.append(f"{name} = {given[name]} (only {expected})")
    size, unit = given["sample_size"], 2 ** (len(given["block_out_channels"]) - 1)
    sides = set(size) if isinstance(size, tuple) else {size}
    side = sides.pop()
    is_number = isinstance(side, int) and not isinstance(side, bool)
    if sides or not is_number or side < unit or side % unit:
        problems.append(f"sample_size = {size} (only a multiple of {unit})")
