"""Published models, fine-tuned: they start where they were published, and sample."""

import io
import json
import pathlib
import shutil
import tarfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from configs.sd import finetune, lora
from diffusion_jax import build, command, export, finetuning, published, runs, train
from diffusion_jax.data import scenes_builder
from diffusion_jax.diffusion import parameterization
from diffusion_jax.sampling import trained_runs
from diffusion_jax.weights import lora as lora_merging
from diffusion_jax.weights import lora_files, scheduler_config
from diffusion_jax.weights import published as weights
from tests import entry_points, tiny_model

STEPS = 2
FAMILIES = {"sd1": {}, "sdxl": {"is_xl": True}}
MODULES = {"finetune": finetune, "lora": lora}
RUNS = [("sd1", "finetune"), ("sd1", "lora"), ("sdxl", "lora")]


class Tuned(NamedTuple):
    name: str
    workdir: pathlib.Path
    config: ConfigDict
    weights: pathlib.Path


@pytest.fixture(scope="module")
def published_dirs(tmp_path_factory):
    out = tmp_path_factory.mktemp("published")
    return {
        name: tiny_model.write(out / name, **fields)
        for name, fields in FAMILIES.items()
    }


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    path = tmp_path_factory.mktemp("shards") / "train-0.tar"
    with tarfile.open(path, "w") as tar:
        for i, (image, caption) in enumerate(
            scenes_builder.generate("train", 16, image_size=16)
        ):
            for suffix, data in (("png", image), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{i:05d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return str(path)


def small(config, directory, shards, num_steps=STEPS):
    config.weights = str(directory)
    config.data.train_split = config.data.eval_split = shards
    config.data.image_size = 16
    config.batch_size = 4
    config.num_steps = num_steps
    config.log_every = config.checkpoint_every = 1
    config.sample_every = 0
    config.sampling.steps = 2
    config.optimizer.warmup_steps = 0
    config.unet.dtype = "float32"
    return config


@pytest.fixture(scope="module", params=RUNS, ids="-".join)
def tuned(request, published_dirs, shards, tmp_path_factory):
    """A run of a family, its config, and what it started from."""
    family, name = request.param
    config = MODULES[name].get_config("tar_shards")
    config = small(config, published_dirs[family], shards)
    workdir = tmp_path_factory.mktemp("tuned") / name
    train.train(config, workdir)
    return Tuned(name, workdir, config, published_dirs[family])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("module", [finetune, lora])
def test_training_starts_from_the_published_weights(
    module, family, published_dirs, shards, tmp_path
):
    weights_dir = published_dirs[family]
    config = small(module.get_config("tar_shards"), weights_dir, shards)
    config = train.complete(config, epath.Path(tmp_path))
    tokenizer = train.prepare_tokenizer(config, epath.Path(tmp_path), [])
    frozen = finetuning.frozen(config)
    initial = finetuning.initial(config, epath.Path(tmp_path))
    params, frozen = build.task(config, tokenizer, frozen, initial).init(
        jax.random.key(0)
    )
    start = build.sampling_params(params, frozen)
    expected = weights.load_params(published.find(weights_dir))
    jax.tree.map(np.testing.assert_array_equal, start, expected)


SCHEDULERS = {
    "sd1": tiny_model.SCHEDULER,
    "zero terminal snr": dict(
        _class_name="DDIMScheduler",
        beta_schedule="scaled_linear",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
    ),
    "trained betas": dict(
        _class_name="DDPMScheduler", trained_betas=[0.01] * 1000, clip_sample=False
    ),
    "flow": dict(_class_name="FlowMatchEulerDiscreteScheduler", shift=3.0),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_training_adds_noise_as_sampling_removes_it(scheduler, published_dirs):
    found = published.find(published_dirs["sd1"])._replace(scheduler=scheduler)
    said = json.loads(json.dumps(finetuning.words(found)))  # as a run keeps it
    recipe = scheduler_config.read(scheduler)
    schedule = build.schedule(runs._to_tuples(said["schedule"]))
    t = jnp.linspace(0.1, 1.0, 7) * recipe.schedule.t_max
    for ours, theirs in zip(schedule(t), recipe.schedule(t), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    p = parameterization.PARAMETERIZATIONS[said["parameterization"]["name"]]()
    level = schedule(t[:-1])
    np.testing.assert_allclose(
        p.coefficients(level), recipe.parameterization.coefficients(level), rtol=1e-6
    )


def test_an_unfinished_checkpoint_is_no_reason_to_start_at_random(
    published_dirs, shards, tmp_path
):
    config = small(finetune.get_config("tar_shards"), published_dirs["sd1"], shards)
    config = train.complete(config, epath.Path(tmp_path))
    steps = epath.Path(tmp_path) / runs.CHECKPOINTS
    (steps / "1.orbax-checkpoint-tmp").mkdir(parents=True)
    assert finetuning.initial(config, epath.Path(tmp_path)) is not None
    (steps / "1").mkdir()
    assert finetuning.initial(config, epath.Path(tmp_path)) is None


def test_a_run_goes_on_where_its_model_is_gone(published_dirs, shards, tmp_path):
    directory = tmp_path / "moved"
    shutil.copytree(published_dirs["sd1"], directory)
    config = small(lora.get_config("tar_shards"), directory, shards)
    begun = train.complete(config, epath.Path(tmp_path / "run"))
    runs.write_config(tmp_path / "run", begun)
    shutil.rmtree(directory)
    again = train.complete(config, epath.Path(tmp_path / "run"))
    runs.write_config(tmp_path / "run", again)  # raises if it were another


def test_training_moves_what_is_trained_and_nothing_else(tuned):
    before = weights.load_params(published.find(tuned.weights))
    run = runs.load(tuned.workdir)
    after = build.sampling_params(run.params, run.frozen)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
    assert not any(jax.tree.leaves([moved[k] for k in moved if k != "unet"]))
    block = moved["unet"]["mid_block"]["attentions.0"]["transformer_blocks.0"]
    assert block["attn1"]["to_q"]["kernel"]
    assert moved["unet"]["conv_in"]["kernel"] == (tuned.name == "finetune")
    assert ("unet" in run.frozen) == (tuned.name == "lora")
    assert set(run.params) == {"lora" if tuned.name == "lora" else "unet"}


def test_a_tuned_run_samples_without_what_it_started_from(tuned):
    run = runs.load(tuned.workdir)
    assert run.config.schedule.betas == "scaled_linear"
    images = trained_runs.make(run, ["a red circle", "cat dog"], batch_size=2)
    assert images.shape == (2, 16, 16, 3) and np.isfinite(images).all()


def test_a_tuned_run_is_sampled_from_the_command_line(tuned, tmp_path):
    out = tmp_path / "grid.png"
    entry_points.sample(
        *("--workdir", tuned.workdir, "--prompt", "a (red:1.3) circle"),
        *("--num_images", 1, "--steps", 2, "--out", out),
    )
    assert out.is_file()


def test_a_tuned_run_that_is_done_is_left_as_it_is(tuned):
    before = runs.load(tuned.workdir)
    again = train.train(tuned.config, tuned.workdir)
    jax.tree.map(np.testing.assert_array_equal, before.params, again.params)


def exported(*words):
    """`python -m diffusion_jax.export`, in this process."""
    values = flags.FlagValues()
    export.define_flags(values)
    command.parse(["export", *map(str, words)], values)
    return export.run(values)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--workdir run --out new --ema", "--ema: only with --weights"),
        (
            "--workdir run --out new --from_variant fp16 --tokenizer words",
            "--from_variant, --tokenizer: only with --weights",
        ),
        ("--workdir run --out new --prediction_type epsilon", "only with --weights"),
        ("--workdir run --out new --lora x", "--lora: only with --weights"),
        ("--workdir run --out new --dialect peft", "only with --lora_out"),
        ("--workdir run --lora_out x --dtype float16", "not with --lora_out"),
        ("--workdir run --weights model --out new", "either"),
        ("--weights model --out new --step 1", "--step: only with --workdir"),
        ("--weights model --lora_out new", "--lora_out: only with --workdir"),
        ("--weights model", "--out is not given"),
    ],
)
def test_a_flag_of_no_effect_on_an_export_is_refused(words, message):
    with pytest.raises(build.ConfigError, match=message):
        exported(*words.split())


@pytest.mark.parametrize("scale", ["nan", "inf", "-inf"])
def test_a_scale_that_is_not_finite_is_refused(scale, published_dirs, tmp_path):
    with pytest.raises(build.ConfigError, match="not finite"):
        exported(
            *("--weights", published_dirs["sd1"], "--out", tmp_path / "out"),
            *("--lora", f"style.safetensors:{scale}"),
        )


def test_loras_are_read_before_the_model(published_dirs, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "load_params", None)
    with pytest.raises(FileNotFoundError, match="no lora at none.safetensors"):
        exported(
            *("--weights", published_dirs["sd1"], "--out", tmp_path / "out"),
            *("--lora", "none.safetensors:0.5"),
        )


@pytest.mark.parametrize(
    ("few", "many", "expected"),
    [
        ("float32", "float16", "float32"),
        ("float16", "float32", "float32"),
        ("bfloat16", "float16", "float32"),  # neither holds the other
        ("int64", "float16", "float16"),
    ],
)
def test_no_number_of_a_part_is_narrowed(few, many, expected, published_dirs):
    model = published.find(published_dirs["sd1"])
    part = {
        "a": np.zeros(1, jnp.dtype(few)),
        "b": np.zeros(99, jnp.dtype(many)),
    }
    found = export.stored_dtypes(model._replace(tensors={"unet": part}))
    assert found == {"unet": np.dtype(expected)}


def test_a_tuned_run_is_written_as_it_was_published(tuned, tmp_path):
    """Export, and what is read back makes the parameters that the run samples with."""
    made, params = export.of_run(str(tuned.workdir))
    export.writing_directory.write(tmp_path / "out", made, params.__getitem__)
    run = runs.load(tuned.workdir)
    expected = build.sampling_params(run.params, run.frozen)
    found = published.find(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, weights.load_params(found), expected)


@pytest.mark.parametrize("dialect", [None, "kohya", "peft"])
def test_what_a_lora_learned_is_written_alone(tuned, tmp_path, dialect):
    """The file, merged into what the run started from, makes what the run samples with."""
    out = tmp_path / "new" / "style.safetensors"
    words = ["--workdir", tuned.workdir, "--lora_out", out]
    words += ["--dialect", dialect] if dialect else []
    if tuned.name != "lora":
        with pytest.raises(build.ConfigError, match="a run without a lora"):
            exported(*words)
        return
    assert exported(*words) == str(out)
    run = runs.load(tuned.workdir)
    before = weights.load_params(published.find(tuned.weights))
    read = lora_files.load(out, before)
    merged = lora_merging.merge({"unet": before["unet"]}, [read], [1.0])
    expected = build.sampling_params(run.params, run.frozen)["unet"]
    jax.tree.map(np.testing.assert_array_equal, merged["unet"], expected)
    with pytest.raises(build.ConfigError, match="nothing is overwritten"):
        exported(*words)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(weights=""), "weights is empty"),
        (dict(weights="no/such/model"), "no/such/model"),
        (dict(data=dict(image_size=17)), "17 is not a multiple of 2"),
        (dict(lora=dict(rank=0)), "rank 0"),
        (dict(lora=dict(rank=2, pattern="nothing")), "nothing"),
        (dict(unet=dict(chanels=3)), "chanels"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(change, message, shards, tmp_path):
    directory = tiny_model.write(tmp_path / "sd1")
    config = small(lora.get_config("tar_shards"), directory, shards)
    with config.unlocked():
        config.update(ConfigDict(change))
    with pytest.raises((build.ConfigError, ValueError, FileNotFoundError)) as error:
        train.train(config, tmp_path / "run")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_configs_say_how_to_run_them():
    for module in (finetune, lora):
        path = pathlib.Path(module.__file__)
        assert f"--config configs/sd/{path.name}" in module.__doc__
        assert module.get_config("runlocal").num_steps <= 20
