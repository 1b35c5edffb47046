"""DALL·E 2's decoder and upsamplers have the published sizes, and fit their data."""

import importlib
import io
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffusion_jax import build, runs
from diffusion_jax.build import upsampler
from diffusion_jax.data import records
from diffusion_jax.models.unclip import Encoded, TextImageProjection, TextTransformer
from diffusion_jax.types import Conditioning

CONTEXT, EMBED = 256, 1024  # tokens; the width of the paper's CLIP
UPSAMPLERS = {"upsampler_256": 700e6, "upsampler_1024": 300e6}
NAMES = ("decoder", *UPSAMPLERS)


def config_of(name, variant=""):
    return importlib.import_module(f"configs.dalle2.{name}").get_config(variant)


def numbers(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def count(module, *inputs):
    made = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(made))


def told_to_decoder(config):
    """The projection, and what it makes of an embedding and a caption."""
    options = dict(config.projection)
    projection = TextImageProjection(time_width=4 * config.unet.channels[0], **options)
    width = config.text.width
    text = Encoded(
        numbers(1, CONTEXT, width), numbers(1, width), numbers(1, CONTEXT, dtype=bool)
    )
    inputs = numbers(1, EMBED), text
    made = jax.eval_shape(projection.init_with_output, jax.random.key(0), *inputs)
    return count(projection, *inputs), made[0]


def test_the_decoder_has_3_5_billion_parameters():
    config = config_of("decoder")
    text = TextTransformer(vocab_size=49408, eos_id=49407, **config.text)
    num_projected, cond = told_to_decoder(config)
    size = config.decoder_size
    x, time = numbers(1, size, size, 3), numbers(1)
    total = count(build.unet(config), x, time, cond) + num_projected
    total += count(text, numbers(1, CONTEXT, dtype=jnp.int32))
    assert total == pytest.approx(3.5e9, rel=0.1)


@pytest.mark.parametrize("name", UPSAMPLERS)
def test_an_upsampler_has_the_published_number_of_parameters(name):
    config = config_of(name)
    x = numbers(1, *(upsampler.crop_side(config),) * 2, 3)
    total = count(build.unet(config), x, numbers(1), Conditioning(image=x))
    assert total == pytest.approx(UPSAMPLERS[name], rel=0.1)


@pytest.mark.parametrize("name", UPSAMPLERS)
def test_an_upsampler_is_trained_on_quarters_and_applied_to_whole_images(name):
    config = config_of(name)
    side, size = upsampler.crop_side(config), config.data.image_size
    assert (size // config.upsampler.low_size, size // side) == (4, 4)
    unet = build.unet(config)
    shapes = []
    for pixels in (side, size):
        x = numbers(1, pixels, pixels, 3)
        cond = Conditioning(image=x)
        output, params = jax.eval_shape(
            unet.init_with_output, jax.random.key(0), x, numbers(1), cond
        )
        shapes.append(jax.tree.map(lambda leaf: leaf.shape, params))
        assert output.shape == x.shape
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("variant", ["", "runlocal"])
def test_a_config_survives_json_and_samples(name, variant, tmp_path):
    config = config_of(name, variant)
    runs.write_config(tmp_path, config)
    assert runs.read_config(tmp_path).to_dict() == config.to_dict()
    stage = build.stage(config)
    assert len(stage.grid(stage.schedule, stage.steps)) == stage.steps + 1
    assert stage.learned_variance == (name == "decoder")
    build.optimizer(config)


@pytest.mark.parametrize("name", UPSAMPLERS)
def test_a_small_upsampler_takes_the_pairs_of_its_own_config(name):
    config = config_of(name, "runlocal")
    upsampler.check(config)
    task = upsampler.task(config, None, {}, None)
    pixels = np.random.default_rng(0).integers(0, 256, (80, 64, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    example = pickle.loads(pickle.dumps(upsampler.pairs(config)))
    record = records.Record(file.getvalue(), "", "noise")
    rows = [example(record, np.random.default_rng(seed)) for seed in range(2)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    trainable, frozen = jax.eval_shape(task.init, jax.random.key(0))
    loss, metrics = jax.eval_shape(
        task.loss, trainable, frozen, jax.random.key(1), batch
    )
    assert loss.shape == metrics["mse"].shape == ()
    assert batch["image"].shape[1] == upsampler.crop_side(config)
    made = upsampler.upsampler(config, "first")
    assert (made.size, made.name) == (config.data.image_size, "first")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (dict(degradation=dict(name="bluur")), "did you mean 'blur'"),
        (dict(degradation=dict(name="blur", strength=2)), "no option 'strength'"),
        (dict(low_size=20), "low_size 20"),
        (dict(crop_fraction=0.2), "crop_fraction 0.2"),
        (dict(crop_fraction=0.25, size=3), "no option 'size'"),
    ],
)
def test_what_an_upsampler_cannot_be_trained_on_is_refused(change, error):
    config = config_of("upsampler_256", "runlocal")
    with config.unlocked():
        for name, value in change.items():
            config.upsampler[name] = value
    with pytest.raises(build.ConfigError, match=error):
        upsampler.check(config)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (dict(mid_attention="added_kv"), "no attention"),
        (dict(channels=(8,) * 6, attention=("none",) * 6), "halved 5 times"),
    ],
)
def test_a_network_that_cannot_be_applied_to_whole_images_is_refused(change, error):
    config = config_of("upsampler_256", "runlocal")
    with config.unlocked():
        for name, value in change.items():
            config.unet[name] = value
    with pytest.raises(build.ConfigError, match=error):
        upsampler.check(config)
