"""DPM-Solver and DPM-Solver++ for the reverse SDE, driven by one Brownian path per key.

Lu et al. (2022b; arXiv:2211.01095), section 5. eta = 0 is the probability flow and 1
the reverse of the forward process. Over a step of length h in lambda, with x0 held, its
solution is a DDIM step that keeps a share exp(-eta * h) of the noise. With eps held it
keeps what `noise_stds` says, and all is exact but that the predictions do change: `multistep`
tells how their mean over the step is found, under the weight exp((1 + eta) * lambda) for
x0 and exp(-lambda) for eps.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.diffusion import process
from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.process import NoiseLevel, Real
from diffusion_jax.diffusion.samplers import ancestral, brownian, multistep
from diffusion_jax.diffusion.samplers.integrate import Keys, integrate
from diffusion_jax.diffusion.samplers.multistep import Window
from diffusion_jax.diffusion.schedules import Schedule

# ---- two evaluations a step ---------------------------------------------------------


def dpmpp_sde(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    eta: Real | Float[Array, ""] = 1.0,
    r: Real | Float[Array, ""] = 0.5,
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """DPM-Solver++ SDE of k-diffusion: x0 from a share r of the step in lambda.

    eta is here that of `ddim`: it scales the std of the noise. One evaluation, and
    first order, where lambda is infinite at either end.
    """

    def step(
        x: Float[Array, "B *d"], _: Keys, here: NoiseLevel, there: NoiseLevel
    ) -> tuple[Float[Array, "B *d"], Float[Array, "B *d"]]:
        pred = denoise(x, here)

        def move(x0: Float[Array, "B *d"], there: NoiseLevel) -> Float[Array, "B *d"]:
            down, up = ancestral.split(here, there, eta)
            noise = brownian.increment(key, x, here, there)
            return ancestral.hold_x0(x, x0, here, down) + up * noise

        def extrapolate() -> Float[Array, "B *d"]:
            logsnr = (1 - r) * process.logsnr(here) + r * process.logsnr(there)
            within = schedule.at_logsnr(logsnr)
            change = denoise(move(pred.x0, within), within).x0 - pred.x0
            return pred.x0 + change / (2 * r)

        is_interior = (there.sigma > 0) & (here.alpha > 0)
        x0 = jax.lax.cond(is_interior, extrapolate, lambda: pred.x0)
        return move(x0, there), pred.x0

    return integrate(step, x, key, schedule(ts))


# ---- multistep ----------------------------------------------------------------------


def dpmpp_2m_sde(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    eta: Real | Float[Array, ""] = 1.0,
    solver_type: str = "midpoint",
    lower_order_final_below: Real = 15,
    euler_at_final: bool = False,
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """SDE-DPM-Solver++(2M): x0 is a line in lambda, as in `dpmpp_2m`, its eta = 0."""
    levels = schedule(ts)
    allowed = multistep.orders(
        levels,
        2,
        lower_order_final_below=lower_order_final_below,
        euler_at_final=euler_at_final,
    )
    window = stretched(multistep.window(multistep.lambdas(levels), allowed), eta)
    weights = _weights(window, 1, solver_type)
    return _multistep(key, denoise, levels, x, weights, "x0", eta)


def dpmpp_3m_sde(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    eta: Real | Float[Array, ""] = 1.0,
    solver_type: str = "heun",
    curvature: str = "half",
    lower_order_final_below: Real = 15,
    euler_at_final: bool = False,
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """DPM-Solver++(3M) SDE of k-diffusion: x0 is a parabola in lambda.

    `curvature` is the weight of its second divided difference: "half" of its own, as
    in k-diffusion; "full", hence third order at eta = 0; or "diffusers", half less a
    constant by a slip of sign, which leaves first order. `solver_type` is of the steps
    of second order.
    """
    levels = schedule(ts)
    allowed = multistep.orders(
        levels,
        3,
        lower_order_final_below=lower_order_final_below,
        euler_at_final=euler_at_final,
    )
    window = stretched(multistep.window(multistep.lambdas(levels), allowed), eta)
    weights = _weights(window, 1, solver_type) - _missing(window, curvature)
    return _multistep(key, denoise, levels, x, weights, "x0", eta)


def dpm_multistep_sde(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    eta: Real | Float[Array, ""] = 1.0,
    order: int = 2,
    solver_type: str = "midpoint",
    lower_order_final_below: Real = 15,
    euler_at_final: bool = False,
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """SDE-DPM-Solver-1 and -2M: eps is interpolated, not x0, as in `dpm_multistep`."""
    levels = schedule(ts)
    allowed = multistep.orders(
        levels,
        order,
        lower_order_final_below=lower_order_final_below,
        euler_at_final=euler_at_final,
    )
    window = multistep.window(multistep.lambdas(levels), allowed)
    weights = _weights(window, -1, solver_type)
    return _multistep(key, denoise, levels, x, weights, "eps", eta)


def _multistep(
    key: Keys,
    denoise: Denoiser,
    levels: NoiseLevel,
    x: Float[Array, "B *d"],
    weights: Float[Array, "steps num"],
    form: str,
    eta: Real | Float[Array, ""],
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """As `multistep.multistep`, but the mean prediction's noise is partly renewed."""
    p = multistep.named(form)

    def step(
        carry: tuple[Array, Array, Array], _: Keys, here: NoiseLevel, there: NoiseLevel
    ) -> tuple[tuple[Array, Array, Array], Array]:
        x, past, i = carry
        pred = denoise(x, here)
        outputs = multistep.remember(p, pred, here, past)
        change = multistep.weigh(weights[i], outputs - outputs[0])
        mean = multistep.revise(p, pred, here, change)
        kept, renewed = noise_stds(here, there, eta, form)
        noise = kept * mean.eps + renewed * brownian.increment(key, x, here, there)
        return (there.alpha * mean.x0 + noise, outputs[:-1], i + 1), pred.x0

    past = jnp.zeros((weights.shape[1] - 1, *x.shape), x.dtype)
    (x, _, _), trace = integrate(step, (x, past, jnp.zeros((), int)), key, levels)
    return x, trace


