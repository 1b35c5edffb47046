"""A small DALL·E 2 trained for some steps, stage after stage, and put together."""

import io
import json
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_stack
from compile_cache import compile_once
from ml_collections import ConfigDict

from configs.small import scenes_clip
from diffusion_jax import build, runs, train, unclip_runs
from diffusion_jax.data import scenes_builder
from diffusion_jax.frozen_towers import PAIRS

STEPS = 2


@pytest.fixture(scope="module", autouse=True)
def programs(tmp_path_factory):
    yield from compile_once(tmp_path_factory.mktemp("programs"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Tar shards of scenes: the entry points need no more than image and text."""
    directory = tmp_path_factory.mktemp("shards")
    with tarfile.open(directory / "0.tar", "w") as tar:
        examples = scenes_builder.generate("train", 48, image_size=32)
        for i, (image, caption) in enumerate(examples):
            for suffix, data in (("png", image), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{i:05d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return directory / "*.tar"


def clip_config():
    config = scenes_clip.get_config("runlocal")
    config.clip = tiny_stack.CLIP
    config.tokenizer.vocab_size = 600
    return config


def small(name, shards, out):
    """The config of a stage, cut down until a test can train it."""
    config = (tiny_stack.STAGES | {"clip": clip_config})[name]()
    with config.unlocked():
        config.data.source = ConfigDict(dict(name="tar_shards"))
        config.optimizer = ConfigDict(dict(name="adamw", learning_rate=1e-3))
    for split in ("train_split", "eval_split", "test_split"):
        config.data[split] = str(shards)
    config.data.image_size = tiny_stack.LARGE
    config.batch_size, config.num_steps = 8, STEPS
    config.log_every = config.checkpoint_every = config.sample_every = STEPS
    if "towers" in config:
        config.towers.clip = str(out / "clip")
    return config


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("stack")
    for name in ("clip", *tiny_stack.STAGES):
        train.train(small(name, shards, out), out / name)
    return out


def test_every_stage_trains_and_is_shown(trained):
    for name in tiny_stack.STAGES:
        run = runs.load(trained / name)
        assert run.step == STEPS
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(run.params))
        assert "nan" not in (trained / name / "metrics.csv").read_text()
    for name in ("decoder", "upsampler"):
        assert list((trained / name / runs.SAMPLES).glob("*.png"))
    header = (trained / "prior" / "metrics.csv").read_text().splitlines()[0]
    assert {"eval_image", "eval_text", "eval_mean_baseline"} <= set(header.split(","))


def test_the_scale_and_the_codes_are_of_the_data(trained, shards):
    """Standardised embeddings have mean 0, variance 1; codes give them back."""
    prior, codes = (runs.load(trained / name) for name in ("prior", "codes_prior"))
    cache = np.load(trained / "prior" / runs.CACHE / "image_embed.npy")
    scale = prior.frozen["embedding"]
    x = (cache.astype(np.float32) - scale["mean"]) / scale["std"]
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-2)
    np.testing.assert_allclose(x.std(0), 1, rtol=1e-2)
    pairs = prior.frozen[PAIRS]
    np.testing.assert_allclose(pairs["image_embed"], cache[: len(pairs["tokens"])])
    assert codes.frozen["codes"]["axes"].shape == (tiny_stack.WIDTH, 5)


def test_the_stages_make_one_pipeline(trained):
    for prior in ("prior", "codes_prior"):
        stack = unclip_runs.load(trained, prior=prior)
        keys = jax.random.split(jax.random.key(0), 2)
        tokens, null = (
            jnp.asarray(stack.tokenizer(texts))
            for texts in (["a red circle"] * 2, [""])
        )
        images = jax.jit(stack.pipeline)(stack.params, keys, tokens, null)
        assert images.shape == (2, tiny_stack.LARGE, tiny_stack.LARGE, 3)
        assert np.abs(images[0] - images[1]).max() > 1e-3


def test_a_prior_of_analytic_dpm_knows_its_data(trained):
    """A share for each of the steps that are chosen, beside all that it knew before."""
    run = runs.load(trained / "prior")
    config = ConfigDict(run.config.to_dict())
    config.sampling.sampler = dict(name="analytic_dpm")
    config.sampling.steps = 3
    prior = build.unclip.prior_of(config, run.tokenizer, run.frozen)
    params = build.unclip.prior_params(run.params, run.frozen)
    told = unclip_runs.know_data(run, params, prior)
    power = told.pop("eps_power")
    assert power.shape == (3,)
    assert np.all((power >= 0) & (power <= 1))
    assert told.keys() == params.keys()
    without = run._replace(frozen={k: v for k, v in run.frozen.items() if k != PAIRS})
    with pytest.raises(build.ConfigError, match="this run keeps none"):
        unclip_runs.know_data(without, params, prior)


def test_runs_that_do_not_go_together_are_named(trained, tmp_path):
    with pytest.raises(build.ConfigError, match="no directory"):
        unclip_runs.find(tmp_path / "nowhere")
    with pytest.raises(build.ConfigError, match="one run of a decoder; it holds none"):
        unclip_runs.find(tmp_path)
    with pytest.raises(build.ConfigError, match="'codes_prior', 'prior'"):
        unclip_runs.find(trained, prior="other")
    for name in ("decoder", "upsampler"):
        (tmp_path / name).mkdir()
        config = json.loads((trained / name / runs.CONFIG_FILE).read_text())
        if name == "upsampler":
            config["upsampler"]["low_size"] = 2
        (tmp_path / name / runs.CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(build.ConfigError, match="images of 2 pixels; decoder makes 4"):
        unclip_runs.find(tmp_path)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("prior", {"prior.num_tokens": 3}, "num_tokens 3: captions have 20"),
        ("codes_prior", {"prior.num_tokens": 30}, "num_tokens 30: captions have 20"),
        ("codes_prior", {"codes.num_dims": 9}, "num_dims 9: CLIP's embeddings have 8"),
        ("prior", {"loss": dict(name="hybrid")}, "'hybrid' of a prior"),
        ("prior", {"prior.layers": 1}, "'layers'.*num_layers"),
        ("prior", {"sampling.candidates": 0}, "sampling.candidates is 0; at least 1"),
        ("codes_prior", {"sampling.top": 2.0}, "sampling.top is 2.0; a share"),
        ("codes_prior", {"sampling.temperature": -1.0}, "temperature is -1.0; 0 or"),
        ("clip", {"task.sam_rhoo": 0.1}, "'sam_rhoo': did you mean 'sam_rho'"),
        ("prior", {"embedding_scale.name": "papers"}, "did you mean 'paper'"),
        ("decoder", {"task.image_dropout": 2.0}, "image_dropout is 2.0"),
        ("decoder", {"unet.vector": "none"}, "a decoder hears the image"),
        ("decoder", {"text": dict(context_length=3)}, "context_length 3: captions"),
        ("upsampler", {"upsampler.low_size": 3}, "image_size 8 must be a multiple"),
        ("upsampler", {"upsampler.degradation.name": "bsrr"}, "did you mean 'bsr'"),
    ],
)
def test_what_does_not_fit_is_said_before_any_record_is_read(
    name, changes, message, trained, shards, tmp_path
):
    config = small(name, shards, trained)
    with config.unlocked():
        for field, value in changes.items():
            *sections, last = field.split(".")
            place = config
            for section in sections:
                place = place[section]
            place[last] = value
    with pytest.raises(build.ConfigError, match=message):
        train.train(config, tmp_path / name)
    assert not (tmp_path / name / runs.CACHE).exists()
