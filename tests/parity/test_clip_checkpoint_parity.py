"""CLIP read from each published layout says what the model that wrote it says."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

from diffusion_jax.models.clip import CLIPVision, ProjectedVision
from diffusion_jax.weights import (
    clip_checkpoint,
    convert,
    open_clip_config,
    vision_config,
)
from tests.parity.module_checks import check
from tests.parity.original_clip import OriginalClip, QuickGELU

LENGTH, EOS = 9, 599
CONFIG = dict(
    text_config=dict(
        vocab_size=600,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=LENGTH,
        eos_token_id=EOS,
        pad_token_id=0,
        bos_token_id=598,
    ),
    vision_config=dict(
        image_size=16,
        patch_size=8,
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=80,
        hidden_act="gelu",
    ),
    projection_dim=24,
)
OPEN_CLIP = dict(
    model_cfg=dict(
        embed_dim=24,
        vision_cfg=dict(image_size=16, layers=1, width=128, patch_size=8),
        text_cfg=dict(
            context_length=LENGTH, vocab_size=600, width=128, heads=2, layers=2
        ),
    ),
    preprocess_cfg=dict(mean=[0.5, 0.4, 0.3], std=[0.2, 0.25, 0.3]),
)


@functools.cache
def inputs():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 598, (3, LENGTH)).astype(np.int32)
    tokens[0, 4:] = tokens[1, -1] = EOS
    tokens[2, 6], tokens[2, 7:] = EOS, 0
    return rng.standard_normal((3, 16, 16, 3)).astype(np.float32), tokens


@functools.cache
def whole():
    torch.manual_seed(1)
    model = transformers.CLIPModel(transformers.CLIPConfig(**CONFIG)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


@torch.no_grad()
def outputs(model):
    """(image, text, logits) of a torch model, of whichever names."""
    images, tokens = inputs()
    images = torch.tensor(images).permute(0, 3, 1, 2)
    tokens = torch.tensor(tokens).long()
    if isinstance(model, OriginalClip):
        return model(images, tokens)
    out = model(input_ids=tokens, pixel_values=images)
    return out.image_embeds, out.text_embeds, out.logits_per_image


def agrees(name, found, expected):
    """Runs what was read, in float32; its parameters."""
    params = clip_checkpoint.load_params(found)
    module = clip_checkpoint.module(found)
    apply = jax.jit(lambda p, x, t: module.apply({"params": p}, x, t))
    image, text, scale = apply(params, *map(jnp.asarray, inputs()))
    check(f"{name} image", image, expected[0])
    check(f"{name} text", text, expected[1])
    check(f"{name} logits", scale * image @ text.T, expected[2])
    return params


def test_a_directory_of_transformers(tmp_path):
    """Also in the form of its first versions: positions stored, fields said twice."""
    whole().save_pretrained(tmp_path)
    found = clip_checkpoint.read(tmp_path)
    params = agrees("transformers", found, outputs(whole()))
    state = whole().state_dict()
    for tower, length in (("text", LENGTH), ("vision", 5)):
        state[f"{tower}_model.embeddings.position_ids"] = torch.arange(length)[None]
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    old = tmp_path / "old"
    old.mkdir()
    safetensors_torch.save_file(state, old / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config_dict"] = config["text_config"]
    config["vision_config_dict"], config["vision_config"] = config["vision_config"], {}
    (old / "config.json").write_text(json.dumps(config))
    pixels = dict(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], do_resize=True)
    (old / "preprocessor_config.json").write_text(json.dumps(pixels))
    again = clip_checkpoint.read(old)
    assert again[:3] == found[:3]
    assert again.image_mean == (0.1, 0.2, 0.3) and again.image_std == (0.4, 0.5, 0.6)
    jax.tree.map(
        np.testing.assert_array_equal, clip_checkpoint.load_params(again), params
    )


@pytest.mark.parametrize(
    "activation", ["quick_gelu", pytest.param("gelu", marks=pytest.mark.slow)]
)
def test_a_directory_of_open_clip(activation, tmp_path):
    model = OriginalClip({"gelu": torch.nn.GELU, "quick_gelu": QuickGELU}[activation])
    file = tmp_path / "open_clip_model.safetensors"
    safetensors_torch.save_file(model.state_dict(), file)
    config = json.loads(json.dumps(OPEN_CLIP))
    if activation == "quick_gelu":
        config["model_cfg"]["quick_gelu"] = True
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    found = clip_checkpoint.read(tmp_path)
    assert found.image_mean == (0.5, 0.4, 0.3) and found.image_std == (0.2, 0.25, 0.3)
    agrees(f"OpenCLIP {activation}", found, outputs(model))
    usual = open_clip_config.read(OPEN_CLIP)  # which says nothing of it
    assert usual["text"]["activation"] == usual["vision"]["activation"] == "gelu"


def test_a_file_of_openai_in_half_precision(tmp_path):
    """With the numbers that the original code keeps among the tensors."""
    model = OriginalClip().half().float()
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    numbers = dict(input_resolution=16, context_length=LENGTH, vocab_size=600)
    state |= {name: torch.tensor(value) for name, value in numbers.items()}
    safetensors_torch.save_file(state, tmp_path / "clip.safetensors")
    found = clip_checkpoint.read(tmp_path / "clip.safetensors")
    assert found.vision["image_size"] == 16 and found.text["context_length"] == LENGTH
    agrees("OpenAI", found, outputs(model))


@torch.no_grad()
def test_an_image_encoder_with_projection():
    config = transformers.CLIPVisionConfig(**CONFIG["vision_config"], projection_dim=24)
    torch.manual_seed(2)
    model = transformers.CLIPVisionModelWithProjection(config).eval()
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape))
    fields = vision_config.read(json.loads(config.to_json_string(use_diff=False)))
    width = fields.pop("projection_dim")
    module = ProjectedVision(CLIPVision(**fields), width)
    images, _ = inputs()
    like = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    params = convert.load_torch(state, like, rename=clip_checkpoint.RENAME)
    embeds = model(torch.tensor(images).permute(0, 3, 1, 2)).image_embeds
    check("image encoder", jax.jit(module.apply)({"params": params}, images), embeds)
