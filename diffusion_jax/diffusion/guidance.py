"""Guidance: from a conditional denoiser to a denoiser that exaggerates its condition.

A guide is (denoise, cond, null, scale) -> Denoiser: GUIDANCE has those that differ in
the rule, `limited` and `scheduled` make others of them. A scale is one number, one per
example or a function of the noise level, in the convention of Stable Diffusion: 1 is
the conditional model, 0 the unconditional one (the w of most papers is scale - 1).
Whatever is a number may be traced, so a change of it does not recompile.

A negative prompt is a `null`. Clipping and thresholding come after: see `denoiser`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffusion_jax.diffusion import guidance_rules as rules
from diffusion_jax.diffusion import guidance_scales, parameterization, process
from diffusion_jax.diffusion.denoiser import ConditionalDenoiser, Denoiser
from diffusion_jax.diffusion.guidance_rules import Rescale, Rule
from diffusion_jax.diffusion.guidance_scales import Curve, Scale
from diffusion_jax.diffusion.parameterization import Parameterization
from diffusion_jax.diffusion.process import NoiseLevel, Prediction, Real
from diffusion_jax.diffusion.schedules import Schedule
from diffusion_jax.types import Conditioning

Guide = Callable[..., Denoiser]  # (denoise, cond, null, scale, **options)

# ---- guides that run the network once, with the condition and without it -------------


def classifier_free(
    denoise: ConditionalDenoiser,
    cond: Conditioning,
    null: Conditioning,
    scale: Scale,
    *,
    rescale: Rescale | None = None,
) -> Denoiser:
    """null + scale * (cond - null) (Ho and Salimans, 2022, eq. 6; arXiv:2207.12598).

    `null` may have batch 1. The network runs once, on the doubled batch. x0 and eps are
    both extrapolated, so x = alpha * x0 + sigma * eps still holds; a learned variance
    is that of the condition. `rescale` is `guidance_rules.rescale`, here and below.
    """
    return by_rule(denoise, cond, null, scale, rules.extrapolated, rescale=rescale)


def apg(
    denoise: ConditionalDenoiser,
    cond: Conditioning,
    null: Conditioning,
    scale: Scale,
    *,
    eta: Real | Float[Array, ""] = 0.0,
    threshold: Real | Float[Array, ""] = 15.0,
    momentum: Real | Float[Array, ""] = 0.0,
    memory: jax.Ref | None = None,
    space: Parameterization | None = None,
    rescale: Rescale | None = None,
) -> Denoiser:
    """Adaptive projected guidance; see `guidance_rules.projected`.

    With a `memory` the denoiser is no longer a function: make a new one,
    `jax.new_ref(jnp.zeros_like(x))`, for every sample.
    """
    rule = functools.partial(
        rules.projected,
        eta=eta,
        threshold=threshold,
        momentum=momentum,
        memory=memory,
        space=space,
    )
    return by_rule(denoise, cond, null, scale, rule, rescale=rescale)


def cfg_zero_star(
    denoise: ConditionalDenoiser,
    cond: Conditioning,
    null: Conditioning,
    scale: Scale,
    *,
    zero_from: Real | Float[Array, ""] = math.inf,
    space: Parameterization | None = None,
    rescale: Rescale | None = None,
) -> Denoiser:
    """CFG-Zero*: `guidance_rules.optimized`, and an output of 0 in the first steps.

    Those are the levels with sigma / alpha >= zero_from: unless given, pure noise
    alone, which is the first step of a rectified flow. `space` is the velocity of one.
    """
    space = parameterization.flow() if space is None else space
    rule = functools.partial(rules.optimized, space=space)
    guided = by_rule(denoise, cond, null, scale, rule, rescale=rescale)

    def zero_first(x: Float[Array, "B *d"], level: NoiseLevel) -> Prediction:
        pred = guided(x, level)
        still = parameterization.read(space, jnp.zeros_like(pred.x0), x, level)
        is_first = level.sigma / level.alpha >= zero_from
        return _where(is_first, still._replace(variance=pred.variance), pred)

    return zero_first


def cfg_plus_plus(
    denoise: ConditionalDenoiser,
    cond: Conditioning,
    null: Conditioning,
    scale: Scale,
    *,
    rescale: Rescale | None = None,
) -> Denoiser:
    """CFG++, for scales in [0, 1] and DDIM; see `guidance_rules.renoised`."""
    return by_rule(denoise, cond, null, scale, rules.renoised, rescale=rescale)


def normalized(
    denoise: ConditionalDenoiser,
    cond: Conditioning,
    null: Conditioning,
    scale: Scale,
    *,
    gamma: Real | Float[Array, ""] = 1.0,
    rescale: Rescale | None = None,
) -> Denoiser:
    """The normalization of beta-CFG; see `guidance_rules.normalized`."""
    rule = functools.partial(rules.normalized, gamma=gamma)
    return by_rule(denoise, cond, null, scale, rule, rescale=rescale)


def two_scale(
    denoise: ConditionalDenoiser,
    cond: Conditioning,
    null: Conditioning,
    scale: Scale,
    *,
    image_scale: Scale = 1.5,
    image: Conditioning | None = None,
    rescale: Rescale | None = None,
) -> Denoiser:
    """Guidance by an image and by a text (Brooks et al., 2022, eq. 3; arXiv:2211.09800).

    null + image_scale * (image - null) + scale * (cond - image), where `image`, unless
    given, is `null` with the image of `cond`. The network runs once, on the tripled
    batch; a learned variance is that of `cond`.
    """
    image = null._replace(image=cond.image) if image is None else image

    def guided(x: Float[Array, "B *d"], level: NoiseLevel) -> Prediction:
        preds = _predictions(denoise, (cond, image, null), x, level)
        given, with_image, without = preds
        text, picture = (_scale_at(s, level, x) for s in (scale, image_scale))
        pred = rules.extrapolated(level, text, given, with_image)
        pred = pred._replace(
            x0=pred.x0 + (picture - 1) * (with_image.x0 - without.x0),
            eps=pred.eps + (picture - 1) * (with_image.eps - without.eps),
        )
        return pred if rescale is None else rescale(level, pred, given)

    return guided


GUIDANCE = {
    "classifier_free": classifier_free,
    "two_scale": two_scale,
    "apg": apg,
    "cfg_zero_star": cfg_zero_star,
    "cfg_plus_plus": cfg_plus_plus,
    "normalized": normalized,
}


def by_rule(
    denoise: ConditionalDenoiser,
    cond: Conditioning,
    null: Conditioning,
    scale: Scale,
    rule: Rule,
    *,
    rescale: Rescale | None = None,
) -> Denoiser:
    """What `rule` makes of the predictions of the doubled batch [cond, null]."""

    def guided(x: Float[Array, "B *d"], level: NoiseLevel) -> Prediction:
        given, without = _predictions(denoise, (cond, null), x, level)
        pred = rule(level, _scale_at(scale, level, x), given, without)
        return pred if rescale is None else rescale(level, pred, given)

    return guided


# ---- guides made of guides -----------------------------------------------------------


def limited(
    guide: Guide,
    *,
    above: Real | Float[Array, ""] = 0.0,
    up_to: Real | Float[Array, ""] = math.inf,
) -> Guide:
    """Guidance only where above < sigma / alpha <= up_to; elsewhere the plain condition.

    Kynkäänniemi et al. (2024), section 3; arXiv:2404.07724. With one level for all
    examples, the network runs once without guidance outside of the interval.
    """

    @functools.wraps(guide)
    def limited_guide(denoise, cond, null, scale, **options) -> Denoiser:
        guided = guide(denoise, cond, null, scale, **options)

        def plain(x: Float[Array, "B *d"], level: NoiseLevel) -> Prediction:
            return denoise(x, level, stacked((cond,), len(x)))

        def denoise_at(x: Float[Array, "B *d"], level: NoiseLevel) -> Prediction:
            ratio = level.sigma / level.alpha
            is_inside = (above < ratio) & (ratio <= up_to)
            if is_inside.ndim == 0:
                return jax.lax.cond(is_inside, guided, plain, x, level)
            return _where(is_inside, guided(x, level), plain(x, level))

        return denoise_at

    return limited_guide


def scheduled(guide: Guide, curve: Curve, schedule: Schedule, **options) -> Guide:
    """Guidance whose scale follows a curve; options as of `guidance_scales.along`."""

    @functools.wraps(guide)
    def scheduled_guide(denoise, cond, null, scale, **others) -> Denoiser:
        scale = guidance_scales.along(curve, schedule, scale, **options)
        return guide(denoise, cond, null, scale, **others)

    return scheduled_guide


def rule_of(guide: Guide) -> Guide:
    """The function of GUIDANCE within its options, `limited` and `scheduled`."""
    while not any(guide is rule for rule in GUIDANCE.values()):
        inner = getattr(guide, "__wrapped__", None) or getattr(guide, "func", None)
        if inner is None:
            return guide
        guide = inner
    return guide


# ---- guidance by something else than an absent condition -----------------------------


def autoguidance(
    denoise: Denoiser,
    weak: Denoiser,
    scale: Scale,
    *,
    rule: Rule = rules.extrapolated,
    rescale: Rescale | None = None,
) -> Denoiser:
    """weak + scale * (denoise - weak) (Karras et al., 2024, section 4; arXiv:2406.02507).

    `weak` is a worse model of the same thing, told the same condition. Both may be
    guided themselves.
    """

    def guided(x: Float[Array, "B *d"], level: NoiseLevel) -> Prediction:
        given, without = denoise(x, level), weak(x, level)
        pred = rule(level, _scale_at(scale, level, x), given, without)
        return pred if rescale is None else rescale(level, pred, given)

    return guided


def classifier_gradient(
    denoise: Denoiser,
    log_prob: Callable[[Float[Array, "B *d"], NoiseLevel], Float[Array, "B"]],
    scale: Scale,
) -> Denoiser:
    """eps - scale * sigma * grad log p(y | x) (Dhariwal and Nichol, 2021, algorithm 2).

    arXiv:2105.05233; with ancestral sampling it is their algorithm 1, to first order in
    beta. `log_prob` is, for each example of noisy x, that of the label wanted, or how
    well CLIP's towers agree on it (GLIDE, Nichol et al., 2021, section 2.4;
    arXiv:2112.10741). 0 is no guidance. Pure noise knows nothing of y, and is left alone.
    """

    def guided(x: Float[Array, "B *d"], level: NoiseLevel) -> Prediction:
        pred = denoise(x, level)
        gradient = jax.grad(lambda x: jnp.sum(log_prob(x, level)))(x)
        push = _scale_at(scale, level, x) * gradient
        has_data = level.alpha > 0
        sigma = jnp.where(has_data, level.sigma, 0)
        ratio = sigma / jnp.where(has_data, level.alpha, 1)
        return pred._replace(
            x0=pred.x0 + process.align(sigma * ratio, x) * push,
            eps=pred.eps - process.align(sigma, x) * push,
        )

    return guided


# ---- what they share -----------------------------------------------------------------


def _predictions(
    denoise: ConditionalDenoiser,
    conds: tuple[Conditioning, ...],
    x: Float[Array, "B *d"],
    level: NoiseLevel,
) -> list[Prediction]:
    """One prediction for each of the conditions, from one batch of them all."""
    num = len(conds)
    # A level per example is repeated with the batch; one for all stays as it is.
    levels = jax.tree.map(lambda a: jnp.tile(a, num) if a.ndim else a, level)
    pred = denoise(jnp.concatenate([x] * num), levels, stacked(conds, len(x)))
    parts = [slice(i * len(x), (i + 1) * len(x)) for i in range(num)]
    return [jax.tree.map(lambda a, part=part: a[part], pred) for part in parts]


def stacked(conds: tuple[Conditioning, ...], batch: int) -> Conditioning:
    """The conditioning of the batches on top of each other, each broadcast to `batch`."""
    fields = {}
    for name, *given in zip(Conditioning._fields, *conds):
        if all(a is None for a in given):
            continue
        if any(a is None for a in given):
            raise ValueError(f"cond and null must both have {name!r}, or neither")
        fields[name] = jax.tree.map(
            functools.partial(_concatenate, name, batch), *given
        )
    return Conditioning(**fields)


def _concatenate(name: str, batch: int, *given: Array) -> Array:
    """One array of a field of each condition, on top of each other."""
    if len({a.shape[1:] for a in given}) > 1:
        listed = " and ".join(str(a.shape) for a in given)
        raise ValueError(f"cond and null differ in the shape of {name!r}: {listed}")
    full = [jnp.broadcast_to(a, (batch, *a.shape[1:])) for a in given]
    return jnp.concatenate(full)


def _scale_at(scale: Scale, level: NoiseLevel, x: Float[Array, "B *d"]) -> Array:
    scale = scale(level) if callable(scale) else scale
    return process.align(jnp.asarray(scale, jnp.promote_types(x.dtype, jnp.float32)), x)


def _where(condition: Bool[Array, "*b"], yes: Prediction, no: Prediction) -> Prediction:
    def chosen(a: Float[Array, "B *d"], b: Float[Array, "B *d"]) -> Array:
        axes = range(condition.ndim, a.ndim)
        return jnp.where(jnp.expand_dims(condition, axes), a, b)

    return jax.tree.map(chosen, yes, no)
