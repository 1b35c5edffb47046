"""Karlo from the command line: what its two directories can do, alone and together."""

import shlex

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import entry_points
import jax
import jax.numpy as jnp
from PIL import Image

from diffusion_jax import published_unclip
from diffusion_jax.pipelines import manipulations
from diffusion_jax.pipelines.stage import image_keys
from tests.parity import unclip_dirs

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
CAPTION, CAT = ("--prompt", "a red circle"), ("--init_image", "cat.png")
VARY = ("--mode", "variations", *CAT)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Both directories and a picture."""
    here = tmp_path_factory.mktemp("karlo")
    theirs = unclip_dirs.write(here / "text")
    unclip_dirs.write_variation(here / "image", theirs)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    Image.fromarray(pixels).save(here / "cat.png")
    return here


@pytest.fixture(autouse=True)
def _there(here, monkeypatch):
    monkeypatch.chdir(here)


def test_a_directory_is_planned_as_it_was_published(capsys):
    entry_points.sample("--weights", "text", *CAPTION, "--dry_run")
    told = capsys.readouterr().out
    assert "prior: ddpm, 25 steps, guidance 4" in told
    assert "decoder: ddpm, 25 steps, guidance 8" in told
    assert "super_res_first: ddpm, 7 steps" in told and "16 x 16 pixels" in told
    words = ("--prior_steps", 3, "--steps", 4, "--upsampler_steps", 5)
    words += ("--guidance", 2, "--sampler", "ddim", "--dry_run")
    entry_points.sample("--weights", "text", *CAPTION, *words)
    told = capsys.readouterr().out
    assert "prior: ddpm, 3 steps" in told and "super_res_first: ddpm, 5 steps" in told
    assert "decoder: ddim, 4 steps, guidance 2" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("image", *CAPTION), "has no prior"),
        (("text", *VARY), "text has no image tower of CLIP: lend one"),
        (("text", *CAPTION, "--upsampler_steps", 1), "1 steps of super_res; at least"),
        (("text", *CAPTION, "--upsampler_steps", "3,4"), "2 upsamplers .* text has 1"),
        (("text", *CAPTION, "--dtype", "int8"), "unknown dtype 'int8'"),
        (("text", *CAPTION, "--prior", "x"), "--prior is for --workdir"),
        (("text", "--mode", "pca", *CAT, "--image_weights", "image"), "--components"),
    ],
)
def test_what_a_directory_cannot_do_is_one_line(words, message, monkeypatch):
    load = lambda *_: pytest.fail("reads weights")
    monkeypatch.setattr(published_unclip, "load_params", load)
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as stopped:
        entry_points.sample("--weights", *words)
    assert "\n" not in stopped.value.code


def test_a_lent_image_tower_makes_variations(tmp_path, capsys):
    """Those of the library, and again by the command that the picture tells."""
    words = ("--steps", 2, "--upsampler_steps", 2, "--first_index", 3)
    both = ("--weights", "text", "--image_weights", "image")
    array = tmp_path / "x.npy"
    entry_points.sample(
        *both, *VARY, *words, "--out", tmp_path / "out", "--array", array
    )
    choices = published_unclip.Choices()
    choices = choices._replace(
        decoder=choices.decoder._replace(steps=2),
        super_res=choices.super_res._replace(steps=2),
    )
    model = published_unclip.load("text", choices, image_name="image")
    image = np.asarray(Image.open("cat.png"), np.float32)[None] / 127.5 - 1

    @jax.jit
    def make(params, image, null_tokens):
        pipeline, keys = model.pipeline, image_keys(jax.random.key(0), jnp.array([3]))
        embed = pipeline.encode_image(params, image)
        null = pipeline.encode_text(params, null_tokens)
        small = manipulations.fresh_variations(pipeline, params, keys, embed, null, 8.0)
        return pipeline.upsample(params, keys, small)

    wanted = make(model.params, image, model.read([""]))
    np.testing.assert_allclose(np.load(array), wanted, atol=1e-4)
    capsys.readouterr()
    entry_points.inspect(tmp_path / "out" / "00003-seed0.png")
    told = shlex.split(capsys.readouterr().out)[3:]
    assert told[told.index("--image_weights") + 1] == "image"
