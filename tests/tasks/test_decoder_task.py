"""The decoder's task: what it hears, what it drops, and that caches change nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import (
    discrete_schedules,
    losses,
    parameterization,
    time_samplers,
    weightings,
)
from diffusion_jax.models.clip import CLIPText, CLIPVision, ProjectedVision
from diffusion_jax.models.clip_towers import ClipTowers
from diffusion_jax.models.text import ProjectedText
from diffusion_jax.models.unclip import TextImageProjection, TextTransformer
from diffusion_jax.models.unet import UNet
from diffusion_jax.tasks import clip_batches
from diffusion_jax.tasks import decoder as decoder_task
from diffusion_jax.tasks.objective import Objective

EOS, LENGTH, SIZE = 9, 6, 4
TEXT = CLIPText(
    vocab_size=10,
    context_length=LENGTH,
    width=8,
    num_layers=1,
    num_heads=2,
    mlp_width=8,
    eos_id=EOS,
)
VISION = CLIPVision(
    image_size=8, patch_size=4, width=8, num_layers=1, num_heads=2, mlp_width=8
)
TOWERS = ClipTowers(ProjectedText(TEXT, 8), ProjectedVision(VISION, 8))
UNET = UNet(
    channels=(8,),
    blocks_per_level=1,
    attention=("added_kv",),
    mid_attention="added_kv",
    num_heads=2,
    vector="identity",
    norm_groups=4,
    out_channels=6,
)
PROJECTION = TextImageProjection(context_width=8, time_width=32)
OWN = TextTransformer(10, EOS, LENGTH, 8, 1, 2)
OBJECTIVE = Objective(
    discrete_schedules.Discrete(betas="cosine"),
    parameterization.PARAMETERIZATIONS["eps"](),
    weightings.WEIGHTINGS["eps"],
    time_samplers.drawn(
        time_samplers.QUANTILES["uniform"], draw=time_samplers.DRAWS["independent"]
    ),
    functools.partial(losses.hybrid_loss, variance="learned_range"),
)
NULL = jnp.array([[8, EOS, EOS, EOS, EOS, EOS]])


@pytest.fixture(scope="module")
def frozen():
    tokens, image = NULL, jnp.zeros((1, 8, 8, 3))
    keys = jax.random.split(jax.random.key(0))
    return {
        "text_encoder": TOWERS.text.init(keys[0], tokens)["params"],
        "image_encoder": TOWERS.image.init(keys[1], image)["params"],
    }


def make(frozen, text=None, **options):
    networks = decoder_task.Networks(UNET, PROJECTION, text)
    options = dict(size=SIZE) | options
    return decoder_task.decoder(networks, TOWERS, OBJECTIVE, frozen, NULL, **options)


def perturbed(params):
    """Layers that start at zero would hide what they are told."""

    def move(path, x):
        name = jax.tree_util.keystr(path)
        noise = jax.random.normal(jax.random.key(len(name)), x.shape)
        return x + 0.1 * noise

    return jax.tree_util.tree_map_with_path(move, params)


def batch_of(seed):
    rng = np.random.default_rng(seed)
    tokens = np.full((4, LENGTH), EOS)
    tokens[:, 0], tokens[:, 1:4] = 8, rng.integers(0, 8, (4, 3))
    image = rng.uniform(-1, 1, (4, 8, 8, 3)).astype(np.float32)
    return {"image": jnp.asarray(image), "tokens": jnp.asarray(tokens)}


def losses_of(frozen, first, second, text=None, **options):
    """The loss of the same noise and images, told two things."""
    task = make(frozen, text, **options)
    params = perturbed(task.init(jax.random.key(1))[0])
    loss = jax.jit(task.loss)
    return [
        float(loss(params, frozen, jax.random.key(2), batch)[0])
        for batch in (first, second)
    ]


@pytest.mark.parametrize("text", [None, OWN], ids=["clip's states", "own encoder"])
@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_a_caption_is_heard_unless_dropped(frozen, text, dropout):
    batch = batch_of(0)
    other = batch | {"tokens": batch_of(1)["tokens"]}
    a, b = losses_of(frozen, batch, other, text, text_dropout=dropout)
    assert (a == b) == (dropout == 1.0)


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_an_image_embedding_is_heard_unless_dropped(frozen, dropout):
    batch = batch_of(0) | {"image_embed": jnp.ones((4, 8)) / 8**0.5}
    other = batch | {"image_embed": -batch["image_embed"]}
    a, b = losses_of(frozen, batch, other, image_dropout=dropout)
    assert (a == b) == (dropout == 1.0)


def test_what_the_towers_say_may_be_computed_before(frozen):
    batch = batch_of(0)
    text = TOWERS.encode_text(frozen, batch["tokens"])
    cached = clip_batches.as_batch(text) | {
        "image_embed": TOWERS.encode_image(frozen, batch["image"]),
        "image": jax.image.resize(batch["image"], (4, SIZE, SIZE, 3), "cubic"),
    }
    assert float(jnp.abs(cached["image"]).max()) < 1  # so that clipping does nothing
    np.testing.assert_allclose(*losses_of(frozen, batch, cached), rtol=1e-5)


def test_every_parameter_learns(frozen):
    """But those of the variance, which L_hybrid weighs with a thousandth, hardly."""
    task = make(frozen, OWN, image_dropout=0.5)
    params = perturbed(task.init(jax.random.key(1))[0])
    assert set(params) == {"decoder", "text_proj", "text"}
    gradient = jax.jit(
        jax.grad(lambda p: task.loss(p, frozen, jax.random.key(3), batch_of(2))[0])
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(params)):
        name = jax.tree_util.keystr(path)
        if "to_k" in name and "bias" in name or "k_proj" in name and "bias" in name:
            continue  # adds the same to all scores of a query
        assert float(jnp.abs(leaf).max()) > 0, name


@pytest.mark.parametrize("name", ["image_dropout", "text_dropout"])
def test_a_rate_is_a_share(frozen, name):
    with pytest.raises(ValueError, match=f"{name} is 1.5"):
        make(frozen, **{name: 1.5})
