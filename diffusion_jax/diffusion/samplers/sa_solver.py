"""SA-Solver: stochastic Adams methods (Xue et al., 2023; arXiv:2309.05019).

The SDE of `dpmpp_sde` with eta = tau**2, where tau may change from step to step. What
the network predicted is interpolated by a polynomial in lambda: by the predictor through
the last steps, by the corrector through the end of the step too. An evaluation there
serves the correction of that step and then the prediction of the next one.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.process import NoiseLevel, Real
from diffusion_jax.diffusion.samplers import brownian, dpmpp_sde, multistep
from diffusion_jax.diffusion.samplers.integrate import Keys, integrate
from diffusion_jax.diffusion.samplers.multistep import Window
from diffusion_jax.diffusion.schedules import Schedule


def sa_solver(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    predictor_order: int = 3,
    corrector_order: int = 4,
    tau: Real | Float[Array, ""] = 1.0,
    tau_interval: Sequence[Real | Float[Array, ""]] = (0.05, 1.0),
    form: str = "x0",
    lower_order_final: bool = True,
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """Algorithm 1, one evaluation a step; orders count the predictions interpolated.

    tau applies where sigma / alpha is within `tau_interval`, 0 elsewhere. A corrector
    of order 0 is none. Orders grow at the start and, with `lower_order_final`, fall at
    the end. A step is of first order, and not corrected, where its lambda is infinite at
    either end.
    """
    levels = schedule(ts)
    eta = _tau(levels, tau, tau_interval) ** 2
    orders = (predictor_order, corrector_order)
    predictor, corrector = _tables(levels, eta, form, orders, lower_order_final)
    p = multistep.named(form)

    def step(
        carry: tuple[Array, Array, Array, Array, Array, Array],
        _: Keys,
        here: NoiseLevel,
        there: NoiseLevel,
    ) -> tuple[tuple[Array, Array, Array, Array, Array, Array], Array]:
        x, lacking, gain, newest, past, i = carry
        pred = denoise(x, here)
        outputs = multistep.remember(p, pred, here, past)
        # Correct the step that led here; the outputs stay those of the predicted x.
        offset = gain * (newest * outputs[0] + lacking)
        x = x + offset
        change = multistep.weigh(predictor[i], outputs - outputs[0])
        mean = multistep.revise(p, pred, here, change, offset)
        kept, renewed = dpmpp_sde.noise_stds(here, there, eta[i], form)
        noise = kept * mean.eps + renewed * brownian.increment(key, x, here, there)
        x = there.alpha * mean.x0 + noise
        lacking = multistep.weigh(corrector[i, 1:] - predictor[i], outputs)
        gain = _gain(here, there, kept, form)
        carry = (x, lacking, gain, corrector[i, 0], outputs[:-1], i + 1)
        return carry, pred.x0

    past = jnp.zeros((predictor.shape[1] - 1, *x.shape), x.dtype)
    zero = jnp.zeros((), x.dtype)
    carry = (x, jnp.zeros_like(x), zero, zero, past, jnp.zeros((), int))
    (x, *_), trace = integrate(step, carry, key, levels)
    return x, trace


def _tau(
    levels: NoiseLevel,
    tau: Real | Float[Array, ""],
    interval: Sequence[Real | Float[Array, ""]],
) -> Float[Array, "steps"]:
    """At the start of each step."""
    ratio = multistep.ratios(levels)[:-1]
    return jnp.where((interval[0] <= ratio) & (ratio <= interval[1]), tau, 0.0)


def _gain(
    here: NoiseLevel, there: NoiseLevel, kept: Float[Array, ""], form: str
) -> Float[Array, ""]:
    """How far x_there moves when the mean output does."""
    if form == "x0":
        return there.alpha - kept * here.alpha / here.sigma
    alpha = jnp.where(here.alpha > 0, here.alpha, 1.0)
    return kept - there.alpha * here.sigma / alpha


def _tables(
    levels: NoiseLevel,
    eta: Float[Array, "steps"],
    form: str,
    orders: tuple[int, int],
    falls: bool,
) -> tuple[Float[Array, "steps num"], Float[Array, "steps num_plus_1"]]:
    """Weights of the outputs of now, before, ...; and with that of the step's end first.

    Where there is no correction they are those of the predictor, after a 0.
    """
    if orders[1] < 0:
        raise ValueError(f"corrector_order must be at least 0, got {orders[1]}")
    num = max(orders[0], orders[1] - 1)
    below = np.inf if falls else 0
    predicted = multistep.orders(
        levels, orders[0], highest=max(orders), lower_order_final_below=below
    )
    steps = np.arange(len(predicted))
    corrected = np.minimum(orders[1], steps + 2)
    if falls:
        corrected = np.minimum(corrected, steps[::-1] + 2)
    lambdas = multistep.lambdas(levels)
    predictor = _pad(_weights(_window(lambdas, predicted, eta, form), form), num)
    plain = jnp.pad(predictor, ((0, 0), (1, 0)))
    if orders[1] == 0:
        return predictor, plain
    window = _window(lambdas, np.maximum(corrected - 1, 1), eta, form)
    ahead = Window(
        jnp.concatenate([window.stop[:, None], window.nodes], axis=1),
        jnp.minimum(window.used + 1, corrected),
        window.start,
        window.stop,
    )
    # The last step's would take one more evaluation.
    is_corrected = (window.stop > window.start) & (steps < steps[-1])
    corrector = _pad(_weights(ahead, form), num + 1)
    corrector = jnp.where(is_corrected[:, None], corrector, plain)
    return predictor, corrector


def _window(
    lambdas: Float[Array, "times"],
    allowed: Int[np.ndarray, "steps"],
    eta: Float[Array, "steps"],
    form: str,
) -> Window:
    window = multistep.window(lambdas, allowed)
    return dpmpp_sde.stretched(window, eta) if form == "x0" else window


def _weights(window: Window, form: str) -> Float[Array, "steps num"]:
    """Means of the polynomials; lines in x0 are read a little later, as published.

    That makes a difference of third order in the step's length, as UniPC's does.
    """
    means = multistep.lagrange(window, multistep.tilt_of(form))
    if form != "x0":
        return means
    length = window.stop - window.start
    length = jnp.where(length > 0, length, 1.0)
    line = multistep.line(window, -0.5 * length / jnp.expm1(-length))
    return jnp.where(window.used[:, None] == 2, line, means)


def _pad(weights: Float[Array, "steps some"], num: int) -> Float[Array, "steps num"]:
    return jnp.pad(weights, ((0, 0), (0, num - weights.shape[1])))
