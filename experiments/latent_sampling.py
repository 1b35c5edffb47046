"""The quickstart's trained model, to be sampled by any sampler while its calls count."""

import dataclasses
import functools
import time
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax import build, previews, runs
from diffusion_jax.data import prompts
from diffusion_jax.diffusion.samplers import SAMPLERS, analytic_dpm, integrate
from diffusion_jax.pipelines.stable_diffusion import StableDiffusion
from diffusion_jax.pipelines.stage import image_keys
from diffusion_jax.tasks import latent_diffusion
from diffusion_jax.types import Params, Prompt
from experiments import sampler_figures

LOOSEST = (
    0.2  # tolerance of the adaptive sampler in 6 steps; it falls with their square
)


class Subject(NamedTuple):
    """What all samplers are given: the model, captions, and images to tune them on."""

    pipeline: StableDiffusion
    params: Params
    captions: list[str]
    prompt: Prompt
    negative: Prompt
    latents: jax.Array  # of real images


@dataclasses.dataclass(frozen=True, eq=False)
class Counted:
    """A network that counts how often it is really evaluated."""

    network: nn.Module
    calls: list[int]

    @property
    def dtype(self):
        return self.network.dtype

    def apply(self, *args, **kwargs):
        jax.debug.callback(lambda: self.calls.append(1))
        return self.network.apply(*args, **kwargs)


def load(workdir: str, num_images: int) -> Subject:
    run = runs.load(workdir)
    split = run.config.data.eval_split
    batch, captions = previews.first_examples(
        run.config, run.tokenizer, split, max(num_images, 256)
    )
    towers = build.towers(run.config, run.tokenizer)
    draw = jax.jit(
        lambda *args: latent_diffusion.draw_latent(args[0], towers, *args[1:])
    )
    return Subject(
        build.stable_diffusion(run.config, run.tokenizer),
        build.sampling_params(run.params, run.frozen),
        captions[:num_images],
        prompts.plain(captions[:num_images], run.tokenizer),
        prompts.plain([""], run.tokenizer),
        draw(jax.random.key(0), run.frozen, {"image": batch["image"]})[:num_images],
    )


def short_first(schedule, steps: int) -> jax.Array:
    """For adaptive steps, which cannot start from pure noise: they choose the rest."""
    return jnp.asarray([1.0, 0.99, 0.01, 0.0]) * schedule.t_max


def with_sampler(
    subject: Subject, name: str, steps: int, calls: list[int]
) -> StableDiffusion:
    """The pipeline with this sampler, its options and a network that counts."""
    stage = subject.pipeline.unet
    options = dict(sampler_figures.OPTIONS.get(name, {}))
    grid = stage.grid
    if name == "adaptive":
        tolerance = LOOSEST * (6 / steps) ** 2
        options, grid = dict(rtol=tolerance, atol=tolerance), short_first
    if name == "analytic_dpm":
        options["eps_power"] = eps_power(subject, steps)
    sampler = functools.partial(SAMPLERS[name], **options)
    network = Counted(stage.network, calls)
    stage = dataclasses.replace(
        stage, network=network, sampler=sampler, grid=grid, steps=steps
    )
    return dataclasses.replace(subject.pipeline, unet=stage)


def eps_power(subject: Subject, steps: int) -> jax.Array:
    """What Analytic-DPM must know, of the guided model on the real images' captions."""
    key = jax.random.key(1)
    estimate = functools.partial(_estimate, key, x0=subject.latents)
    pipeline = dataclasses.replace(
        subject.pipeline,
        unet=dataclasses.replace(subject.pipeline.unet, sampler=estimate, steps=steps),
    )
    args = subject.params, integrate.split(key, len(subject.captions))
    run = jax.jit(pipeline.text_to_latents)
    return run(*args, subject.prompt, subject.negative)[1]


def _estimate(key, _, denoise, schedule, x, ts, *, x0):
    """A sampler in form, which estimates instead."""
    return x, analytic_dpm.estimate_eps_power(key, denoise, schedule, x0, ts)


def sample(subject: Subject, name: str, steps: int) -> tuple[jax.Array, int, float]:
    """Latents, evaluations (each of a doubled batch) and seconds without compiling."""
    calls: list[int] = []
    pipeline = with_sampler(subject, name, steps, calls)
    keys = image_keys(jax.random.key(0), jnp.arange(len(subject.captions)))
    args = subject.params, keys, subject.prompt, subject.negative
    run = jax.jit(lambda *args: pipeline.text_to_latents(*args)[0])
    compiled = run.lower(*args).compile()
    start = time.monotonic()
    latents = jax.block_until_ready(compiled(*args))
    seconds = time.monotonic() - start
    jax.effects_barrier()
    return latents, len(calls), seconds
