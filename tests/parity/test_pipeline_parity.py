"""Whole images: from the same noise, ours and those of diffusers' pipelines.

The same tiny random models, written by diffusers and read from its directories.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusion_jax import published
from diffusion_jax.diffusion.samplers import SAMPLERS
from diffusion_jax.pipelines import edits
from diffusion_jax.pipelines.stable_diffusion import FROM_NOISE, Start
from diffusion_jax.weights import scheduler_choice
from tests.parity import published_dirs

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
WRITERS = {
    "sd1": published_dirs.write_sd1,
    "sd2": published_dirs.write_sd2,
    "sdxl": published_dirs.write_sdxl,
}
PROMPT, NEGATIVE = "a red circle above a blue square", "two green triangles"
STEPS, SCALE = 10, 5.0
ONE_LEVEL = 1 / 255 * 2  # of images in [-1, 1]
KEYS = jax.random.split(jax.random.key(0), 2)
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """family -> (directory, diffusers' pipeline); each is written when first asked."""
    made = {}

    def write(family, writer=None):
        if family not in made:
            directory = tmp_path_factory.mktemp(family)
            theirs = (writer or WRITERS[family])(directory)
            kind = type(theirs.scheduler)  # as its file says it, defaults and all
            theirs.published_scheduler = kind.from_pretrained(
                directory, subfolder="scheduler"
            )
            made[family] = directory, theirs
        return made[family]

    return write


def with_scheduler(theirs, sampler):
    """diffusers' pipeline with the class that our name of a sampler stands for."""
    name, fields = scheduler_choice.COUNTERPARTS[sampler]
    config = theirs.published_scheduler.config
    theirs.scheduler = getattr(diffusers, name).from_config(config, **fields)
    return theirs


def nchw(x):
    return torch.tensor(np.asarray(x, np.float32).transpose(0, 3, 1, 2))


def run_theirs(theirs, noise=None, *, negative=NEGATIVE, scale=SCALE, **options):
    if noise is not None:
        options["latents"] = nchw(noise)
    images = theirs(
        prompt=[PROMPT] * 2,
        negative_prompt=None if negative is None else [negative] * 2,
        num_inference_steps=STEPS,
        guidance_scale=scale,
        output_type="np",
        generator=torch.Generator().manual_seed(0),
        **options,
    ).images
    return 2 * np.asarray(images) - 1


def run_ours(model, start, *, negative=NEGATIVE, scale=SCALE, pipeline=None):
    pipeline = model.pipeline if pipeline is None else pipeline
    prompt, null = model.read([PROMPT] * 2), model.read([negative])
    run = jax.jit(pipeline)
    return np.asarray(run(model.params, KEYS, prompt, null, scale, start))


def load(directory, **choices):
    return published.load(directory, published.Choices(steps=STEPS, **choices))


def noise_of(model):
    return RNG.standard_normal((2, *model.pipeline.latent_shape)).astype(np.float32)


def check(ours, theirs):
    assert ours.std() > 0.05  # not all of one colour
    difference = np.abs(ours - theirs).max()
    print(f"{difference * 255 / 2:.4f} of 255")
    assert difference <= ONE_LEVEL


@pytest.mark.parametrize("sampler", ["ddim", "pndm", "euler", "dpmpp_2m", "unipc"])
@pytest.mark.parametrize("family", WRITERS)
def test_text_to_image(family, sampler, written):
    directory, theirs = written(family)
    model = load(directory, sampler=sampler)
    noise = noise_of(model)
    expected = run_theirs(with_scheduler(theirs, sampler), noise)
    check(run_ours(model, Start(noise=jnp.asarray(noise))), expected)


@pytest.mark.parametrize("family", WRITERS)
def test_the_published_scheduler_and_the_empty_negative(family, written):
    directory, _ = written(family)
    theirs = diffusers.DiffusionPipeline.from_pretrained(directory)
    theirs.set_progress_bar_config(disable=True)
    model = load(directory)
    noise = noise_of(model)
    expected = run_theirs(theirs, noise, negative="" if family != "sdxl" else None)
    check(run_ours(model, Start(noise=jnp.asarray(noise)), negative=""), expected)


def test_karras_sigmas(written):
    directory, theirs = written("sd1")
    model = load(directory, sampler="dpmpp_2m", grid="karras")
    noise = noise_of(model)
    theirs.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
        theirs.published_scheduler.config, use_karras_sigmas=True
    )
    check(run_ours(model, Start(noise=jnp.asarray(noise))), run_theirs(theirs, noise))


def test_guidance_rescale(written):
    directory, theirs = written("sd1")
    model = load(directory, sampler="ddim", rescale=0.7)
    noise = noise_of(model)
    expected = run_theirs(with_scheduler(theirs, "ddim"), noise, guidance_rescale=0.7)
    check(run_ours(model, Start(noise=jnp.asarray(noise))), expected)


def test_clip_skip(written):
    """Of the prompt: diffusers leaves the negative one as it is."""
    directory, theirs = written("sdxl")
    model = load(directory, sampler="ddim", clip_skip=1)
    noise = noise_of(model)
    options = dict(clip_skip=1, scale=1.0)
    expected = run_theirs(with_scheduler(theirs, "ddim"), noise, **options)
    check(run_ours(model, Start(noise=jnp.asarray(noise)), scale=1.0), expected)


