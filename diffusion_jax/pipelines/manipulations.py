"""What DALL·E 2 does to images (Ramesh et al., 2022, arXiv:2204.06125, section 3).

An image is two things: z_i, what CLIP makes of it, and x_T, the noise from which the
decoder told z_i draws it by DDIM: the rest. All are pure functions of (pipeline,
params, ...), to be jitted by the caller. `null` is the encoded empty text, which stands
for a caption where none is given; a `scale` guides encoding and decoding alike, and
None is no guidance at all, under which both agree best.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.diffusion import interpolation, parameterization
from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.process import NoiseLevel, Prediction, Real
from diffusion_jax.diffusion.samplers import ddim, inversion
from diffusion_jax.diffusion.samplers.integrate import Keys
from diffusion_jax.models import clip, clip_towers
from diffusion_jax.pipelines import dalle2
from diffusion_jax.pipelines import stage as stages
from diffusion_jax.pipelines.dalle2 import Caption, Dalle2, Heard, Scale
from diffusion_jax.pipelines.stage import Stage, Wrap
from diffusion_jax.types import Params

MAX_THETA = 0.5  # section 3.3
PCA_COUNTS = (20, 30, 40, 80, 120, 160, 200, 320)  # figure 7

Shares = tuple[Real, ...] | Float[Array | np.ndarray, "S"]


class Code(NamedTuple):
    """Images as z_i and x_T."""

    embed: Float[Array, "B P"]
    x: Float[Array, "B h w 3"]


# ---- encoding and decoding -----------------------------------------------------------


def encode(
    pipeline: Dalle2,
    params: Params,
    images: Float[Array, "B H W 3"],
    null: Caption,
    scale: Scale | None = None,
    *,
    corrections: int = 0,
) -> Code:
    """z_i of images in [-1, 1], and x_T by DDIM backwards on the decoder's own grid.

    More steps, or `corrections` (of `inversion.ddim_inversion`), bring what `redraw`
    makes of it nearer to the images at the decoder's size.
    """
    embed = pipeline.encode_image(params, images)
    heard = hear(pipeline, params, embed, null, null, scale)
    stage = dataclasses.replace(
        pipeline.decoder,
        sampler=functools.partial(
            inversion.ddim_inversion,
            corrections=corrections,
            starts_noisier=_says_no_eps_of_clean_data(pipeline.decoder),
        ),
        clip=_clipping_noisy(pipeline.decoder.clip),
    )
    if heard.image is not None:
        image = stages.remember(stage, params["decoder"], heard.image)
        stage = dalle2.two_way(stage, image, None)
    x, _ = stages.sample(
        stage,
        params["decoder"],
        _no_keys(len(images)),
        (pipeline.size, pipeline.size, 3),
        heard.cond,
        heard.null,
        scale=scale,
        x=clip_towers.resized(images, pipeline.size),
    )
    return Code(embed, x)


def redraw(
    pipeline: Dalle2,
    params: Params,
    code: Code,
    null: Caption,
    scale: Scale | None = None,
    *,
    keys: Keys | None = None,
    eta: float | Float[Array, ""] = 0.0,
    text: Caption | None = None,
) -> Float[Array, "B h w 3"]:
    """The decoder's images of codes by DDIM; of eta = 0 those that were encoded.

    Larger `eta` needs keys. `text` is heard beside z_i; the encoding heard none.
    """
    keys = _no_keys(len(code.embed)) if keys is None else keys
    text = null if text is None else text
    heard = hear(pipeline, params, code.embed, text, null, scale)
    stage = dataclasses.replace(
        pipeline.decoder,
        sampler=functools.partial(ddim.ddim, eta=eta),
        clip=_clipping_noisy(pipeline.decoder.clip),
    )
    drawing = dataclasses.replace(pipeline, decoder=stage)
    return drawing.decode(params, keys, heard, scale, x=code.x)


def hear(
    pipeline: Dalle2,
    params: Params,
    embed: Float[Array, "B P"],
    text: Caption,
    null: Caption,
    scale: Scale | None,
) -> Heard:
    """As `Dalle2.hear`; no guidance without a scale."""
    heard = pipeline.hear(params, embed, text, null)
    return Heard(heard.cond) if scale is None else heard


# ---- section 3: variations, interpolations, text diffs -------------------------------


def variations(
    pipeline: Dalle2,
    params: Params,
    keys: Keys,
    code: Code,
    null: Caption,
    scale: Scale | None = None,
    *,
    eta: float | Float[Array, ""] = 1.0,
) -> Float[Array, "B h w 3"]:
    """Section 3.1: what x_T fixes is drawn anew, the more the larger eta in [0, 1].

    One code may be for all keys.
    """
    code = _repeated(code, len(keys))
    return redraw(pipeline, params, code, null, scale, keys=keys, eta=eta)


def fresh_variations(
    pipeline: Dalle2,
    params: Params,
    keys: Keys,
    embed: Float[Array, "N P"],
    null: Caption,
    scale: Scale | None = None,
) -> Float[Array, "B h w 3"]:
    """Images of z_i alone, from fresh noise by the decoder's own sampler, as Karlo does.

    One embedding may be for all keys; `scale` is by default the stage's own.
    """
    embed = _repeated(embed, len(keys))
    heard = pipeline.hear(params, embed, null, null)
    return pipeline.decode(params, keys, heard, scale)


def interpolate(
    pipeline: Dalle2,
    params: Params,
    one: Code,
    other: Code,
    shares: Shares,
    null: Caption,
    scale: Scale | None = None,
    *,
    x: Float[Array, "B h w 3"] | None = None,
) -> Float[Array, "B S h w 3"]:
    """Section 3.2: z_i along the arc from one image to the other, 0 to 1.

    So goes x_T, which makes the ends the two reconstructions, unless it is fixed as `x`.
    The other end may be a caption: `text_code`.
    """
    shares = jnp.asarray(shares, jnp.float32)
    embed = _arcs(one.embed, other.embed, shares)
    noisy = _arcs(one.x, other.x, shares) if x is None else _each(x, len(shares))
    return _redraw_all(pipeline, params, embed, noisy, null, scale)


def text_code(
    pipeline: Dalle2,
    params: Params,
    keys: Keys,
    text: Caption,
    null: Caption,
    x: Float[Array, "B h w 3"],
    *,
    through_prior: bool = True,
    prior_scale: Scale | None = None,
) -> Code:
    """A caption as an end of an interpolation: the prior's z_i of it, or its own z_t."""
    if through_prior:
        embed = pipeline.draw_embedding(params, keys, text, null, prior_scale)
    else:
        embed = dalle2.one_per_image(text.clip, len(keys)).embed
    return Code(embed, x)


