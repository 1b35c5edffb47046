"""Whole images of Karlo: from the same noise at every step, ours and diffusers'.

The same tiny random models, written by diffusers and read from its directories. Both
sides draw from one tape for each shape: the noise at the start, then that of each step.
"""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers.pipelines.deprecated.unclip import (
    pipeline_unclip,
    pipeline_unclip_image_variation,
)
from diffusers.schedulers import scheduling_unclip
from jax.experimental import io_callback
from PIL import Image

from diffusion_jax import published_unclip
from diffusion_jax.diffusion.samplers import ddim, integrate
from diffusion_jax.pipelines import manipulations
from tests.parity import unclip_dirs

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
PROMPT, OTHER = "a red circle above a blue square", "cat dog"
ONE_LEVEL = 1 / 255 * 2  # of images in [-1, 1]
KEYS = jax.random.split(jax.random.key(0), 4)
DRAWS = np.random.default_rng(0).standard_normal(2**18, np.float32)


class Tape:
    """The draws of one run; `start` of those of the same shape is where it begins."""

    def __init__(self):
        self.rewind()

    def rewind(self):
        self.places = collections.Counter()

    def next(self, shape):
        place = self.places[shape]
        self.places[shape] += 1
        size = int(np.prod(shape))
        offset = 1000 * len(shape) + place * size
        return np.take(DRAWS, np.arange(offset, offset + size), mode="wrap").reshape(
            shape
        )


TAPE = Tape()


def draw_ours(key, like):
    """What samplers draw here, whatever their key."""
    result = jax.ShapeDtypeStruct(like.shape, np.float32)
    return io_callback(functools.partial(TAPE.next, like.shape), result, ordered=True)


def draw_theirs(shape, **_):
    """Channels last on the tape."""
    if len(shape) == 2:
        return torch.tensor(TAPE.next(tuple(shape)))
    batch, channels, height, width = shape
    return nchw(TAPE.next((batch, height, width, channels)))


@pytest.fixture(autouse=True)
def _one_tape(monkeypatch):
    for module in (ddim, integrate):
        monkeypatch.setattr(module, "normal_like", draw_ours)
    for module in (
        *(pipeline_unclip, pipeline_unclip_image_variation),
        scheduling_unclip,
    ):
        monkeypatch.setattr(module, "randn_tensor", draw_theirs)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The directories of both repositories, and diffusers' pipelines."""
    root = tmp_path_factory.mktemp("karlo")
    text = unclip_dirs.write(root / "text")
    for name in unclip_dirs.SCHEDULERS:
        in_double_precision(text.components[name])
    variation = unclip_dirs.write_variation(root / "variation", text)
    return root, text, variation


@pytest.fixture(scope="module")
def model(written):
    """Both in one."""
    root = written[0]
    return published_unclip.load(root / "text", image_name=root / "variation")


@pytest.fixture(scope="module")
def run(model):
    return jax.jit(model.pipeline)


def nchw(x):
    return torch.tensor(np.asarray(x, np.float32).transpose(0, 3, 1, 2))


def in_double_precision(scheduler):
    """In float32, 1 - alphas_cumprod[0] = 4e-5 is off by 5e-4, and so is its sample."""
    scheduler.betas = scheduler.betas.double()
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = torch.cumprod(scheduler.alphas, 0)


def check(ours, theirs):
    ours, theirs = np.asarray(ours), 2 * np.asarray(theirs) - 1
    assert ours.shape == theirs.shape
    assert ours.std() > 0.05  # not all of one colour
    assert all(np.abs(one - ours[0]).max() > 0.2 for one in ours[1:])
    difference = np.abs(ours - theirs).max()
    print(f"{difference * 255 / 2:.4f} of 255")
    assert difference <= ONE_LEVEL


@pytest.mark.parametrize(
    ("prior_scale", "decoder_scale"), [(4.0, 8.0), (1.0, 1.0), (1.0, 3.0), (6.0, 1.0)]
)
def test_text_to_image(prior_scale, decoder_scale, written, model, run):
    """Two images of a caption, two of one that is all padding."""
    TAPE.rewind()
    theirs = written[1](
        [PROMPT, ""],
        num_images_per_prompt=2,
        prior_guidance_scale=prior_scale,
        decoder_guidance_scale=decoder_scale,
        output_type="np",
    ).images
    TAPE.rewind()
    tokens = model.read([PROMPT, PROMPT, "", ""])
    ours = run(
        model.params,
        KEYS,
        jnp.asarray(tokens),
        jnp.asarray(model.read([""])),
        prior_scale=prior_scale,
        decoder_scale=decoder_scale,
    )
    check(ours, theirs)


def test_image_variation(written, model):
    """Images of an embedding, of the published preprocessing and an empty caption."""
    rng = np.random.default_rng(1)
    side = unclip_dirs.PATCHES
    pixels = rng.integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    TAPE.rewind()
    theirs = written[2](
        [Image.fromarray(image) for image in pixels],
        num_images_per_prompt=2,
        decoder_guidance_scale=3.0,
        output_type="np",
    ).images

    @jax.jit
    def vary(params, images, null_tokens):
        pipeline = model.pipeline
        null = pipeline.encode_text(params, null_tokens)
        embed = jnp.repeat(pipeline.encode_image(params, images), 2, axis=0)
        small = manipulations.fresh_variations(pipeline, params, KEYS, embed, null, 3.0)
        return pipeline.upsample(params, KEYS, small)

    TAPE.rewind()
    images = jnp.asarray(pixels / 127.5 - 1, jnp.float32)
    check(vary(model.params, images, jnp.asarray(model.read([""]))), theirs)


def test_an_image_of_another_size_is_prepared_as_published(written, model):
    """To within the rounding to whole levels that theirs makes after resizing."""
    rng = np.random.default_rng(2)
    coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((48, 48), Image.Resampling.BICUBIC)
    with torch.no_grad():
        prepared = written[2].feature_extractor(images=[image], return_tensors="pt")
        theirs = written[2].image_encoder(prepared.pixel_values).image_embeds.numpy()
    pixels = jnp.asarray(np.asarray(image)[None] / 127.5 - 1, jnp.float32)
    ours = model.pipeline.encode_image(model.params, pixels)
    other = model.pipeline.encode_image(model.params, -pixels)
    difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert difference < 0.01
    assert np.abs(other - theirs).max() > 0.1 * np.abs(theirs).max()
