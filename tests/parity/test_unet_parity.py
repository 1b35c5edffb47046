"""The U-Net computes what diffusers computes, on the same random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusion_jax.models.layers import sinusoid
from diffusion_jax.models.unet import UNet
from diffusion_jax.types import Conditioning
from diffusion_jax.weights.convert import load_torch, save_torch

TRANSFORMER_DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")
TRANSFORMER_UP = ("UpBlock2D", "CrossAttnUpBlock2D")
TRANSFORMER = dict(
    channels=(16, 32), attention=("transformer", "none"), norm_groups=8, num_heads=2
)
THEIRS = dict(
    block_out_channels=(16, 32),
    down_block_types=TRANSFORMER_DOWN,
    up_block_types=TRANSFORMER_UP,
    norm_num_groups=8,
    attention_head_dim=2,
    cross_attention_dim=12,
)
KARLO = dict(
    channels=(16, 32, 32),
    attention=("none", "added_kv", "added_kv"),
    mid_attention="added_kv",
    resample="resnet",
    time_modulation="scale_shift",
    norm_groups=8,
    num_heads=(2, 4, 4),
    vector="identity",
    out_channels=6,
)
THEIR_KARLO = dict(
    block_out_channels=(16, 32, 32),
    down_block_types=("ResnetDownsampleBlock2D",) + ("SimpleCrossAttnDownBlock2D",) * 2,
    mid_block_type="UNetMidBlock2DSimpleCrossAttn",
    up_block_types=("SimpleCrossAttnUpBlock2D",) * 2 + ("ResnetUpsampleBlock2D",),
    resnet_time_scale_shift="scale_shift",
    class_embed_type="identity",
    norm_num_groups=8,
    attention_head_dim=8,
    cross_attention_dim=12,
    out_channels=6,
)
XL = dict(
    channels=(16, 32, 32),
    attention=("none", "transformer", "transformer"),
    transformer_depth=(1, 2, 3),
    num_heads=(1, 2, 4),
    linear_projection=True,
    vector="add_embedding",
    norm_groups=8,
)
THEIR_XL = dict(
    block_out_channels=(16, 32, 32),
    down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
    up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
    transformer_layers_per_block=(1, 2, 3),
    attention_head_dim=(1, 2, 4),
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=20 + 6 * 8,
    norm_num_groups=8,
    cross_attention_dim=12,
)
ONE_LEVEL = dict(channels=(16,), attention=("transformer",), norm_groups=8, num_heads=2)
THEIR_ONE_LEVEL = dict(
    block_out_channels=(16,),
    down_block_types=("CrossAttnDownBlock2D",),
    up_block_types=("CrossAttnUpBlock2D",),
    norm_num_groups=8,
    attention_head_dim=2,
    cross_attention_dim=12,
)
VARIANTS = {
    "stable diffusion 1": (TRANSFORMER, THEIRS),
    "stable diffusion 1, inpainting": (TRANSFORMER, THEIRS | dict(in_channels=9)),
    "stable diffusion 2": (
        TRANSFORMER
        | dict(linear_projection=True, num_heads=(2, 4), upcast_attention=True),
        THEIRS
        | dict(
            use_linear_projection=True, attention_head_dim=(2, 4), upcast_attention=True
        ),
    ),
    "another eps of the norms": (
        TRANSFORMER | dict(norm_eps=0.5),
        THEIRS | dict(norm_eps=0.5),
    ),
    "stable diffusion xl": (XL, THEIR_XL),
    "unclip decoder": (KARLO, THEIR_KARLO),
    "class table": (
        ONE_LEVEL | dict(vector="table"),
        THEIR_ONE_LEVEL | dict(num_class_embeds=5),
    ),
    "class projection": (
        ONE_LEVEL | dict(vector="class_embedding"),
        THEIR_ONE_LEVEL
        | dict(class_embed_type="projection", projection_class_embeddings_input_dim=20),
    ),
}


def randomise(module, seed=0):
    """No parameter keeps a value, such as 0 or 1, that could hide a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def state_of(module):
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def nchw(x):
    return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


