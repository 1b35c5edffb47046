"""text_encoder/config.json of transformers' CLIPTextModel -> fields of models.clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_jax.weights import config_fields
from diffusion_jax.weights.config_fields import Field, honoured, only, without_effect

PLAIN, PROJECTED = "CLIPTextModel", "CLIPTextModelWithProjection"
CLASSES = (PLAIN, PROJECTED)
WHOLE = ("CLIPModel", "clip")  # whose config has that of the text nested in it
_TRAINING = "of training only"
_WRITER = "who wrote it, and how"
_OTHERS = "of models that write text"
_ACCEPTED_ACTIVATIONS = ("quick_gelu", "gelu")

# Fields of every model of transformers, of today and of the versions before.
_SETTINGS = (
    *("output_hidden_states", "output_attentions", "return_dict", "use_return_dict"),
    *("torchscript", "use_bfloat16", "chunk_size_feed_forward", "use_cache"),
    *("gradient_checkpointing", "id2label", "label2id", "problem_type", "num_labels"),
    *("finetuning_task", "tokenizer_class", "prefix", "task_specific_params"),
    *("tie_word_embeddings", "tie_encoder_decoder", "is_encoder_decoder"),
    *("tf_legacy_loss", "_attn_implementation_autoset", "sep_token_id"),
)
_GENERATION = (
    *("bad_words_ids", "begin_suppress_tokens", "decoder_start_token_id"),
    *("diversity_penalty", "do_sample", "early_stopping", "exponential_decay"),
    *("encoder_no_repeat_ngram_size", "exponential_decay_length_penalty"),
    *("forced_bos_token_id", "forced_eos_token_id", "length_penalty", "max_length"),
    *("min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams"),
    *("num_return_sequences", "output_scores", "remove_invalid_values"),
    *("repetition_penalty", "return_dict_in_generate", "suppress_tokens"),
    *("temperature", "top_k", "top_p", "typical_p"),
)

TABLE: dict[str, Field] = {
    "vocab_size": honoured(49408, "vocab_size"),
    "hidden_size": honoured(512, "width"),
    "intermediate_size": honoured(2048, "mlp_width"),
    "num_hidden_layers": honoured(12, "num_layers"),
    "num_attention_heads": honoured(8, "num_heads"),
    "max_position_embeddings": honoured(77, "context_length"),
    "hidden_act": only(*_ACCEPTED_ACTIVATIONS),
    "layer_norm_eps": honoured(1e-5, "norm_eps"),
    "eos_token_id": honoured(49407, "eos_id; 2: the end is the largest id"),
    "projection_dim": honoured(512, "projection_dim, of the class with projection"),
    "pad_token_id": without_effect("the tokenizer's decides", 1),
    "bos_token_id": without_effect("the tokenizer's decides", 49406),
    "attention_dropout": only(0.0),
    "dropout": only(0.0),
    "initializer_range": without_effect(_TRAINING, 0.02),
    "initializer_factor": without_effect(_TRAINING, 1.0),
    "pruned_heads": only({}, None),
    "is_decoder": only(False, None),
    "add_cross_attention": only(False, None),
    "cross_attention_hidden_size": only(None),
    "architectures": without_effect("checked with the directory"),
    "model_type": without_effect("checked with the directory"),
    "_name_or_path": without_effect(_WRITER),
    "_commit_hash": without_effect(_WRITER),
    "transformers_version": without_effect(_WRITER),
    "torch_dtype": without_effect("the tensors say"),
    "dtype": without_effect("the tensors say"),
    **{name: without_effect(_WRITER) for name in _SETTINGS},
    **{name: without_effect(_OTHERS) for name in _GENERATION},
}


def read(config: Mapping[str, Any], *, projected: bool = False) -> dict[str, Any]:
    """Fields of models.clip.CLIPText; if `projected`, also `projection_dim`.

    Raises a `Refused` that lists every field that we would not honour.
    """
    kind = PROJECTED if projected else PLAIN
    problems = wrong_class(config)
    if not problems:
        nested = config.get("text_config") if is_whole(config) else None
        given, problems = config_fields.read(
            config if nested is None else nested, TABLE
        )
    if problems:
        raise config_fields.Refused(kind, problems)
    if not isinstance(given["eos_token_id"], int):
        problems.append(f"eos_token_id = {given['eos_token_id']} (only one number)")
    if given["hidden_size"] % given["num_attention_heads"]:
        problems.append(
            f"num_attention_heads = {given['num_attention_heads']} for a hidden_size of "
            f"{given['hidden_size']}"
        )
    if projected and not given["projection_dim"]:
        problems.append("projection_dim = null")
    if problems:
        raise config_fields.Refused(kind, problems)
    fields = dict(
        vocab_size=given["vocab_size"],
        context_length=given["max_position_embeddings"],
        width=given["hidden_size"],
        num_layers=given["num_hidden_layers"],
        num_heads=given["num_attention_heads"],
        mlp_width=given["intermediate_size"],
        activation=given["hidden_act"],
        eos_id=given["eos_token_id"],
        norm_eps=float(given["layer_norm_eps"]),
    )
    return fields | (dict(projection_dim=given["projection_dim"]) if projected else {})


def is_whole(config: Mapping[str, Any]) -> bool:
    """Whether it is of text and images, as the first text encoders' configs were."""
    return config.get("model_type") == "clip" and "text_config" in config


def wrong_class(config: Mapping[str, Any]) -> list[str]:
    """What it is, if it is no text encoder of CLIP; at most one entry."""
    said = [*(config.get("architectures") or ()), config.get("model_type")]
    known = {None, *CLASSES, "clip_text_model", *WHOLE}
    return [f"it is of a {kind}" for kind in said if kind not in known][:1]