def text_diff(
    pipeline: Dalle2,
    params: Params,
    code: Code,
    before: Caption | None,
    after: Caption,
    thetas: Shares,
    null: Caption,
    scale: Scale | None = None,
) -> Float[Array, "B S h w 3"]:
    """Section 3.3: images edited from what `before` says of them to what `after` says.

    z_i goes towards z_d = unit(z_t - z_t0) by each share theta of the arc, in [0, 0.5]
    (values that jit traces are not checked: see `check_thetas`); x_T stays. Without
    `before`, z_d is z_t.
    """
    check_thetas(thetas)
    thetas = jnp.asarray(thetas, jnp.float32)
    embed = toward(code.embed, direction(before, after, len(code.embed)), thetas)
    noisy = _each(code.x, len(thetas))
    return _redraw_all(pipeline, params, embed, noisy, null, scale)


def check_thetas(thetas: Shares) -> None:
    """Raise on shares of a text diff that are out of range, unless they are traced."""
    if isinstance(thetas, jax.core.Tracer):
        return
    for theta in np.atleast_1d(np.asarray(thetas)).tolist():
        if not 0 <= theta <= MAX_THETA:
            raise ValueError(
                f"theta {theta:g}; a text diff's are from 0 to {MAX_THETA}"
            )


def direction(
    before: Caption | None, after: Caption, num_images: int
) -> Float[Array, "B P"]:
    """z_d, of unit norm: from the CLIP embedding of one caption to that of another."""
    end = dalle2.one_per_image(after.clip, num_images).embed
    if before is None:
        return clip.to_unit_norm(end)
    start = dalle2.one_per_image(before.clip, num_images).embed
    return clip.to_unit_norm(end - start)


