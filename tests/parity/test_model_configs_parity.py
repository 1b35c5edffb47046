"""Every field of the published classes is known, and those that are honoured agree."""

import inspect
import json

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from diffusion_jax.weights import (
    autoencoder_config,
    config_fields,
    convert,
    published,
    text_config,
    unet_config,
)
from tests.parity import published_dirs
from tests.parity.module_checks import check_text, check_unet, check_vae

CLASSES = {
    unet_config: diffusers.UNet2DConditionModel,
    autoencoder_config: diffusers.AutoencoderKL,
    text_config: transformers.CLIPTextConfig,
}
KINDS = {reader: reader.__name__.split(".")[-1] for reader in CLASSES}


@pytest.mark.parametrize("reader", CLASSES, ids=KINDS.get)
def test_every_field_of_the_class_is_in_the_table_with_its_default(reader):
    parameters = inspect.signature(CLASSES[reader].__init__).parameters
    fields = {
        name: config_fields._frozen(parameter.default)
        for name, parameter in parameters.items()
        if name != "self"
    }
    assert set(fields) <= set(reader.TABLE)
    for name, default in fields.items():
        if reader.TABLE[name].is_honoured:
            assert reader.TABLE[name].default == default, name
    if reader is text_config:
        assert set(transformers.CLIPTextConfig().to_dict()) <= set(reader.TABLE)


# What differs from the directories above, for every field that is honoured.
HONOURED = {
    "unet": [
        dict(norm_num_groups=4, norm_eps=1e-2, upcast_attention=True),
        dict(resnet_time_scale_shift="scale_shift", out_channels=8),
        dict(layers_per_block=(2, 1), attention_head_dim=(4, 2), act_fn="swish"),
        dict(
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
            transformer_layers_per_block=(2, 1),
            block_out_channels=(16, 24),
        ),
        dict(use_linear_projection=True, layers_per_block=2, dropout=0.5),
    ],
    "vae": [
        dict(block_out_channels=(8, 12, 16), layers_per_block=2, norm_num_groups=2),
        dict(latent_channels=6, shift_factor=0.3, scaling_factor=0.5),
        dict(in_channels=1, out_channels=1, act_fn="swish"),
        dict(use_quant_conv=False, use_post_quant_conv=False),
        dict(mid_block_add_attention=False, force_upcast=False),
    ],
    "text": [
        dict(hidden_act="gelu", layer_norm_eps=1e-2, num_hidden_layers=2),
        dict(hidden_size=24, intermediate_size=20, num_attention_heads=4),
        dict(eos_token_id=554, projection_dim=8),
    ],
}


@pytest.mark.parametrize("i", range(5))
def test_every_unet_field_that_is_honoured_agrees(i):
    torch.manual_seed(i)
    fields = HONOURED["unet"][i]
    theirs = published_dirs.make_unet(dict(cross_attention_dim=16) | fields)
    read = unet_config.read(json.loads(theirs.to_json_string()))
    model = of(unet=read.fields)
    params = convert.load_torch(state(theirs), published.shape(model, "unet"))
    check_unet(model, published.modules(model)["unet"], params, theirs)


@pytest.mark.parametrize("i", range(5))
def test_every_autoencoder_field_that_is_honoured_agrees(i):
    torch.manual_seed(i)
    theirs = published_dirs.make_vae(HONOURED["vae"][i])
    read = autoencoder_config.read(json.loads(theirs.to_json_string()))
    model = of(vae=read.fields)
    params = convert.load_torch(state(theirs), published.shape(model, "vae"))
    check_vae(published.modules(model)["vae"], params, theirs)
    assert read.latent_scale == theirs.config.scaling_factor
    assert read.latent_shift == (theirs.config.shift_factor or 0.0)
    assert read.force_upcast == theirs.config.force_upcast


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("i", range(3))
def test_every_text_field_that_is_honoured_agrees(i, projected):
    torch.manual_seed(i)
    fields = published_dirs.TEXT | HONOURED["text"][i]
    theirs = published_dirs.make_text(fields, range(555), projected=projected)
    read = text_config.read(theirs.config.to_dict(), projected=projected)
    model = of(texts={"text_encoder": read})
    params = convert.load_torch(state(theirs), published.shape(model, "text_encoder"))
    module = published.modules(model)["text_encoder"]
    check_text("text_encoder", read, module, params, theirs)


def of(**parts):
    """What is published if there is this one module."""
    texts = {"text_encoder": dict(width=16)}
    vae = dict(channels=(8,), latent_channels=4, image_channels=3)
    usual = dict(unet=dict(channels=(8,)), vae=vae, texts=texts)
    rest = dict(tokenizers={}, scheduler={}, tensors={"unet": {}})
    return published.Published(**usual | parts | rest)


def state(module):
    return {key: value.numpy() for key, value in module.state_dict().items()}
