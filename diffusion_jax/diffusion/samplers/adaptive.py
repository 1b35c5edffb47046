"""DPM-Solver of adaptive step size (Lu et al., 2022, appendix C; arXiv:2206.00927).

In y = x / alpha and lambda = log(alpha / sigma) the probability-flow ODE is
dy = -exp(-lambda) * eps dlambda. Two formulas that share evaluations differ by about
the error of the lower one, and from that difference follows the next step.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_jax.diffusion import process
from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.process import NoiseLevel, Real
from diffusion_jax.diffusion.samplers.integrate import Keys, integrate
from diffusion_jax.diffusion.schedules import Schedule

ORDER = 3  # of DPM-Solver-23, and its evaluations per step


class _Progress(NamedTuple):
    """Where each example is within one interval of the grid."""

    y: Float[Array, "B *d"]
    x0: Float[Array, "B *d"]  # as predicted at the start of its last step
    reached: Float[Array, "B"]  # lambda
    step: Float[Array, "B"]  # the next one to try, in lambda


def adaptive(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    rtol: Real | Float[Array, ""] = 0.05,
    atol: Real | Float[Array, ""] = 0.0078,
    first_step: Real | Float[Array, ""] = 0.05,
    max_evaluations: int = 300,
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """DPM-Solver-23 with as many steps between two times as the error asks for.

    [t_max, t_min, 0] is a whole grid. Each example has steps of its own, so it does not
    depend on its batch; tolerances are those of x / alpha. `max_evaluations` is shared
    evenly by the intervals; in one that has used up its part, the last step goes to the
    end whatever its error. A step to clean data or from pure noise is one Euler step:
    from pure noise, let the first interval be a short one.
    """
    steps = len(ts) - 1
    tries = max(1, (max_evaluations - 1) // (ORDER * max(1, steps - 1)))

    def interval(
        carry: tuple[Array, Array], key: Keys, here: NoiseLevel, there: NoiseLevel
    ) -> tuple[tuple[Array, Array], Array]:
        x, step = carry
        start, end = (process.logsnr(level) / 2 for level in (here, there))

        def try_again(i: Int[Array, ""], now: _Progress) -> _Progress:
            def advance(now: _Progress) -> _Progress:
                is_last = i == tries - 1
                return _advance(denoise, schedule, now, end, rtol, atol, is_last)

            is_unfinished = jnp.any(now.reached < end)
            return jax.lax.cond(is_unfinished, advance, lambda now: now, now)

        def controlled(x: Float[Array, "B *d"]) -> tuple[Array, Array, Array]:
            y = x / here.alpha
            now = _Progress(y, jnp.zeros_like(y), jnp.full(len(x), start), step)
            now = jax.lax.fori_loop(0, tries, try_again, now)
            return there.alpha * now.y, now.x0, now.step

        def euler(x: Float[Array, "B *d"]) -> tuple[Array, Array, Array]:
            pred = denoise(x, here)
            return there.alpha * pred.x0 + there.sigma * pred.eps, pred.x0, step

        is_finite = (here.alpha > 0) & (there.sigma > 0) & (end > start)
        x, x0, step = jax.lax.cond(is_finite, controlled, euler, x)
        return (x, step), x0

    step = jnp.full(len(x), first_step, jnp.promote_types(x.dtype, jnp.float32))
    (x, _), trace = integrate(interval, (x, step), key, schedule(ts))
    return x, trace


def _advance(
    denoise: Denoiser,
    schedule: Schedule,
    now: _Progress,
    end: Float[Array, ""],
    rtol: Real | Float[Array, ""],
    atol: Real | Float[Array, ""],
    is_forced: Bool[Array, ""],
) -> _Progress:
    """One try of each example: a step that is accepted, or the next one is shorter."""
    left = end - now.reached
    step = jnp.where(is_forced | (now.step > left), left, now.step)
    high, low, x0 = _dpm_solver_23(denoise, schedule, now.y, now.reached, step)
    tolerance = atol + rtol * jnp.maximum(abs(low), abs(now.y))
    error = jax.lax.stop_gradient(_root_mean_square((high - low) / tolerance))
    accepted = (error <= 1) | is_forced
    # After a step cut short by the end comes the one that was to be tried. An example
    # that has arrived takes steps of no length, while others go on.
    grown = step * _growth(error)
    grown = jnp.where(accepted & (step < now.step), now.step, grown)
    reached = jnp.where(step == left, end, now.reached + step)
    return _Progress(
        _choose(accepted, high, now.y),
        _choose(left > 0, x0, now.x0),
        jnp.where(accepted, reached, now.reached),
        grown,
    )


def _dpm_solver_23(
    denoise: Denoiser,
    schedule: Schedule,
    y: Float[Array, "B *d"],
    start: Float[Array, "B"],
    step: Float[Array, "B"],
) -> tuple[Float[Array, "B *d"], Float[Array, "B *d"], Float[Array, "B *d"]]:
    """y one step ahead, of order 3 and of order 2, and the first predicted x0.

    DPM-Solver-3 and -2, with r1 = 1/3 and r2 = 2/3, divided by alpha.
    """

    def predict(
        y: Float[Array, "B *d"], reached: Float[Array, "B"]
    ) -> process.Prediction:
        level = schedule.at_logsnr(2 * reached)
        return denoise(process.align(level.alpha, y) * y, level)

    def weights(share: Real) -> tuple[Array, Array]:
        """exp(-lambda) * (exp(h) - 1) and exp(-lambda) * ((exp(h) - 1) / h - 1)."""
        h = share * step
        size = jnp.exp(-start - h)
        safe = jnp.where(h > 0, h, 1.0)
        slope = jnp.where(h > 0, jnp.expm1(safe) / safe - 1, 0.0)
        return process.align(size * jnp.expm1(h), y), process.align(size * slope, y)

    pred = predict(y, start)
    first, _ = weights(1 / 3)
    change1 = predict(y - first * pred.eps, start + step / 3).eps - pred.eps
    second, slope = weights(2 / 3)
    middle = y - second * pred.eps - 2 * slope * change1
    change2 = predict(middle, start + 2 * step / 3).eps - pred.eps
    whole, slope = weights(1)
    low = y - whole * pred.eps - 1.5 * whole * change1
    high = y - whole * pred.eps - 1.5 * slope * change2
    return high, low, pred.x0


def _growth(error: Float[Array, "B"]) -> Float[Array, "B"]:
    """The factor 0.9 * error**(-1/3), within [1/5, 5]."""
    return jnp.clip(0.9 * jnp.maximum(error, 1e-6) ** (-1 / ORDER), 0.2, 5.0)


def _root_mean_square(a: Float[Array, "B *d"]) -> Float[Array, "B"]:
    return jnp.sqrt(jnp.mean(a**2, axis=tuple(range(1, a.ndim))))


def _choose(
    which: Bool[Array, "B"], a: Float[Array, "B *d"], b: Float[Array, "B *d"]
) -> Float[Array, "B *d"]:
    return jnp.where(which.reshape(-1, *[1] * (a.ndim - 1)), a, b)
