"""The command line on a published model: what an image depends on, and what is written."""

import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import compile_cache
import entry_points
import jax
import numpy as np
import pytest
import tiny_model
from PIL import Image

from diffusion_jax import sample
from diffusion_jax.evaluation import grids
from diffusion_jax.pipelines import batched
from diffusion_jax.sampling import records
from diffusion_jax.sampling.plans import Plan

ROOT = pathlib.Path(__file__).parents[1]
FAST = ("--sampler", "ddim", "--steps", 2, "--guidance", 2)
LONG = "a red circle above a blue square " * 12
GALLERY = (
    "--prompt",
    "a red circle",
    "--prompt",
    "cat (dog:1.3)",
    "--negative",
    "white",
)


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    yield from compile_cache.compile_once(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model.write(tmp_path_factory.mktemp("published") / "tiny")


@pytest.fixture(scope="module")
def gallery(model, tmp_path_factory):
    """Two images of each of two prompts, and the same as floats."""
    directory = tmp_path_factory.mktemp("gallery")
    array = directory.with_suffix(".npy")
    words = ["--weights", model, *FAST, *GALLERY, "--num_images", 2, "--batch", 3]
    entry_points.sample(*words, "--array", array, "--out", directory)
    return directory, np.load(array)


@pytest.fixture
def make(model, tmp_path):
    """Runs the command; the images as floats."""

    def run(*words, out="out"):
        array = tmp_path / "images.npy"
        array.unlink(missing_ok=True)
        words = ["--weights", model, *FAST, *words, "--array", array]
        entry_points.sample(*words, "--out", tmp_path / out)
        return np.load(array)

    return run


def pixels_of(path):
    with Image.open(path) as image:
        return np.asarray(image)


# ---- what an image depends on --------------------------------------------------------


def test_an_image_made_alone_is_that_of_a_batch(gallery, make):
    directory, images = gallery
    assert images.shape == (4, 16, 16, 3)
    assert np.abs(images[2] - images[3]).max() > 1e-2  # of one prompt
    words = ["--prompt", "cat (dog:1.3)", "--negative", "white", "--first_index", 3]
    alone = make(*words, out=directory)  # over the same picture, which is no loss
    np.testing.assert_allclose(alone, images[3:], atol=1e-4)


def test_lines_of_a_file_are_as_flags_and_leave_each_other_alone(
    gallery, make, tmp_path
):
    own = dict(prompt="cat", negative="dog", seed=7, guidance=4.0)
    lines = ["a red circle", "", LONG, json.dumps(own)]
    (tmp_path / "prompts.txt").write_text("\n".join(lines))
    words = ["--from_file", tmp_path / "prompts.txt", "--negative", "white"]
    first, _, last = make(*words, "--batch", 2)
    np.testing.assert_allclose(first, gallery[1][0], atol=1e-4)
    words = ["--prompt", "cat", "--negative", "dog", "--seed", 7, "--guidance", 4]
    np.testing.assert_allclose(make(*words), [last], atol=1e-4)


def test_devices_do_not_change_an_image(gallery, model, tmp_path):
    words = ["--weights", model, *FAST, *GALLERY, "--num_images", 2, "--batch", 3]
    words += ["--out", tmp_path / "out", "--array", tmp_path / "images.npy"]
    command = [sys.executable, "-m", "diffusion_jax.sample", *map(str, words)]
    flags = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_COMPILATION_CACHE_DIR": "",
        "PYTHONPATH": str(ROOT),
    }
    subprocess.run(command, env=os.environ | flags, check=True, timeout=250)
    made = np.load(tmp_path / "images.npy")
    np.testing.assert_allclose(made, gallery[1], atol=1e-4)


def test_parameters_on_all_devices_stay_where_they_are():
    placed = batched.replicate({"kernel": np.ones(3, np.float32)})
    kernel, again = (made["kernel"] for made in (placed, batched.replicate(placed)))
    assert kernel.sharding.device_set == set(jax.devices())
    for here, there in zip(kernel.addressable_shards, again.addressable_shards):
        pointers = (each.data.unsafe_buffer_pointer() for each in (here, there))
        assert len(set(pointers)) == 1


