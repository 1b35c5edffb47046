"""Every sampler on every schedule with every parameterization, on a known mixture."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re

import conftest
import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from numpy.testing import assert_allclose

from diffusion_jax.diffusion import mixture, parameterization, process, schedules
from diffusion_jax.diffusion.parameterization import PARAMETERIZATIONS
from diffusion_jax.diffusion.samplers import SAMPLERS, analytic_dpm

SCHEDULES = list(conftest.SCHEDULES.values())
PARAMETERIZED = [make() for make in PARAMETERIZATIONS.values()]
STEPS, NUM = 60, 2000
KEY = jax.random.key(0)
MIXTURE = mixture.Mixture(
    jnp.asarray([0.3, 0.7]), jnp.asarray([[-0.9], [0.6]]), jnp.asarray([[0.2], [0.4]])
)


@dataclasses.dataclass
class Chosen(schedules.Schedule):
    """One of all schedules, by a traced index: one compiled sampler serves them all."""

    which: jax.Array
    num_steps = t_min = t_max = None

    def __call__(self, t):
        return jax.lax.switch(self.which, SCHEDULES, t)

    def inverse(self, logsnr):
        return jax.lax.switch(self.which, [s.inverse for s in SCHEDULES], logsnr)

    def at_logsnr(self, logsnr):
        return jax.lax.switch(self.which, [s.at_logsnr for s in SCHEDULES], logsnr)


def network(p, predict):
    """A denoiser that reads what a perfect network of this parameterization says."""

    def denoise(x, level):
        pred = predict(x, level)
        output = parameterization.target(p, pred.x0, pred.eps, level)
        return parameterization.read(p, output, x, level)

    return denoise


def half_precision(predict):
    """A network of v that computes in bfloat16."""
    half = parameterization.v()

    def denoise(x, level):
        pred = predict(x.astype(jnp.bfloat16).astype(x.dtype), level)
        output = parameterization.target(half, pred.x0, pred.eps, level)
        output = output.astype(jnp.bfloat16).astype(x.dtype)
        return parameterization.read(half, output, x, level)

    return denoise


def mean(x, level):
    """What an ordinary network learns: the mean of x0 given x."""
    return mixture.denoise(MIXTURE, x, level)


def end_of_the_path(x, level):
    """What a consistency model learns: where the probability flow takes x."""
    clean = process.NoiseLevel(*map(jnp.asarray, (1.0, 0.0, 0.0)))
    return process.from_x0(x, mixture.flow(MIXTURE, x, level, clean), level)


DISTILLED = {"consistency", "lcm", "tcd"}
BROWNIAN = {n for n in SAMPLERS if n.endswith("_sde") or n == "sa_solver"}  # slow draws
REQUIRED = {"analytic_dpm": ["eps_power"], "repaint": ["known", "mask"]}
OPTIONS = {
    "lcm": {"sigma_data": 1e-3},  # a perfect model needs little of its boundary
    "tcd": {"gamma": 1.0},  # jumps to clean data, as a consistency model can
    "repaint": {
        "known": jnp.zeros((1, 1)),
        "mask": jnp.zeros((1, 1)),
        "jump_n_sample": 1,
    },
}


@functools.partial(jax.jit, static_argnames="name")
def run(name, key, x, ts, which, predicts, options):
    predict = end_of_the_path if name in DISTILLED else mean
    branches = [*(network(p, predict) for p in PARAMETERIZED), half_precision(predict)]

    def denoise(x, level):
        return jax.lax.switch(predicts, branches, x, level)

    options = OPTIONS.get(name, {}) | options
    return SAMPLERS[name](key, denoise, Chosen(which), x, ts, **options)


@jax.jit
def eps_power(x0, ts, which):
    return analytic_dpm.estimate_eps_power(KEY, mean, Chosen(which), x0, ts)


def defined_together():
    """Indices of the pairs for which x0 can be read at both ends."""
    for which, schedule in enumerate(SCHEDULES):
        for predicts, p in enumerate(PARAMETERIZED):
            try:
                parameterization.check(p, schedule)
            except ValueError:
                continue
            yield which, predicts


def even_angles(schedule, steps):
    """arctan(sigma / alpha) evenly between the schedule's ends, then clean data.

    sigma / alpha goes from 80 at most, or from pure noise, to 0.02 at least, so that no
    step is much longer than the others whatever the method measures it by.
    """
    ends = schedule(jnp.asarray([float(schedule.t_max), float(schedule.t_min)]))
    first, last = np.arctan2(*(np.asarray(a, float) for a in (ends.sigma, ends.alpha)))
    is_noise = bool(ends.alpha[0] == 0)
    first = first if is_noise else min(first, np.arctan(80))
    ratios = np.tan(np.linspace(first, max(last, np.arctan(0.02)), steps))
    times = schedule.inverse(jnp.asarray(-2 * np.log(ratios)))
    times = times.at[0].set(schedule.t_max) if is_noise else times
    return jnp.append(times, 0.0)


@functools.cache
def beginnings(steps):
    """Of each schedule the times, and draws of the true marginal at the first of them.

    So that what is measured is the sampler.
    """
    x0 = mixture.sample(KEY, MIXTURE, NUM)
    noise = jax.random.normal(jax.random.key(1), x0.shape)
    grids = [even_angles(schedule, steps) for schedule in SCHEDULES]
    return [
        (ts, process.add_noise(x0, noise, schedule(ts[0])), x0)
        for schedule, ts in zip(SCHEDULES, grids, strict=True)
    ]


def cdf(value):
    parts = zip(*(np.asarray(a).ravel() for a in MIXTURE))
    return sum(w * scipy.stats.norm.cdf(value, mean, std) for w, mean, std in parts)


def sample(name, which, predicts):
    """The sample, and what each step predicted."""
    steps = 3 if name in DISTILLED else STEPS  # they are exact in one
    ts, x, x0 = beginnings(steps)[which]
    x = x[: NUM // 4] if name in DISTILLED | BROWNIAN else x
    options = {}
    if name == "analytic_dpm":
        options = {"eps_power": eps_power(x0, ts, which)}
    return run(name, jax.random.key(2), x, ts, which, predicts, options)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_lands_on_the_mixture(name):
    true_mean, true_std = (float(a[0]) for a in mixture.moments(MIXTURE))
    for which, predicts in defined_together():
        schedule = SCHEDULES[which]
        if name == "lcm" and isinstance(schedule, schedules.VarianceExploding):
            continue  # its boundary condition is in times that are not negative
        x, trace = sample(name, which, predicts)
        what = f"{name} | {schedule} | {list(PARAMETERIZATIONS)[predicts]}"
        assert np.all(np.isfinite(x)) and np.all(np.isfinite(trace)), what
        got = np.asarray(x)[:, 0]
        far = scipy.stats.kstest(got, cdf).statistic
        print(f"{what} | {got.mean():.3f} | {got.std():.3f} | {far:.3f}")
        chance = 1 / np.sqrt(len(got))
        spread = (0.01 + 2.5 * true_std * chance, 0.03 + 1.5 * chance, 0.03 + chance)
        assert_allclose(got.mean(), true_mean, atol=spread[0], err_msg=what)
        assert_allclose(got.std(), true_std, rtol=spread[1], err_msg=what)
        assert far < spread[2], what
    check_half_precision(name)


def check_half_precision(name):
    """The solver stays in float32 whatever the network computes in."""
    for which, schedule in enumerate(SCHEDULES):
        if name == "lcm" and isinstance(schedule, schedules.VarianceExploding):
            continue
        full, _ = sample(name, which, PARAMETERIZED.index(parameterization.v()))
        half, _ = sample(name, which, len(PARAMETERIZED))
        assert half.dtype == jnp.float32
        # Some points are carried to the other side of the gap between the two parts.
        difference = np.sort(np.abs(half - full).ravel())
        most = difference[int(0.9 * len(difference))]
        print(f"{name} | {schedule} | bfloat16 | {most:.1e} | {difference[-1]:.1e}")
        assert 0 < most < 0.02, schedule
        assert difference[-1] < 0.1, schedule


def number_options(name):
    """Those that are annotated as numbers or traced scalars, with their defaults."""
    parameters = inspect.signature(SAMPLERS[name]).parameters.values()
    is_scalar = re.compile(r"""Float\[.*, (""|'')\]""").search
    return {
        p.name: jnp.asarray(p.default, float)
        for p in parameters
        if isinstance(p.default, int | float) and is_scalar(str(p.annotation))
    }


@pytest.mark.parametrize("name", [name for name in SAMPLERS if number_options(name)])
def test_options_that_are_numbers_may_be_traced(name):
    """So that a change of them does not compile a sampler anew."""
    required = OPTIONS.get(name, {}) | {"eps_power": jnp.ones(STEPS)}
    required = {option: required[option] for option in REQUIRED.get(name, ())}
    ts = beginnings(STEPS)[0][0]

    def run(x, options):
        denoise, schedule = exact.gaussian, SCHEDULES[0]
        return SAMPLERS[name](KEY, denoise, schedule, x, ts, **required, **options)[0]

    shape = jax.eval_shape(run, jnp.zeros((2, 1)), number_options(name)).shape
    assert shape == (2, 1)


def test_the_published_knobs_are_among_the_traced_options():
    expected = {"ddim": "eta", "edm": "s_churn", "tcd": "gamma", "adaptive": "rtol"}
    for name, option in expected.items():
        assert option in number_options(name)
