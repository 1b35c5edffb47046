"""Finding published models, and choosing how they sample."""

import jax
import pytest

from diffusion_jax import build, published
from diffusion_jax.data import captions
from diffusion_jax.pipelines.stage import times
from diffusion_jax.weights import single_file
from tests import tiny_model


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny_model.write(tmp_path_factory.mktemp("published") / "tiny")


@pytest.fixture(scope="module")
def found(directory):
    return published.find(directory)


@pytest.mark.parametrize(
    "option", [dict(ema=True), dict(tokenizer="x"), dict(prediction_type="epsilon")]
)
def test_what_only_a_single_file_has_is_refused_for_a_directory(option, directory):
    with pytest.raises(build.ConfigError, match="single files"):
        published.find(directory, **option)


def test_a_single_file_is_read_as_asked(tmp_path, monkeypatch, directory, found):
    asked = {}

    def read(path, **how):
        asked.update(how)
        return found

    monkeypatch.setattr(single_file, "read", read)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    published.find(path, ema=True, prediction_type="epsilon", tokenizer=directory)
    words = directory / "tokenizer"
    assert asked == dict(
        ema=True, prediction_type="epsilon", tokenizers={"tokenizer": words}
    )
    published.find(path, tokenizer=words)
    assert asked["tokenizers"] == {"tokenizer": words, "tokenizer_2": words}
    (tmp_path / "tokenizer_2").mkdir()
    published.find(path)
    assert asked["tokenizers"] == {"tokenizer_2": tmp_path / "tokenizer_2"}


def test_a_model_without_its_tokenizer_says_which_to_get(found):
    with pytest.raises(build.ConfigError, match="clip-vit-large-patch14"):
        published.load_tokenizers(found._replace(tokenizers={}))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (dict(dtype="float8"), "unknown dtype 'float8'; one of"),
        (dict(steps=0), "0 steps"),
        (dict(height=15), "height 15 .* multiple of 2; the nearest"),
        (dict(width=0), "width 0"),
        (dict(sampler="eular"), "unknown sampler 'eular'; one of"),
        (dict(grid="karas"), "unknown grid 'karas'; one of"),
        (dict(steps=2000), "2000|steps"),
        (dict(clip_skip=3), "clip_skip=3"),
    ],
)
def test_a_choice_that_no_model_has_is_one_line(choice, message, found):
    with pytest.raises(ValueError, match=message) as error:
        published.plan(found, published.Choices(**choice))
    assert "\n" not in str(error.value)


def test_what_is_not_chosen_is_as_published(found):
    pipeline = published.plan(found, published.Choices(steps=10))
    assert pipeline.latent_shape == (8, 8, 4)
    assert pipeline.unet.guidance == 7.5
    # leading, offset by one: the network hears 901, 801, ... (t counts from 1)
    assert times(pipeline.unet)[:3].tolist() == [902, 802, 702]


def test_guidance_is_that_of_the_family_and_none_below_one(found):
    plain = published.plan(found, published.Choices())
    xl = found._replace(num_size_ids=6, unet=found.unet | dict(vector="add_embedding"))
    assert (plain.unet.guidance, plain.unet.steps) == (7.5, 50)
    assert published.plan(xl, published.Choices()).unet.guidance == 5.0
    none = published.plan(found, published.Choices(guidance=0.0))
    assert none.unet.guidance == 1.0


def test_a_variant_is_of_directories(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    with pytest.raises(build.ConfigError, match="variants are of directories"):
        published.find(path, variant="fp16")


def test_size_and_guidance_are_those_chosen(found):
    choices = published.Choices(height=32, width=12, guidance=3.0, interval=(0.3, 5.0))
    pipeline = published.plan(found, choices)
    assert pipeline.latent_shape == (16, 6, 4)
    assert pipeline.unet.guidance == 3.0
    assert pipeline.default_size_ids()[:2] == (32.0, 12.0)


def test_half_precision_keeps_the_fragile_autoencoder_in_float32(found):
    halves = published.plan(found, published.Choices(dtype="float16"))
    assert (halves.unet.network.dtype, halves.vae.dtype) == ("float16", "float32")
    bfloat = published.plan(found, published.Choices(dtype="bfloat16"))
    assert bfloat.vae.dtype == "bfloat16"
    params = published.load_params(found, "bfloat16")
    kernels = [leaf.dtype for leaf in jax.tree.leaves(params["unet"])]
    assert {str(dtype) for dtype in kernels} == {"bfloat16"}


def test_reading_pads_every_text_to_as_many_chunks(directory):
    tokenizers = published.load_tokenizers(published.find(directory))
    model = published.Model(None, {}, tokenizers)
    prompt = model.read(["a red circle", "a red circle " * 60])
    assert prompt.tokens.shape == (2, 1, 3, published.CONTEXT_LENGTH)
    assert isinstance(tokenizers[0], captions.Tokenizer)
