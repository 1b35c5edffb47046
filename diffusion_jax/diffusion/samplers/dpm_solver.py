"""DPM-Solver: dx in lambda = log(alpha / sigma), whose linear part is exact.

In eps it is Lu et al. (2022a; arXiv:2206.00927), in x0 it is DPM-Solver++ (2022b;
arXiv:2211.01095): form="eps" and form="x0" of every function here. Three ways to
have more than one evaluation to interpolate: those of the steps before (`dpm_multistep`),
of levels within the step (`dpm_solver`), or of the last few points of the grid, all
counted from one of them (`dpm_singlestep`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.process import NoiseLevel, Prediction, Real
from diffusion_jax.diffusion.samplers import multistep
from diffusion_jax.diffusion.samplers.integrate import Keys, integrate
from diffusion_jax.diffusion.samplers.multistep import (
    Window,
    land,
    mean_power,
    output,
    revise,
)
from diffusion_jax.diffusion.schedules import Schedule


def dpm_multistep(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    order: int = 2,
    form: str = "eps",
    solver_type: str = "midpoint",
    half_curvature: bool = False,
    lower_order_final_below: Real = 15,
    euler_at_final: bool = False,
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """DPM-Solver and DPM-Solver++, multistep, of order 1, 2 or 3.

    A line through two outputs is taken in the middle of the step ("midpoint"), or at
    its exact mean ("heun"). Order 3 takes the exact mean of the parabola through
    three. The published code multiplies the second divided difference by the
    coefficient of the second derivative, which is half of its own; `half_curvature`
    does so too. That leaves order 2: measured in test_multistep.py, 3.0 and 2.0.
    """
    _check_solver_type(solver_type)
    levels = schedule(ts)
    allowed = multistep.orders(
        levels,
        order,
        lower_order_final_below=lower_order_final_below,
        euler_at_final=euler_at_final,
    )
    window = multistep.window(multistep.lambdas(levels), allowed)
    tilt = multistep.tilt_of(form)
    weights = multistep.lagrange(window, tilt)
    if solver_type == "midpoint":
        is_line = window.used[:, None] == 2
        weights = jnp.where(is_line, multistep.line(window, 0.5), weights)
    if half_curvature and weights.shape[1] == 3:
        weights = weights - 0.5 * _curvature(window, tilt)
    return multistep.multistep(key, denoise, levels, x, weights, form)


def dpm_solver(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    order: int = 3,
    form: str = "eps",
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """DPM-Solver-1, -2 and -3, algorithms 1 and 2, with r1 = 1/2, and 1/3 and 2/3.

    `order` evaluations a step, the later ones at levels within it; one only where a
    step leads to clean data or from pure noise.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, got {order}")
    p, tilt = multistep.named(form), multistep.tilt_of(form)

    def step(
        x: Float[Array, "B *d"], key: Keys, here: NoiseLevel, there: NoiseLevel
    ) -> tuple[Float[Array, "B *d"], Float[Array, "B *d"]]:
        pred = denoise(x, here)
        first = output(p, pred, here)
        ends = jax.tree.map(lambda *a: jnp.stack(a), here, there)
        start, stop = multistep.lambdas(ends)

        def change_at(
            share: float, change: Float[Array, "B *d"]
        ) -> Float[Array, "B *d"]:
            level = schedule.at_logsnr(2 * (start + share * (stop - start)))
            within = denoise(land(revise(p, pred, here, change), level), level)
            return output(p, within, level) - first

        def position(share: float) -> Float[Array, ""]:
            return share * mean_power(tilt * share * (stop - start))

        def intermediate() -> Float[Array, "B *d"]:
            if order == 1:
                return jnp.zeros_like(first)
            if order == 2:
                return change_at(1 / 2, jnp.zeros_like(first))
            # Twice the line from the start through the last evaluation.
            change = change_at(1 / 3, jnp.zeros_like(first))
            change = change_at(2 / 3, position(2 / 3) / (1 / 3) * change)
            return position(1.0) / (2 / 3) * change

        is_interior = (there.sigma > 0) & (here.alpha > 0)
        change = jax.lax.cond(is_interior, intermediate, lambda: jnp.zeros_like(first))
        return land(revise(p, pred, here, change), there), pred.x0

    return integrate(step, x, key, schedule(ts))