# ---- coefficients -------------------------------------------------------------------


def noise_stds(
    here: NoiseLevel,
    there: NoiseLevel,
    eta: Real | Float[Array, "*b"],
    form: str,
) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]:
    """How much of eps is kept by a step, and the std of the noise that it adds.

    x_there is then there.alpha * x0 + kept * eps + renewed * noise. With x0 held their
    squares add up to there.sigma**2. With eps held they do not, and an infinite lambda
    at either end makes it a step with x0 held.
    """
    decay = (here.alpha * there.sigma) / (there.alpha * here.sigma)  # exp(-h)
    share = decay**eta
    kept = there.sigma * share
    renewed = there.sigma * jnp.sqrt(jnp.maximum((1 - share) * (1 + share), 0.0))
    if form == "x0":
        return kept, renewed
    # sigma_there * (exp(h) - 1): what the held eps gets shorter by.
    has_signal = here.alpha > 0
    ratio = there.alpha / jnp.where(has_signal, here.alpha, 1.0)
    gap = jnp.maximum(ratio * here.sigma - there.sigma, 0.0)
    added = jnp.sqrt(eta * gap * (gap + 2 * there.sigma))
    is_inner = has_signal & (there.sigma > 0)
    return (
        jnp.where(is_inner, there.sigma - eta * gap, kept),
        jnp.where(is_inner, added, renewed),
    )


def stretched(window: Window, eta: Real | Float[Array, "*b"]) -> Window:
    """In the variable (1 + eta) * lambda, in which the weight of x0 is exponential."""
    factor = (1 + eta) * jnp.ones_like(window.start)
    return Window(
        factor[:, None] * window.nodes,
        window.used,
        factor * window.start,
        factor * window.stop,
    )


def _weights(window: Window, tilt: int, solver_type: str) -> Float[Array, "steps num"]:
    if solver_type not in ("midpoint", "heun"):
        raise ValueError(
            f"unknown solver_type {solver_type!r}; one of ['heun', 'midpoint']"
        )
    means = multistep.lagrange(window, tilt)
    if solver_type == "heun":
        return means
    is_line = window.used[:, None] == 2
    return jnp.where(is_line, multistep.line(window, 0.5), means)


def _missing(window: Window, curvature: str) -> Float[Array, "steps num"]:
    """What the parabolas of published code lack, as weights of the predictions."""
    if curvature not in ("half", "full", "diffusers"):
        raise ValueError(
            f"unknown curvature {curvature!r}; one of ['diffusers', 'full', 'half']"
        )
    num = window.nodes.shape[1]
    if curvature == "full" or num < 3:
        return jnp.zeros_like(window.nodes)
    is_parabola = (window.used == 3)[:, None]
    away = window.nodes[:, :, None] - window.nodes[:, None]
    is_pair = is_parabola[..., None] & ~np.eye(num, dtype=bool)
    difference = 1 / jnp.prod(jnp.where(is_pair, away, 1.0), axis=-1)
    length = window.stop - window.start
    lacking = 0.5 * multistep.mean_power(length, power=2)
    if curvature == "diffusers":
        held = -jnp.expm1(-jnp.where(length > 0, length, 1.0))  # the weight of x0
        lacking = lacking + 1 / held
    lacking = length**2 * lacking
    return jnp.where(is_parabola, lacking[:, None] * difference, 0.0)
