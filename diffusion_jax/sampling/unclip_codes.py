"""What pictures are to the decoder: an embedding for each image, and noise to start from.

The noise is the picture's own, found by DDIM backwards, or one that is drawn for all
frames, or none, where each image has that of its seed.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax.diffusion.interpolation import slerp
from diffusion_jax.diffusion.samplers.integrate import Keys
from diffusion_jax.models import clip, embedding_codes
from diffusion_jax.pipelines import batched_unclip, dalle2, manipulations
from diffusion_jax.pipelines import stage as stages
from diffusion_jax.pipelines.manipulations import Code
from diffusion_jax.sampling import unclip_models, unclip_starts
from diffusion_jax.sampling.unclip_models import Components
from diffusion_jax.sampling.unclip_plans import Plan
from diffusion_jax.sampling.unclip_starts import Picture
from diffusion_jax.sampling.wanted import Wanted
from diffusion_jax.types import Params

ENCODING_BATCH = 32  # pictures that are in memory together


def codes(plan: Plan, params: Params) -> Code | None:
    """A row for every image: an embedding, and noise to start from or None."""
    if plan.start.image is None or plan.mode == "inpaint":
        return None
    code_of = coder(plan, params)
    one = code_of(plan.start.image)
    num = len(plan.images)
    if plan.mode == "variations":
        return Code(*(None if a is None else np.repeat(a, num, 0) for a in one))
    shares = np.array([image.share for image in plan.images], np.float32)
    if plan.mode == "interpolate":
        return between(one, other_end(plan, params, one, code_of), shares)
    embed = jnp.asarray(one.embed)
    if plan.mode == "text_diff":
        goal = text_direction(plan, params)
        embed = jax.jit(manipulations.toward)(embed, goal, jnp.asarray(shares))[0]
    else:
        counts = tuple(int(image.share) for image in plan.images)
        found = components_of(plan, params)
        embed = manipulations.projected(embed, *map(jnp.asarray, found), counts)[0]
        if plan.model.pipeline.clip.unit_norm:  # what the decoder knows
            embed = clip.to_unit_norm(embed)
    return Code(np.asarray(embed), np.repeat(one.x, num, 0))


def coder(plan: Plan, params: Params) -> Callable[[Picture], Code]:
    """A function of one picture; noise is its own, or drawn, or not needed."""
    pipeline, null_tokens = plan.model.pipeline, plan.model.read([""])
    (scale,) = {scale_of(plan, one) for one in plan.images}  # redrawn as it is encoded

    @jax.jit
    def embed(params, image):
        return pipeline.encode_image(params, image)

    @jax.jit
    def encode(params, image, null_tokens, scale):
        null = pipeline.encode_text(params, null_tokens)
        return manipulations.encode(
            pipeline, params, image, null, scale, corrections=plan.edit.corrections
        )

    def code_of(image: Picture) -> Code:
        if plan.edit.fixed_noise:
            return Code(np.asarray(embed(params, image[None])), first_noise(plan))
        if not keeps_noise(plan):
            return Code(np.asarray(embed(params, image[None])), None)
        return Code(*map(np.asarray, encode(params, image[None], null_tokens, scale)))

    return code_of


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


def other_end(
    plan: Plan, params: Params, one: Code, code_of: Callable[[Picture], Code]
) -> Code:
    """A picture, or the prior's embedding of a caption with the noise of the first."""
    pipeline = plan.model.pipeline
    if plan.start.other is not None:
        return code_of(plan.start.other)

    def draw(params, keys, tokens, null_tokens, x, scale):
        text = pipeline.encode_text(params, tokens)
        null = pipeline.encode_text(params, null_tokens)
        return manipulations.text_code(
            pipeline, params, keys, text, null, x, prior_scale=scale
        )

    texts = (plan.model.read([text]) for text in (plan.edit.to_prompt, ""))
    keys, scale = first_keys(plan), prior_scale(plan)
    return jax.jit(draw)(params, keys, *texts, one.x, scale)


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
    return jax.jit(manipulations.direction, static_argnums=2)(before, after, 1)


def components_of(plan: Plan, params: Params) -> Components:
    """Those of an autoregressive prior, or of pictures."""
    if plan.start.others is None:
        return plan.model.components
    pipeline, paths = plan.model.pipeline, plan.start.others
    size = pipeline.clip.image.vision_model.image_size
    encode = batched_unclip.mapped(pipeline.encode_image, batch_size=ENCODING_BATCH)
    parts = []
    for first in range(0, len(paths), ENCODING_BATCH):
        some = paths[first : first + ENCODING_BATCH]
        parts += encode(params, unclip_starts.read_small(some, size))
    embed = np.concatenate(parts).astype(np.float64)
    _, axes = embedding_codes.principal_components(embed)
    axes = axes[:, : len(embed) - 1].T
    return Components(*(np.asarray(a, np.float32) for a in (embed.mean(0), axes)))


# ---- how a plan is sampled -----------------------------------------------------------


def scale_of(plan: Plan, one: Wanted) -> float | None:
    """None: without any, as the pipeline does if its own scale is 1."""
    from_noise = not keeps_noise(plan) and plan.model.pipeline.decoder.guidance != 1
    return None if one.guidance == 1 and not from_noise else one.guidance


def keeps_noise(plan: Plan) -> bool:
    """Whether images are redrawn from noisy ones that are given."""
    if plan.mode == "variations":
        return plan.edit.eta is not None
    return plan.mode in ("interpolate", "text_diff", "pca")


def prior_scale(plan: Plan) -> float | None:
    """None: without any guidance, which is half the work."""
    scale = unclip_models.prior_guidance(plan.model.pipeline)
    return None if scale == 1 else scale


def keys_for(seed: int | Int[Array, ""], index: Int[Array | np.ndarray, "N"]) -> Keys:
    """Those of images, as `batched_unclip` has them."""
    return stages.image_keys(jax.random.key(seed), jnp.asarray(index))
