"""Samplers against diffusers' schedulers: one config, one toy network, the same noise.

Every case is a scheduler_config.json. diffusers makes its class of it and runs it as its
pipelines do; `weights.scheduler_config` reads it as a recipe for the samplers here. The
largest difference, over the largest value of the sample, is printed for each, and so is
what is left out, and why (pytest -s).
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scheduler_cases
import scheduler_exceptions
from jax.experimental import io_callback
from scheduler_cases import CASES, SHAPE, STEPS

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusion_jax.diffusion.denoiser import from_network
from diffusion_jax.diffusion.samplers import brownian
from diffusion_jax.types import Conditioning
from diffusion_jax.weights import scheduler_config

# Old code in diffusers, where it meets a new NumPy.
pytestmark = pytest.mark.filterwarnings("ignore")

NOISE = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
DRAWS = np.random.default_rng(1).normal(size=(256, *SHAPE)).astype(np.float32)
TOLERANCE = 1e-4

# ---- the network and its noise ------------------------------------------------------


def toy(case, learned, x, time, cond):
    time = time.reshape(-1, *[1] * (x.ndim - 1))
    output = jnp.tanh(1.3 * x + 0.4 * jnp.sin(case.time_scale * time))
    output = output * (time != case.silent_at)
    return jnp.concatenate([output, jnp.sin(x) ** 2], -1) if learned else output


def torch_toy(case, learned, x, time):
    time = torch.as_tensor(time).to(torch.float32)
    output = torch.tanh(1.3 * x + 0.4 * torch.sin(case.time_scale * time))
    output = output * (time != case.silent_at)
    return torch.cat([output, torch.sin(x) ** 2], 1) if learned else output


class Tape:
    """The draws of one sampling, in order."""

    def __init__(self):
        self.position = 0

    def next(self, stride=1):
        draw = DRAWS[self.position]
        self.position += stride
        return draw


TAPE = Tape()


def drawn(*_):
    """What samplers draw here, whatever their key."""
    like = jax.ShapeDtypeStruct(SHAPE, np.float32)
    return io_callback(TAPE.next, like, ordered=True)


@pytest.fixture(autouse=True, scope="module")
def _draws_from_the_tape():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "normal", drawn)
        patch.setattr(brownian, "increment", drawn)
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)


# ---- our side -----------------------------------------------------------------------

PROGRAMS = {}


def ours(recipes, steps, index, case):
    """The sample, and alpha where it ends. Recipes that differ in p share a program."""
    recipe, makers = recipes[index], [recipe.parameterization for recipe in recipes]
    static = (case.time_scale, case.silent_at, case.static, makers)
    key = repr((recipe._replace(grid=None, parameterization=None), static))
    if key not in PROGRAMS:
        PROGRAMS[key] = program(recipe, makers, case)
    TAPE.position = 0
    ts = recipe.grid(recipe.schedule, steps)
    return jax.device_get(PROGRAMS[key](index, ts, case.traced or {}))


def program(recipe, makers, case):
    learned = recipe.learned_variance
    network = functools.partial(toy, case, learned)

    def conditional(p):
        denoise = from_network(network, p, learned_variance=learned)
        return lambda x, level: denoise(x, level, Conditioning())

    branches = [conditional(p) for p in makers]

    @jax.jit
    def run(index, ts, traced):
        def denoise(x, level):
            return jax.lax.switch(index, branches, x, level)

        start, end = (recipe.schedule(ts[i]) for i in (0, -1))
        x = recipe.prior_std(start) * jnp.asarray(NOISE)
        key, wrapped = jax.random.key(0), recipe.wrap(denoise)
        options = traced | (case.static or {})
        x, _ = recipe.sampler(key, wrapped, recipe.schedule, x, ts, **options)
        return x, end.alpha

    return run


# ---- their side ---------------------------------------------------------------------


def class_of(kind):
    """Their class; two of them import torchsde for a noise that is replaced here."""
    name = scheduler_cases.NEED_TORCHSDE.get(kind)
    if name is None:
        return getattr(diffusers.schedulers, kind)
    stub = types.ModuleType("torchsde")
    sys.modules.setdefault("torchsde", stub)
    try:
        return getattr(importlib.import_module(f"diffusers.schedulers.{name}"), kind)
    finally:
        if sys.modules["torchsde"] is stub:
            del sys.modules["torchsde"]  # other tests ask whether it is there


MADE = {}


def made(kind, config):
    key = repr((kind, config))
    if key not in MADE:
        MADE[key] = class_of(kind)(**config)
    return MADE[key]


def theirs(kind, config, steps, case, learned, monkeypatch):
    scheduler = made(kind, config)
    if kind == "UnCLIPScheduler":
        in_double_precision(scheduler)
    TAPE.position = 0

    def draw(*_, **__):
        return torch.tensor(TAPE.next(case.draws))

    module = sys.modules[type(scheduler).__module__]
    monkeypatch.setattr(module, "randn_tensor", draw, raising=False)
    name = "BrownianTreeNoiseSampler"
    monkeypatch.setattr(module, name, lambda *_, **__: draw, raising=False)
    scheduler.set_timesteps(steps, **(case.timesteps or {}))
    x, x0 = torch.tensor(NOISE) * getattr(scheduler, "init_noise_sigma", 1.0), None
    scale = getattr(scheduler, "scale_model_input", lambda x, t: x)
    times = [None, *scheduler.timesteps, None]
    constant = {name: as_torch(value) for name, value in (case.step or {}).items()}
    for i, (before, t, after) in enumerate(zip(times, times[1:], times[2:])):
        output = torch_toy(case, learned, scale(x, t), t)
        if kind == "CogVideoXDPMScheduler":
            TAPE.position = i  # it draws twice and uses the second
            x, x0 = scheduler.step(output, x0, t, before, x, return_dict=False)
            continue
        if kind == "UnCLIPScheduler":
            constant = dict(prev_timestep=after)
        x = scheduler.step(output, t, x, **constant).prev_sample
    return x.numpy()


def in_double_precision(scheduler):
    """In float32, 1 - alphas_cumprod[0] = 4e-5 is off by 5e-4, and so is its sample."""
    scheduler.betas = scheduler.betas.double()
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = torch.cumprod(scheduler.alphas, 0)


def as_torch(value):
    return torch.tensor(value) if isinstance(value, np.ndarray) else value


# ---- tests --------------------------------------------------------------------------


def settings():
    for name, case in CASES.items():
        for setting, config in case.spacings.items():
            for steps in STEPS:
                yield name, setting, config, steps
        for setting, config in (case.more or {}).items():
            yield name, setting, config, 10


@pytest.mark.parametrize(("name", "setting", "config", "steps"), list(settings()))
def test_a_sampler_is_its_scheduler(name, setting, config, steps, monkeypatch):
    case, kind = CASES[name], name.split(":")[0]
    given = config.get("prediction_type")
    predictions = [given] if given else case.predictions
    configs = [
        config | ({} if prediction is None else {"prediction_type": prediction})
        for prediction in predictions
    ]
    recipes = [
        scheduler_config.read({"_class_name": kind, **each}, tokens=case.tokens)
        for each in configs
    ]
    differences = {}
    for index, prediction in enumerate(predictions):
        learned = recipes[index].learned_variance
        expected = theirs(kind, configs[index], steps, case, learned, monkeypatch)
        got, alpha = ours(recipes, steps, index, case)
        expected = expected * alpha if case.in_ratio else expected
        difference = np.abs(got - expected).max() / np.abs(expected).max()
        print(
            f"parity | {name} | {setting} | {prediction} | {steps} | {difference:.1e}"
        )
        differences[prediction] = difference
    assert all(value < TOLERANCE for value in differences.values()), differences


@pytest.mark.parametrize(
    ("kind", "config", "field", "why"), scheduler_exceptions.NOT_SUPPORTED
)
def test_settings_without_a_counterpart_raise(kind, config, field, why):
    print(f"left out | {kind} | {config} | {why}")
    with pytest.raises(ValueError, match=field):
        scheduler_config.read({"_class_name": kind, **config})


def test_every_class_is_compared_or_left_out_for_a_reason():
    names = {name for name in dir(diffusers.schedulers) if name.endswith("Scheduler")}
    compared = {name.split(":")[0] for name in CASES}
    left_out = scheduler_config.WITHOUT_COUNTERPART
    for name, why in left_out.items():
        print(f"left out | {name} | {why}")
    assert names == compared | set(left_out)
    assert not compared & set(left_out)
    assert compared == set(scheduler_config.CLASSES)


@pytest.mark.parametrize("kind", scheduler_config.CLASSES)
def test_defaults_are_those_of_the_class(kind):
    parameters = inspect.signature(class_of(kind).__init__).parameters
    theirs = {name: p.default for name, p in parameters.items()}
    del theirs["self"]
    theirs.pop("kwargs", None)
    ours = dict(scheduler_config.CLASSES[kind].fields)
    undeclared = set(ours) - set(theirs)
    assert undeclared <= set(scheduler_config.UNDECLARED)
    ours = {name: ours[name] for name in theirs}
    for name in ("disable_corrector",):
        if name in ours:
            ours[name] = list(ours[name])
    assert ours == theirs