def test_another_size(written):
    directory, theirs = written("sd1")
    model = load(directory, sampler="ddim", height=40, width=24)
    noise = noise_of(model)
    factor = model.pipeline.factor
    assert noise.shape[1:3] == (40 // factor, 24 // factor)
    expected = run_theirs(with_scheduler(theirs, "ddim"), noise, height=40, width=24)
    check(run_ours(model, Start(noise=jnp.asarray(noise))), expected)


# ---- from an image -------------------------------------------------------------------


def image_and_latents(model):
    """Our own latents of an image: diffusers draws the posterior, we take its mean."""
    side = model.pipeline.latent_shape[0] * model.pipeline.factor
    image = RNG.uniform(-1, 1, (2, side, side, 3)).astype(np.float32)
    return image, model.pipeline.encode(model.params, jnp.asarray(image))


class Noise:
    """Stands for torch's generator: `randn_tensor` gives what it is told."""

    def __init__(self, noise):
        self.noise = noise

    def __call__(self, shape, **_):
        return nchw(self.noise).reshape(shape)


@pytest.mark.parametrize("strength", [0.5, 0.8])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "euler"])
def test_image_to_image(sampler, strength, written, monkeypatch):
    directory, theirs = written("sd1")
    model = load(directory, sampler=sampler)
    image, latents = image_and_latents(model)
    noise = noise_of(model)
    module = diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img
    monkeypatch.setattr(module, "randn_tensor", Noise(noise))
    scheduler = with_scheduler(theirs, sampler).scheduler
    parts = theirs.components | dict(scheduler=scheduler)
    edit = diffusers.StableDiffusionImg2ImgPipeline(
        **parts, requires_safety_checker=False
    )
    edit.set_progress_bar_config(disable=True)
    expected = run_theirs(edit, image=nchw(latents), strength=strength)

    stage = edits.partial_stage(model.pipeline.unet, strength)
    pipeline = dataclasses.replace(model.pipeline, unet=stage)
    start = edits.start_from_image(
        pipeline, model.params, jnp.asarray(image), jnp.asarray(noise)
    )
    check(run_ours(model, start, pipeline=pipeline), expected)


def half_mask(image):
    mask = np.zeros((*image.shape[:3], 1), np.float32)
    mask[:, :, image.shape[2] // 2 :] = 1
    return mask


def keep_the_mean(theirs, monkeypatch):
    """diffusers' autoencoder without the draw, for all that encodes through it."""
    kind = type(theirs.vae.encode(torch.zeros(1, 3, 32, 32)).latent_dist)
    monkeypatch.setattr(kind, "sample", lambda self, generator=None: self.mean)


@pytest.mark.parametrize("inpaints", [True, False])
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_inpainting(inpaints, strength, written, monkeypatch):
    """With the nine-channel U-Net, and by blending with an ordinary one."""
    directory, theirs = (
        written("inpaint", published_dirs.write_inpaint) if inpaints else written("sd1")
    )
    model = load(directory, sampler="ddim")
    image, _ = image_and_latents(model)
    mask, noise = half_mask(image), noise_of(model)
    module = diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint
    monkeypatch.setattr(module, "randn_tensor", Noise(noise))
    keep_the_mean(theirs, monkeypatch)
    scheduler = with_scheduler(theirs, "ddim").scheduler
    edit = diffusers.StableDiffusionInpaintPipeline(
        **theirs.components | dict(scheduler=scheduler), requires_safety_checker=False
    )
    edit.set_progress_bar_config(disable=True)
    side = image.shape[1]
    expected = run_theirs(
        edit,
        image=nchw(image),
        mask_image=nchw(mask),
        strength=strength,
        height=side,
        width=side,
    )

    pipeline = model.pipeline
    if strength < 1:
        stage = edits.partial_stage(pipeline.unet, strength)
        pipeline = dataclasses.replace(pipeline, unet=stage)
    start = edits.start_from_mask(
        pipeline,
        model.params,
        jnp.asarray(image),
        jnp.asarray(mask),
        jnp.asarray(noise),
        from_noise=strength == 1,
    )
    check(run_ours(model, start, pipeline=pipeline), expected)


def test_the_refiner_takes_over(written):
    base_directory, base = written("sdxl")
    directory, refiner = written("refiner", published_dirs.write_refiner)
    models = [load(d, sampler="euler") for d in (base_directory, directory)]
    noise = noise_of(models[0])
    for theirs in (base, refiner):
        with_scheduler(theirs, "euler")
    options = dict(output_type="latent", denoising_end=0.7, latents=nchw(noise))
    common = dict(
        prompt=[PROMPT] * 2,
        negative_prompt=[NEGATIVE] * 2,
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
    )
    latents = base(**common, **options).images
    expected = refiner(
        **common, image=latents, denoising_start=0.7, output_type="np"
    ).images

    stages = edits.split_stage(*(m.pipeline.unet for m in models), 0.7)
    first, second = (
        dataclasses.replace(model.pipeline, unet=stage)
        for model, stage in zip(models, stages, strict=True)
    )
    texts = [(m.read([PROMPT] * 2), m.read([NEGATIVE])) for m in models]
    x, _ = jax.jit(first.text_to_latents)(
        models[0].params, KEYS, *texts[0], SCALE, Start(noise=jnp.asarray(noise))
    )
    images = jax.jit(second)(
        models[1].params, KEYS, *texts[1], SCALE, FROM_NOISE._replace(noisy=x)
    )
    check(np.asarray(images), 2 * expected - 1)


def test_every_counterpart_is_a_sampler_of_ours():
    assert set(scheduler_choice.COUNTERPARTS) <= set(SAMPLERS)
