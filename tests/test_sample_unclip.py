"""DALL·E 2 from the command line: what every mode makes of a stack of tiny runs."""

import functools
import json
import shlex

import compile_cache
import entry_points
import jax
import numpy as np
import pytest
import tiny_stack
from PIL import Image

from diffusion_jax import unclip_runs
from diffusion_jax.evaluation import grids
from diffusion_jax.sampling import records

RED, BLUE = ("--prompt", "a red circle"), ("--prompt", "a blue square")
A, B = ("--init_image", "a.png"), ("--init_image", "b.png")


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    yield from compile_cache.compile_once(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A directory with the stack and some pictures."""
    here = tmp_path_factory.mktemp("here")
    tiny_stack.write(here / "stack")
    rng = np.random.default_rng(0)
    (here / "many").mkdir()
    for name in ("a", "b", "many/0", "many/1"):
        pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(here / f"{name}.png")
    Image.open(here / "a.png").save(here / "many" / "a.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[:, :4] = 255
    Image.fromarray(mask).save(here / "mask.png")
    return here


@pytest.fixture(scope="module")
def stack(here):
    """Everything read once."""
    return functools.cache(unclip_runs.load)


@pytest.fixture
def make(here, stack, monkeypatch, tmp_path):
    """Runs the command in that directory; the images as floats."""
    monkeypatch.chdir(here)
    monkeypatch.setattr(unclip_runs, "load", stack)

    def run(*words, out=tmp_path / "out", upsamplers=0):
        array = tmp_path / "images.npy"
        array.unlink(missing_ok=True)
        words = ["--workdir", "stack", "--num_upsamplers", upsamplers, *words]
        words += ["--batch", 4, "--pad_batch", "--array", array, "--out", out]
        entry_points.sample(*words)
        return np.load(array)

    return run


@pytest.fixture
def rebuilt(make):
    """What the decoder makes again of a.png and of b.png."""
    once = ("--num_images", 1, "--eta", 0)
    return [make("--mode", "variations", *start, *once)[0] for start in (A, B)]


# ---- of prompts ----------------------------------------------------------------------


def test_an_image_is_made_again_by_the_command_that_it_tells(
    make, here, tmp_path, capsys
):
    images = make(*RED, *BLUE, "--num_images", 2, upsamplers=1)
    assert images.shape == (4, 8, 8, 3)
    assert np.abs(images[2] - images[3]).max() > 1e-2  # of one prompt
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [*(f"0000{i}-seed0.png" for i in range(4)), "grid.png"]
    told = grids.read_metadata(tmp_path / "out" / names[3])
    assert (
        told["prompt"] == "a blue square" and '"decoder": 3' in told["checkpoint_steps"]
    )
    capsys.readouterr()
    entry_points.inspect(tmp_path / "out" / names[3])
    words = shlex.split(capsys.readouterr().out)[3:]
    entry_points.sample(*words, "--out", tmp_path / "again")
    pixels = [np.asarray(Image.open(tmp_path / d / names[3])) for d in ("out", "again")]
    np.testing.assert_array_equal(*pixels)
    sheet = records.read(tmp_path / "out" / "grid.png")["flags"]
    assert sheet["prompt"] == ["a red circle", "a blue square"]


def test_lines_of_a_file_are_as_flags(make, tmp_path):
    own = dict(prompt="a blue square", seed=7, guidance=3.0)
    lines = ["a red circle", json.dumps(own)]
    (tmp_path / "prompts.txt").write_text("\n".join(lines))
    once = ("--num_images", 1)
    several = make("--from_file", tmp_path / "prompts.txt", *once)
    alone = [make(*RED, *once), make(*BLUE, *once, "--seed", 7, "--guidance", 3)]
    np.testing.assert_allclose(several, np.concatenate(alone), atol=1e-5)


def test_the_best_is_that_which_clip_finds_nearest(make, stack, capsys):
    drawn = make(*RED, "--num_images", 4)
    best = make(*RED, "--num_images", 2, "--best_of", 2)
    made = stack("stack", prior="prior")

    @jax.jit
    def cosines(params, images, tokens):
        image = made.pipeline.encode_image(params, images)
        return image @ made.pipeline.encode_text(params, tokens).clip.embed[0]

    found = cosines(made.params, drawn, made.tokenizer([RED[1]])).reshape(2, 2)
    for image, pair, scores in zip(best, drawn.reshape(2, 2, 4, 4, 3), found):
        np.testing.assert_allclose(image, pair[int(scores.argmax())], atol=1e-5)
    assert f"cosine {float(found[1].max()):.3f}" in capsys.readouterr().err


def test_the_modes_of_figure_8_hear_what_they_should(make, stack, monkeypatch):
    once = ("--num_images", 1)
    modes = {
        mode: functools.partial(make, "--mode", mode, *once)
        for mode in ("text", "text_embedding", "caption")
    }
    before = {mode: run(*RED) for mode, run in modes.items()}
    pairs = [("text", "text_embedding"), ("text", "caption")]
    for one, other in pairs:
        assert np.abs(before[one] - before[other]).max() > 1e-3
    assert np.abs(modes["caption"](*BLUE) - before["caption"]).max() > 1e-3
    made = stack("stack", prior="prior")
    params = made.params | {
        name: jax.tree.map(lambda a: -a, made.params[name])
        for name in ("prior", "image_encoder")
    }
    other = made._replace(params=params)
    monkeypatch.setattr(unclip_runs, "load", lambda *_, **__: other)
    for mode in ("text_embedding", "caption"):  # no prior is asked
        np.testing.assert_array_equal(modes[mode](*RED), before[mode])
    assert np.abs(modes["text"](*RED) - before["text"]).max() > 1e-3


# ---- of pictures ---------------------------------------------------------------------


def test_variations_are_the_further_from_each_other_the_larger_eta(make):
    spreads = []
    for eta in ((0,), (0.5,), (1,), ()):
        words = ("--eta", *eta) if eta else ()
        images = make("--mode", "variations", *A, "--num_images", 4, *words)
        spreads.append(images.std(axis=0).mean())
    assert spreads[0] < 1e-6
    assert 1e-3 < spreads[1] < spreads[2]
    assert spreads[3] > 1e-3  # of fresh noise


def test_an_interpolation_goes_from_one_picture_to_the_other(make, rebuilt):
    words = ("--mode", "interpolate", *A, "--to_image", "b.png")
    frames = make(*words, "--frames", 3)
    np.testing.assert_allclose(frames[[0, 2]], rebuilt, atol=1e-4)
    middle = [np.abs(frames[1] - end).max() for end in rebuilt]
    assert min(middle) > 1e-3
    alone = make(*words, "--frames", 3, "--frame", 1)
    np.testing.assert_allclose(alone, frames[1:2], atol=1e-5)


def test_frames_of_one_noise_have_that_of_their_seed(make, rebuilt):
    words = ("--mode", "interpolate", *A, "--to_image", "b.png", "--fixed_noise")
    first, same, other = (
        make(*words, "--frames", 2, "--seed", seed) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max(axis=(1, 2, 3)).min() > 1e-3
    assert np.abs(first - rebuilt).max(axis=(1, 2, 3)).min() > 1e-3


def test_an_interpolation_to_a_caption_leaves_the_noise(make, rebuilt):
    words = ("--mode", "interpolate", *A, "--frames", 2, "--to_prompt")
    for caption in ("a red circle", "a blue square"):
        frames = make(*words, caption)
        np.testing.assert_allclose(frames[0], rebuilt[0], atol=1e-4)
        assert np.abs(frames[1] - rebuilt[0]).max() > 1e-3


def test_a_text_diff_begins_at_the_picture(make, rebuilt):
    words = ("--mode", "text_diff", *A, *RED, "--before", "a blue square")
    frames = make(*words, "--theta", 0.4, "--frames", 3)
    np.testing.assert_allclose(frames[0], rebuilt[0], atol=1e-4)
    alone = make(*words, "--theta", 0.2, "--theta", 0.4)
    np.testing.assert_allclose(alone, frames[1:], atol=1e-5)
    moved = [np.abs(frame - rebuilt[0]).mean() for frame in frames]
    assert moved[0] < moved[1] < moved[2]


def test_all_components_of_pictures_rebuild_one_of_them(make, rebuilt):
    words = ("--mode", "pca", *A, "--components", "many", "--dims")
    whole = make(*words, 2)
    np.testing.assert_allclose(whole[0], rebuilt[0], atol=1e-3)
    assert np.abs(make(*words, 0) - whole).max() > 1e-3


def test_components_of_an_autoregressive_prior_are_found(make, tmp_path):
    images = make("--mode", "pca", *A, "--dims", 0, "--dims", 5)
    assert np.abs(images[0] - images[1]).max() > 1e-3
    told = records.read(tmp_path / "out" / "00000-seed0-frame001.png")
    assert told["flags"]["dims"] == 5


def test_what_a_mask_keeps_stays(make, here):
    words = ("--mode", "inpaint", *A, "--mask", "mask.png", "--num_images", 2)
    images = make(*words, *RED, upsamplers=1)
    original = np.asarray(Image.open(here / "a.png"), np.float32) / 127.5 - 1
    kept = np.broadcast_to(original[:, 4:], (2, 8, 4, 3))
    np.testing.assert_array_equal(images[:, :, 4:], kept)
    assert np.abs(images[:, :, :4] - original[:, :4]).max(axis=(1, 2, 3)).min() > 0.1
    assert np.abs(images[0] - images[1]).max() > 1e-2
    other = make(*words, *BLUE, upsamplers=1)
    assert np.abs(images - other).max() > 1e-3
