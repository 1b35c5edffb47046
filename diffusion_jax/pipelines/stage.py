"""One diffusion model and how to sample it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.diffusion import denoiser
from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.grids import Grid
from diffusion_jax.diffusion.guidance import Guide, classifier_free
from diffusion_jax.diffusion.parameterization import Parameterization
from diffusion_jax.diffusion.samplers import Sampler, integrate
from diffusion_jax.diffusion.samplers.integrate import Keys
from diffusion_jax.diffusion.schedules import Schedule
from diffusion_jax.types import Conditioning, Key, Params


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
    clip: Callable[[Denoiser], Denoiser] | None = None
    remembers: bool = False  # the guide takes a `memory`, as `guidance.apg` does
    learned_variance: bool = False


def image_keys(key: Key, indices: Int[Array, "B"]) -> Keys:
    """One key per image: image i of a seed is the same in whatever batch it is made."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)


def sample(
    stage: Stage,
    params: Params,
    keys: Keys,
    shape: tuple[int, ...],
    cond: Conditioning,
    null: Conditioning | None = None,
    *,
    scale: float | Float[Array, ""] | None = None,
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """The sample and the trace of its predicted x0; `shape` is without the batch.

    `keys` holds one key per image. With `null`, the stage's guidance of `scale`
    (default: the stage's own; traced, so a change of it does not recompile).
    """

    def network(x, time, cond):
        return stage.network.apply({"params": params}, x, time, cond)

    shape = (len(keys), *shape)
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
    if stage.clip is not None:
        denoise = stage.clip(denoise)
    ts = stage.grid(stage.schedule, stage.steps)
    key_prior, key_steps = integrate.split(keys, 2)
    x = integrate.prior_sample(key_prior, stage.schedule, ts[0], shape, data_std=1)
    return stage.sampler(key_steps, denoise, stage.schedule, x, ts)
