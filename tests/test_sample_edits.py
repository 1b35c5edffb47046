"""The command line where it starts from pictures, adds loras, hands over to a refiner."""

import compile_cache
import entry_points
import jax
import numpy as np
import pytest
import tiny_model
from PIL import Image
from test_sample import FAST, check_made_again, pixels_of

from diffusion_jax.sampling import pictures
from diffusion_jax.weights import lora, lora_files

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    yield from compile_cache.compile_once(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    directory = tmp_path_factory.mktemp("published")
    painter = tiny_model.write(directory / "painter", num_extra_channels=5)
    return {"tiny": tiny_model.write(directory / "tiny"), "painter": painter}


@pytest.fixture
def make(models, tmp_path):
    """Runs the command; the images as floats."""

    def run(*words, model="tiny"):
        array = tmp_path / "images.npy"
        words = ["--weights", models[model], *FAST, "--prompt", "cat", *words]
        words += ["--overwrite", "--array", array, "--out", tmp_path / "out"]
        entry_points.sample(*words)
        return np.load(array)

    return run


@pytest.fixture
def cat(tmp_path):
    """A picture of 16 x 16 pixels, and a mask of its left half."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "cat.png")
    mask = np.zeros((16, 16), np.uint8)
    mask[:, :8] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return pixels


def test_what_a_mask_keeps_is_kept(make, cat, tmp_path):
    words = ["--init_image", tmp_path / "cat.png", "--mask", tmp_path / "mask.png"]
    images = {}
    for name, more in {"full": (), "half": ("--strength", 0.5)}.items():
        images[name] = make(*words, *more)
        made = pixels_of(tmp_path / "out" / "00000-seed0.png")
        np.testing.assert_array_equal(made[:, 8:], cat[:, 8:])
        assert (made[:, :8] != cat[:, :8]).mean() > 0.5
    images["painter"] = make(*words, model="painter")
    np.testing.assert_array_equal(images["painter"][0][:, 8:], images["full"][0][:, 8:])
    for name in ("half", "painter"):
        assert np.abs(images[name] - images["full"]).max() > 1e-2


def test_sixteen_bits_of_grey_are_read_as_eight(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    deep, plain = pictures.read(tmp_path / "deep.png"), Image.fromarray(grey)
    for image in (deep, deep.convert("I")):
        for read in (pictures.to_array, pictures.to_mask):
            np.testing.assert_array_equal(read(image, (16, 16)), read(plain, (16, 16)))


def test_a_picture_is_resized_and_what_is_made_of_it_made_again(
    make, cat, tmp_path, capsys
):
    words = ["--init_image", tmp_path / "cat.png", "--strength", 0.5, "--height", 20]
    images = make(*words, "--num_images", 2, "--batch", 2)
    assert images.shape == (2, 20, 16, 3)
    check_made_again(tmp_path / "out" / "00001-seed0.png", capsys)


def test_a_model_hands_over_to_itself_without_a_trace(make, models):
    whole = make("--steps", 5)
    halves = make("--steps", 5, "--refiner", models["tiny"], "--handover", 0.6)
    np.testing.assert_allclose(halves, whole, atol=1e-4)


def test_a_lora_is_added_as_much_as_its_scale(make, tmp_path):
    like = jax.eval_shape(lambda: tiny_model.init_params(0))
    made = lora.init(jax.random.key(0), like, rank=2)
    rng = np.random.default_rng(2)
    for layer in made["unet"].values():
        layer["up"] = rng.normal(size=layer["up"].shape).astype(np.float32)
    file = tmp_path / "style.safetensors"
    lora_files.write(file, made)
    plain, once = make(), make("--lora", file)
    assert np.abs(once - plain).max() > 1e-2
    twice = make("--lora", f"{file}:0.25", "--lora", f"{file}:0.75")
    np.testing.assert_allclose(twice, once, atol=1e-4)
