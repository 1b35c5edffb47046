"""Every config: plain data that builds; the small ones train, resume and sample."""

import importlib.util
import io
import json
import pathlib
import shlex
import shutil
import tarfile

import entry_points
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from diffusion_jax import build, runs, train
from diffusion_jax.data import scenes_builder
from diffusion_jax.evaluation import grids
from diffusion_jax.sampling import trained_runs

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs" / "small").glob("shapes_*.py"))
STEPS = 4


def get_config(path, variant="runlocal"):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two tar shards of scenes: the entry points need no more than image and text."""
    directory = tmp_path_factory.mktemp("shards")
    for split in ("train", "test"):
        with tarfile.open(directory / f"{split}-0.tar", "w") as tar:
            examples = scenes_builder.generate("train", 96, image_size=32)
            for i, (image, caption) in enumerate(examples):
                for suffix, data in (("png", image), ("txt", caption.encode())):
                    member = tarfile.TarInfo(f"{i:05d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return directory


def small(name, shards, out, num_steps=STEPS):
    """The named config, cut down until a test can train it."""
    config = get_config(ROOT / "configs" / "small" / f"shapes_{name}.py")
    with config.unlocked():
        config.data.source = ConfigDict(dict(name="tar_shards"))
    config.data.train_split = str(shards / "train-*.tar")
    config.data.eval_split = config.data.test_split = str(shards / "test-*.tar")
    config.batch_size = 8
    config.num_steps = num_steps
    config.log_every = config.checkpoint_every = 2
    config.sample_every = 4
    # Muon's iteration for every matrix takes long to compile
    config.optimizer = ConfigDict(dict(name="adamw", learning_rate=1e-3))
    if name == "clip":
        config.clip.text.update(dict(width=16, num_layers=1, num_heads=2, mlp_width=32))
        config.clip.vision.update(
            dict(width=16, num_layers=1, num_heads=2, mlp_width=32)
        )
    if name == "vae":
        config.vae.update(dict(channels=(8, 8), latent_channels=4, norm_groups=4))
    if name == "ldm":
        config.towers = dict(clip=str(out / "clip"), vae=str(out / "vae"))
        config.unet.update(dict(channels=(8,), norm_groups=4, num_heads=(2,)))
        config.sampling.steps = 3
    return config


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory):
    """CLIP, autoencoder and latent diffusion, each trained for some steps."""
    out = tmp_path_factory.mktemp("runs")
    for name in ("clip", "vae", "ldm"):
        train.train(small(name, shards, out), out / name)
    return out


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("variant", ["", "runlocal"])
def test_configs_survive_json(path, variant, tmp_path):
    config = get_config(path, variant)
    runs.write_config(tmp_path, config)
    assert runs.read_config(tmp_path).to_dict() == config.to_dict()


def test_training_leaves_a_run_that_loads(trained):
    for name in ("clip", "vae", "ldm"):
        run = runs.load(trained / name)
        assert run.step == STEPS
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(run.params))


def test_the_latents_that_are_trained_on_have_unit_variance(trained):
    cache = trained / "ldm" / runs.CACHE
    mean, std = (np.load(cache / f"latent_{x}.npy") for x in ("mean", "std"))
    scale = float(runs.load(trained / "ldm").frozen["latent_scale"])
    variance = mean.astype(np.float64).var() + np.mean(std.astype(np.float64) ** 2)
    assert scale**2 * variance == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("name", ["vae", "ldm"])
def test_a_run_that_goes_on_equals_one_that_never_stopped(
    name, trained, shards, tmp_path
):
    """Its last checkpoint lost, a run repeats its last steps bit for bit."""
    shutil.copytree(trained / name, tmp_path / name)
    shutil.rmtree(tmp_path / name / "checkpoints" / str(STEPS))
    again = train.train(small(name, shards, trained), tmp_path / name)
    whole = runs.load(trained / name)
    jax.tree.map(np.testing.assert_array_equal, whole.params, again.params)
    tables = [(d / name / "metrics.csv").read_text() for d in (trained, tmp_path)]
    assert tables[0] == tables[1]
    assert len(tables[0].splitlines()) == 1 + STEPS // 2


def test_another_config_in_the_same_directory_is_refused(trained, shards):
    config = small("clip", shards, trained)
    config.optimizer.learning_rate = 1.0
    with pytest.raises(build.ConfigError, match="optimizer"):
        train.train(config, trained / "clip")


def test_missing_towers_are_named_before_any_work(shards, tmp_path):
    config = small("ldm", shards, tmp_path)
    with pytest.raises(build.ConfigError, match="shapes_clip"):
        train.train(config, tmp_path / "ldm")
    assert not (tmp_path / "ldm").exists()


@pytest.mark.parametrize(
    ("section", "value", "hint"),
    [
        ("weighting", dict(name="min_sbr"), "min_snr"),
        ("schedule", dict(name="cosin"), "cosine"),
        ("parameterization", dict(name="velocity"), "flow"),
        ("optimizer", dict(name="adamv", learning_rate=1.0), "adamw"),
        ("unet", dict(chanels=(8,)), "channels"),
        ("task", dict(name="latent_difusion"), "latent_diffusion"),
    ],
)
def test_a_wrong_name_is_refused_with_the_choices(
    section, value, hint, trained, shards, tmp_path
):
    config = small("ldm", shards, trained)
    with config.unlocked():
        config[section] = ConfigDict(value)
    with pytest.raises(build.ConfigError, match=hint):
        train.train(config, tmp_path / "ldm")
    assert not (tmp_path / "ldm").exists()


def test_image_i_is_the_same_in_any_batch(trained):
    run = runs.load(trained / "ldm")
    prompts = ["a small red circle", "a large blue square"] * 3
    images = [
        trained_runs.make(run, prompts, batch_size=size, seed=3) for size in (1, 4, 6)
    ]
    for others in images[1:]:
        np.testing.assert_allclose(images[0], others, atol=1e-4)
    assert np.abs(images[0][0] - images[0][2]).max() > 1e-3  # the same prompt


def test_seeds_differ_and_repeat(trained):
    run = runs.load(trained / "ldm")
    first, again, other = (
        trained_runs.make(run, ["a small red circle"], seed=seed) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_the_png_says_how_it_was_made(trained, tmp_path):
    prompt = "a small red circle"
    words = ["--workdir", trained / "ldm", "--prompt", prompt, "--seed", 5]
    words += ["--sampler", "ddim", "--steps", 2, "--num_images", 2]
    entry_points.sample(*words, "--out", tmp_path / "x.png")
    told = grids.read_metadata(tmp_path / "x.png")
    assert json.loads(told["prompt"]) == [prompt]
    assert (told["seed"], told["steps"]) == ("5", "2")
    assert json.loads(told["sampler"]) == {"name": "ddim"}
    assert told["checkpoint_step"] == str(STEPS)
    assert json.loads(told["config"])["task"]["name"] == "latent_diffusion"


def test_an_image_of_a_run_is_made_again_alone(trained, tmp_path, capsys):
    words = ["--workdir", trained / "ldm", "--prompt", "a small red circle"]
    words += ["--num_images", 3, "--steps", 2, "--guidance_rescale", 0.5]
    entry_points.sample(*words, "--out", tmp_path / "made")
    names = sorted(path.name for path in (tmp_path / "made").iterdir())
    assert names == [*(f"0000{i}-seed0.png" for i in range(3)), "grid.png"]
    capsys.readouterr()
    entry_points.inspect(tmp_path / "made" / names[2])
    again = shlex.split(capsys.readouterr().out)[3:]
    entry_points.sample(*again, "--out", tmp_path / "again")
    images = [Image.open(tmp_path / out / names[2]) for out in ("made", "again")]
    np.testing.assert_array_equal(*map(np.asarray, images))
    capsys.readouterr()
    entry_points.sample(*words, "--dry_run")
    assert "ldm, 32 x 32 pixels" in capsys.readouterr().out
    told = [grids.read_metadata(tmp_path / "made" / name) for name in names[:2]]
    assert [one["index"] for one in told] == ["0", "1"]
