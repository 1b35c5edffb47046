"""The images of a plan of DALL·E 2, batch by batch, through a program per stage.

A mode is a list of stages, each of which makes something of what the one before made:
embeddings, small images, larger images. What starts from a picture is a row per image
of an embedding, and of a noisy image where the picture's own noise is kept.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax.diffusion.interpolation import slerp
from diffusion_jax.diffusion.samplers.integrate import Keys
from diffusion_jax.models import clip, embedding_codes
from diffusion_jax.pipelines import (
    batched,
    batched_unclip,
    best_of,
    dalle2,
    manipulations,
    painting,
)
from diffusion_jax.pipelines import stage as stages
from diffusion_jax.pipelines.batched_unclip import Scales
from diffusion_jax.pipelines.dalle2 import Dalle2
from diffusion_jax.pipelines.manipulations import Code
from diffusion_jax.sampling import unclip_models
from diffusion_jax.sampling.making import Batch, on_all_devices
from diffusion_jax.sampling.unclip_models import Components
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
    steps = stages_of(plan)
    null_tokens = plan.model.read([""])

    def generate(params: Params) -> Iterator[Batch]:
        params = on_all_devices(params)
        code = codes(plan, params)
        for batch in batches(candidates(plan), plan.batch_size):
            on_batch(len(batch))
            dials = dials_of(plan, batch[0])
            wanted = rows_of(plan, batch, code)
            ((rows, count),) = batched.padded_batches(wanted, plan.batch_size, mesh)
            made = rows.drawn.embed
            for i, (_, run) in enumerate(steps):
                made = run(params, rows, made, null_tokens, batch[0].seed, dials)
                made = jax.block_until_ready(made)
                on_stage(i + 1, len(steps))
            on_done()
            yield batch, np.asarray(made)[:count]

    def make(params: Params) -> Iterator[Batch]:
        made = generate(params)
        return made if plan.best_of == 1 else best(plan, params, made)

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
    if code is None:
        return Rows(rows)
    positions = [one.position for one in batch]
    embed, x = (None if a is None else a[positions] for a in code)
    return Rows(rows._replace(embed=embed), x)


def dials_of(plan: Plan, one: Wanted) -> Dials:
    """Guidance of 1 is none: half the work."""
    prior = unclip_models.prior_guidance(plan.model.pipeline)
    scales = Scales(
        None if prior == 1 else prior,
        scale_of(plan, one),
        plan.image_guidance,
    )
    return Dials(scales, plan.edit.eta or 0.0)


def scale_of(plan: Plan, one: Wanted) -> float | None:
    """None: without any, as the pipeline does if its own scale is 1."""
    from_noise = not keeps_noise(plan) and plan.model.pipeline.decoder.guidance != 1
    return None if one.guidance == 1 and not from_noise else one.guidance


def keeps_noise(plan: Plan) -> bool:
    """Whether images are redrawn from noisy ones that are given."""
    if plan.mode == "variations":
        return plan.edit.eta is not None
    return plan.mode in ("interpolate", "text_diff", "pca")


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
    if keeps_noise(plan):
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
        keys = keys_for(seed, rows.drawn.index)
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
            keys=keys_for(seed, rows.drawn.index),
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
            keys_for(seed, rows.drawn.index),
            pipeline.hear(params, made, text, null),
            rows.image,
            rows.mask,
            dials.scales.decoder,
            image_scale=dials.scales.image,
            num_upsamplers=num_upsamplers,
        )

    return paint


def keys_for(seed: int | Int[Array, ""], index: Int[Array | np.ndarray, "N"]) -> Keys:
    return stages.image_keys(jax.random.key(seed), index)


# ---- what pictures are to the decoder ------------------------------------------------


def codes(plan: Plan, params: Params) -> Code | None:
    """A row for every image: an embedding, and noise to start from or None."""
    if plan.start.image is None or plan.mode == "inpaint":
        return None
    one = code_of(plan, params, plan.start.image)
    num = len(plan.images)
    if plan.mode == "variations":
        return Code(*(None if a is None else np.repeat(a, num, 0) for a in one))
    shares = np.array([image.share for image in plan.images], np.float32)
    if plan.mode == "interpolate":
        return between(one, other_end(plan, params, one), shares)
    if plan.mode == "text_diff":
        goal = text_direction(plan, params)
        embed = manipulations.toward(one.embed, goal, jnp.asarray(shares))[0]
    else:
        counts = tuple(int(image.share) for image in plan.images)
        found = components_of(plan, params)
        embed = manipulations.projected(one.embed, *found, counts)[0]
        if plan.model.pipeline.clip.unit_norm:  # what the decoder knows
            embed = clip.to_unit_norm(embed)
    return Code(np.asarray(embed), np.repeat(one.x, num, 0))


def code_of(plan: Plan, params: Params, image: Float[np.ndarray, "s s 3"]) -> Code:
    """Of one picture; noise is its own, or drawn, or not needed."""
    pipeline = plan.model.pipeline
    if plan.edit.fixed_noise or not keeps_noise(plan):
        embed = np.asarray(jax.jit(pipeline.encode_image)(params, image[None]))
        return Code(embed, first_noise(plan) if plan.edit.fixed_noise else None)

    def encode(params, image, null_tokens, scale):
        null = pipeline.encode_text(params, null_tokens)
        return manipulations.encode(
            pipeline, params, image, null, scale, corrections=plan.edit.corrections
        )

    scale = scale_of(plan, plan.images[0])
    null_tokens = plan.model.read([""])
    code = jax.jit(encode)(params, image[None], null_tokens, scale)
    return Code(*map(np.asarray, code))


def first_noise(plan: Plan) -> Float[np.ndarray, "1 h w 3"]:
    """What the decoder starts from in a sample of this seed and index."""
    pipeline = plan.model.pipeline
    keys = dalle2.keys_of(first_keys(plan), dalle2.DECODER)
    noise = stages.prior_noise(keys, (pipeline.size, pipeline.size, 3))
    level = pipeline.decoder.schedule(stages.times(pipeline.decoder)[0])
    return np.asarray(pipeline.decoder.prior_std(level) * noise)


def first_keys(plan: Plan) -> Keys:
    """Those of the frames, which share one seed and index."""
    first = plan.images[0]
    return keys_for(first.seed, np.array([first.index]))


def other_end(plan: Plan, params: Params, one: Code) -> Code:
    """A picture, or the prior's embedding of a caption with the noise of the first."""
    pipeline = plan.model.pipeline
    if plan.start.other is not None:
        return code_of(plan, params, plan.start.other)

    def draw(params, keys, tokens, null_tokens, x, scale):
        text = pipeline.encode_text(params, tokens)
        null = pipeline.encode_text(params, null_tokens)
        return manipulations.text_code(
            pipeline, params, keys, text, null, x, prior_scale=scale
        )

    texts = (plan.model.read([text]) for text in (plan.edit.to_prompt, ""))
    scale = dials_of(plan, plan.images[0]).scales.prior
    return jax.jit(draw)(params, first_keys(plan), *texts, one.x, scale)


