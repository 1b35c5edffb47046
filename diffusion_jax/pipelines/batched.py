"""Any number of images through a few compiled programs, over all devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from diffusion_jax.diffusion import interpolation
from diffusion_jax.pipelines import edits, stepwise
from diffusion_jax.pipelines.stable_diffusion import StableDiffusion, Start
from diffusion_jax.pipelines.stage import image_keys, prior_noise, remember
from diffusion_jax.types import Params, Prompt

OnStep = Callable[[int, int], None]  # (steps done, of how many)
Generate = Callable[..., Iterator[Float[np.ndarray, "b ..."]]]


class Rows(NamedTuple):
    """What each of N images is made from; numpy, with a leading axis N."""

    prompt: Prompt
    negative: Prompt
    index: Int[np.ndarray, "N"]  # with the seed, this fixes the image's noise
    noise: Float[np.ndarray, "N h w c"] | None = None  # N(0, 1), instead of drawn
    noisy: Float[np.ndarray, "N h w c"] | None = None  # latents to go on with
    image: Float[np.ndarray, "N H W 3"] | None = None  # to start from, in [-1, 1]
    mask: Float[np.ndarray, "N H W 1"] | None = None  # 1 where to paint
    toward: Prompt | None = None  # the other end of an interpolation
    share: Float[np.ndarray, "N"] | None = None  # of the way there


def generator(
    pipeline: StableDiffusion,
    *,
    batch_size: int,
    from_noise: bool = True,
    decodes: bool = True,
    on_step: OnStep | None = None,
) -> Generate:
    """A function of (params, rows, seed, scale) that yields batches of images.

    It compiles once. Image i depends on the seed, its index and its row alone: the
    batch size and the number of devices change it by rounding only. The last batch is
    padded and cut, and so is a batch that the devices do not divide. `from_noise`:
    whether a mask forgets what was under it. Without `decodes`, the latents. With
    `on_step` the steps run one by one, and it is told of each.
    """
    mesh = all_devices()
    prepare = jax.jit(preparation(pipeline, from_noise=from_noise))
    solve = solver(pipeline, on_step)
    finish = jax.jit(ending(pipeline)) if decodes else lambda params, x, rows: x

    def generate(
        params: Params,
        rows: Rows,
        *,
        seed: int = 0,
        scale: float | None = None,
    ) -> Iterator[Float[np.ndarray, "b ..."]]:
        scale = jnp.float32(pipeline.unet.guidance if scale is None else scale)
        params, scale = replicate((params, scale), mesh)
        for batch, count in padded_batches(rows, batch_size, mesh):
            keys, *prepared = prepare(params, batch, seed)
            latents = solve(params["unet"], keys, *prepared, scale)
            images = finish(params, latents, batch)
            yield np.asarray(images)[:count]

    return generate


def all_devices() -> Mesh:
    """Images are split over every device there is."""
    return Mesh(np.array(jax.devices()), ("data",))


def replicate(tree: Any, mesh: Mesh | None = None) -> Any:
    """The same arrays on every device; once, not for every batch."""
    mesh = all_devices() if mesh is None else mesh
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def padded_batches(rows: Any, batch_size: int, mesh: Mesh) -> Iterator[tuple[Any, int]]:
    """Rows over the devices, all batches of one size, and how many of each are wanted.

    `rows` are arrays with a leading axis. The last row fills up the last batch, and
    every batch that the devices do not divide.
    """
    num_rows = len(jax.tree.leaves(rows)[0])
    padded_size = -(-batch_size // mesh.size) * mesh.size
    by_row = NamedSharding(mesh, PartitionSpec("data"))
    for first in range(0, num_rows, batch_size):
        chosen = np.arange(first, first + padded_size)
        chosen = np.minimum(chosen, num_rows - 1)
        batch = jax.tree.map(lambda a, chosen=chosen: np.asarray(a)[chosen], rows)
        yield jax.device_put(batch, by_row), min(batch_size, num_rows - first)


def text_to_image(pipeline: StableDiffusion, *, batch_size: int) -> Generate:
    """As `generator`, but a function of (params, prompt, negative, seed, scale).

    Image i is that of index i; `negative` is one for all.
    """
    run = generator(pipeline, batch_size=batch_size)

    def generate(
        params: Params, prompt: Prompt, negative: Prompt, **options
    ) -> Iterator[Float[np.ndarray, "b ..."]]:
        num_images = len(prompt.is_empty)
        negative = jax.tree.map(lambda a: np.repeat(a, num_images, 0), negative)
        return run(params, Rows(prompt, negative, np.arange(num_images)), **options)

    return generate


def preparation(pipeline: StableDiffusion, *, from_noise: bool) -> Callable:
    """(params, rows, seed) -> (keys, cond, null, start): all but the steps."""

    def prepare(params: Params, rows: Rows, seed: Int[Array, ""]):
        keys = image_keys(jax.random.key(seed), rows.index)
        cond = pipeline.condition(params, rows.prompt)
        null = pipeline.condition(params, rows.negative, is_negative=True)
        if rows.toward is not None:
            other = pipeline.condition(params, rows.toward)
            cond = jax.vmap(interpolation.lerp)(cond, other, rows.share)
        cond = remember(pipeline.unet, params["unet"], cond)
        null = remember(pipeline.unet, params["unet"], null)
        noise = rows.noise
        noise = prior_noise(keys, pipeline.latent_shape) if noise is None else noise
        start = Start(noise=noise, noisy=rows.noisy)
        if rows.mask is not None:
            start = edits.start_from_mask(
                pipeline, params, rows.image, rows.mask, noise, from_noise=from_noise
            )
        elif rows.image is not None:
            start = edits.start_from_image(pipeline, params, rows.image, noise)
        return keys, cond, null, start

    return prepare


def ending(pipeline: StableDiffusion) -> Callable:
    """(params, latents, rows) -> images, with what a mask keeps as it was."""

    def end(params: Params, latents: Float[Array, "B h w c"], rows: Rows):
        images = pipeline.decode(params, latents)
        if rows.mask is None:
            return images
        return edits.keep_unmasked(images, rows.image, rows.mask)

    return end


def solver(pipeline: StableDiffusion, on_step: OnStep | None) -> Callable:
    """(U-Net's params, keys, cond, null, start, scale) -> latents."""

    def run(unet, keys, cond, null, start, scale):
        return pipeline.latents({"unet": unet}, keys, cond, null, scale, start)

    whole = jax.jit(lambda *args: run(*args)[0])
    if on_step is None or pipeline.unet.remembers:
        return whole
    begin = jax.jit(lambda *args: stepwise.first_carry(run, *args))
    end = jax.jit(lambda carry, *args: stepwise.last_sample(run, carry, *args))
    step = jax.jit(
        lambda carry, i, *args: stepwise.one_step(run, carry, i, *args)[0],
        donate_argnums=0,
    )

    counted = []  # once, since counting traces the network

    def solve(*args):
        if not counted:
            counted.append(stepwise.num_steps(run, *args))
        num_steps = counted[0]
        if num_steps is None:
            return whole(*args)
        carry = begin(*args)
        on_step(0, num_steps)
        for i in range(num_steps):
            carry = jax.block_until_ready(step(carry, i, *args))
            on_step(i + 1, num_steps)
        return end(carry, *args)

    return solve