def toward(
    embed: Float[Array, "B P"], goal: Float[Array, "B P"], thetas: Float[Array, "S"]
) -> Float[Array, "B S P"]:
    """Embeddings turned towards `goal` by shares of the arc; their norms stay.

    `goal` has unit norm, or is zero: of two captions that are one, which turn nothing.
    """
    norm = jnp.linalg.norm(embed, axis=-1, keepdims=True)
    unit = embed / jnp.where(norm == 0, 1.0, norm)
    is_nowhere = jnp.linalg.norm(goal, axis=-1, keepdims=True) < 0.5
    return norm[:, None] * _arcs(unit, jnp.where(is_nowhere, unit, goal), thetas)


# ---- section 4 ------------------------------------------------------------------------


def pca_reconstructions(
    pipeline: Dalle2,
    params: Params,
    code: Code,
    mean: Float[Array, "P"],
    components: Float[Array, "K P"],
    counts: tuple[int, ...],
    null: Caption,
    scale: Scale | None = None,
) -> Float[Array, "B S h w 3"]:
    """Section 4, figure 7: z_i of its first principal components alone, x_T fixed.

    `components` has orthonormal rows, those of most variance first.
    """
    embed = projected(code.embed, mean, components, counts)
    if pipeline.clip.unit_norm:  # what the decoder knows
        embed = jax.vmap(clip.to_unit_norm)(embed)
    noisy = _each(code.x, len(counts))
    return _redraw_all(pipeline, params, embed, noisy, null, scale)


def projected(
    embed: Float[Array, "B P"],
    mean: Float[Array, "P"],
    components: Float[Array, "K P"],
    counts: tuple[int, ...],
) -> Float[Array, "B S P"]:
    """Embeddings with what only the first components say of them."""
    for count in counts:
        if not 0 <= count <= len(components):
            raise ValueError(
                f"{count} principal components; there are {len(components)}"
            )
    exactly = functools.partial(jnp.matmul, precision="highest")
    coefficients = exactly(embed - mean, components.T)
    kept = jnp.arange(len(components)) < jnp.asarray(counts)[:, None]
    return mean + exactly(coefficients[:, None] * kept, components)


# ---- what they share -----------------------------------------------------------------


def _redraw_all(
    pipeline: Dalle2,
    params: Params,
    embed: Float[Array, "B S P"],
    x: Float[Array, "B S h w 3"],
    null: Caption,
    scale: Scale | None,
) -> Float[Array, "B S h w 3"]:
    code = Code(*(a.reshape(-1, *a.shape[2:]) for a in (embed, x)))
    if scale is not None and jnp.ndim(scale):
        scale = jnp.repeat(scale, embed.shape[1])
    images = redraw(pipeline, params, code, null, scale)
    return images.reshape(*embed.shape[:2], *images.shape[1:])


def _arcs(
    a: Float[Array, "B *d"], b: Float[Array, "B *d"], shares: Float[Array, "S"]
) -> Float[Array, "B S *d"]:
    along = jax.vmap(interpolation.slerp, (None, None, 0))
    return jax.vmap(along, (0, 0, None))(a, b, shares)


def _each(a: Float[Array, "B *d"], num: int) -> Float[Array, "B S *d"]:
    return jnp.repeat(a[:, None], num, axis=1)


def _repeated(tree: Code | Float[Array, "N P"], num: int):
    """One for all keys, or one for each."""
    count = len(jax.tree.leaves(tree)[0])
    if count not in (1, num):
        raise ValueError(f"{count} images for {num} keys; one for each or one for all")
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (num, *a.shape[1:])), tree)


def _no_keys(num: int) -> Keys:
    """What a sampler takes that draws nothing."""
    return jax.random.split(jax.random.key(0), num)


def _clipping_noisy(wrap: Wrap | None) -> Wrap | None:
    """The clipping, but not of clean data, which need none and have no eps to derive."""
    if wrap is None:
        return None

    def wrapped(denoise: Denoiser) -> Denoiser:
        def denoise_clipped(x: Float[Array, "B *d"], level: NoiseLevel) -> Prediction:
            pred = denoise(x, level)
            held = wrap(lambda x, level: pred)(x, level)
            is_clean = level.sigma == 0
            return jax.tree.map(lambda a, b: jnp.where(is_clean, a, b), pred, held)

        return denoise_clipped

    return wrapped


def _says_no_eps_of_clean_data(stage: Stage) -> bool:
    """Whether it predicts x0 and its grid ends where that is all of x."""
    with jax.ensure_compile_time_eval():
        level = stage.schedule(stages.times(stage)[-1])
        return float(parameterization.determinant(stage.parameterization, level)) == 0
