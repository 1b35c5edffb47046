"""Single-file checkpoints: the same layers as diffusers finds, and the same model."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

import single_files
from diffusers.loaders import single_file_utils as reference

from diffusion_jax.weights import single_file

XL_DOWN = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
XL_UP = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
XL = dict(
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
)
CLIP_L = dict(
    hidden_size=768,
    intermediate_size=3072,
    num_attention_heads=12,
    num_hidden_layers=12,
    projection_dim=768,
    hidden_act="quick_gelu",
)
OPEN_H = dict(
    hidden_size=1024,
    intermediate_size=4096,
    num_attention_heads=16,
    num_hidden_layers=23,
    hidden_act="gelu",
)
OPEN_G = dict(
    hidden_size=1280,
    intermediate_size=5120,
    num_attention_heads=20,
    num_hidden_layers=32,
    projection_dim=1280,
    hidden_act="gelu",
)
# family -> U-Net, text encoders by prefix, number of tensors of the U-Net
UNETS = {
    "sd 1": (dict(cross_attention_dim=768), 686),
    "sd 1 inpainting": (dict(cross_attention_dim=768, in_channels=9), 686),
    "sd 2": (
        dict(
            cross_attention_dim=1024,
            attention_head_dim=(5, 10, 20, 20),
            use_linear_projection=True,
        ),
        686,
    ),
    "sd xl": (
        XL
        | dict(
            block_out_channels=(320, 640, 1280),
            down_block_types=XL_DOWN,
            up_block_types=XL_UP,
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            projection_class_embeddings_input_dim=2816,
        ),
        1680,
    ),
    "sd xl refiner": (
        XL
        | dict(
            block_out_channels=(384, 768, 1536, 1536),
            down_block_types=(*XL_DOWN, "DownBlock2D"),
            up_block_types=("UpBlock2D", *XL_UP),
            transformer_layers_per_block=4,
            attention_head_dim=(6, 12, 24, 24),
            cross_attention_dim=1280,
            projection_class_embeddings_input_dim=2560,
        ),
        1220,
    ),
}
TEXTS = {
    "sd 1": {"cond_stage_model.transformer.": CLIP_L},
    "sd 2": {"cond_stage_model.model.": OPEN_H},
    "sd xl": {
        "conditioner.embedders.0.transformer.": CLIP_L,
        "conditioner.embedders.1.model.": OPEN_G,
    },
    "sd xl refiner": {"conditioner.embedders.0.model.": OPEN_G},
}
TEXTS["sd 1 inpainting"] = TEXTS["sd 1"]
VAE = dict(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
    latent_channels=4,
)
OURS = {
    "sd 1": dict(num_heads=8, transformer_depth=(1, 1, 1, 1)),
    "sd 1 inpainting": dict(num_heads=8, transformer_depth=(1, 1, 1, 1)),
    "sd 2": dict(
        num_heads=(5, 10, 20, 20), linear_projection=True, upcast_attention=True
    ),
    "sd xl": dict(
        channels=(320, 640, 1280),
        attention=("none", "transformer", "transformer"),
        num_heads=(5, 10, 20),
        transformer_depth=(1, 2, 10),
        linear_projection=True,
        vector="add_embedding",
    ),
    "sd xl refiner": dict(
        channels=(384, 768, 1536, 1536),
        attention=("none", "transformer", "transformer", "none"),
        num_heads=(6, 12, 24, 24),
        transformer_depth=(1, 4, 4, 4),
        linear_projection=True,
        vector="add_embedding",
    ),
}


def text_model(config, is_projected):
    config = transformers.CLIPTextConfig(**config)
    kind = "CLIPTextModelWithProjection" if is_projected else "CLIPTextModel"
    return getattr(transformers, kind)(config)


def full_size(name):
    """The state of a published model, without its numbers."""
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**UNETS[name][0])
        vae = diffusers.AutoencoderKL(**VAE)
        texts = {
            prefix: text_model(config, config is OPEN_G)
            for prefix, config in TEXTS[name].items()
        }
    return single_files.single_file_state(unet, vae, texts), unet, texts


def write_hollow(path, state):
    """A safetensors file of which only the header is stored."""
    header, place = {}, 0
    for key, tensor in state.items():
        end = place + 2 * tensor.numel()
        header[key] = dict(
            dtype="F16", shape=list(tensor.shape), data_offsets=[place, end]
        )
        place = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + place)
    return 8 + len(text), header


def check_same_layers(found, expected, state, start, header):
    """Our layer lies where the tensor is that diffusers gives the same name."""
    names = {id(tensor): key for key, tensor in state.items()}
    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        theirs = expected[key]
        assert np.prod(tensor.shape) == theirs.numel(), key
        if id(theirs) in names:  # not made by slicing
            begin, end = header[names[id(theirs)]]["data_offsets"]
            assert tensor.offset == start + begin, key
            assert np.prod(tensor.shape) * 2 == end - begin


@pytest.mark.parametrize("name", UNETS)
def test_every_layer_of_a_published_model_is_found_where_diffusers_finds_it(
    tmp_path, name
):
    state, unet, texts = full_size(name)
    path = tmp_path / "model.safetensors"
    start, header = write_hollow(path, state)
    model = single_file.read(path)

    expected = reference.convert_ldm_unet_checkpoint(state, dict(unet.config))
    assert len(expected) == UNETS[name][1]
    check_same_layers(model.tensors["unet"], expected, state, start, header)
    theirs = reference.convert_ldm_vae_checkpoint(state, VAE)
    vae = model.tensors["vae"]
    assert len(vae) == 248 and vae.keys() == theirs.keys()
    for key, tensor in vae.items():
        stored = "first_stage_model." + single_files.vae_key(key, 4)
        assert tensor.offset == start + header[stored]["data_offsets"][0]
    towers = dict(zip(model.texts, texts.items(), strict=True))
    for tower, (prefix, module) in towers.items():
        found = model.tensors[tower]
        assert len(found) == len(module.state_dict())
        if ".transformer." in prefix:
            inner = {k: v for k, v in state.items() if k.startswith(prefix)}
            expected = reference.convert_ldm_clip_checkpoint(inner)
            expected = {k: v for k, v in expected.items() if "position_ids" not in k}
            check_same_layers(found, expected, state, start, header)
        else:
            expected = reference.convert_open_clip_checkpoint(
                module, state, prefix=prefix
            )
            assert found.keys() == expected.keys()
            for key, tensor in found.items():
                assert tuple(tensor.shape) == tuple(expected[key].shape), key
    in_channels = unet.config.in_channels
    assert model.tensors["unet"]["conv_in.weight"].shape[1] == in_channels
    usual = dict(
        channels=(320, 640, 1280, 1280),
        blocks_per_level=2,
        attention=("transformer",) * 3 + ("none",),
        mid_attention="transformer",
        transformer_depth=(1, 1, 1, 1),
        linear_projection=False,
        out_channels=4,
    )
    assert model.unet == usual | OURS[name]
    assert model.vae == dict(
        channels=(128, 256, 512, 512),
        blocks_per_level=2,
        latent_channels=4,
        image_channels=3,
        use_quant_conv=True,
        use_post_quant_conv=True,
    )
    assert model.latent_scale == (0.13025 if "xl" in name else 0.18215)
    assert model.zero_empty == (name == "sd xl")
    sizes = {"sd xl": 6, "sd xl refiner": 5}.get(name, 0)
    assert (model.num_size_ids, model.size_id_width) == (sizes, 256)
    for fields, config in zip(model.texts.values(), TEXTS[name].values()):
        assert fields["width"] == config["hidden_size"]
        assert fields["num_layers"] == config["num_hidden_layers"]
        assert fields["num_heads"] == config["num_attention_heads"]
        assert fields["mlp_width"] == config["intermediate_size"]
        assert fields["activation"] == config["hidden_act"]


# ---- tiny models, whose numbers are compared ----------------------------------------

TINY_TEXT = dict(
    vocab_size=100,
    hidden_size=32,
    intermediate_size=48,
    num_attention_heads=4,
    num_hidden_layers=3,
    max_position_embeddings=77,
)
TINY_UNET = dict(
    block_out_channels=(16, 32, 32),
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
    norm_num_groups=8,
    cross_attention_dim=32,
)
TINY_VAE = dict(
    block_out_channels=(8, 16, 16),
    down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3,
    layers_per_block=1,
    norm_num_groups=4,
)
TINY = {
    "cond_stage_model.transformer.": ({}, False, "text_encoder"),
    "cond_stage_model.model.": (
        dict(use_linear_projection=True, attention_head_dim=(2, 4, 4)),
        False,
        "text_encoder",
    ),
    "conditioner.embedders.0.model.": (
        dict(
            use_linear_projection=True,
            transformer_layers_per_block=(1, 2, 2),
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=20 + 5 * 8,
        ),
        True,
        "text_encoder_2",
    ),
}


def tiny(prefix, seed=0):
    torch.manual_seed(seed)
    more, is_projected, _ = TINY[prefix]
    text = text_model(TINY_TEXT | dict(projection_dim=20), is_projected)
    unet = diffusers.UNet2DConditionModel(**TINY_UNET | more)
    return unet, diffusers.AutoencoderKL(**TINY_VAE), {prefix: text}


def check_tensors(found, module, *, prefix=False):
    state = module.state_dict()
    state = single_files.prefixed(state) if prefix else state
    assert found.keys() == state.keys()
    for key, tensor in found.items():
        read = np.asarray(tensor)
        assert read.shape == tensor.shape and read.dtype == tensor.dtype
        np.testing.assert_array_equal(read.reshape(state[key].shape), state[key], key)


@pytest.mark.parametrize("prefix", TINY)
def test_tensors_arrive_under_the_names_of_a_directory(tmp_path, prefix):
    path = tmp_path / "model.safetensors"
    parts = tiny(prefix)
    single_files.write(path, *parts)
    model = single_file.read(path)
    check_tensors(model.tensors["unet"], parts[0])
    check_tensors(model.tensors["vae"], parts[1])
    name = TINY[prefix][-1]
    check_tensors(model.tensors[name], parts[2][prefix], prefix=True)
    assert model.texts[name]["num_layers"] == 3
    if name == "text_encoder_2":
        assert (model.num_size_ids, model.size_id_width) == (5, 8)


def test_the_moving_average_is_chosen(tmp_path):
    prefix = "cond_stage_model.transformer."
    path = tmp_path / "model.safetensors"
    parts, (average, *_) = tiny(prefix), tiny(prefix, seed=1)
    single_files.write(path, *parts, ema=average)
    check_tensors(single_file.read(path).tensors["unet"], parts[0])
    model = single_file.read(path, ema=True)
    check_tensors(model.tensors["unet"], average)
    check_tensors(model.tensors["vae"], parts[1])
