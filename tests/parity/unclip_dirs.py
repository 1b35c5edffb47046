"""Tiny unCLIPs in the layout of Karlo, written by diffusers: random, of a fixed seed.

`write(directory)` writes text to image, `write_variation(directory, parts)` the other
repository of the same parts; both return the diffusers pipeline that they wrote.
"""

import pathlib

import diffusers
import torch
import transformers
from diffusers.pipelines.deprecated import unclip

from tests.parity import published_dirs
from tests.parity.published_dirs import LENGTH, PADDING, draw

EMBED, CONTEXT, SIZE, LARGE, PATCHES = 16, 12, 8, 16, 20
RESNET_DOWN, RESNET_UP = "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"
ATTENTION_DOWN, ATTENTION_UP = "SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D"
PRIOR = dict(
    num_attention_heads=2,
    attention_head_dim=8,
    num_layers=2,
    embedding_dim=EMBED,
    num_embeddings=LENGTH,
)
DECODER = dict(
    sample_size=SIZE,
    in_channels=3,
    out_channels=6,
    layers_per_block=1,
    block_out_channels=(16, 24),
    down_block_types=(RESNET_DOWN, ATTENTION_DOWN),
    mid_block_type="UNetMidBlock2DSimpleCrossAttn",
    up_block_types=(ATTENTION_UP, RESNET_UP),
    norm_num_groups=8,
    attention_head_dim=8,  # the width of a head
    cross_attention_dim=CONTEXT,
    class_embed_type="identity",
    resnet_time_scale_shift="scale_shift",
)
UPSAMPLER = dict(
    sample_size=LARGE,
    in_channels=6,
    out_channels=3,
    layers_per_block=1,
    block_out_channels=(8, 16),
    down_block_types=(RESNET_DOWN,) * 2,
    up_block_types=(RESNET_UP,) * 2,
    norm_num_groups=4,
    add_attention=False,
)
PROJECTION = dict(
    clip_embeddings_dim=EMBED,
    time_embed_dim=4 * DECODER["block_out_channels"][0],
    cross_attention_dim=CONTEXT,
)
TEXT = published_dirs.TEXT | dict(hidden_size=EMBED, projection_dim=EMBED)
IMAGE = dict(
    hidden_size=16,
    intermediate_size=24,
    projection_dim=EMBED,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=PATCHES,
    patch_size=5,
)
SCHEDULERS = {  # as published
    "prior_scheduler": dict(
        variance_type="fixed_small_log",
        prediction_type="sample",
        clip_sample_range=5.0,
    ),
    "decoder_scheduler": dict(variance_type="learned_range", prediction_type="epsilon"),
    "super_res_scheduler": dict(
        variance_type="fixed_small_log", prediction_type="epsilon"
    ),
}


def write(directory, *, seed=0, **saving):
    """Text to image; `saving` goes to save_pretrained: variant, max_shard_size."""
    torch.manual_seed(seed)
    tokenizer = published_dirs.make_tokenizer(
        pathlib.Path(directory) / "tokenizer", PADDING
    )
    pipeline = unclip.UnCLIPPipeline(
        prior=make_prior(),
        decoder=make_decoder(),
        text_encoder=published_dirs.make_text(TEXT, tokenizer, projected=True),
        tokenizer=tokenizer,
        text_proj=make_projection(),
        super_res_first=make_upsampler(),
        super_res_last=make_upsampler(),
        **{
            name: diffusers.UnCLIPScheduler(**fields)
            for name, fields in SCHEDULERS.items()
        },
    )
    return published_dirs._save(pipeline, directory, saving)


def write_variation(directory, theirs, *, seed=1, **saving):
    """Image variation with the parts of a text-to-image pipeline."""
    torch.manual_seed(seed)
    parts = {
        name: part
        for name, part in theirs.components.items()
        if name not in ("prior", "prior_scheduler")
    }
    pipeline = unclip.UnCLIPImageVariationPipeline(
        image_encoder=make_image_encoder(), feature_extractor=make_extractor(), **parts
    )
    return published_dirs._save(pipeline, directory, saving)


def make_prior(fields=()):
    """A tiny prior that does not leave the scale of embeddings at zero."""
    module = draw(diffusers.PriorTransformer(**PRIOR | dict(fields)))
    with torch.no_grad():
        module.clip_mean.copy_(0.3 * torch.randn(module.clip_mean.shape))
        module.clip_std.copy_(0.5 + torch.rand(module.clip_std.shape))
    return module


def make_decoder(fields=()):
    """A tiny decoder."""
    return draw(diffusers.UNet2DConditionModel(**DECODER | dict(fields)))


def make_upsampler(fields=()):
    """A tiny network of super resolution."""
    return draw(diffusers.UNet2DModel(**UPSAMPLER | dict(fields)))


def make_projection(fields=()):
    """A tiny projection, whose learned embedding is not zero."""
    module = draw(unclip.UnCLIPTextProjModel(**PROJECTION | dict(fields)))
    with torch.no_grad():
        module.learned_classifier_free_guidance_embeddings.normal_()
    return module


def make_image_encoder(fields=()):
    """A tiny tower of CLIP for images."""
    config = transformers.CLIPVisionConfig(**IMAGE | dict(fields))
    return draw(transformers.CLIPVisionModelWithProjection(config))


def make_extractor(**fields):
    """What prepares images for it, with another mean and std than usual."""
    usual = dict(
        size={"shortest_edge": PATCHES},
        crop_size={"height": PATCHES, "width": PATCHES},
        image_mean=[0.4, 0.5, 0.45],
        image_std=[0.3, 0.25, 0.2],
    )
    return transformers.CLIPImageProcessor(**usual | fields)
