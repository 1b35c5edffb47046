"""How samplers of the reverse SDE converge: along a path, in law, and without noise."""

from __future__ import annotations

import functools

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.diffusion import schedules
from diffusion_jax.diffusion.samplers import SAMPLERS

KEY = jax.random.key(0)
SCHEDULE = schedules.Discrete()
ALWAYS = {"tau_interval": (0.0, np.inf)}


@pytest.fixture(autouse=True, scope="module")
def _quick_compilation():
    """Here the draws take longer than the compilation."""


@functools.partial(jax.jit, static_argnames=("name", "denoise", "settings"))
def run(name, denoise, settings, key, x, ts, options):
    sampler = functools.partial(SAMPLERS[name], **dict(settings), **options)
    return sampler(key, denoise, SCHEDULE, x, ts)[0]


# ---- along a path -------------------------------------------------------------------

FINE = SCHEDULE.inverse(-2 * jnp.log(jnp.geomspace(5.0, 0.1, 257)))


def path_ends(name, eta, steps):
    """Steps of no length, at the end, make one program do."""
    options = {"tau": eta**0.5, **ALWAYS} if name == "sa_solver" else {"eta": eta}
    if name == "dpmpp_sde":
        options = {"eta": eta**0.5}  # it scales the noise, not its variance
    ts = jnp.pad(FINE[:: len(FINE) // steps], (0, 256 - steps), mode="edge")
    x = jax.random.normal(jax.random.key(1), (40, len(exact.STDS)))
    return run(name, exact.anisotropic, (), KEY, x, ts, options)


def rms(x):
    return np.sqrt(np.mean(np.asarray(x) ** 2))


@pytest.mark.parametrize("eta", [1.0, 0.5])
@pytest.mark.parametrize(
    "name",
    ["dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpm_multistep_sde", "sa_solver"],
)
def test_samplers_of_one_key_approach_one_solution_of_the_sde(name, eta):
    solution = path_ends("dpmpp_2m_sde", eta, 256)
    coarse, fine = (rms(path_ends(name, eta, n) - solution) for n in (8, 64))
    print(f"{name}, eta {eta}: {coarse:.1e} and {fine:.1e} from the solution")
    assert fine < 0.03
    assert coarse / fine > 5  # strong order near 1: noise within a step is not seen


def test_another_key_is_another_solution():
    x = jnp.zeros((40, len(exact.STDS)))
    keys = jax.random.split(KEY)
    one, other = (
        run("dpmpp_2m_sde", exact.anisotropic, (), key, x, FINE, {"eta": 1.0})
        for key in keys
    )
    assert rms(one - other) > 0.5


# ---- in law -------------------------------------------------------------------------

LANDING = {
    "edm": {"s_churn": 30.0, "s_min": 0.05, "s_max": 50.0},
    "euler_ancestral": {"eta": 0.5},
    "dpm2_ancestral": {"eta": 0.5},
    "dpmpp_2s_ancestral": {"eta": 0.5},
    "dpmpp_sde": {"eta": 0.5, "r": 0.3},
    "dpmpp_2m_sde": {"eta": 0.5},
    "dpmpp_3m_sde": {"eta": 2.0},
    "dpm_multistep_sde": {"eta": 0.5},
    "sa_solver": {"tau": 0.7, **ALWAYS},
}


@pytest.mark.parametrize("name", LANDING)
def test_any_share_of_noise_lands_on_the_gaussian(name):
    ts = SCHEDULE.inverse(-2 * jnp.log(jnp.geomspace(14.0, 0.05, 61)))
    start, end = SCHEDULE(ts[0]), SCHEDULE(ts[-1])
    std = jnp.hypot(exact.STD * start.alpha, start.sigma)
    x = exact.MEAN * start.alpha + std * jax.random.normal(KEY, (8000,))
    key = jax.random.key(1)
    sample = run(name, exact.gaussian, (), key, x, ts, LANDING[name])
    std = jnp.hypot(exact.STD * end.alpha, end.sigma)
    print(f"{name}: {sample.mean() / end.alpha:.3f} {sample.std() / std:.3f}")
    assert_allclose(sample.mean(), exact.MEAN * end.alpha, atol=0.02)
    assert_allclose(sample.std(), std, rtol=0.04)


# ---- without noise ------------------------------------------------------------------


def settings(predictor, corrector):
    orders = {"predictor_order": predictor, "corrector_order": corrector}
    return tuple({**orders, "lower_order_final": False, "tau": 0.0}.items())


def flow_error(name, options, steps):
    """From sigma / alpha = 5 to 0.1, in small steps at first as they are of order 1."""
    shares = np.minimum(np.arange(97) / steps, 1) ** 2
    lambdas = shares * np.log(10) - (1 - shares) * np.log(5)
    ts = SCHEDULE.inverse(jnp.asarray(2 * lambdas))
    here, there = SCHEDULE(ts[0]), SCHEDULE(ts[-1])
    x = here.alpha * 0.2 + here.sigma * jnp.linspace(-2, 2, len(exact.STDS))
    got = run(name, exact.anisotropic, options, KEY, x, ts, {})
    return rms(got - exact.anisotropic_flow(x, here, there))


@pytest.mark.parametrize(
    ("name", "options", "order"),
    [
        ("dpm2", (), 2),
        ("dpmpp_3m_sde", (("eta", 0.0), ("curvature", "full")), 3),
        ("dpmpp_3m_sde", (("eta", 0.0), ("curvature", "diffusers")), 1),
        ("sa_solver", settings(2, 0), 2),
        ("sa_solver", settings(3, 0), 3),
        ("sa_solver", settings(1, 2), 2),
        ("sa_solver", settings(2, 3), 3),
        ("sa_solver", (*settings(2, 3), ("form", "eps")), 3),
    ],
)
def test_without_noise_the_error_falls_with_the_published_order(name, options, order):
    with jax.enable_x64(True):
        coarse, fine = (flow_error(name, options, steps) for steps in (24, 96))
    measured = np.log(coarse / fine) / np.log(4)
    print(f"order of {name} {options}: {measured:.2f}, error {fine:.1e}")
    assert abs(measured - order) < 0.25
