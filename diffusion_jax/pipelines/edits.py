"""Images that start from an image: image to image, inpainting, the refiner.

`partial_stage` and `split_stage` choose steps and are called outside jit; the other
functions are pure and make the `Start` of StableDiffusion.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.pipelines import stage as stages
from diffusion_jax.pipelines.stable_diffusion import StableDiffusion, Start
from diffusion_jax.pipelines.stage import Stage
from diffusion_jax.types import Params


def partial_stage(stage: Stage, strength: float) -> Stage:
    """The last `strength` of the stage's steps (Meng et al., 2022, arXiv:2108.01073).

    int(steps * strength) of them, from the noise level at which they start. 1 is all.
    """
    taken = int(stage.steps * strength)
    if not 0 < strength <= 1 or taken == 0:
        raise ValueError(
            f"strength {strength} of {stage.steps} steps leaves {max(taken, 0)}; "
            f"strengths are from {1 / stage.steps:.3g} to 1"
        )
    return dataclasses.replace(stage, first=len(stages.grid_of(stage)) - 1 - taken)


def split_stage(stage: Stage, refiner: Stage, share: float) -> tuple[Stage, Stage]:
    """The stages of a hand-over after `share` of the noise levels (SDXL, section 2.5).

    The first takes the steps that start at network times of at least (1 - share) of
    all; the refiner those below, in the grid of as many steps.
    """
    if not 0 < share < 1:
        raise ValueError(f"a share of {share} leaves one of two models without steps")
    cutoff = round(heard_at_most(stage) * (1 - share))
    before = int((times_heard(stage) >= cutoff).sum())
    after = int((times_heard(refiner) >= cutoff).sum())
    if not 0 < before < len(times_heard(stage)) or after == len(times_heard(refiner)):
        raise ValueError(
            f"a hand-over at {share} leaves {before} of {stage.steps} steps before it"
        )
    return (
        dataclasses.replace(stage, last=before),
        dataclasses.replace(refiner, first=after),
    )


def times_heard(stage: Stage) -> np.ndarray:
    """What the network hears at the start of each step."""
    with jax.ensure_compile_time_eval():
        return np.asarray(stage.schedule(jnp.asarray(stages.grid_of(stage)[:-1])).time)


def heard_at_most(stage: Stage) -> float:
    """What the network hears of pure noise, counted from 1."""
    with jax.ensure_compile_time_eval():
        return float(stage.schedule(jnp.asarray(stage.schedule.t_max)).time) + 1


def start_from_image(
    pipeline: StableDiffusion,
    params: Params,
    image: Float[Array, "B H W 3"],
    noise: Float[Array, "B h w c"] | None = None,
) -> Start:
    """Image to image: the image's latents get noise, and are sampled from there."""
    return Start(noise=noise, latents=pipeline.encode(params, image))


def start_from_mask(
    pipeline: StableDiffusion,
    params: Params,
    image: Float[Array, "B H W 3"],
    mask: Float[Array, "B H W 1"],
    noise: Float[Array, "B h w c"] | None = None,
    *,
    from_noise: bool = True,
) -> Start:
    """Inpainting where `mask`, in [0, 1], is at least a half; the rest is kept.

    `from_noise` forgets what was under the mask; without, its latents get noise, as a
    strength below 1 wants.
    """
    mask = (mask >= 0.5).astype(jnp.float32)
    small = to_latent_mask(mask, pipeline.factor)
    whole = None if from_noise else pipeline.encode(params, image)
    if pipeline.inpaints:
        known = pipeline.encode(params, image * (1 - mask))
    else:
        known = pipeline.encode(params, image) if whole is None else whole
    return Start(noise=noise, latents=whole, mask=small, known=known)


def to_latent_mask(
    mask: Float[Array, "B H W 1"], factor: int
) -> Float[Array, "B h w 1"]:
    """The mask at the first pixel of every latent, as the published models expect."""
    return mask[:, ::factor, ::factor]


def keep_unmasked(
    painted: Float[Array, "B H W 3"],
    image: Float[Array, "B H W 3"],
    mask: Float[Array, "B H W 1"],
) -> Float[Array, "B H W 3"]:
    """The painted image under the mask, the very pixels of `image` elsewhere."""
    return jnp.where(mask >= 0.5, painted, image)
