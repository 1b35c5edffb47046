"""A published unCLIP of milliseconds, written without torch: random, of a fixed seed.

`write(directory)` writes text to image, `write(directory, kind=karlo.VARIATION)` the
repository of image variation. The configs say as much as those of Karlo do.
"""

import json
import pathlib
import shutil

import jax
import numpy as np
from safetensors.numpy import save_file

from diffusion_jax.data import captions
from diffusion_jax.weights import (
    convert,
    image_config,
    karlo,
    prior_config,
    published_unclip,
    text_config,
    text_proj_config,
    unclip_unet_config,
    vision_config,
)

WORDS = ("a red circle above a blue square", "two green triangles, on white", "cat dog")
NUM_TOKENS, LENGTH, EMBED, CONTEXT = 600, 77, 8, 6
RESNET_DOWN, RESNET_UP = unclip_unet_config.RESNET_DOWN, unclip_unet_config.RESNET_UP
LEVELS = dict(layers_per_block=1, block_out_channels=[8, 8], norm_num_groups=2)
UPSAMPLER = LEVELS | dict(
    _class_name="UNet2DModel",
    sample_size=8,
    in_channels=6,
    out_channels=3,
    down_block_types=[RESNET_DOWN] * 2,
    up_block_types=[RESNET_UP] * 2,
    add_attention=False,
)
CONFIGS = {
    "prior": dict(
        _class_name="PriorTransformer",
        num_attention_heads=2,
        attention_head_dim=4,
        num_layers=1,
        embedding_dim=EMBED,
    ),
    "text_encoder": dict(
        architectures=["CLIPTextModelWithProjection"],
        model_type="clip_text_model",
        vocab_size=NUM_TOKENS,
        hidden_size=EMBED,
        intermediate_size=8,
        num_attention_heads=2,
        num_hidden_layers=1,
        projection_dim=EMBED,
    ),
    "image_encoder": dict(
        architectures=["CLIPVisionModelWithProjection"],
        model_type="clip_vision_model",
        hidden_size=8,
        intermediate_size=8,
        num_attention_heads=2,
        num_hidden_layers=1,
        projection_dim=EMBED,
        image_size=8,
        patch_size=4,
    ),
    "text_proj": dict(
        _class_name="UnCLIPTextProjModel",
        clip_embeddings_dim=EMBED,
        time_embed_dim=32,
        cross_attention_dim=CONTEXT,
    ),
    "decoder": LEVELS
    | dict(
        _class_name="UNet2DConditionModel",
        sample_size=4,
        in_channels=3,
        out_channels=6,
        down_block_types=[RESNET_DOWN, "SimpleCrossAttnDownBlock2D"],
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=["SimpleCrossAttnUpBlock2D", RESNET_UP],
        attention_head_dim=4,
        cross_attention_dim=CONTEXT,
        class_embed_type="identity",
        resnet_time_scale_shift="scale_shift",
    ),
    "super_res_first": UPSAMPLER,
    "super_res_last": UPSAMPLER,
}
SCHEDULERS = {
    "prior_scheduler": dict(
        variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0
    ),
    "decoder_scheduler": dict(variance_type="learned_range"),
    "super_res_scheduler": dict(variance_type="fixed_small_log"),
}
FEATURES = dict(
    size=8, crop_size=8, image_mean=[0.4, 0.5, 0.45], image_std=[0.3, 0.25, 0.2]
)


def write(directory, *, kind=karlo.TEXT_TO_IMAGE, seed=0, configs=CONFIGS):
    """A directory as it is downloaded; what both kinds have is the same."""
    directory = pathlib.Path(directory)
    shutil.rmtree(directory, ignore_errors=True)
    parts = [*karlo.OWN[kind], *karlo.SHARED]
    tokenizer = captions.train_tokenizer(
        WORDS, directory / "tokenizer", vocab_size=NUM_TOKENS, context_length=LENGTH
    )
    ids = dict(eos_token_id=tokenizer.eos_id, vocab_size=tokenizer.vocab_size)
    configs = configs | {"text_encoder": ids | configs["text_encoder"] | ids}
    like = published_unclip.shapes(describe(configs))
    for name in parts:
        (directory / name).mkdir(exist_ok=True)
        if name in karlo.MODULES:
            write_json(directory / name / "config.json", configs[name])
            stem = "model" if "encoder" in name else "diffusion_pytorch_model"
            save_file(
                tensors(like, name, seed), directory / name / f"{stem}.safetensors"
            )
        elif name in SCHEDULERS:
            said = dict(_class_name="UnCLIPScheduler") | SCHEDULERS[name]
            write_json(directory / name / "scheduler_config.json", said)
    if "feature_extractor" in parts:
        write_json(directory / "feature_extractor" / image_config.FILE, FEATURES)
    index = {name: ["diffusers", karlo.CLASSES[name][0]] for name in parts}
    write_json(directory / "model_index.json", dict(_class_name=kind) | index)
    return directory


def describe(configs=CONFIGS):
    """What is published by these configs, without any tensors."""
    projection = text_proj_config.read(configs["text_proj"])
    decoder = unclip_unet_config.read_decoder(configs["decoder"])
    super_res = {
        name: unclip_unet_config.read_upsampler(configs[name])
        for name in ("super_res_first", "super_res_last")
    }
    return published_unclip.PublishedUnclip(
        text=text_config.read(configs["text_encoder"], projected=True),
        text_proj=projection.fields,
        decoder=decoder.fields,
        super_res={name: read.fields for name, read in super_res.items()},
        size=decoder.size,
        super_res_size=super_res["super_res_first"].size,
        tokenizer=pathlib.Path("tokenizer"),
        schedulers={},
        tensors={},
        prior=prior_config.read(configs["prior"]),
        image=vision_config.read(configs["image_encoder"]),
    )


def tensors(like, name, seed):
    """Random numbers under the names and in the layout of torch."""
    rng = np.random.default_rng([seed, *name.encode()])
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(like[name]):
        names = tuple(part.key for part in path)
        fan_in = max(1, np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 25
        numbers = rng.normal(size=leaf.shape) / np.sqrt(fan_in)
        numbers += names[-1] == "scale"
        found[convert.torch_key(names)] = convert.to_torch(names, numbers)
    if name == "prior":
        found["clip_mean"] = rng.normal(size=(1, EMBED))
        found["clip_std"] = rng.uniform(0.5, 1.5, (1, EMBED))
    return {
        key: np.ascontiguousarray(value, np.float32) for key, value in found.items()
    }


def write_json(path, content):
    path.write_text(json.dumps(content))


def change_json(path, **changes):
    """The file with other values; None takes a field out."""
    content = json.loads(path.read_text()) | changes
    write_json(path, {name: v for name, v in content.items() if v is not None})
