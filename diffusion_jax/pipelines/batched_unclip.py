"""Any number of DALL·E 2's images through a program per stage, over all devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from diffusion_jax.diffusion.samplers.integrate import Keys
from diffusion_jax.pipelines import batched
from diffusion_jax.pipelines.dalle2 import Dalle2, Scale
from diffusion_jax.pipelines.stage import image_keys
from diffusion_jax.types import Params

OnStage = Callable[[str, int, int], None]  # (stage, images that it has made, of all)
Generate = Callable[..., Iterator[Float[np.ndarray, "b H W 3"]]]
Stages = list[tuple[str, Callable]]


class Rows(NamedTuple):
    """What each of N images is made from; numpy, with a leading axis N."""

    tokens: Int[np.ndarray, "N L"]
    index: Int[np.ndarray, "N"]  # with the seed, this fixes every draw
    embed: Float[np.ndarray, "N P"] | None = None  # of an image, instead of the prior's


class Scales(NamedTuple):
    """Of the guidance; None is what the stages have. A change does not recompile."""

    prior: Scale | None = None
    decoder: Scale | None = None
    image: Scale | None = None  # of the embedding alone; see `Dalle2.decode`


OF_THE_STAGES = Scales()


def generator(
    pipeline: Dalle2,
    *,
    batch_size: int,
    num_upsamplers: int | None = None,
    on_stage: OnStage | None = None,
) -> Generate:
    """A function of (params, rows, null_tokens, seed, scales) that yields batches.

    Every stage compiles once. Image i depends on the seed, its index and its row alone:
    the batch size and the number of devices change it by rounding only. `on_stage` is
    told of each batch of each stage: "prior", "decoder" and the upsamplers' names.
    """
    mesh = batched.all_devices()
    stages = programs(pipeline, num_upsamplers)

    def generate(
        params: Params,
        rows: Rows,
        null_tokens: Int[Array | np.ndarray, "1 L"],
        *,
        seed: int = 0,
        scales: Scales = OF_THE_STAGES,
    ) -> Iterator[Float[np.ndarray, "b H W 3"]]:
        check_rows(pipeline, rows)
        params, null_tokens = batched.replicate((params, null_tokens), mesh)
        wanted = [one for one in stages if one[0] != "prior" or rows.embed is None]
        num_done = 0

        def tell(name: str, count: int) -> None:
            on_stage(name, num_done + count, len(rows.index))

        for images in through(
            wanted,
            params,
            rows._replace(embed=None),
            rows.embed,
            *(null_tokens, seed, scales),
            batch_size=batch_size,
            mesh=mesh,
            on_stage=None if on_stage is None else tell,
        ):
            num_done += len(images)
            yield images

    return generate


def through(
    stages: Stages,
    params: Params,
    rows: Any,
    made: Any,
    *others: Any,
    batch_size: int,
    mesh: Mesh,
    on_stage: Callable[[str, int], None] | None = None,
) -> Iterator[Float[np.ndarray, "b H W 3"]]:
    """Rows through (params, rows, what the last made, *others) -> ..., batch by batch.

    `made` is what the first stage starts from, or None. `on_stage` is told the name of
    each stage behind a batch, and how many images that has.
    """
    for batch, count in batched.padded_batches((rows, made), batch_size, mesh):
        batch, last = batch
        for name, run in stages:
            last = run(params, batch, last, *others)
            if on_stage is not None:
                last = jax.block_until_ready(last)
                on_stage(name, count)
        yield np.asarray(last)[:count]


def check_rows(pipeline: Dalle2, rows: Rows) -> None:
    """Raise, before anything compiles, on rows that the pipeline cannot make."""
    num_images = len(rows.index)
    if len(rows.tokens) != num_images:
        raise ValueError(f"{len(rows.tokens)} captions for {num_images} images")
    if rows.embed is None:
        pipeline.check_has_prior()
        return
    if len(rows.embed) != num_images:
        raise ValueError(f"{len(rows.embed)} embeddings for {num_images} images")
    pipeline.check_width(rows.embed)


def programs(pipeline: Dalle2, num_upsamplers: int | None = None) -> Stages:
    """The stages by name: (params, rows, what the last made, null, seed, scales) -> ..."""

    def keys_of(rows: Rows, seed: Int[Array, ""]) -> Keys:
        return image_keys(jax.random.key(seed), rows.index)

    def prior(params, rows, made, null_tokens, seed, scales):
        text = pipeline.encode_text(params, rows.tokens)
        null = pipeline.encode_text(params, null_tokens)
        keys = keys_of(rows, seed)
        return pipeline.draw_embedding(params, keys, text, null, scales.prior)

    def decoder(params, rows, made, null_tokens, seed, scales):
        text = pipeline.encode_text(params, rows.tokens)
        null = pipeline.encode_text(params, null_tokens)
        heard = pipeline.hear(params, made, text, null)
        keys = keys_of(rows, seed)
        return pipeline.decode(
            params, keys, heard, scales.decoder, image_scale=scales.image
        )

    def upsampler(i: int) -> Callable:
        def upsample(params, rows, made, null_tokens, seed, scales):
            return pipeline.upsample_once(params, keys_of(rows, seed), made, i)

        return upsample

    wanted = pipeline.upsamplers[: pipeline.num_upsamplers(num_upsamplers)]
    stages = [("prior", prior), ("decoder", decoder)]
    stages += [(one.name, upsampler(i)) for i, one in enumerate(wanted)]
    return [(name, jax.jit(run)) for name, run in stages]


def mapped(function: Callable, *, batch_size: int) -> Callable[..., Iterator[Any]]:
    """A function of (params, rows, *others) that yields `function` of every batch.

    For manipulations; it compiles once. `rows` are arrays with a leading axis N, what
    `function` makes has the batch's, and the others are for all.
    """
    mesh = batched.all_devices()
    program = jax.jit(function)

    def run(params: Params, rows: Any, *others: Any) -> Iterator[Any]:
        params, others = batched.replicate((params, others), mesh)
        for batch, count in batched.padded_batches(rows, batch_size, mesh):
            made = program(params, batch, *others)
            yield jax.tree.map(lambda a, count=count: np.asarray(a)[:count], made)

    return run
