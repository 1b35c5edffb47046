"""text_proj/config.json of diffusers' UnCLIPTextProjModel -> TextImageProjection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from diffusion_jax.weights import config_fields
from diffusion_jax.weights.config_fields import Field, honoured

CLASS = "UnCLIPTextProjModel"
TABLE: dict[str, Field] = {
    "clip_extra_context_tokens": honoured(4, "num_tokens"),
    "clip_embeddings_dim": honoured(
        768, "must be the width of CLIP's embeddings and of its text tower"
    ),
    "time_embed_dim": honoured(None, "time_width; must be the decoder's"),
    "cross_attention_dim": honoured(None, "context_width; must be the decoder's"),
    **config_fields.OF_DIFFUSERS,
}


class Read(NamedTuple):
    """What a config says: the fields of our module, and what it is fed."""

    fields: dict[str, Any]  # of models.unclip.TextImageProjection
    embed_width: int


def read(config: Mapping[str, Any]) -> Read:
    """Raises a `Refused` that lists every field that we would not honour."""
    given, problems = config_fields.read(config, TABLE)
    for name in ("time_embed_dim", "cross_attention_dim"):  # the class has no default
        if not isinstance(given[name], int) or given[name] < 1:
            problems.append(f"{name} = {given[name]} (only a whole number)")
    if given["clip_extra_context_tokens"] < 1:
        given_number = given["clip_extra_context_tokens"]
        problems.append(f"clip_extra_context_tokens = {given_number} (at least 1)")
    if problems:
        raise config_fields.Refused(CLASS, problems)
    fields = dict(
        context_width=given["cross_attention_dim"],
        time_width=given["time_embed_dim"],
        num_tokens=given["clip_extra_context_tokens"],
    )
    return Read(fields, given["clip_embeddings_dim"])
