"""The CLIP towers compute what transformers computes, on the same random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from diffusion_jax.models.clip import CLIP, CLIPText, CLIPVision
from diffusion_jax.weights.convert import load_torch

EOS = 90
TEXT = dict(vocab_size=91, width=32, num_layers=3, num_heads=4, mlp_width=64)
THEIR_TEXT = dict(
    vocab_size=91,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=12,
    pad_token_id=0,
    bos_token_id=89,
)
VISION = dict(
    image_size=16, patch_size=4, width=48, num_layers=2, num_heads=3, mlp_width=96
)
THEIR_VISION = dict(
    image_size=16,
    patch_size=4,
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=96,
)


def randomise(module):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return module.eval()


def state_of(module):
    state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    return {k: v for k, v in state.items() if not k.endswith("position_ids")}


def load(module, reference, *inputs, prefix=""):
    like = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return load_torch(state_of(reference), like, prefix=prefix)


def captions():
    """Ids whose end comes early, is repeated (padding), and is the last."""
    tokens = np.random.default_rng(0).integers(1, 88, (3, 12))
    tokens[:, 0] = 89
    tokens[0, 5:] = EOS
    tokens[1, 8], tokens[1, 9:] = EOS, 0
    tokens[2, 11] = EOS
    return tokens


def close(name, value, expected):
    difference = np.abs(np.asarray(value) - expected.detach().numpy()).max()
    print(f"{name}: {difference:.1e}")
    assert np.abs(expected.detach().numpy()).max() > 0.05
    assert difference < 1e-4


@pytest.mark.parametrize("eos_id", [EOS, 2])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_text_tower_agrees_with_transformers(activation, eos_id):
    config = transformers.CLIPTextConfig(
        **THEIR_TEXT, hidden_act=activation, eos_token_id=eos_id
    )
    reference = randomise(transformers.CLIPTextModel(config))
    tokens = captions()
    model = CLIPText(**TEXT, context_length=12, activation=activation, eos_id=eos_id)
    params = load(model, reference, tokens)
    hidden, pooled = model.apply({"params": params}, jnp.asarray(tokens))
    expected = reference(torch.tensor(tokens), output_hidden_states=True)
    name = f"text tower {activation} eos {eos_id}"
    close(f"{name}, hidden", hidden, expected.last_hidden_state)
    close(f"{name}, pooled", pooled, expected.pooler_output)

    early = model.clone(skip_layers=1, norm_hidden=False)
    hidden, pooled = early.apply({"params": params}, jnp.asarray(tokens))
    close(f"{name}, penultimate", hidden, expected.hidden_states[-2])
    close(f"{name}, pooled", pooled, expected.pooler_output)


def test_both_towers_agree_with_transformers():
    config = transformers.CLIPConfig(
        text_config=THEIR_TEXT | dict(eos_token_id=EOS),
        vision_config=THEIR_VISION,
        projection_dim=24,
    )
    reference = randomise(transformers.CLIPModel(config))
    tokens = captions()
    images = np.random.default_rng(1).standard_normal((3, 16, 16, 3))
    images = images.astype(np.float32)
    model = CLIP(
        CLIPText(**TEXT, context_length=12, eos_id=EOS),
        CLIPVision(**VISION),
        projection_dim=24,
    )
    params = load(model, reference, images, tokens)
    image, text, scale = model.apply(
        {"params": params}, jnp.asarray(images), jnp.asarray(tokens)
    )
    expected = reference(
        input_ids=torch.tensor(tokens),
        pixel_values=torch.tensor(images).permute(0, 3, 1, 2),
    )
    close("image embedding", image, expected.image_embeds)
    close("text embedding", text, expected.text_embeds)
    close("logits", scale * image @ text.T, expected.logits_per_image)

    unnormed = model.apply(
        {"params": params}, jnp.asarray(images), unit_norm=False, method="encode_image"
    )
    their_vision = expected.vision_model_output  # whose pooled output is projected
    close("image embedding, any norm", unnormed, their_vision.pooler_output)
    hidden, _ = CLIPVision(**VISION).apply(
        {"params": params["vision_model"]}, jnp.asarray(images)
    )
    close("vision hidden", hidden, their_vision.last_hidden_state)

    tower = CLIPText(**TEXT, context_length=12, eos_id=EOS)
    alone = load(tower, reference, tokens, prefix="text_model.")
    jax.tree.map(np.testing.assert_array_equal, alone, params["text_model"])