def dpm_singlestep(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    order: int = 2,
    form: str = "x0",
    solver_type: str = "midpoint",
    lower_order_final: bool = False,
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """DPM-Solver and DPM-Solver++, singlestep, one evaluation at each point of the grid.

    Steps go in groups of `order`: the second and the third step of one begin again
    where its first began, with all evaluations since, which makes them of order 2 and 3.
    A step to clean data is of order 1; `lower_order_final` makes the last step so if it
    ends a group. "midpoint" drops the middle one of three evaluations, as `dpm_solver`.
    """
    _check_solver_type(solver_type)
    p = multistep.named(form)
    levels = schedule(ts)
    allowed = _orders_in_groups(len(ts) - 1, order, lower_order_final)
    window = multistep.window(multistep.lambdas(levels), allowed)
    weights = _from_the_oldest(window, multistep.tilt_of(form), solver_type)

    def step(
        carry: tuple[Array, Array, Prediction, NoiseLevel, Array],
        key: Keys,
        here: NoiseLevel,
        there: NoiseLevel,
    ) -> tuple[tuple[Array, Array, Prediction, NoiseLevel, Array], Array]:
        x, past, base, origin, i = carry
        pred = denoise(x, here)._replace(variance=None)
        outputs = multistep.remember(p, pred, here, past)
        is_first = window.used[i] == 1
        base, origin = jax.tree.map(
            lambda new, old: jnp.where(is_first, new, old),
            (pred, here),
            (base, origin),
        )
        held = output(p, base, origin)
        change = multistep.weigh(weights[i], outputs - held)
        x = land(revise(p, base, origin, change), there)
        return (x, outputs[:-1], base, origin, i + 1), pred.x0

    past = jnp.zeros((weights.shape[1] - 1, *x.shape), x.dtype)
    nothing = Prediction(jnp.zeros_like(x), jnp.zeros_like(x))
    origin = jax.tree.map(lambda a: a[0], levels)
    carry = (x, past, nothing, origin, jnp.zeros((), int))
    (x, *_), trace = integrate(step, carry, key, levels)
    return x, trace


def _check_solver_type(solver_type: str) -> None:
    if solver_type not in ("midpoint", "heun"):
        raise ValueError(
            f"unknown solver_type {solver_type!r}; one of ['heun', 'midpoint']"
        )


def _curvature(w: Window, tilt: int) -> Float[Array, "steps 3"]:
    """What the parabola's second divided difference adds to the weights of its mean."""
    away = w.nodes[:, :, None] - w.nodes[:, None]
    is_parabola = (w.used == 3)[:, None]
    apart = jnp.where(is_parabola[..., None] & ~np.eye(3, dtype=bool), away, 1.0)
    difference = 1 / jnp.prod(apart, axis=-1)
    length = w.stop - w.start
    square = length**2 * mean_power(tilt * length, power=2)
    return jnp.where(is_parabola, square[:, None] * difference, 0.0)


def _orders_in_groups(
    steps: int, order: int, lower_order_final: bool
) -> Int[np.ndarray, "steps"]:
    """1, 2, .. order, again and again."""
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, got {order}")
    orders = 1 + np.arange(steps) % order
    if lower_order_final and steps % order == 0:
        orders[-1] = 1
    return orders


def _from_the_oldest(
    w: Window, tilt: int, solver_type: str
) -> Float[Array, "steps num"]:
    """Weights over the interval from the oldest of the used nodes to the step's end."""
    oldest = jnp.take_along_axis(w.nodes, w.used[:, None] - 1, axis=1)
    w = w._replace(start=jnp.where(w.used > 1, oldest[:, 0], w.start))
    if solver_type == "heun":
        return multistep.lagrange(w, tilt)
    position = jnp.where(w.used == 2, 0.5, mean_power(tilt * (w.stop - w.start)))
    return multistep.line(w, position)
