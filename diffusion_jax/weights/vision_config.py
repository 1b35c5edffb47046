"""config.json of transformers' CLIPVisionModelWithProjection -> fields of models.clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_jax.weights import config_fields, text_config
from diffusion_jax.weights.config_fields import Field, honoured, only, without_effect

CLASS = "CLIPVisionModelWithProjection"
_OF_TEXT = ("vocab_size", "max_position_embeddings", "eos_token_id")

TABLE: dict[str, Field] = {
    **{
        name: field for name, field in text_config.TABLE.items() if name not in _OF_TEXT
    },
    "hidden_size": honoured(768, "width"),
    "intermediate_size": honoured(3072, "mlp_width"),
    "num_hidden_layers": honoured(12, "num_layers"),
    "num_attention_heads": honoured(12, "num_heads"),
    "image_size": honoured(224, "image_size"),
    "patch_size": honoured(32, "patch_size"),
    "num_channels": only(3),
    "layer_norm_eps": only(1e-5),
    "projection_dim": honoured(512, "projection_dim"),
    "eos_token_id": without_effect("of text"),
}


def read(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of models.clip.CLIPVision, and `projection_dim`.

    Raises a `Refused` that lists every field that we would not honour.
    """
    said = [*(config.get("architectures") or ()), config.get("model_type")]
    known = {None, CLASS, "clip_vision_model"}
    if others := [kind for kind in said if kind not in known]:
        raise config_fields.Refused(CLASS, [f"it is of a {others[0]}"])
    given, problems = config_fields.read(config, TABLE)
    if not problems:
        problems = config_fields.indivisible(
            given, num_attention_heads="hidden_size", patch_size="image_size"
        )
        if not given["projection_dim"]:
            problems.append("projection_dim = null")
    if problems:
        raise config_fields.Refused(CLASS, problems)
    return dict(
        image_size=given["image_size"],
        patch_size=given["patch_size"],
        width=given["hidden_size"],
        num_layers=given["num_hidden_layers"],
        num_heads=given["num_attention_heads"],
        mlp_width=given["intermediate_size"],
        activation=given["hidden_act"],
        projection_dim=given["projection_dim"],
    )
