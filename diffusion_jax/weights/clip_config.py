"""config.json of transformers' CLIPModel -> fields of both towers of models.clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_jax.weights import config_fields, text_config, vision_config
from diffusion_jax.weights.config_fields import Field, honoured, without_effect

CLASS = "CLIPModel"

TABLE: dict[str, Field] = {
    **{
        name: field
        for name, field in text_config.TABLE.items()
        if not (field.is_honoured or name in vision_config.TABLE)
    },
    **{name: text_config.TABLE[name] for name in ("architectures", "model_type")},
    **{
        name: field
        for name, field in vision_config.TABLE.items()
        if field.status == "no effect"
    },
    "projection_dim": honoured(512, "projection_dim"),
    "text_config": without_effect("read with its own table"),
    "vision_config": without_effect("read with its own table"),
    "text_config_dict": without_effect("what it has replaces that of text_config"),
    "vision_config_dict": without_effect("what it has replaces that of vision_config"),
    "logit_scale_init_value": without_effect("of training only"),
    "initializer_factor": without_effect("of training only"),
}


def read(config: Mapping[str, Any]) -> dict[str, Any]:
    """`text` and `vision`, the fields of the towers, and `projection_dim`.

    Raises a `Refused` that lists every field that we would not honour.
    """
    said = [*(config.get("architectures") or ()), config.get("model_type")]
    if others := [kind for kind in said if kind not in (None, *text_config.WHOLE)]:
        raise config_fields.Refused(CLASS, [f"it is of a {others[0]}"])
    given, problems = config_fields.read(config, TABLE)
    found = {}
    for name, reader in (("text", text_config), ("vision", vision_config)):
        parts = (config.get(f"{name}_config{end}") or {} for end in ("", "_dict"))
        merged = {key: value for part in parts for key, value in part.items()}
        try:
            found[name] = reader.read(merged)
        except config_fields.Refused as error:
            problems += [f"{name}_config: {problem}" for problem in error.problems]
    if problems:
        raise config_fields.Refused(CLASS, problems)
    found["vision"].pop("projection_dim")
    return found | dict(projection_dim=given["projection_dim"])
