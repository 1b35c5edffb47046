"""A published model of milliseconds, written without torch: random, of a fixed seed."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.data import captions
from diffusion_jax.models.autoencoder import AutoencoderKL
from diffusion_jax.models.clip import CLIPText
from diffusion_jax.models.unet import UNet
from diffusion_jax.types import Conditioning
from diffusion_jax.weights import writing_directory
from diffusion_jax.weights.published import Published

WORDS = ("a red circle above a blue square", "two green triangles, on white", "cat dog")
UNET_FIELDS = dict(
    channels=(8,),
    blocks_per_level=1,
    attention=("transformer",),
    num_heads=2,
    norm_groups=4,
)
VAE_FIELDS = dict(
    channels=(4, 4),
    blocks_per_level=1,
    norm_groups=2,
    latent_channels=4,
    image_channels=3,
)
TEXT_FIELDS = dict(context_length=77, width=8, num_layers=1, num_heads=2, mlp_width=8)
SCHEDULER = dict(
    _class_name="PNDMScheduler",
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    skip_prk_steps=True,
    set_alpha_to_one=False,
    steps_offset=1,
)


def write(directory, *, num_extra_channels=0, seed=0):
    """Stable Diffusion 1 in small: 16 x 16 pixels; 5 extra channels: for inpainting."""
    directory = pathlib.Path(directory)
    text_dir = directory.with_name(f"{directory.name}_words")
    tokenizer = captions.train_tokenizer(
        WORDS, text_dir, vocab_size=600, context_length=77
    )
    text = TEXT_FIELDS | dict(vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id)
    made = Published(
        unet=UNET_FIELDS,
        vae=VAE_FIELDS,
        texts={"text_encoder": text},
        tokenizers={"tokenizer": text_dir},
        scheduler=SCHEDULER,
        tensors={},
        sample_size=8,
    )
    params = draw(made, num_extra_channels, seed)
    writing_directory.write(directory, made, params.__getitem__)
    return directory


def init_params(num_extra_channels):
    """Parameters of no particular values, for their shapes."""
    text = TEXT_FIELDS | dict(vocab_size=600)
    texts = {"text_encoder": text}
    made = Published(UNET_FIELDS, VAE_FIELDS, texts, {}, SCHEDULER, {})
    return init(made, num_extra_channels)


def draw(made, num_extra_channels, seed):
    """Parameters of the size that a trained network would have, biases too."""
    shapes = jax.eval_shape(lambda: init(made, num_extra_channels))
    rng = np.random.default_rng(seed)

    def drawn(path, leaf):
        if path[-1].key == "scale":
            return np.ones(leaf.shape, np.float32)
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 25
        return (rng.normal(size=leaf.shape) / np.sqrt(fan_in)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(drawn, shapes)


def init(made, num_extra_channels):
    key = jax.random.key(0)
    text = CLIPText(**made.texts["text_encoder"])
    tokens = jnp.zeros((1, 77), jnp.int32)
    variables = text.init(key, tokens)
    hidden, _ = text.apply(variables, tokens)
    latent = jnp.zeros((1, 8, 8, 4 + num_extra_channels), jnp.float32)
    cond = Conditioning(tokens=hidden)
    unet = UNet(**made.unet).init(key, latent, jnp.zeros(1), cond)
    vae = AutoencoderKL(**made.vae).init(key, jnp.zeros((1, 16, 16, 3)))
    made = dict(text_encoder=variables, unet=unet, vae=vae)
    return {name: one["params"] for name, one in made.items()}
