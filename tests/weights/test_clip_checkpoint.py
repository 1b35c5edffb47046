"""What a published CLIP may hold, and what is refused in one line before it is read."""

import json
import math

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax.weights import (
    clip_checkpoint,
    clip_config,
    clip_keys,
    config_fields,
    convert,
    open_clip_config,
    vision_config,
)

CLIP_L = dict(  # of openai/clip-vit-large-patch14
    architectures=["CLIPModel"],
    model_type="clip",
    projection_dim=768,
    logit_scale_init_value=2.6592,
    initializer_factor=1.0,
    text_config=dict(
        hidden_size=768, intermediate_size=3072, num_attention_heads=12, eos_token_id=2
    ),
    vision_config=dict(
        hidden_size=1024,
        intermediate_size=4096,
        num_attention_heads=16,
        num_hidden_layers=24,
        patch_size=14,
        image_size=224,
        num_channels=3,
    ),
)
VISION = CLIP_L["vision_config"] | dict(
    model_type="clip_vision_model",
    architectures=["CLIPVisionModelWithProjection"],
    projection_dim=768,
)
OPEN_CLIP_H = dict(
    model_cfg=dict(
        embed_dim=1024,
        vision_cfg=dict(
            image_size=224, layers=32, width=1280, head_width=80, patch_size=14
        ),
        text_cfg=dict(
            context_length=77, vocab_size=49408, width=1024, heads=16, layers=24
        ),
    )
)
NUM_PARAMETERS = {"clip-vit-large-patch14": 427_616_513, "CLIP-ViT-H-14": 986_109_441}


def count(fields):
    found = clip_checkpoint.PublishedClip(
        fields["text"], fields["vision"], fields["projection_dim"], {}
    )
    module, size = clip_checkpoint.module(found), fields["vision"]["image_size"]
    arrays = np.zeros((1, size, size, 3), np.float32), np.zeros((1, 2), np.int32)
    like = jax.eval_shape(module.init, jax.random.key(0), *arrays)["params"]
    return sum(math.prod(p.shape) for p in jax.tree.leaves(like))


def test_published_models_have_their_numbers_of_parameters():
    found = {
        "clip-vit-large-patch14": count(clip_config.read(CLIP_L)),
        "CLIP-ViT-H-14": count(open_clip_config.read(OPEN_CLIP_H)),
    }
    assert found == NUM_PARAMETERS


def test_the_image_encoder_alone_has_the_fields_of_the_whole():
    alone = vision_config.read(VISION)
    assert alone.pop("projection_dim") == 768
    assert alone == clip_config.read(CLIP_L)["vision"]


@pytest.mark.parametrize(
    ("reader", "config", "message"),
    [
        (vision_config, VISION | dict(num_channels=4), "num_channels = 4"),
        (vision_config, VISION | dict(hidden_act="relu"), 'hidden_act = "relu"'),
        (vision_config, VISION | dict(layer_norm_eps=1e-6), "layer_norm_eps = 1e-06"),
        (vision_config, VISION | dict(patch_size=15), "patch_size = 15 for image_size"),
        (vision_config, VISION | dict(num_attention_heads=7), "heads = 7 for hidden"),
        (vision_config, VISION | dict(projection_dim=0), "projection_dim"),
        (vision_config, VISION | dict(depth=3), "unknown field depth"),
        (
            vision_config,
            VISION | dict(architectures=["CLIPVisionModel"]),
            "of a CLIPVisionModel",
        ),
        (clip_config, CLIP_L | dict(model_type="siglip"), "it is of a siglip"),
        (clip_config, CLIP_L | dict(logit_bias=1), "unknown field logit_bias"),
        (
            clip_config,
            CLIP_L | dict(text_config=dict(hidden_act="relu")),
            'text_config: hidden_act = "relu"',
        ),
        (
            clip_config,
            CLIP_L | dict(vision_config_dict=dict(attention_dropout=0.5)),
            "vision_config: attention_dropout = 0.5",
        ),
        (open_clip_config, {}, "no model_cfg"),
    ],
)
def test_a_config_of_another_model_is_refused_by_field(reader, config, message):
    with pytest.raises(config_fields.Refused) as error:
        reader.read(config)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("model_cfg", "custom_text", True),
        ("model_cfg", "init_logit_bias", -10),
        ("model_cfg", "multimodal_cfg", {}),
        ("vision_cfg", "timm_model_name", "vit"),
        ("vision_cfg", "pool_type", "avg"),
        ("vision_cfg", "layers", [3, 4, 6, 3]),
        ("vision_cfg", "no_ln_pre", True),
        ("vision_cfg", "head_width", 72),
        ("vision_cfg", "patch_size", 15),
        ("text_cfg", "heads", 7),
        ("text_cfg", "hf_model_name", "roberta"),
        ("text_cfg", "no_causal_mask", True),
        ("text_cfg", "embed_cls", True),
        ("preprocess_cfg", "resize_mode", "squash"),
    ],
)
def test_an_open_clip_of_other_parts_is_refused_by_field(part, name, value):
    config = json.loads(json.dumps(OPEN_CLIP_H)) | {"preprocess_cfg": {}}
    there = config if part in config else config["model_cfg"]
    open_clip_config.read(config)
    there[part][name] = value
    with pytest.raises(config_fields.Refused, match=f"{part}: .*{name}"):
        open_clip_config.read(config)


