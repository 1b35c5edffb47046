"""Low-rank adaptations do here what they do in diffusers and peft, file by file."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from safetensors.numpy import load_file, save_file

from diffusion_jax.models.clip import CLIPText
from diffusion_jax.models.text import ProjectedText
from diffusion_jax.models.unet import UNet
from diffusion_jax.types import Conditioning
from diffusion_jax.weights import lora, lora_names
from diffusion_jax.weights.convert import load_torch

# diffusers still spells what transformers calls otherwise, and peft tells of choices.
pytestmark = pytest.mark.filterwarnings("ignore")

TEXT = dict(vocab_size=91, width=16, num_layers=2, num_heads=2, mlp_width=32)
TEXT |= dict(context_length=12, eos_id=90)
THEIR_TEXT = dict(
    vocab_size=91,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=12,
    projection_dim=16,
    bos_token_id=89,
    eos_token_id=90,
)
UNETS = {
    "sd1": dict(
        channels=(16, 32),
        attention=("transformer", "none"),
        num_heads=2,
        norm_groups=8,
        blocks_per_level=1,
    ),
    "xl": dict(
        channels=(16, 32),
        attention=("none", "transformer"),
        transformer_depth=(1, 2),
        num_heads=(1, 2),
        norm_groups=8,
        linear_projection=True,
        vector="add_embedding",
    ),
}
THEIR_UNETS = {
    "sd1": dict(
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=2,
        cross_attention_dim=16,
    ),
    "xl": dict(
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 6 * 4,
        norm_num_groups=8,
        cross_attention_dim=32,
    ),
}
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(1, 89, (2, 12))
TOKENS[:, 8:] = 90
X = RNG.standard_normal((2, 8, 8, 4)).astype(np.float32)
CONTEXT = RNG.standard_normal((2, 12, 32)).astype(np.float32)
TIME, POOLED, IDS = np.full(2, 7.0, np.float32), CONTEXT[:, 0, :16], CONTEXT[:, 1, :6]


def pipeline(kind):
    """A tiny pipeline of diffusers that has only what a lora adapts."""
    torch.manual_seed(0)
    options = dict(vae=None, tokenizer=None, scheduler=None)
    unet = diffusers.UNet2DConditionModel(sample_size=8, **THEIR_UNETS[kind])
    config = transformers.CLIPTextConfig(**THEIR_TEXT)
    text = transformers.CLIPTextModel(config)
    if kind == "sd1":
        options |= dict(safety_checker=None, feature_extractor=None)
        made = diffusers.StableDiffusionPipeline(
            text_encoder=text, unet=unet, requires_safety_checker=False, **options
        )
    else:
        projected = transformers.CLIPTextModelWithProjection(config)
        made = diffusers.StableDiffusionXLPipeline(
            text_encoder=text,
            text_encoder_2=projected,
            tokenizer_2=None,
            unet=unet,
            **options,
        )
        projected.eval()
    text.eval()
    unet.eval()
    return made


def towers(kind):
    return [name for name in ("text_encoder", "text_encoder_2")][: 1 + (kind == "xl")]


@torch.no_grad()
def their_outputs(pipe, kind):
    width = THEIR_UNETS[kind]["cross_attention_dim"]
    added = None
    if kind == "xl":
        added = dict(text_embeds=torch.tensor(POOLED), time_ids=torch.tensor(IDS))
    unet = pipe.unet(
        torch.tensor(X).permute(0, 3, 1, 2),
        torch.tensor(TIME),
        torch.tensor(CONTEXT[..., :width]),
        added_cond_kwargs=added,
    ).sample
    outputs = {"unet": unet.permute(0, 2, 3, 1).numpy()}
    for name in towers(kind):
        states = getattr(pipe, name)(torch.tensor(TOKENS))
        outputs[name] = states.last_hidden_state.numpy()
        if name == "text_encoder_2":
            outputs["pooled"] = states.text_embeds.numpy()
    return outputs


def modules(kind):
    tower = CLIPText(**TEXT)
    return dict(
        unet=UNet(**UNETS[kind]),
        text_encoder=tower,
        text_encoder_2=ProjectedText(tower, 16),
    )


def unet_inputs(kind):
    width = THEIR_UNETS[kind]["cross_attention_dim"]
    vector = None
    if kind == "xl":
        half = 10000.0 ** (-np.arange(2) / 2)
        angles = IDS[..., None] * half
        ids = np.concatenate([np.cos(angles), np.sin(angles)], -1).reshape(2, -1)
        vector = jnp.asarray(np.concatenate([POOLED, ids], -1), jnp.float32)
    cond = Conditioning(tokens=jnp.asarray(CONTEXT[..., :width]), vector=vector)
    return jnp.asarray(X), jnp.asarray(TIME), cond


@functools.cache
def compiled(kind):
    networks, inputs = modules(kind), unet_inputs(kind)

    @jax.jit
    def outputs(params, loras, scales):
        params = lora.merge(params, loras, scales)
        unet = networks["unet"].apply({"params": params["unet"]}, *inputs)
        found = {"unet": unet}
        for name in towers(kind):
            tokens = jnp.asarray(TOKENS)
            states, pooled = networks[name].apply({"params": params[name]}, tokens)
            found |= {name: states} | (
                {"pooled": pooled} if name == "text_encoder_2" else {}
            )
        return found

    return outputs


@functools.cache
def our_params(kind):
    pipe, networks = pipeline(kind), modules(kind)
    inputs = {name: (jnp.asarray(TOKENS),) for name in towers(kind)}
    inputs["unet"] = unet_inputs(kind)
    params = {}
    for name, args in inputs.items():
        like = jax.eval_shape(networks[name].init, jax.random.key(0), *args)["params"]
        state = getattr(pipe, name).state_dict()
        params[name] = load_torch({k: v.numpy() for k, v in state.items()}, like)
    return params


def random_lora(kind, pattern, seed, rank=4):
    """Factors none of which is zero, strong enough to be seen."""
    made = lora.init(jax.random.key(seed), our_params(kind), rank=rank, pattern=pattern)
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: (0.3 * rng.standard_normal(x.shape)).astype(np.float32), made
    )


def close(ours, theirs, plain=None):
    for name, expected in theirs.items():
        scale = np.abs(expected).max()
        assert np.abs(np.asarray(ours[name]) - expected).max() < 1e-4 * scale, name
        if plain is not None:
            assert np.abs(plain[name] - expected).max() > 1e-2 * scale, name


# All attention, feed-forwards, and what is no linear layer: 1x1 and 3x3 convolutions.
ALL = r"attn|ff|mlp|proj|resnets.*conv|samplers|text_projection"


@pytest.mark.parametrize("kind", ["sd1", "xl"])
@pytest.mark.parametrize("dialect", sorted(lora.DIALECTS))
def test_what_is_saved_here_does_the_same_in_diffusers(kind, dialect, tmp_path):
    made = random_lora(kind, ALL, 0)
    assert set(made) == set(our_params(kind))
    save_file(lora.save(made, dialect), tmp_path / "lora.safetensors")
    pipe = pipeline(kind)
    plain = their_outputs(pipe, kind)
    pipe.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    ours = compiled(kind)(our_params(kind), [made], [1.0])
    close(ours, their_outputs(pipe, kind), plain)