def between(one: Code, other: Code, shares: Float[np.ndarray, "S"]) -> Code:
    """A row for every share of the way, on the arcs from one to the other."""
    along = jax.jit(jax.vmap(slerp, (None, None, 0)))
    return Code(*(np.asarray(along(a[0], b[0], shares)) for a, b in zip(one, other)))


def text_direction(plan: Plan, params: Params) -> Float[Array, "1 P"]:
    """From what the picture shows to what it shall show."""
    pipeline = plan.model.pipeline
    encode = jax.jit(pipeline.encode_text)
    after = encode(params, plan.model.read([plan.images[0].prompt]))
    before = plan.edit.before
    before = None if before is None else encode(params, plan.model.read([before]))
    return manipulations.direction(before, after, 1)


def components_of(plan: Plan, params: Params) -> Components:
    """Those of an autoregressive prior, or of pictures."""
    if plan.start.others is None:
        return plan.model.components
    encode = jax.jit(plan.model.pipeline.encode_image)
    embed = [np.asarray(encode(params, image[None])) for image in plan.start.others]
    embed = np.concatenate(embed).astype(np.float64)
    _, axes = embedding_codes.principal_components(embed)
    axes = axes[:, : len(embed) - 1].T
    return Components(*(np.asarray(a, np.float32) for a in (embed.mean(0), axes)))


# ---- the best of several -------------------------------------------------------------


def candidates(plan: Plan) -> list[Wanted]:
    """Image i of n candidates each is chosen from images n * i, n * i + 1, ..."""
    num = plan.best_of
    return [
        one._replace(index=one.index * num + i)
        for one in plan.images
        for i in range(num)
    ]


def best(plan: Plan, params: Params, made: Iterator[Batch]) -> Iterator[Batch]:
    """Of the candidates of every image that which CLIP finds nearest to its prompt."""
    pipeline, num = plan.model.pipeline, plan.best_of

    @jax.jit
    def rank(params: Params, images: Any, tokens: Any) -> best_of.Ranked:
        text = pipeline.clip.encode_text(params, tokens)
        embed = pipeline.encode_image(params, images)
        return best_of.ranked(images, embed, text.embed)

    kept: list[tuple[Wanted, Any]] = []
    for batch, images in made:
        kept += zip(batch, images)
        while len(kept) >= num:
            (first, _), images = kept[0], np.stack([image for _, image in kept[:num]])
            kept = kept[num:]
            ranked = rank(params, images, plan.model.read([first.prompt]))
            one = plan.images[first.position]
            print(
                f"{one.stem}: image {int(ranked.order[0, 0]) + first.index} of the "
                f"seed, cosine {float(ranked.scores[0, 0]):.3f} to the prompt",
                file=sys.stderr,
            )
            yield [one], np.asarray(ranked.images[:, 0])