def vector_for(ours, theirs):
    """`cond.vector` and what diffusers wants instead."""
    rng = np.random.default_rng(1)
    kind = ours.get("vector", "none")
    if kind == "none":
        return None, {}
    if kind == "table":
        labels = np.array([1, 4])
        return np.eye(5, dtype=np.float32)[labels], dict(
            class_labels=torch.tensor(labels)
        )
    if kind == "identity":
        width = 4 * ours["channels"][0]
        vector = rng.standard_normal((2, width)).astype(np.float32)
        return vector, dict(class_labels=torch.tensor(vector))
    vector = rng.standard_normal((2, 20)).astype(np.float32)
    if kind == "class_embedding":
        return vector, dict(class_labels=torch.tensor(vector))
    ids = np.array([[64, 64, 0, 8, 64, 64]] * 2, np.float32)
    embedded = np.asarray(sinusoid(jnp.asarray(ids.ravel()), 8)).reshape(2, -1)
    added = dict(text_embeds=torch.tensor(vector), time_ids=torch.tensor(ids))
    return np.concatenate([vector, embedded], -1), dict(added_cond_kwargs=added)


@pytest.mark.parametrize("name", VARIANTS)
def test_unet_agrees_with_diffusers(name):
    ours, theirs = VARIANTS[name]
    torch.manual_seed(0)
    reference = randomise(
        diffusers.UNet2DConditionModel(**theirs, layers_per_block=1, sample_size=8)
    )
    unet = UNet(**ours, blocks_per_level=1)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 8, 8, 4)).astype(np.float32)
    tokens = rng.standard_normal((2, 7, 12)).astype(np.float32)
    mask = np.arange(7) < np.array([[7], [4]])
    time = np.array([3.0, 740.0], np.float32)
    vector, their_vector = vector_for(ours, theirs)
    image = rng.standard_normal((2, 8, 8, 5)).astype(np.float32)
    image = image if theirs.get("in_channels") == 9 else image[..., :0]
    cond = Conditioning(jnp.asarray(tokens), jnp.asarray(mask), vector, image)

    like = jax.eval_shape(unet.init, jax.random.key(0), x, time, cond)["params"]
    params = load_torch(state_of(reference), like)
    with torch.no_grad():
        expected = reference(
            nchw(np.concatenate([x, image], -1)),
            torch.tensor(time),
            encoder_hidden_states=torch.tensor(tokens),
            encoder_attention_mask=torch.tensor(mask),
            **their_vector,
        ).sample.permute(0, 2, 3, 1)
    y = jax.jit(unet.apply)({"params": params}, x, time, cond)
    difference = np.abs(np.asarray(y) - expected.numpy()).max()
    print(f"{name}: {difference:.1e}")
    assert np.abs(expected.numpy()).max() > 0.1
    assert difference < 1e-4
    saved = save_torch(params)
    for key, tensor in state_of(reference).items():
        np.testing.assert_array_equal(saved[key], tensor)


@pytest.mark.parametrize("size", [(9, 12), (8, 13), (5, 7)])
def test_sizes_that_do_not_halve_agree_with_diffusers(size):
    torch.manual_seed(0)
    levels = dict(
        block_out_channels=(16, 32, 32),
        down_block_types=("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2,
    )
    reference = randomise(
        diffusers.UNet2DConditionModel(**THEIRS | levels, layers_per_block=1)
    )
    ours = dict(channels=(16, 32, 32), attention=("transformer",) * 2 + ("none",))
    unet = UNet(**TRANSFORMER | ours, blocks_per_level=1)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, *size, 4)).astype(np.float32)
    tokens = rng.standard_normal((1, 7, 12)).astype(np.float32)
    time, cond = np.array([500.0], np.float32), Conditioning(jnp.asarray(tokens))
    like = jax.eval_shape(unet.init, jax.random.key(0), x, time, cond)["params"]
    params = load_torch(state_of(reference), like)
    with torch.no_grad():
        expected = reference(
            nchw(x), torch.tensor(time), encoder_hidden_states=torch.tensor(tokens)
        ).sample.permute(0, 2, 3, 1)
    y = jax.jit(unet.apply)({"params": params}, x, time, cond)
    assert np.abs(np.asarray(y) - expected.numpy()).max() < 1e-4
