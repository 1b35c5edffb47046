"""At the published widths the models have exactly the published parameters."""

import math

import jax
import jax.numpy as jnp
import pytest

from diffusion_jax.models.autoencoder import AutoencoderKL
from diffusion_jax.models.clip import CLIP, CLIPText, CLIPVision
from diffusion_jax.models.unet import UNet
from diffusion_jax.types import Conditioning


def numbers(shape, *sizes):
    return jax.ShapeDtypeStruct((1, *shape), *sizes or (jnp.float32,))


def unet_inputs(size, channels, tokens=None, vector=None):
    cond = Conditioning(
        tokens=None if tokens is None else numbers((77, tokens)),
        vector=None if vector is None else numbers((vector,)),
    )
    return numbers((size, size, channels)), numbers(()), cond


IDS = numbers((77,), jnp.int32)
XL = dict(vector="add_embedding", linear_projection=True)
KARLO = dict(
    channels=(320, 640, 960, 1280),
    blocks_per_level=3,
    resample="resnet",
    out_channels=6,
)
WIDE_TEXT = dict(activation="gelu", eos_id=2)
PUBLISHED = {
    "sd 1 unet": (UNet(), unet_inputs(64, 4, 768), 859_520_964),
    "sd 2 unet": (
        UNet(num_heads=(5, 10, 20, 20), linear_projection=True),
        unet_inputs(64, 4, 1024),
        865_910_724,
    ),
    "sd xl unet": (
        UNet(
            channels=(320, 640, 1280),
            attention=("none", "transformer", "transformer"),
            transformer_depth=(1, 2, 10),
            num_heads=(5, 10, 20),
            **XL,
        ),
        unet_inputs(128, 4, 2048, 2816),
        2_567_463_684,
    ),
    "sd xl refiner unet": (
        UNet(
            channels=(384, 768, 1536, 1536),
            attention=("none", "transformer", "transformer", "none"),
            transformer_depth=4,
            num_heads=(6, 12, 24, 24),
            **XL,
        ),
        unet_inputs(128, 4, 1280, 2560),
        2_259_526_660,
    ),
    "karlo decoder": (
        UNet(
            attention=("none", "added_kv", "added_kv", "added_kv"),
            mid_attention="added_kv",
            num_heads=(5, 10, 15, 20),
            time_modulation="scale_shift",
            vector="identity",
            **KARLO,
        ),
        unet_inputs(64, 3, 1536, 1280),
        885_439_686,
    ),
    "karlo upsampler": (
        UNet(
            **KARLO | dict(out_channels=3),
            attention=("none",) * 4,
            mid_attention="none",
        ),
        unet_inputs(256, 6),
        691_579_523,
    ),
    "autoencoder": (AutoencoderKL(), (numbers((512, 512, 3)),), 83_653_863),
    "clip l text": (CLIPText(), (IDS,), 123_060_480),
    "openclip h text": (
        CLIPText(width=1024, num_layers=23, num_heads=16, mlp_width=4096, **WIDE_TEXT),
        (IDS,),
        340_387_840,
    ),
}


def count(module, inputs):
    params = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return params, sum(math.prod(p.shape) for p in jax.tree.leaves(params))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_published(name):
    module, inputs, expected = PUBLISHED[name]
    assert count(module, inputs)[1] == expected


def test_clip_l_has_as_many_parameters_as_published():
    model = CLIP(CLIPText(), CLIPVision())
    params, _ = count(model, (numbers((224, 224, 3)), IDS))
    sizes = {
        name: sum(math.prod(p.shape) for p in jax.tree.leaves(tower))
        for name, tower in params.items()
    }
    assert sizes["text_model"] + sizes["text_projection"] == 123_650_304
    assert sizes["vision_model"] + sizes["visual_projection"] == 303_966_208
