"""At the published widths the models have exactly the published parameters.

Those of Stable Diffusion are counted from its configs, in tests/weights.
"""

import math

import jax
import jax.numpy as jnp
import pytest

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
KARLO = dict(
    channels=(320, 640, 960, 1280),
    blocks_per_level=3,
    resample="resnet",
    out_channels=6,
)
PUBLISHED = {
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
