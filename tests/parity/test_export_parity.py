"""What is exported, diffusers loads: the same modules, and the same pictures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from configs import common
from diffusion_jax import build, export, runs
from diffusion_jax.data import captions, prompts
from diffusion_jax.pipelines.stable_diffusion import Start
from diffusion_jax.pipelines.stage import image_keys
from diffusion_jax.training import checkpoint
from diffusion_jax.training.state import init_state
from diffusion_jax.types import Conditioning
from diffusion_jax.weights import writing_directory

LENGTH = 12


def close(ours, theirs):
    theirs = theirs.detach().numpy()
    difference = np.abs(np.asarray(ours) - theirs).max()
    assert np.abs(theirs).max() > 1e-2
    assert difference <= 1e-4 * np.abs(theirs).max()


def nchw(x):
    return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


def nhwc(x):
    return x.permute(0, 2, 3, 1)


# ---- what was trained here ----------------------------------------------------------


def run_config(vector, schedule):
    config = common.run_config()
    config.task = dict(name="latent_diffusion", caption_dropout=0.1)
    config.data = common.scenes()
    config.tokenizer = dict(directory="", vocab_size=600, context_length=LENGTH)
    config.clip = dict(
        text=dict(width=16, num_layers=2, num_heads=2, mlp_width=24),
        projection_dim=8,
    )
    config.vae = dict(
        channels=(8, 16), blocks_per_level=1, latent_channels=4, norm_groups=4
    )
    config.unet = dict(
        channels=(8,),
        blocks_per_level=1,
        attention=("transformer",),
        num_heads=(2,),
        norm_groups=4,
        vector=vector,
    )
    config.schedule = schedule
    config.parameterization = dict(name="v")
    config.weighting = dict(name="v")
    config.times = dict(name="low_discrepancy")
    config.optimizer = dict(name="adamw", learning_rate=1e-3)
    config.sampling = dict(
        sampler=dict(name="ddim"),
        grid=dict(name="trailing"),
        steps=3,
        guidance=2.0,
        prompts=("a",),
    )
    return ConfigDict(config.to_dict())


def drawn(like, seed):
    """Parameters of these shapes, none of which is 0 or 1, where mistakes hide."""
    rng = np.random.default_rng(seed)

    def draw(path, x):
        numbers = 0.15 * rng.standard_normal(x.shape, np.float32)
        return numbers + (path[-1].key == "scale")

    return jax.tree_util.tree_map_with_path(draw, like)


COSINE = dict(name="cosine", time_scale=1000.0)


def write_run(directory, vector="none", schedule=COSINE):
    """A run as training leaves it, without the training."""
    config = run_config(vector, schedule)
    runs.write_config(directory, config)
    words = ["a small red circle", "a large blue square, on white"]
    tokenizer = captions.train_tokenizer(
        words, directory / runs.TOKENIZER, vocab_size=600, context_length=LENGTH
    )
    tower, vae = build.text_encoder(config, tokenizer), build.autoencoder(config)
    tokens, key = jnp.asarray(tokenizer(words)), jax.random.key(0)
    text = jax.eval_shape(tower.init, key, tokens)["params"]
    vae = jax.eval_shape(vae.init, key, jnp.zeros((1, 32, 32, 3)))["params"]
    frozen = dict(text_encoder=drawn(text, 1), vae=drawn(vae, 2))
    frozen["latent_scale"] = jnp.float32(0.7)
    checkpoint.save_params(directory / runs.FROZEN, frozen)
    task = build.task(config, tokenizer, frozen)
    params = drawn(jax.eval_shape(lambda key: task.init(key)[0], key), 3)
    state = init_state(build.optimizer(config), params)
    with checkpoint.open_manager(directory / runs.CHECKPOINTS, keep=1) as manager:
        checkpoint.save(manager, 1, state, None, {})
    return config


def test_a_run_that_hears_pooled_captions_is_loaded_by_diffusers(tmp_path):
    """Its pipeline does not tell them to the U-Net; whoever calls the U-Net does."""
    workdir, out = tmp_path / "run", tmp_path / "out"
    config = write_run(workdir, "add_embedding")
    found, params = export.of_run(str(workdir))
    writing_directory.write(out, found, params.__getitem__)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(out)

    run = runs.load(workdir)
    text = build.text_encoder(config, run.tokenizer)
    vae = build.autoencoder(config)
    rng = np.random.default_rng(0)
    texts = ["a small red circle", "square"]
    ids = pipeline.tokenizer(
        texts, padding="max_length", max_length=LENGTH, return_tensors="pt"
    ).input_ids
    np.testing.assert_array_equal(ids.numpy(), run.tokenizer(texts))
    hidden, pooled = jax.jit(text.apply)(
        {"params": run.frozen["text_encoder"]}, jnp.asarray(ids.numpy())
    )
    theirs = pipeline.text_encoder(ids)
    close(hidden, theirs.last_hidden_state)
    close(pooled, theirs.pooler_output)

    image = rng.standard_normal((2, 32, 32, 3)).astype(np.float32)
    variables = {"params": run.frozen["vae"]}
    encode = jax.jit(lambda v, x: vae.apply(v, x, method="encode"))
    mean, _ = encode(variables, image)
    close(mean, nhwc(pipeline.vae.encode(nchw(image)).latent_dist.mean))
    assert pipeline.vae.config.scaling_factor == pytest.approx(0.7)

    x = rng.standard_normal((2, 16, 16, 4)).astype(np.float32)
    time = np.array([3.0, 900.0], np.float32)
    unet = build.unet(config)
    ours = jax.jit(unet.apply)(
        {"params": run.params["unet"]}, x, time, Conditioning(hidden, vector=pooled)
    )
    theirs = pipeline.unet(
        nchw(x),
        torch.tensor(time),
        encoder_hidden_states=torch.tensor(np.asarray(hidden)),
        class_labels=torch.tensor(np.asarray(pooled)),
    ).sample
    close(ours, nhwc(theirs))


def test_a_run_s_pictures_are_those_of_diffusers(tmp_path):
    workdir, out = tmp_path / "run", tmp_path / "out"
    config = write_run(workdir, schedule=dict(name="discrete"))
    found, params = export.of_run(str(workdir))
    writing_directory.write(out, found, params.__getitem__)
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(out)
    theirs.set_progress_bar_config(disable=True)
    noise = np.random.default_rng(0).standard_normal((1, 16, 16, 4))
    noise, text = noise.astype(np.float32), "a red circle"
    with torch.no_grad():
        expected = theirs(
            text,
            latents=nchw(noise),
            num_inference_steps=config.sampling.steps,
            guidance_scale=2.0,
            output_type="np",
        ).images
    run = runs.load(workdir)
    pipeline = build.stable_diffusion(config, run.tokenizer)
    prompt, negative = (
        prompts.make_prompts([one], (run.tokenizer,)) for one in (text, "")
    )
    keys = image_keys(jax.random.key(0), jnp.arange(1))
    params = run.frozen | {"unet": run.params["unet"]}
    start = Start(noise=jnp.asarray(noise))
    images = jax.jit(pipeline)(params, keys, prompt, negative, 2.0, start)
    images = np.clip((np.asarray(images) + 1) / 2, 0, 1)
    np.testing.assert_allclose(images, expected, atol=1 / 255)
    assert expected.std() > 0.05


def test_other_runs_are_refused_before_they_are_read(tmp_path):
    config = run_config("none", COSINE)
    config.task.name = "clip"
    runs.write_config(tmp_path / "clip", config)
    with pytest.raises(build.ConfigError, match="'clip' run"):
        export.of_run(str(tmp_path / "clip"))
    config = run_config("none", dict(name="edm"))
    runs.write_config(tmp_path / "edm", config)
    with pytest.raises(ValueError, match="VarianceExploding"):
        export.of_run(str(tmp_path / "edm"))
    with pytest.raises(build.ConfigError, match="holds no run"):
        export.of_run(str(tmp_path / "nowhere"))
