"""UniPC (Zhao et al., 2023; arXiv:2302.04867): a multistep predictor, and a corrector
that costs no evaluation.

The evaluation that the next step needs anyway lies at the end of this one, so a
polynomial through it too corrects x there; the network is not asked again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.diffusion import parameterization
from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.parameterization import Parameterization
from diffusion_jax.diffusion.process import NoiseLevel, Real
from diffusion_jax.diffusion.samplers import multistep
from diffusion_jax.diffusion.samplers.integrate import Keys, integrate
from diffusion_jax.diffusion.samplers.multistep import Window, land, revise
from diffusion_jax.diffusion.schedules import Schedule


def unipc(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    order: int = 2,
    variant: str = "bh2",
    form: str = "x0",
    corrector: bool = True,
    uncorrected: Sequence[int] = (),
    lower_order_final_below: Real = math.inf,
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """UniPC-p of p = `order`, 1 to 3: UniP-p is of order p, corrected by UniC-p of p + 1.

    `variant` is the paper's B(h), h ("bh1") or e^h - 1 ("bh2"); it matters only where
    a line is taken, in UniP-2 and UniC-1: the order conditions fix all other weights.
    Steps in `uncorrected`, counted from 0, keep the x that they predict.
    """
    if variant not in ("bh1", "bh2"):
        raise ValueError(f"unknown variant {variant!r}; one of ['bh1', 'bh2']")
    p, tilt = multistep.named(form), multistep.tilt_of(form)
    levels = schedule(ts)
    allowed = multistep.orders(
        levels, order, lower_order_final_below=lower_order_final_below
    )
    window = multistep.window(multistep.lambdas(levels), allowed)
    predicted = _means(window, tilt, variant)
    is_corrected = ~np.isin(np.arange(len(allowed)), list(uncorrected)) & corrector
    corrections = _corrections(window, predicted, tilt, variant)
    corrections = jnp.where(is_corrected[:, None], corrections, 0.0)
    offsets = _gains(p, levels)[:, None] * corrections
    # What is corrected is the step before.
    offsets = jnp.concatenate([jnp.zeros_like(offsets[:1]), offsets[:-1]])

    def step(
        carry: tuple[Array, Array, Array],
        key: Keys,
        here: NoiseLevel,
        there: NoiseLevel,
    ) -> tuple[tuple[Array, Array, Array], Array]:
        x, past, i = carry
        pred = denoise(x, here)
        outputs = multistep.remember(p, pred, here, past)
        offset = multistep.weigh(offsets[i], outputs - outputs[1])
        pred = revise(p, pred, here, jnp.zeros_like(x), offset)
        change = multistep.weigh(predicted[i], outputs[:-1] - outputs[0])
        x = land(revise(p, pred, here, change), there)
        return (x, outputs[:-1], i + 1), pred.x0

    past = jnp.zeros((predicted.shape[1], *x.shape), x.dtype)
    (x, _, _), trace = integrate(step, (x, past, jnp.zeros((), int)), key, levels)
    return x, trace


def _means(w: Window, tilt: int, variant: str) -> Float[Array, "steps num"]:
    """The exact mean of a parabola or cubic, and of a line where B(h) says."""
    h = -tilt * (w.stop - w.start)
    position = jnp.full_like(h, 0.5)
    if variant == "bh1":  # B(h) = h instead of e^h - 1
        safe = jnp.where(h == 0, 1.0, h)
        position = jnp.where(h == 0, 0.5, 0.5 * safe / jnp.expm1(safe))
    is_line = (w.used == 2)[:, None]
    exact = multistep.lagrange(w, tilt)
    return jnp.where(is_line, multistep.line(w, position), exact)


def _corrections(
    w: Window, predicted: Float[Array, "steps num"], tilt: int, variant: str
) -> Float[Array, "steps num+1"]:
    """How the weights change when each step's own end is one more node, the newest."""
    nodes = jnp.concatenate([w.stop[:, None], w.nodes], axis=1)
    means = _means(w._replace(nodes=nodes, used=w.used + 1), tilt, variant)
    # Nothing can be known of a step with an infinite end, or of no length.
    is_proper = (w.stop > w.start)[:, None]
    return jnp.where(is_proper, means - jnp.pad(predicted, ((0, 0), (1, 0))), 0.0)


def _gains(p: Parameterization, levels: NoiseLevel) -> Float[Array, "steps"]:
    """What each step's x gains when the output held over it grows by one."""
    alpha, sigma = levels.alpha, levels.sigma
    det = parameterization.determinant(p, levels)[:-1]
    turn = sigma[1:] * alpha[:-1] - alpha[1:] * sigma[:-1]
    return jnp.where(det == 0, 0.0, turn / jnp.where(det == 0, 1.0, det))
