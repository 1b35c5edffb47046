"""The images of a plan of DALL·E 2, batch by batch, through a program per stage.

A mode is a list of stages, each of which makes something of what the one before made:
embeddings, small images, larger images. What starts from a picture is a row per image
of an embedding, and of a noisy image where the picture's own noise is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from diffusion_jax.pipelines import batched, batched_unclip, manipulations, painting
from diffusion_jax.pipelines.batched_unclip import Scales
from diffusion_jax.pipelines.dalle2 import Dalle2
from diffusion_jax.pipelines.manipulations import Code
from diffusion_jax.sampling import unclip_best, unclip_codes
from diffusion_jax.sampling.making import Batch
from diffusion_jax.sampling.unclip_plans import Plan
from diffusion_jax.sampling.wanted import Wanted
from diffusion_jax.types import Params

OnStage = Callable[[int, int], None]  # so many stages are done, of how many
Stages = list[tuple[str, Callable]]


class Rows(NamedTuple):
    """What each of N images is made from; numpy, with a leading axis N."""

    drawn: batched_unclip.Rows
    x: Float[np.ndarray, "N h w 3"] | None = None  # noisy, to be drawn by DDIM
    image: Float[np.ndarray, "N S S 3"] | None = None  # to paint on
    mask: Float[np.ndarray, "N S S 1"] | None = None


class Dials(NamedTuple):
    """Numbers whose change does not recompile."""

    scales: Scales
    eta: float = 0.0


def maker(
    plan: Plan,
    *,
    on_stage: OnStage = lambda done, total: None,
    on_batch: Callable[[int], None] = lambda size: None,
    on_done: Callable[[], None] = lambda: None,
) -> Callable[[Params], Iterator[Batch]]:
    """A function of the params that yields images and what is wanted of them.

    Image i of a seed is the same whatever the batch size and the number of devices.
    `on_batch` is told the size of every batch before, `on_done` that it is drawn.
    """
    mesh = batched.all_devices()
    null_tokens = plan.model.read([""])

    def run(steps: Stages, params: Params, batch: list[Wanted], rows: Rows, made: Any):
        """One batch through some stages, from what is made of it already."""
        names = [name for name, _ in steps]
        on_batch(len(batch))
        others = null_tokens, batch[0].seed, dials_of(plan, batch[0])
        (images,) = batched_unclip.through(
            steps,
            params,
            rows,
            made,
            *others,
            batch_size=plan.batch_size,
            mesh=mesh,
            on_stage=lambda name, _: on_stage(names.index(name) + 1, len(names)),
        )
        on_done()
        return batch, images

    def draw(steps: Stages, params: Params) -> Iterator[Batch]:
        code = unclip_codes.codes(plan, params)
        for batch in batches(unclip_best.candidates(plan), plan.batch_size):
            positions = [one.position for one in batch]
            embed = None if code is None else code.embed[positions]
            yield run(steps, params, batch, rows_of(plan, batch, code), embed)

    def make(params: Params) -> Iterator[Batch]:
        params = batched.replicate(params)
        steps = stages_of(plan)
        before, after = unclip_best.split(plan, steps)
        made = draw(before, params)
        if plan.best_of == 1:
            yield from made
            return
        chosen = unclip_best.best(plan, params, made)
        for batch, images in unclip_best.rebatched(chosen, plan.batch_size):
            if after:
                rows = rows_of(plan, batch, None)
                _, images = run(after, params, batch, rows, images)
            yield [plan.images[one.position] for one in batch], images

    return make


def batches(images: Sequence[Wanted], batch_size: int) -> Iterator[list[Wanted]]:
    """Images that one call can make: of a seed and a guidance."""
    groups: dict[tuple, list[Wanted]] = {}
    for one in images:
        groups.setdefault((one.seed, one.guidance), []).append(one)
    for group in groups.values():
        for first in range(0, len(group), batch_size):
            yield group[first : first + batch_size]


def rows_of(plan: Plan, batch: Sequence[Wanted], code: Code | None) -> Rows:
    """What each image of a batch is made from."""
    texts = ["" if one.prompt is None else one.prompt for one in batch]
    index = np.array([one.index for one in batch], np.int32)
    rows = batched_unclip.Rows(plan.model.read(texts), index)
    if plan.mode == "inpaint":
        start = plan.start.image, plan.start.mask
        return Rows(rows, None, *(np.repeat(a[None], len(batch), 0) for a in start))
    if code is None or code.x is None:
        return Rows(rows)
    return Rows(rows, code.x[[one.position for one in batch]])


def dials_of(plan: Plan, one: Wanted) -> Dials:
    """Guidance of 1 is none: half the work."""
    prior = unclip_codes.prior_scale(plan)
    scales = Scales(prior, unclip_codes.scale_of(plan, one), plan.image_guidance)
    return Dials(scales, plan.edit.eta or 0.0)


# ---- stages --------------------------------------------------------------------------


def stages_of(plan: Plan) -> Stages:
    """By name: (params, rows, what the last made, null, seed, dials) -> ..."""
    pipeline, num = plan.model.pipeline, plan.num_upsamplers
    programs = batched_unclip.programs(pipeline, num)
    drawn = {name: _of_drawn(run) for name, run in programs}
    prior, decoder = (drawn.pop(name) for name in ("prior", "decoder"))
    upsamplers = list(drawn.items())
    own = {
        "text": [("prior", prior), ("decoder", decoder)],
        "text_embedding": [
            ("embedding", jax.jit(text_embedding(pipeline))),
            ("decoder", decoder),
        ],
        "caption": [("decoder", jax.jit(caption_decoder(pipeline)))],
        "variations": [("decoder", decoder)],
    }
    if plan.mode == "inpaint":
        return [("prior", prior), ("painter", jax.jit(painter(pipeline, num)))]
    if unclip_codes.keeps_noise(plan):
        return [("decoder", jax.jit(redrawer(pipeline))), *upsamplers]
    return own[plan.mode] + upsamplers


def _of_drawn(run: Callable) -> Callable:
    def of_drawn(params, rows, made, null_tokens, seed, dials):
        return run(params, rows.drawn, made, null_tokens, seed, dials.scales)

    return of_drawn


def text_embedding(pipeline: Dalle2) -> Callable:
    """The caption's own embedding, where an image's is meant."""

    def embed(params, rows, made, null_tokens, seed, dials):
        return pipeline.encode_text(params, rows.drawn.tokens).clip.embed

    return embed


def caption_decoder(pipeline: Dalle2) -> Callable:
    """The decoder that hears no embedding, as in training when that is dropped."""

    def decode(params, rows, made, null_tokens, seed, dials):
        text = pipeline.encode_text(params, rows.drawn.tokens)
        null = pipeline.encode_text(params, null_tokens)
        nothing = jnp.zeros_like(text.clip.embed)
        is_dropped = jnp.ones(len(nothing), bool)
        heard = pipeline.hear(params, nothing, text, null, is_dropped)
        keys = unclip_codes.keys_for(seed, rows.drawn.index)
        return pipeline.decode(params, keys, heard, dials.scales.decoder)

    return decode


def redrawer(pipeline: Dalle2) -> Callable:
    """The decoder by DDIM, from noise that is given."""

    def redraw(params, rows, made, null_tokens, seed, dials):
        null = pipeline.encode_text(params, null_tokens)
        return manipulations.redraw(
            pipeline,
            params,
            Code(made, rows.x),
            null,
            dials.scales.decoder,
            keys=unclip_codes.keys_for(seed, rows.drawn.index),
            eta=dials.eta,
        )

    return redraw


def painter(pipeline: Dalle2, num_upsamplers: int) -> Callable:
    """Decoder and upsamplers, around what a mask keeps."""

    def paint(params, rows, made, null_tokens, seed, dials):
        text = pipeline.encode_text(params, rows.drawn.tokens)
        null = pipeline.encode_text(params, null_tokens)
        return painting.inpaint(
            pipeline,
            params,
            unclip_codes.keys_for(seed, rows.drawn.index),
            pipeline.hear(params, made, text, null),
            rows.image,
            rows.mask,
            dials.scales.decoder,
            image_scale=dials.scales.image,
            num_upsamplers=num_upsamplers,
        )

    return paint
