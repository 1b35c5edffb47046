"""The config.json of every part of a model, and its model_index.json.

What a module's fields cannot be in diffusers or transformers raises, naming the field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from diffusion_jax.models.autoencoder import AutoencoderKL
from diffusion_jax.models.clip import CLIPText
from diffusion_jax.models.unet import UNet

VERSION = "0.32.0"  # of diffusers, whose fields these are
Config = dict[str, Any]


class Outside(NamedTuple):
    """What a U-Net's config says that is no field of the module, but of its weights."""

    in_channels: int
    context_width: int
    sample_size: int
    vector_width: int | None = None  # of cond.vector
    size_id_width: int | None = None  # of XL's sizes, a part of the vector


def unet(module: UNet, outside: Outside) -> Config:
    num_levels = len(module.channels)
    wrong = {
        "mid_attention": module.mid_attention != "transformer",
        "attention": "added_kv" in module.attention,
        "resample": module.resample != "conv",
        "vector": module.vector in ("identity", "table"),
    }
    for field, is_wrong in wrong.items():
        if is_wrong:
            value = getattr(module, field)
            raise ValueError(
                f"the U-Net's {field} = {value!r} is not written; only the fields of "
                "Stable Diffusion are"
            )
    has_attention = [kind == "transformer" for kind in module.attention]
    modulation = {"add": "default"}.get(module.time_modulation, module.time_modulation)
    config: Config = {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": VERSION,
        "act_fn": "silu",
        "attention_head_dim": _numbers(module.num_heads),
        "block_out_channels": list(module.channels),
        "center_input_sample": False,
        "cross_attention_dim": outside.context_width,
        "down_block_types": [
            "CrossAttnDownBlock2D" if has else "DownBlock2D" for has in has_attention
        ],
        "downsample_padding": 1,
        "dropout": float(module.dropout),
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": outside.in_channels,
        "layers_per_block": _numbers(module.blocks_per_level),
        "mid_block_scale_factor": 1,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "norm_eps": module.norm_eps,
        "norm_num_groups": module.norm_groups,
        "out_channels": module.out_channels,
        "resnet_time_scale_shift": modulation,
        "sample_size": outside.sample_size,
        "transformer_layers_per_block": _numbers(module.transformer_depth),
        "up_block_types": [
            "CrossAttnUpBlock2D" if has else "UpBlock2D"
            for has in reversed(has_attention)
        ],
        "upcast_attention": module.upcast_attention,
        "use_linear_projection": module.linear_projection,
    }
    for field in ("num_heads", "transformer_depth", "blocks_per_level"):
        value = getattr(module, field)
        if isinstance(value, Sequence) and len(value) != num_levels:
            raise ValueError(f"the U-Net's {field} = {value} for {num_levels} levels")
    return config | _vector(module.vector, outside)


def _vector(kind: str, outside: Outside) -> Config:
    if kind == "none":
        return {}
    width = {"projection_class_embeddings_input_dim": outside.vector_width}
    if kind == "class_embedding":
        return {"class_embed_type": "projection", **width}
    if outside.size_id_width is None:
        raise ValueError(
            "the U-Net's vector = 'add_embedding' is written with the sizes of "
            "Stable Diffusion XL only"
        )
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": outside.size_id_width,
        **width,
    }


def autoencoder(
    module: AutoencoderKL,
    *,
    latent_scale: float,
    latent_shift: float = 0.0,
    force_upcast: bool = True,
    sample_size: int = 512,
) -> Config:
    """`sample_size` is in pixels."""
    num_levels = len(module.channels)
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": VERSION,
        "act_fn": "silu",
        "block_out_channels": list(module.channels),
        "down_block_types": ["DownEncoderBlock2D"] * num_levels,
        "force_upcast": force_upcast,
        "in_channels": module.image_channels,
        "latent_channels": module.latent_channels,
        "layers_per_block": module.blocks_per_level,
        "mid_block_add_attention": module.mid_block_add_attention,
        "norm_num_groups": module.norm_groups,
        "out_channels": module.image_channels,
        "sample_size": sample_size,
        "scaling_factor": latent_scale,
        "shift_factor": latent_shift or None,
        "up_block_types": ["UpDecoderBlock2D"] * num_levels,
        "use_post_quant_conv": module.use_post_quant_conv,
        "use_quant_conv": module.use_quant_conv,
    }


def text(module: CLIPText, *, projection_dim: int | None = None) -> Config:
    """Of CLIPTextModel, or with `projection_dim` of CLIPTextModelWithProjection.

    Layers that are skipped are written too: it is the pipeline that skips them.
    """
    is_projected = projection_dim is not None
    name = "CLIPTextModelWithProjection" if is_projected else "CLIPTextModel"
    last = module.vocab_size - 1
    return {
        "architectures": [name],
        "attention_dropout": 0.0,
        "bos_token_id": max(0, last - 1) if module.eos_id == last else 0,
        "eos_token_id": module.eos_id,
        "hidden_act": module.activation,
        "hidden_size": module.width,
        "intermediate_size": module.mlp_width,
        "layer_norm_eps": module.norm_eps,
        "max_position_embeddings": module.context_length,
        "model_type": "clip_text_model",
        "num_attention_heads": module.num_heads,
        "num_hidden_layers": module.num_layers,
        "pad_token_id": module.eos_id if module.eos_id <= last else 0,
        "projection_dim": projection_dim or module.width,
        "vocab_size": module.vocab_size,
    }


def model_index(
    texts: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    *,
    is_inpainting: bool,
    zero_empty: bool,
) -> Config:
    """The pipeline that the text encoders and the U-Net's inputs ask for."""
    is_xl = "text_encoder_2" in texts
    is_refiner = is_xl and "text_encoder" not in texts
    kind = "StableDiffusionXL" if is_xl else "StableDiffusion"
    task = "Inpaint" if is_inpainting else "Img2Img" if is_refiner else ""
    parts: Config = {
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if is_xl:
        parts["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
        parts["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
        parts["force_zeros_for_empty_prompt"] = zero_empty
        if is_refiner:
            parts |= {"text_encoder": [None, None], "tokenizer": [None, None]}
            parts["requires_aesthetics_score"] = True
    else:
        parts |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
        parts["requires_safety_checker"] = False
    return {
        "_class_name": f"{kind}{task}Pipeline",
        "_diffusers_version": VERSION,
        **parts,
    }


def _numbers(value: int | Sequence[int]) -> int | list[int]:
    return value if isinstance(value, int) else list(value)
