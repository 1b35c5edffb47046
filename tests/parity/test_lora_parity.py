"""Low-rank adaptations do here what they do in diffusers and peft, file by file."""

import functools
import re

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
from safetensors.numpy import save_file

from diffusion_jax.models.clip import CLIPText
from diffusion_jax.models.text import ProjectedText
from diffusion_jax.models.unet import UNet
from diffusion_jax.types import Conditioning
from diffusion_jax.weights import lora, lora_files, lora_names
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
    def outputs(params):
        found = {"unet": networks["unet"].apply({"params": params["unet"]}, *inputs)}
        for name in towers(kind):
            tokens = jnp.asarray(TOKENS)
            states, pooled = networks[name].apply({"params": params[name]}, tokens)
            found |= {name: states, "pooled": pooled}
        return found

    return outputs


def our_outputs(kind, loras, scales):
    return compiled(kind)(lora.merge(our_params(kind), loras, scales))


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
    lora_files.write(tmp_path / "lora.safetensors", made, dialect=dialect)
    pipe = pipeline(kind)
    plain = their_outputs(pipe, kind)
    pipe.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    ours = our_outputs(kind, [made], [1.0])
    close(ours, their_outputs(pipe, kind), plain)


CONFIG = dict(r=4, lora_alpha=8, init_lora_weights=False)
CONFIGS = {
    "unet": CONFIG
    | dict(
        target_modules=["to_q", "to_out.0", "ff.net.2", "conv1", "proj_in"],
        rank_pattern={"to_q": 2},
        alpha_pattern={"attn1.to_out.0": 1, "conv1": 3},
    ),
    "text_encoder": CONFIG | dict(target_modules=["q_proj", "fc1"], use_rslora=True),
    "text_encoder_2": CONFIG | dict(target_modules=["out_proj", "text_projection"]),
}


def adapted(kind):
    """A pipeline whose networks have random adapters of peft."""
    pipe = pipeline(kind)
    for name in ("unet", *towers(kind)):
        getattr(pipe, name).add_adapter(peft.LoraConfig(**CONFIGS[name]))
    return pipe


@pytest.mark.parametrize("spell", [dict, convert_state_dict_to_diffusers])
@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_what_peft_trains_and_diffusers_saves_is_read(kind, spell, tmp_path):
    pipe = adapted(kind)
    components = {name: getattr(pipe, name) for name in ("unet", *towers(kind))}
    layers = {
        f"{name}_lora_layers": spell(peft.get_peft_model_state_dict(module))
        for name, module in components.items()
    }
    pipe.save_lora_weights(tmp_path, **layers, **_collate_lora_metadata(components))
    read = lora_files.load(tmp_path, our_params(kind))
    assert set(read) == set(components)
    theirs = their_outputs(pipe, kind)
    plain = our_outputs(kind, [read], [0.0])
    close(our_outputs(kind, [read], [1.0]), theirs, plain)


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_a_directory_of_peft_is_read(component, tmp_path):
    pipe = pipeline("sd1")
    config = peft.LoraConfig(**CONFIGS[component])
    wrapped = peft.get_peft_model(getattr(pipe, component), config)
    wrapped.save_pretrained(tmp_path)
    read = lora_files.load(tmp_path, our_params("sd1"))
    assert set(read) == {component}
    theirs = their_outputs(pipe, "sd1")[component]  # peft adapts in place
    ours = our_outputs("sd1", [read], [1.0])
    close(ours, {component: theirs})
    # The state itself, in which the adapter has a name, says the same but for alpha.
    state = {k: v.numpy() for k, v in wrapped.state_dict().items() if ".lora_" in k}
    assert any(".lora_A.default.weight" in key for key in state)
    said = {f"{component}.{key}": value for key, value in CONFIGS[component].items()}
    named = lora.read(state, our_params("sd1"), metadata=said)
    jax.tree.map(np.testing.assert_array_equal, named, read)


def as_first_written(tensors):
    """Names as the first versions of diffusers wrote them."""
    renamed = {}
    for key, tensor in tensors.items():
        for leaf, old in lora_names.OLD_LEAVES.items():
            key = key.replace(f".{leaf}.lora_linear_layer.", f".{old}_lora.")
            key = key.replace(f".{leaf}.lora.", f".processor.{old}_lora.")
        renamed[key] = tensor
    return renamed


def test_the_first_names_of_diffusers_are_read(tmp_path):
    made = random_lora("sd1", lora.ATTENTION, 1)
    tensors = as_first_written(lora.save(made))
    assert all(".processor.to_" in key for key in tensors)
    save_file(tensors, tmp_path / "lora.safetensors")
    pipe = pipeline("sd1")
    pipe.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    read = lora_files.load(tmp_path / "lora.safetensors", our_params("sd1"))
    jax.tree.map(np.testing.assert_array_equal, read, made)
    ours = our_outputs("sd1", [read], [1.0])
    close(ours, their_outputs(pipe, "sd1"))
    text = random_lora("sd1", r"self_attn", 2)
    tensors = as_first_written(lora.save(text))
    assert any(".self_attn.to_out_lora.down." in key for key in tensors)
    read = lora.read(tensors, our_params("sd1"))
    jax.tree.map(np.testing.assert_array_equal, read, text)


def test_names_of_latent_diffusion_are_read(tmp_path):
    params = our_params("xl")
    made = {"unet": random_lora("xl", ALL + "|embed|conv_", 3)["unet"]}
    ldm = {
        path: spelling
        for spelling, places in lora_names.spellings(params).items()
        for _, path in places
        if spelling.startswith("lora_unet_")
        and spelling != "lora_unet_" + re.sub(r"[./]", "_", path)
    }
    assert "lora_unet_input_blocks_4_1_proj_in" in ldm.values()
    tensors = {}
    for path, factors in made["unet"].items():
        saved = lora.save({"unet": {path: factors}}, "kohya")
        for key, tensor in saved.items():
            tensors[ldm[path] + "." + key.split(".", 1)[1]] = tensor
    read = lora.read(tensors, params)
    assert set(read["unet"]) == set(made["unet"])
    jax.tree.map(np.testing.assert_array_equal, read, made)
    save_file(tensors, tmp_path / "lora.safetensors")
    pipe = pipeline("xl")
    pipe.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    close(our_outputs("xl", [read], [1.0]), their_outputs(pipe, "xl"))


@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_several_adapters_and_scales_per_component(kind, tmp_path):
    pipe = pipeline(kind)
    loras = [random_lora(kind, ALL, 4), random_lora(kind, "attn", 5, rank=2)]
    for name, made in zip("ab", loras):
        lora_files.write(tmp_path / f"{name}.safetensors", made)
        pipe.load_lora_weights(
            str(tmp_path), weight_name=f"{name}.safetensors", adapter_name=name
        )
    pipe.set_adapters(["a", "b"], [0.7, -0.4])
    close(our_outputs(kind, loras, [0.7, -0.4]), their_outputs(pipe, kind))
    parts = dict(unet=0.5, text_encoder=0.2) | (
        dict(text_encoder_2=0.9) if kind == "xl" else {}
    )
    pipe.set_adapters(["a"], [parts])
    close(our_outputs(kind, loras, [parts, 0.0]), their_outputs(pipe, kind))
    pipe.set_adapters(["a", "b"], [1.0, 1.0])
    pipe.fuse_lora(components=["unet", *towers(kind)], lora_scale=0.6)
    close(our_outputs(kind, loras, [0.6, 0.6]), their_outputs(pipe, kind))