def test_given_noise_in_either_layout_is_what_sampling_starts_from(make, tmp_path):
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(3, 10, 8, 4)).astype(np.float32)
    np.save(tmp_path / "last.npy", noise)
    np.save(tmp_path / "first.npy", noise.transpose(0, 3, 1, 2))
    words = ["--prompt", "cat", "--height", 20, "--latents"]
    images = make(*words, tmp_path / "last.npy")
    assert images.shape == (3, 20, 16, 3)
    assert np.abs(images[0] - images[1]).max() > 1e-2
    other = [tmp_path / "first.npy", "--seed", 9, "--first_index", 2]
    np.testing.assert_allclose(make(*words, *other), images[2:], atol=1e-4)


def test_an_interpolation_ends_at_both_images(make, tmp_path, capsys):
    ends = [dict(prompt="a red circle", seed=3), dict(prompt="cat", seed=4)]
    (tmp_path / "ends.txt").write_text("\n".join(map(json.dumps, ends)))
    first, last = make("--from_file", tmp_path / "ends.txt")
    words = ["--prompt", "a red circle", "--seed", 3, "--to_prompt", "cat"]
    frames = make(*words, "--to_seed", 4, "--frames", 3, out="frames")
    np.testing.assert_allclose(frames[[0, 2]], [first, last], atol=2e-4)
    assert np.abs(frames[1] - (first + last) / 2).max() > 1e-2
    check_made_again(tmp_path / "frames" / "00000-seed3-frame001.png", capsys)


# ---- what is written -----------------------------------------------------------------


def check_made_again(path, capsys):
    """Runs the command that the picture tells."""
    capsys.readouterr()
    entry_points.inspect(path)
    command = shlex.split(capsys.readouterr().out)
    assert command[:3] == ["python", "-m", "diffusion_jax.sample"]
    out = path.parent / "again"
    entry_points.sample(*command[3:], "--out", out)
    assert [made.name for made in out.iterdir()] == [path.name]
    np.testing.assert_array_equal(pixels_of(out / path.name), pixels_of(path))
    told = [grids.read_metadata(one) for one in (out / path.name, path)]
    assert told[0] == told[1]
    shutil.rmtree(out)


def test_the_command_of_a_picture_makes_it_again(gallery, capsys):
    check_made_again(gallery[0] / "00001-seed0.png", capsys)


def test_any_prompt_comes_back_from_its_picture(make, tmp_path, capsys):
    prompt = 'it\'s a "cat" /usr/lib/a\n$HOME \\ C:/a/b a:\nb\nc 猫 (x'
    words = ["--clip_skip", 1, "--no_weighting", "--guidance_rescale", 0.7]
    make("--prompt", prompt, *words, "--guidance_interval", "0.1,")
    path = tmp_path / "out" / "00000-seed0.png"
    assert records.read(path)["flags"]["prompt"] == prompt
    check_made_again(path, capsys)


def test_a_png_is_the_array_rounded(gallery):
    directory, images = gallery
    names = [f"0000{i}-seed0.png" for i in range(4)]
    assert sorted(path.name for path in directory.iterdir()) == names
    for name, image in zip(names[:3], images):
        wanted = np.rint((image.astype(np.float64) + 1) * 127.5)
        np.testing.assert_array_equal(pixels_of(directory / name), wanted)


def test_viewers_read_the_parameters(gallery, model):
    told = grids.read_metadata(gallery[0] / "00002-seed0.png")["parameters"]
    prompt, negative, facts = told.split("\n")
    assert (prompt, negative) == ("cat (dog:1.3)", "Negative prompt: white")
    facts = dict(fact.split(": ") for fact in facts.split(", "))
    assert facts.pop("Version").startswith("diffusion_jax")
    assert facts == {
        "Steps": "2",
        "Sampler": "DDIM",
        "CFG scale": "2",
        "Seed": "0",
        "Size": "16x16",
        "Model": "tiny",
    }
    flags = dict(prompt=["a", "b"], steps=9, guidance=7.5, seed=1, width=24, height=16)
    flags |= dict(grid="karras", strength=0.5, clip_skip=1)
    said = records.parameters(flags, "dpmpp_2m", "a, b")
    assert said.startswith("a\nb\nSteps: 9, Sampler: DPM++ 2M, Schedule type: Karras, ")
    assert "Size: 24x16" in said and 'Model: "a, b"' in said
    assert "Denoising strength: 0.5" in said
    assert "Clip skip: 2" in said  # there, 1 is none


