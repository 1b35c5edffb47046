"""A DALL·E 2 of milliseconds as runs of every stage, not trained: random, of a seed.

Captions of two words and images of 4 pixels, which are enlarged to 8; CLIP sees 8.
"""

import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs.small import (
    scenes_codes_prior,
    scenes_decoder,
    scenes_prior,
    scenes_upsampler_32,
)
from diffusion_jax import build, runs
from diffusion_jax.data import captions
from diffusion_jax.frozen_towers import PAIRS
from diffusion_jax.models import embedding_codes
from diffusion_jax.training import checkpoint
from diffusion_jax.training.state import init_state

WORDS = ("a red circle", "a blue square", "a green cross")
WIDTH, SMALL, LARGE = 8, 4, 8
NUM_PICTURES = 12  # of which the codes are made
TOWER = dict(width=8, num_layers=1, num_heads=2, mlp_width=8)
CLIP = dict(projection_dim=WIDTH, text=TOWER, vision=TOWER | dict(patch_size=4))
PRIOR = dict(num_layers=1, num_heads=2, head_width=4)


def prior_config():
    config = scenes_prior.get_config("runlocal")
    config.prior = PRIOR
    config.sampling.update(steps=2, guidance=1.5)
    return config


def codes_config():
    config = scenes_codes_prior.get_config("runlocal")
    config.prior = PRIOR
    config.codes = dict(num_dims=5, num_buckets=4, num_dot_buckets=4)
    return config


def decoder_config():
    config = scenes_decoder.get_config("runlocal")
    config.decoder_size = SMALL
    config.projection = dict(context_width=8, num_tokens=2, null="learned")
    config.unet = dict(
        channels=(8,),
        blocks_per_level=1,
        attention=("added_kv",),
        mid_attention="none",
        num_heads=2,
        time_modulation="scale_shift",
        vector="identity",
        norm_groups=4,
    )
    config.parameterization = dict(name="v")  # of noise alone the inversion converges
    config.sampling.update(steps=3, sampler=dict(name="ddim"))
    return config


def upsampler_config():
    config = scenes_upsampler_32.get_config("runlocal")
    config.data.image_size = LARGE
    config.upsampler.update(low_size=SMALL, crop_fraction=1.0)
    config.unet = dict(
        channels=(8,),
        blocks_per_level=1,
        attention=("none",),
        mid_attention="none",
        norm_groups=4,
    )
    config.sampling.steps = 2
    return config


STAGES = {
    "prior": prior_config,
    "codes_prior": codes_config,
    "decoder": decoder_config,
    "upsampler": upsampler_config,
}


def write(directory, seed=0):
    """The runs; returns their directory."""
    directory = pathlib.Path(directory)
    words = directory.with_name(f"{directory.name}_words")
    tokenizer = captions.train_tokenizer(WORDS, words, vocab_size=600, context_length=6)
    rng = np.random.default_rng(seed)
    frozen = None
    for name, make in STAGES.items():
        config = complete(make())
        if frozen is None:
            frozen = draw_clip(config, tokenizer, rng)
        own = own_frozen(name, frozen, tokenizer, rng)
        run = directory / name
        runs.write_config(run, config)
        if name != "upsampler":
            shutil.copytree(words, run / runs.TOKENIZER)
            checkpoint.save_params(run / runs.FROZEN, own)
        task = build.task(config, tokenizer, own if name != "upsampler" else {})
        shapes, _ = jax.eval_shape(task.init, jax.random.key(0))
        state = init_state(build.optimizer(config), draw(shapes, rng))
        with checkpoint.open_manager(run / runs.CHECKPOINTS, keep=1) as manager:
            checkpoint.save(manager, 3, state, None, {})
    return directory


def complete(config):
    """With what training takes from CLIP's run, and an optimizer that starts quickly."""
    config = ConfigDict(config.to_dict())
    config.optimizer = dict(name="adamw", learning_rate=1e-3)
    if config.task.name != "upsampler":
        config.clip = CLIP
        config.clip_image_size = LARGE
        config.tokenizer = dict(directory="", vocab_size=600, context_length=6)
    return config


def draw_clip(config, tokenizer, rng):
    towers = build.unclip.clip_towers(config, tokenizer)
    key, tokens = jax.random.key(0), jnp.asarray(tokenizer([""]))
    image = jnp.zeros((1, LARGE, LARGE, 3))
    shapes = jax.eval_shape(
        lambda: {
            "text_encoder": towers.text.init(key, tokens)["params"],
            "image_encoder": towers.image.init(key, image)["params"],
        }
    )
    return draw(shapes, rng)


def own_frozen(name, frozen, tokenizer, rng):
    """What a stage's run keeps besides CLIP."""
    if name == "prior":
        scale = {"mean": np.zeros(WIDTH), "std": np.full(WIDTH, WIDTH**-0.5)}
        scale = {k: v.astype(np.float32) for k, v in scale.items()}
        image = rng.normal(size=(len(WORDS), WIDTH)).astype(np.float32)
        pairs = {"image_embed": image, "tokens": np.asarray(tokenizer(WORDS))}
        return frozen | {"embedding": scale, PAIRS: pairs}
    if name == "codes_prior":
        image, text = rng.normal(size=(2, NUM_PICTURES, WIDTH)).astype(np.float32)
        return frozen | {
            "codes": embedding_codes.fit(image, text, **codes_config().codes)
        }
    return frozen


def draw(shapes, rng):
    """Parameters of the size that a trained network would have, biases too."""

    def drawn(path, leaf):
        if path[-1].key == "scale":
            return np.ones(leaf.shape, np.float32)
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 25
        return (rng.normal(size=leaf.shape) / np.sqrt(fan_in)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(drawn, shapes)