# ---- files by the original names ----------------------------------------------------


def original(width=64, layers=1, vocab=20, length=5, embed=8):
    """Zeros by OpenAI's names: one block in either tower."""
    shapes = {
        "visual.conv1.weight": (width, 3, 4, 4),
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (5, width),
        "visual.proj": (width, embed),
        "token_embedding.weight": (vocab, width),
        "positional_embedding": (length, width),
        "text_projection": (width, embed),
        "logit_scale": (),
    }
    for norm in ("visual.ln_pre", "visual.ln_post", "ln_final"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for start in ("", "visual."):
        block = f"{start}transformer.resblocks.0"
        shapes |= {
            f"{block}.attn.in_proj_weight": (3 * width, width),
            f"{block}.attn.in_proj_bias": (3 * width,),
        }
        for name, (out, inner) in {
            "attn.out_proj": (width, width),
            "mlp.c_fc": (4 * width, width),
            "mlp.c_proj": (width, 4 * width),
        }.items():
            shapes[f"{block}.{name}.weight"] = (out, inner)
            shapes[f"{block}.{name}.bias"] = (out,)
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{block}.{norm}.weight": (width,)}
            shapes |= {f"{block}.{norm}.bias": (width,)}
    rng = np.random.default_rng(0)
    return {k: rng.standard_normal(s).astype(np.float16) for k, s in shapes.items()}


@pytest.fixture
def write(tmp_path):
    def write(state):
        save_file(state, tmp_path / "clip.safetensors")
        return tmp_path / "clip.safetensors"

    return write


def test_every_tensor_is_where_it_belongs(write):
    state = original()
    found = clip_checkpoint.read(write(state), activation="quick_gelu")
    params = clip_checkpoint.load_params(found)
    stored = convert.save_torch(params)
    layer = "vision_model.encoder.layers.0.self_attn"
    fused = state["visual.transformer.resblocks.0.attn.in_proj_weight"]
    for i, name in enumerate(("q_proj", "k_proj", "v_proj")):
        part = stored[f"{layer}.{name}.weight"]
        np.testing.assert_array_equal(part, fused[64 * i : 64 * (i + 1)])
    projections = {
        "text_projection": "text_projection",
        "visual.proj": "visual_projection",
    }
    for old, new in projections.items():
        np.testing.assert_array_equal(stored[f"{new}.weight"], state[old].T)
    assert sum(x.size for x in stored.values()) == sum(x.size for x in state.values())
    assert found.tokenizer is None and found.vision["image_size"] == 8


@pytest.mark.parametrize(
    ("width", "heads"), [(768, 12), (1024, 16), (1280, 16), (1408, 16), (1664, 16)]
)
def test_heads_of_a_file_are_those_that_its_width_was_published_with(width, heads):
    """B and L of both, H, g and bigG of OpenCLIP (their config files)."""
    assert clip_keys.vision_heads(width) == heads


def without(name):
    return lambda state: state.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("visual.ln_pre.bias"), "missing: .*pre_layrnorm.bias"),
        (lambda s: s.update(extra=s["ln_final.bias"]), "unused: .*extra"),
        (
            lambda s: s.update({"visual.ln_post.bias": s["logit_scale"].reshape(1)}),
            r"misshapen: .*post_layernorm.bias \(1,\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, message, write):
    state = original()
    change(state)
    found = clip_checkpoint.read(write(state), activation="gelu")
    with pytest.raises(ValueError, match=message):
        clip_checkpoint.load_params(found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: None, "does not say its activation"),
        (without("visual.conv1.weight"), "is no CLIP: it has no visual.conv1.weight"),
        (
            lambda s: s.update({"visual.layer1.0.conv1.weight": s["logit_scale"]}),
            "a CLIP with a ResNet",
        ),
        (without("text_projection"), "layers are missing"),
    ],
)
def test_a_file_of_another_kind_is_refused(change, message, write):
    state = original()
    if message != "does not say its activation":
        state["input_resolution"] = np.array(8)
    change(state)
    with pytest.raises(ValueError, match=message):
        clip_checkpoint.read(write(state))


def test_places_without_a_clip_are_named(tmp_path, write):
    with pytest.raises(FileNotFoundError, match="no directory and no file"):
        clip_checkpoint.read(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no file .*config\.json"):
        clip_checkpoint.read(tmp_path)
    with pytest.raises(ValueError, match="config says its activation"):
        clip_checkpoint.read(tmp_path, activation="gelu")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP_H))
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(ValueError, match="only a pickle; make it safe"):
        clip_checkpoint.read(tmp_path)
    with pytest.raises(ValueError, match="variant 'fp16' of .*, which has only one"):
        clip_checkpoint.read(tmp_path, variant="fp16")
    path = write({"text_model.embeddings.x": np.zeros(1)})
    with pytest.raises(ValueError, match="variant 'fp16' of .*, which has only one"):
        clip_checkpoint.read(path, variant="fp16")
    with pytest.raises(ValueError, match="transformers' names; give its directory"):
        clip_checkpoint.read(path)
