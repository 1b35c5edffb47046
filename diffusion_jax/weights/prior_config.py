"""prior/config.json of diffusers' PriorTransformer -> fields of models.prior."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_jax.models import prior
from diffusion_jax.weights import config_fields
from diffusion_jax.weights.config_fields import Field, honoured, only

CLASS = "PriorTransformer"
_KANDINSKY = "(Kandinsky 2.2 and Shap-E)"
_NORMS = {None: False, "layer": True}
TABLE: dict[str, Field] = {
    "num_attention_heads": honoured(32, "num_heads"),
    "attention_head_dim": honoured(64, "head_width"),
    "num_layers": honoured(20, "num_layers"),
    "embedding_dim": honoured(768, "embed_dim; must be CLIP's"),
    "num_embeddings": honoured(77, "num_tokens; must be the text encoder's context"),
    "additional_embeddings": only(prior.NUM_EXTRA, note=_KANDINSKY),
    "dropout": only(0.0),
    "time_embed_act_fn": only("silu", "swish"),
    "norm_in_type": only(None, note=_KANDINSKY),
    "embedding_proj_norm_type": only(*_NORMS),
    "encoder_hid_proj_type": only("linear", note=_KANDINSKY),
    "added_emb_type": only("prd", note=_KANDINSKY),
    "time_embed_dim": honoured(None, "time_width"),
    "embedding_proj_dim": honoured(None, "must be embedding_dim"),
    "clip_embed_dim": honoured(None, "must be embedding_dim"),
    **config_fields.OF_DIFFUSERS,
}


def read(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of models.prior.PriorTransformer.

    Raises a `Refused` that lists every field that we would not honour.
    """
    given, problems = config_fields.read(config, TABLE)
    width = given["embedding_dim"]
    for name in ("embedding_proj_dim", "clip_embed_dim"):
        if given[name] not in (None, width):
            problems.append(f"{name} = {given[name]} (only {width}) {_KANDINSKY}")
    time_width = given["time_embed_dim"]
    if time_width is not None and not isinstance(time_width, int):
        problems.append(f"time_embed_dim = {time_width} (only a whole number)")
    if problems:
        raise config_fields.Refused(CLASS, problems)
    return dict(
        embed_dim=width,
        num_layers=given["num_layers"],
        num_heads=given["num_attention_heads"],
        head_width=given["attention_head_dim"],
        num_tokens=given["num_embeddings"],
        time_width=time_width or None,
        norm_embedding=_NORMS[given["embedding_proj_norm_type"]],
    )
