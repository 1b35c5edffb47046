"""A published model of milliseconds, written without torch: random, of a fixed seed."""

import pathlib

import jax
import numpy as np

from diffusion_jax.data import captions
from diffusion_jax.weights import published, writing_directory
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


XL_UNET = dict(linear_projection=True, vector="add_embedding")
XL_TEXT = dict(skip_layers=1, norm_hidden=False, num_layers=2)


def write(directory, *, num_extra_channels=0, is_xl=False, seed=0):
    """Stable Diffusion in small: 16 x 16 pixels; 5 extra channels: for inpainting."""
    directory = pathlib.Path(directory)
    text_dir = directory.with_name(f"{directory.name}_words")
    tokenizer = captions.train_tokenizer(
        WORDS, text_dir, vocab_size=600, context_length=77
    )
    ids = dict(vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id)
    made = describe(ids, num_extra_channels, is_xl, text_dir)
    params = draw(made, seed)
    writing_directory.write(directory, made, params.__getitem__)
    return directory


def describe(ids, num_extra_channels=0, is_xl=False, text_dir=None):
    text = TEXT_FIELDS | ids
    texts, xl = {"text_encoder": text}, {}
    if is_xl:
        text = text | XL_TEXT
        texts = {"text_encoder": text, "text_encoder_2": text | dict(projection_dim=8)}
        xl = dict(num_size_ids=6, size_id_width=8, zero_empty=True)
    names = [name.replace("text_encoder", "tokenizer") for name in texts]
    first = np.empty((8, 4 + num_extra_channels, 3, 3), np.float32)
    return Published(
        unet=UNET_FIELDS | (XL_UNET if is_xl else {}),
        vae=VAE_FIELDS,
        texts=texts,
        tokenizers=dict.fromkeys(names, text_dir),
        scheduler=SCHEDULER,
        tensors={"unet": {"conv_in.weight": first}},  # all that is asked of them
        sample_size=8,
        **xl,
    )


def init_params(num_extra_channels):
    """Parameters of no particular values, for their shapes."""
    return draw(describe(dict(vocab_size=600), num_extra_channels), 0)


def draw(made, seed):
    """Parameters of the size that a trained network would have, biases too."""
    rng = np.random.default_rng(seed)

    def drawn(path, leaf):
        if path[-1].key == "scale":
            return np.ones(leaf.shape, np.float32)
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 25
        return (rng.normal(size=leaf.shape) / np.sqrt(fan_in)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(drawn, published.shapes(made))
