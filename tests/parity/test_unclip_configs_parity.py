"""Every field of unCLIP's published classes is known, and those honoured agree."""

import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from diffusers.pipelines.deprecated.unclip import UnCLIPTextProjModel

from diffusion_jax.models.prior import PriorTransformer
from diffusion_jax.models.unclip import Encoded, TextImageProjection
from diffusion_jax.models.unet import UNet
from diffusion_jax.types import Conditioning
from diffusion_jax.weights import (
    components,
    config_fields,
    convert,
    image_config,
    karlo,
    prior_config,
    text_proj_config,
    unclip_unet_config,
)
from tests.parity import unclip_dirs
from tests.parity.module_checks import check, nchw, nhwc, normal
from tests.parity.unclip_dirs import CONTEXT, EMBED, LENGTH

CLASSES = {
    "prior": (prior_config.TABLE, diffusers.PriorTransformer),
    "text_proj": (text_proj_config.TABLE, UnCLIPTextProjModel),
    "decoder": (unclip_unet_config.DECODER_TABLE, diffusers.UNet2DConditionModel),
    "super_res": (unclip_unet_config.UPSAMPLER_TABLE, diffusers.UNet2DModel),
}
DOWN, UP = unclip_dirs.RESNET_DOWN, unclip_dirs.RESNET_UP
ATTENTION_DOWN, ATTENTION_UP = unclip_dirs.ATTENTION_DOWN, unclip_dirs.ATTENTION_UP
LEVELS = dict(block_out_channels=(8, 16, 24), norm_num_groups=2, norm_eps=1e-2)
SLOW = pytest.mark.slow  # without fields, whole images compare it: test_karlo_parity.py
PRIORS = [
    pytest.param({}, marks=SLOW),
    dict(
        time_embed_dim=20,
        embedding_proj_norm_type="layer",
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=3,
        time_embed_act_fn="swish",
    ),
]
DECODERS = [
    pytest.param({}, marks=SLOW),
    pytest.param(
        LEVELS
        | dict(
            down_block_types=(ATTENTION_DOWN, DOWN, ATTENTION_DOWN),
            up_block_types=(ATTENTION_UP, UP, ATTENTION_UP),
            attention_head_dim=4,
        ),
        marks=SLOW,
    ),
    dict(
        block_out_channels=(8, 16),
        norm_num_groups=2,
        norm_eps=1e-2,
        down_block_types=(ATTENTION_DOWN, DOWN),
        up_block_types=(UP, ATTENTION_UP),
        resnet_time_scale_shift="default",
        layers_per_block=(2, 1),
        attention_head_dim=(4, 4),
        use_linear_projection=True,
        upcast_attention=True,
        transformer_layers_per_block=2,
        downsample_padding=0,
        dropout=0.5,
        act_fn="swish",
    ),
]
UPSAMPLERS = [
    pytest.param({}, marks=SLOW),
    pytest.param(
        LEVELS
        | dict(
            down_block_types=(DOWN,) * 3,
            up_block_types=(UP,) * 3,
            layers_per_block=2,
        ),
        marks=SLOW,
    ),
    dict(
        norm_eps=1e-2,
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=None,
        downsample_padding=0,
        downsample_type="resnet",
        upsample_type="resnet",
        dropout=0.5,
        act_fn="swish",
    ),
]


@pytest.mark.parametrize("name", CLASSES)
def test_every_field_of_the_class_is_in_the_table_with_its_default(name):
    table, kind = CLASSES[name]
    fields = {
        field: parameter.default
        for field, parameter in inspect.signature(kind.__init__).parameters.items()
        if field != "self"
    }
    assert set(fields) <= set(table)
    for field, default in fields.items():
        if default is inspect.Parameter.empty:
            default = None  # required: we refuse a file without it
        if table[field].is_honoured:
            assert table[field].default == config_fields._frozen(default), field


def test_every_field_of_the_preprocessing_is_in_the_table():
    extractor = transformers.CLIPImageProcessor()
    assert set(json.loads(extractor.to_json_string())) <= set(image_config.TABLE)
    read = image_config.read(json.loads(extractor.to_json_string()), size=224)
    assert list(read.mean) == list(extractor.image_mean)
    assert list(read.std) == list(extractor.image_std)


def loaded(module, theirs, *inputs):
    """Parameters of our module from theirs."""
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    for name in karlo.EMBEDDING_SCALE:  # beside the prior, not in it
        state.pop(name, None)
    return convert.load_torch(state, components.shape(module, *inputs))


