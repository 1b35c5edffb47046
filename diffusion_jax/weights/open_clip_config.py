"""open_clip_config.json of OpenCLIP -> fields of both towers of models.clip.

OpenCLIP's own names; what it leaves out is as the library assumes. The end of a text is
its largest id, and a head is 64 wide, unless said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_jax.models.clip import LEGACY_EOS
from diffusion_jax.models.clip_towers import PUBLISHED_MEAN, PUBLISHED_STD
from diffusion_jax.weights import config_fields
from diffusion_jax.weights.config_fields import Field, honoured, only, without_effect

WHAT = "this OpenCLIP model"
_TRAINING = "of training only"
_SHARED: dict[str, Field] = {
    "layers": honoured(12, "num_layers"),
    "mlp_ratio": honoured(4.0, "mlp_width / width"),
    "ls_init_value": only(None),
    "output_tokens": without_effect("what a call returns"),
    "act_kwargs": only(None, {}),
    "norm_kwargs": only(None, {}),
    "final_ln_after_pool": only(False),
}
MODEL: dict[str, Field] = {
    "embed_dim": honoured(512, "projection_dim"),
    "quick_gelu": honoured(False, "activation"),
    "vision_cfg": without_effect("read with its own table"),
    "text_cfg": without_effect("read with its own table"),
    "custom_text": only(False),
    "init_logit_scale": without_effect(_TRAINING),
    "init_logit_bias": only(None),
    "nonscalar_logit_scale": only(False),
    "output_dict": without_effect("what a call returns"),
    "cast_dtype": without_effect("the tensors say"),
}
VISION: dict[str, Field] = {
    **_SHARED,
    "width": honoured(768, "width"),
    "head_width": honoured(64, "width / num_heads"),
    "patch_size": honoured(16, "patch_size"),
    "image_size": honoured(224, "image_size"),
    "patch_dropout": without_effect(_TRAINING),
    "attentional_pool": only(False),
    "attn_pooler_queries": without_effect("of attentional_pool"),
    "attn_pooler_heads": without_effect("of attentional_pool"),
    "no_ln_pre": only(False),
    "pos_embed_type": only("learnable"),
    "pool_type": only("tok"),
    "global_average_pool": only(False),
    "input_patchnorm": only(False),
    "timm_model_name": only(None),
}
TEXT: dict[str, Field] = {
    **_SHARED,
    "context_length": honoured(77, "context_length"),
    "vocab_size": honoured(49408, "vocab_size"),
    "width": honoured(512, "width"),
    "heads": honoured(8, "num_heads"),
    "hf_tokenizer_name": only("", None),
    "hf_model_name": only(None, ""),
    "tokenizer_kwargs": only(None, {}),
    "embed_cls": only(False),
    "pad_id": without_effect("the tokenizer's decides"),
    "eos_id": without_effect("the largest id ends a text"),
    "no_causal_mask": only(False),
    "pool_type": only("argmax"),
    "proj_type": only("linear"),
    "proj_bias": only(False),
}
PREPROCESSING: dict[str, Field] = {
    "size": without_effect("the model says"),
    "mode": only("RGB"),
    "mean": honoured(PUBLISHED_MEAN, "image_mean"),
    "std": honoured(PUBLISHED_STD, "image_std"),
    "interpolation": only("bicubic", "random"),
    "resize_mode": only("shortest"),
    "fill_color": without_effect("nothing is filled"),
}

DIVISIBLE = {
    "vision_cfg": dict(head_width="width", patch_size="image_size"),
    "text_cfg": dict(heads="width"),
}


def read(config: Mapping[str, Any]) -> dict[str, Any]:
    """`text`, `vision`, `projection_dim`, `image_mean` and `image_std`.

    Raises a `Refused` that lists every field that we would not honour.
    """
    model = config.get("model_cfg")
    if not isinstance(model, Mapping):
        raise config_fields.Refused(WHAT, ["it has no model_cfg"])
    parts = {
        "model_cfg": (model, MODEL),
        "vision_cfg": (model.get("vision_cfg") or {}, VISION),
        "text_cfg": (model.get("text_cfg") or {}, TEXT),
        "preprocess_cfg": (config.get("preprocess_cfg") or {}, PREPROCESSING),
    }
    given, problems = {}, []
    for name, (part, table) in parts.items():
        given[name], wrong = config_fields.read(part, table)
        problems += [f"{name}: {problem}" for problem in wrong]
    if not problems:
        problems = [
            f"{name}: {problem}"
            for name, parts in DIVISIBLE.items()
            for problem in config_fields.indivisible(given[name], **parts)
        ]
    if problems:
        raise config_fields.Refused(WHAT, problems)
    model, vision, text, pixels = given.values()
    activation = "quick_gelu" if model["quick_gelu"] else "gelu"
    return dict(
        text=_tower(text)
        | dict(
            vocab_size=text["vocab_size"],
            context_length=text["context_length"],
            num_heads=text["heads"],
            activation=activation,
            eos_id=LEGACY_EOS,
        ),
        vision=_tower(vision)
        | dict(
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            num_heads=vision["width"] // vision["head_width"],
            activation=activation,
        ),
        projection_dim=model["embed_dim"],
        image_mean=tuple(map(float, pixels["mean"])),
        image_std=tuple(map(float, pixels["std"])),
    )


def _tower(given: Mapping[str, Any]) -> dict[str, Any]:
    width = given["width"]
    mlp_width = int(width * given["mlp_ratio"])
    return dict(width=width, num_layers=given["layers"], mlp_width=mlp_width)