def test_a_png_of_several_images_is_a_sheet(make, tmp_path, capsys):
    make("--prompt", "cat", "--num_images", 2, out="two.png")
    assert pixels_of(tmp_path / "two.png").shape[1] > 2 * 16
    capsys.readouterr()
    entry_points.inspect(tmp_path / "two.png")
    words = shlex.split(capsys.readouterr().out)
    assert words[words.index("--num_images") + 1] == "2"
    assert words[words.index("--out") + 1] == "two.png"


def test_what_was_made_before_an_interrupt_is_kept(make, tmp_path, monkeypatch, capsys):
    def interrupt(done, total):
        if done == 1 and len(list((tmp_path / "out").iterdir())) == 1:
            raise KeyboardInterrupt

    real = sample.progress.reporter
    monkeypatch.setattr(
        sample.progress, "reporter", lambda num: real(num)._replace(step=interrupt)
    )
    with pytest.raises(SystemExit) as stopped:
        make("--prompt", "cat", "--num_images", 3)
    assert stopped.value.code == 130
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["00000-seed0.png"]
    assert np.load(tmp_path / "images.npy").shape == (1, 16, 16, 3)
    assert capsys.readouterr().err.count("compiling") == 1


def test_images_are_kept_in_memory_only_for_what_holds_several(
    model, tmp_path, monkeypatch
):
    plans, kept = sample.plans, []
    image = np.zeros((2, 2, 3), np.float32)
    monkeypatch.setattr(sample.outputs, "save", lambda *_: None)
    monkeypatch.setattr(sample.outputs, "finish", lambda *args: kept.append(args) or [])
    one = plans.Wanted("cat", "", 0, 1.0, 0, 0)
    batches = [([one], image[None])]
    made = lambda *_: iter(batches)
    monkeypatch.setattr(sample.making, "maker", lambda *_, **__: made)
    found = plans.models.of_weights(str(model), plans.published.Choices())
    start = plans.Start()
    plan = Plan(found, None, [one], start, None, 1, [], [], "ddim", {}, {})
    for array, num_kept in ((None, 0), (str(tmp_path / "images.npy"), 1)):
        out = sample.outputs.place(str(tmp_path), array, of_run=False)
        sample.make(plan, out, {}, None)
        assert len(kept) == num_kept


def test_a_picture_made_otherwise_is_not_written_over(gallery, make):
    path = gallery[0] / "00000-seed0.png"
    before = path.read_bytes()
    with pytest.raises(SystemExit, match="made otherwise.*--overwrite"):
        make("--prompt", "dog", out=gallery[0])
    assert path.read_bytes() == before


def test_a_dry_run_says_it_all_and_reads_no_weights(model, capsys, monkeypatch):
    monkeypatch.setattr(
        sample.plans.published, "load_params", lambda *_: pytest.fail("reads weights")
    )
    words = ["--weights", model, "--prompt", LONG, "--max_chunks", 1, "--num_images", 4]
    entry_points.sample(*words, *FAST, "--batch", 2, "--dry_run", "--grid", "trailing")
    said = capsys.readouterr()
    for text in (
        "tiny, 16 x 16 pixels",
        "sampler: ddim, 2 of 2 steps, guidance 2",
        "times: 999 499",
        "images: 4, 2 at a time",
    ):
        assert text in said.out
    num_cut = int(said.err.split("the last ")[1].split()[0])
    assert f"{num_cut + 75} tokens, of which the last {num_cut} are cut" in said.out
    stored = sum(file.stat().st_size for file in model.rglob("*.safetensors"))
    told = float(said.out.split("weights of ")[1].split()[0])
    assert told == pytest.approx(stored / 1e6, rel=0.5)


def test_every_sampler_and_grid_is_listed(capsys):
    entry_points.sample("--list_samplers")
    said = capsys.readouterr().out
    for line in (*sample.plans.samplers(), *sample.plans.grids.GRIDS):
        assert f"\n  {line} " in said