def config(theirs):
    return json.loads(theirs.to_json_string())


@pytest.mark.parametrize("fields", PRIORS, ids=range(len(PRIORS)))
@torch.no_grad()
def test_prior_agrees(fields):
    torch.manual_seed(0)
    theirs = unclip_dirs.make_prior(fields)
    module = PriorTransformer(**prior_config.read(config(theirs)))
    x, hidden, embed = normal(2, EMBED), normal(2, LENGTH, EMBED), normal(2, EMBED)
    time, mask = np.array([3.0, 740.0], np.float32), np.arange(LENGTH) < [[LENGTH], [5]]
    cond = Conditioning(jnp.asarray(hidden), jnp.asarray(mask), jnp.asarray(embed))
    params = loaded(module, theirs, x, time, cond)
    ours = jax.jit(module.apply)({"params": params}, x, time, cond)
    expected = theirs(
        *map(torch.tensor, (x, time, embed, hidden, mask))
    ).predicted_image_embedding
    check("prior", ours, expected)


@pytest.mark.parametrize("num_tokens", [pytest.param(4, marks=SLOW), 3])
@torch.no_grad()
def test_projection_agrees(num_tokens):
    """Guided: first without the image, of which a learned vector takes the place."""
    torch.manual_seed(0)
    theirs = unclip_dirs.make_projection(dict(clip_extra_context_tokens=num_tokens))
    module = TextImageProjection(**text_proj_config.read(config(theirs)).fields)
    image, hidden, embed = normal(2, EMBED), normal(4, 7, EMBED), normal(4, EMBED)
    both, text = np.concatenate([image, image]), Encoded(hidden, embed)
    is_dropped = jnp.array([True, True, False, False])
    text = Encoded(*map(jnp.asarray, text[:2]), jnp.ones((4, 7), bool))
    params = loaded(module, theirs, both, text, is_dropped)
    ours = module.apply({"params": params}, jnp.asarray(both), text, is_dropped)
    tokens, vector = theirs(
        image_embeddings=torch.tensor(image),
        prompt_embeds=torch.tensor(embed),
        text_encoder_hidden_states=torch.tensor(hidden),
        do_classifier_free_guidance=True,
    )
    check("tokens", ours.tokens, tokens)
    check("vector", ours.vector, vector)
    assert ours.mask.shape == (4, num_tokens + 7) and ours.mask[:, :num_tokens].all()


@pytest.mark.parametrize("fields", DECODERS, ids=range(len(DECODERS)))
@torch.no_grad()
def test_decoder_agrees(fields):
    torch.manual_seed(0)
    theirs = unclip_dirs.make_decoder(fields)
    read = unclip_unet_config.read_decoder(config(theirs))
    module = UNet(**read.fields)
    x, tokens = normal(2, 8, 8, 3), normal(2, 9, CONTEXT)
    vector = normal(2, read.time_width)
    time, mask = np.array([3.0, 740.0], np.float32), np.arange(9) < [[9], [5]]
    cond = Conditioning(*map(jnp.asarray, (tokens, mask, vector)))
    params = loaded(module, theirs, x, time, cond)
    ours = jax.jit(module.apply)({"params": params}, x, time, cond)
    expected = theirs(
        nchw(x),
        torch.tensor(time),
        torch.tensor(tokens),
        class_labels=torch.tensor(vector),
        attention_mask=torch.tensor(mask),
    ).sample
    check("decoder", ours, nhwc(expected))


@pytest.mark.parametrize("fields", UPSAMPLERS, ids=range(len(UPSAMPLERS)))
@torch.no_grad()
def test_super_resolution_agrees(fields):
    torch.manual_seed(0)
    theirs = unclip_dirs.make_upsampler(fields)
    module = UNet(**unclip_unet_config.read_upsampler(config(theirs)).fields)
    x, image = normal(2, 8, 8, 3), normal(2, 8, 8, 3)
    time, cond = np.array([3.0, 740.0], np.float32), Conditioning(image=image)
    cond = jax.tree.map(jnp.asarray, cond)
    params = loaded(module, theirs, x, time, cond)
    ours = jax.jit(module.apply)({"params": params}, x, time, cond)
    expected = theirs(nchw(np.concatenate([x, image], -1)), torch.tensor(time)).sample
    check("super resolution", ours, nhwc(expected))
