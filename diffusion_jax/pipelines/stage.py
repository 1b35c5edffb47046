"""One diffusion model and how to sample it."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax.diffusion import denoiser, process
from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.grids import Grid
from diffusion_jax.diffusion.guidance import Guide, classifier_free
from diffusion_jax.diffusion.parameterization import Parameterization
from diffusion_jax.diffusion.process import NoiseLevel
from diffusion_jax.diffusion.samplers import Sampler, integrate
from diffusion_jax.diffusion.samplers.integrate import Keys
from diffusion_jax.diffusion.schedules import Schedule
from diffusion_jax.models import context
from diffusion_jax.types import Conditioning, Key, Params

Wrap = Callable[[Denoiser], Denoiser]


@dataclasses.dataclass(frozen=True)
class Stage:
    """Holds no weights, so it can be a static argument of jit."""

    network: nn.Module
    schedule: Schedule
    parameterization: Parameterization
    sampler: Sampler
    grid: Grid
    steps: int
    guidance: float = 1.0  # the scale, unless one is given
    guide: Guide = classifier_free
    clip: Wrap | None = None
    remembers: bool = False  # the guide takes a `memory`, as `guidance.apg` does
    learned_variance: bool = False
    prior_std: Callable[[NoiseLevel], Array] = process.std_of_noisy_data
    first: int = 0  # the steps of the grid that are taken: [first, last)
    last: int | None = None


def image_keys(key: Key, indices: Int[Array, "B"]) -> Keys:
    """One key per image: image i of a seed is the same in whatever batch it is made."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)


def prior_noise(keys: Keys, shape: tuple[int, ...]) -> Float[Array, "B *d"]:
    """The N(0, 1) noise from which `sample` starts; `shape` is without the batch."""
    key_prior, _ = integrate.split(keys, 2)
    return integrate.normal_like(key_prior, jnp.zeros((len(keys), *shape)))


def times(stage: Stage) -> Float[Array, "taken_plus_1"]:
    """The decreasing times between which the stage steps."""
    ts = stage.grid(stage.schedule, stage.steps)
    last = len(ts) - 1 if stage.last is None else stage.last
    if not 0 <= stage.first < last < len(ts):
        raise ValueError(f"steps {stage.first} to {last} of a grid of {len(ts) - 1}")
    return ts[stage.first : last + 1]


def grid_of(stage: Stage) -> np.ndarray:
    """All times of the stage, known now even while something is traced."""
    with jax.ensure_compile_time_eval():
        return np.asarray(stage.grid(stage.schedule, stage.steps))


def _whole(stage: Stage) -> dict[str, int]:
    """The number of steps of the whole grid, for a sampler whose steps depend on it."""
    takes = inspect.signature(stage.sampler).parameters
    return {"whole_steps": stage.steps} if "whole_steps" in takes else {}


def remember(stage: Stage, params: Params, cond: Conditioning) -> Conditioning:
    """The condition with the keys and values of its tokens instead of them.

    They are the same in every step, and this computes them once.
    """
    return context.with_keys_values(stage.network, params, cond)


def denoiser_of(
    stage: Stage,
    params: Params,
    cond: Conditioning,
    null: Conditioning | None = None,
    *,
    shape: tuple[int, ...],
    scale: float | Float[Array, "..."] | None = None,
) -> Denoiser:
    """The stage's network, guided and clipped; `shape` is that of x."""

    def network(x, time, cond):
        return stage.network.apply({"params": params}, x, time, cond)

    conditional = denoiser.from_network(
        network, stage.parameterization, learned_variance=stage.learned_variance
    )
    if null is None:

        def denoise(x, level):
            return conditional(x, level, cond)

    else:
        scale = stage.guidance if scale is None else scale
        memory = {"memory": jax.new_ref(jnp.zeros(shape))} if stage.remembers else {}
        denoise = stage.guide(conditional, cond, null, scale, **memory)
    return denoise if stage.clip is None else stage.clip(denoise)


def sample(
    stage: Stage,
    params: Params,
    keys: Keys,
    shape: tuple[int, ...],
    cond: Conditioning,
    null: Conditioning | None = None,
    *,
    scale: float | Float[Array, "..."] | None = None,
    noise: Float[Array, "B *d"] | None = None,
    x0: Float[Array, "B *d"] | None = None,
    x: Float[Array, "B *d"] | None = None,
    wrap: Wrap | None = None,
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """The sample and the trace of its predicted x0; `shape` is without the batch.

    `keys` holds one key per image. With `null`, the stage's guidance of `scale`
    (default: the stage's own; traced, so a change of it does not recompile). Sampling
    starts from `noise`, N(0, 1), which is drawn if not given, or from `x0` with that
    noise on it, or from `x` as it is. `wrap` changes the denoiser last.
    """
    shape = (len(keys), *shape)
    cond = remember(stage, params, cond)
    null = null if null is None else remember(stage, params, null)
    denoise = denoiser_of(stage, params, cond, null, shape=shape, scale=scale)
    denoise = denoise if wrap is None else wrap(denoise)
    _, key_steps = integrate.split(keys, 2)
    ts = times(stage)
    level = stage.schedule(ts[0])
    if noise is None:
        noise = prior_noise(keys, shape[1:])
    if x is None and x0 is None:
        x = stage.prior_std(level) * noise
    elif x is None:
        x = process.add_noise(x0, noise, level)
    return stage.sampler(key_steps, denoise, stage.schedule, x, ts, **_whole(stage))
