"""config.json of the published models, as far as they say more than their class assumes."""

import json
import pathlib

import numpy as np
from safetensors.numpy import save_file

from diffusion_jax.weights import (
    autoencoder_config,
    convert,
    published,
    text_config,
    unet_config,
)

DOWN, UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
PLAIN_DOWN, PLAIN_UP = "DownBlock2D", "UpBlock2D"
XL = dict(
    _class_name="UNet2DConditionModel",
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    sample_size=128,
)
UNETS = {
    "sd1": dict(
        _class_name="UNet2DConditionModel", cross_attention_dim=768, sample_size=64
    ),
    "sd2": dict(
        _class_name="UNet2DConditionModel",
        attention_head_dim=[5, 10, 20, 20],
        cross_attention_dim=1024,
        use_linear_projection=True,
        upcast_attention=True,
        sample_size=96,
    ),
    "sdxl": XL
    | dict(
        block_out_channels=[320, 640, 1280],
        down_block_types=[PLAIN_DOWN, DOWN, DOWN],
        up_block_types=[UP, UP, PLAIN_UP],
        transformer_layers_per_block=[1, 2, 10],
        attention_head_dim=[5, 10, 20],
        cross_attention_dim=2048,
        projection_class_embeddings_input_dim=2816,
    ),
    "refiner": XL
    | dict(
        block_out_channels=[384, 768, 1536, 1536],
        down_block_types=[PLAIN_DOWN, DOWN, DOWN, PLAIN_DOWN],
        up_block_types=[PLAIN_UP, UP, UP, PLAIN_UP],
        transformer_layers_per_block=4,
        attention_head_dim=[6, 12, 24, 24],
        cross_attention_dim=1280,
        projection_class_embeddings_input_dim=2560,
    ),
}
VAE = dict(
    _class_name="AutoencoderKL",
    block_out_channels=[128, 256, 512, 512],
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
    layers_per_block=2,
    sample_size=512,
)
TEXT = dict(model_type="clip_text_model", eos_token_id=2)
CLIP_L = TEXT | dict(
    architectures=["CLIPTextModel"],
    hidden_size=768,
    intermediate_size=3072,
    num_attention_heads=12,
    projection_dim=768,
)
OPEN_CLIP_H = TEXT | dict(
    architectures=["CLIPTextModel"],
    hidden_size=1024,
    intermediate_size=4096,
    num_attention_heads=16,
    num_hidden_layers=23,
    hidden_act="gelu",
)
OPEN_CLIP_G = TEXT | dict(
    architectures=["CLIPTextModelWithProjection"],
    hidden_size=1280,
    intermediate_size=5120,
    num_attention_heads=20,
    num_hidden_layers=32,
    projection_dim=1280,
    hidden_act="gelu",
)
TEXTS = {
    "sd1": {"text_encoder": CLIP_L},
    "sd2": {"text_encoder": OPEN_CLIP_H},
    "sdxl": {"text_encoder": CLIP_L, "text_encoder_2": OPEN_CLIP_G},
    "refiner": {"text_encoder_2": OPEN_CLIP_G},
}
PIPELINES = {
    "sd1": "StableDiffusionPipeline",
    "sd2": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "refiner": "StableDiffusionXLImg2ImgPipeline",
}
TINY_UNET = dict(
    _class_name="UNet2DConditionModel",
    block_out_channels=[8, 16],
    down_block_types=[DOWN, PLAIN_DOWN],
    up_block_types=[PLAIN_UP, UP],
    layers_per_block=1,
    norm_num_groups=4,
    attention_head_dim=2,
    cross_attention_dim=12,
    sample_size=8,
)
TINY_VAE = dict(
    _class_name="AutoencoderKL",
    block_out_channels=[8, 8],
    down_block_types=["DownEncoderBlock2D"] * 2,
    up_block_types=["UpDecoderBlock2D"] * 2,
    norm_num_groups=4,
)
TINY_TEXT = TEXT | dict(
    architectures=["CLIPTextModel"],
    hidden_size=12,
    intermediate_size=16,
    num_attention_heads=2,
    num_hidden_layers=1,
    vocab_size=50,
)
SCHEDULER = dict(_class_name="DDIMScheduler", beta_schedule="scaled_linear")


def index_of(texts, kind="StableDiffusionPipeline", **options):
    """model_index.json of a pipeline with these text encoders."""
    towers = {
        name: ["transformers", config["architectures"][0]]
        for name, config in texts.items()
    }
    tokenizers = {
        name.replace("text_encoder", "tokenizer"): ["transformers", "CLIPTokenizer"]
        for name in texts
    }
    return dict(
        _class_name=kind,
        _diffusers_version="0.30.0",
        unet=["diffusers", "UNet2DConditionModel"],
        vae=["diffusers", "AutoencoderKL"],
        scheduler=["diffusers", "DDIMScheduler"],
        safety_checker=[None, None],
        **towers,
        **tokenizers,
        **options,
    )


def without_tensors(unet, vae, texts, *, num_size_ids=0):
    """What is published by these configs, without any weights."""
    read = unet_config.read(unet)
    towers = {
        name: text_config.read(config, projected="Projection" in str(config))
        for name, config in texts.items()
    }
    return published.Published(
        unet=read.fields,
        vae=autoencoder_config.read(vae).fields,
        texts=towers,
        tokenizers={},
        scheduler={},
        tensors={"unet": {}},
        num_size_ids=num_size_ids,
        size_id_width=read.size_id_width or 256,
    )


def write(directory, unet, vae, texts, *, dtype="float32", index=None):
    """Writes a directory of random weights; where its tokenizers belong is nothing."""
    directory = pathlib.Path(directory)
    configs = dict(unet=unet, vae=vae, **texts)
    index = index or index_of(texts)
    for name, value in index.items():
        if isinstance(value, list) and value[1] is not None:
            (directory / name).mkdir(parents=True)
    like = published.shapes(without_tensors(unet, vae, texts), dtype=dtype)
    rng = np.random.default_rng(0)
    for name, config in configs.items():
        (directory / name / "config.json").write_text(json.dumps(config))
        stem = "model" if name in texts else "diffusion_pytorch_model"
        tensors = {
            key: draw(rng, tensor) for key, tensor in convert_like(like[name]).items()
        }
        save_file(tensors, directory / name / f"{stem}.safetensors")
    path = directory / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(SCHEDULER))
    (directory / "model_index.json").write_text(json.dumps(index))
    return directory


def convert_like(like):
    """Names and shapes in torch's layout."""
    import jax

    empty = jax.tree.map(
        lambda p: np.broadcast_to(np.zeros((), p.dtype), p.shape), like
    )
    flat = jax.tree_util.tree_leaves_with_path(empty)
    found = {}
    for path, value in flat:
        names = tuple(part.key for part in path)
        found[convert.torch_key(names)] = convert.to_torch(names, value)
    return found


def draw(rng, like):
    """Numbers of the scale of weights; a million random ones, again and again."""
    fan_in = max(1, int(np.prod(like.shape[1:])))
    size = int(np.prod(like.shape))
    numbers = rng.standard_normal(min(size, 10**6), np.float32)
    numbers = np.resize(numbers / np.float32(fan_in**0.5), like.shape)
    return numbers.astype(like.dtype)
