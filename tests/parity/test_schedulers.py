"""Samplers against diffusers' schedulers: one config, one toy network, the same noise.

Every case is a scheduler_config.json. diffusers makes its class of it and runs it as its
pipelines do; `weights.scheduler_config` reads it as a recipe for the samplers here. The
largest difference, over the largest value of the sample, is printed for each (pytest
-s), and so is why a class or a setting is left out.
"""

from __future__ import annotations

import functools
import importlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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

# ---- both sides ---------------------------------------------------------------------


def toy(case, learned, x, time, cond):
    time = time.reshape(-1, *[1] * (x.ndim - 1))
    output = jnp.tanh(1.3 * x + 0.4 * jnp.sin(case.time_scale * time))
    output = output * (time != case.silent_at)
    variance = jnp.sin(x) ** 2
    return jnp.concatenate([output, variance], -1) if learned else output


def torch_toy(case, learned, x, time):
    time = torch.as_tensor(time).to(torch.float32)
    output = torch.tanh(1.3 * x + 0.4 * torch.sin(case.time_scale * time))
    output = output * (time != case.silent_at)
    return torch.cat([output, torch.sin(x) ** 2], 1) if learned else output


class Tape:
    """The draws of both sides, in order."""

    def __init__(self):
        self.position = 0

    def next(self, stride=1):
        draw = DRAWS[self.position]
        self.position += stride
        return draw


TAPE = Tape()


def drawn(*_):
    """What the samplers draw here: the next of DRAWS, whatever the key."""
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


PROGRAMS = {}


def program(recipe, makers, case):
    """Our sampler, jitted; `index` chooses among the parameterizations."""
    network = functools.partial(toy, case, recipe.learned_variance)
    learned = recipe.learned_variance

    def conditional(p):
        denoise = from_network(network, p, learned_variance=learned)
        return lambda x, level: denoise(x, level, Conditioning())

    branches = [conditional(p) for p in makers]

    def run(index, ts, arguments):
        def denoise(x, level):
            return jax.lax.switch(index, branches, x, level)

        start, end = (recipe.schedule(ts[i]) for i in (0, -1))
        x = recipe.prior_std(start) * jnp.asarray(NOISE)
        key, wrapped = jax.random.key(0), recipe.wrap(denoise)
        options = arguments | (case.static or {})
        x, _ = recipe.sampler(key, wrapped, recipe.schedule, x, ts, **options)
        return x, end.alpha

    return jax.jit(run)


def ours(recipes, steps, index, case):
    recipe = recipes[index]
    makers = [r.parameterization for r in recipes]
    toy_and_options = (case.time_scale, case.silent_at, case.static)
    key = repr(
        (recipe._replace(grid=None, parameterization=None), makers, toy_and_options)
    )
    if key not in PROGRAMS:
        PROGRAMS[key] = program(recipe, makers, case)
    TAPE.position = 0
    ts = recipe.grid(recipe.schedule, steps)
    return jax.device_get(PROGRAMS[key](index, ts, case.traced or {}))


def as_torch(value):
    return torch.tensor(value) if isinstance(value, np.ndarray) else value


def class_of(kind, case):
    if not case.torchsde:
        return getattr(diffusers, kind)
    sys.modules.setdefault("torchsde", types.ModuleType("torchsde"))
    name = {"D": "dpmsolver_sde", "C": "cosine_dpmsolver_multistep"}[kind[0]]
    return getattr(
        importlib.import_module(f"diffusers.schedulers.scheduling_{name}"), kind
    )


def theirs(kind, config, steps, case, learned, monkeypatch):
    scheduler = class_of(kind, case)(**config)
    module = sys.modules[type(scheduler).__module__]
    TAPE.position = 0

    def draw(*_, **__):
        return torch.tensor(TAPE.next(case.draws))

    for name in ("randn_tensor", "BrownianTreeNoiseSampler"):
        if hasattr(module, name):
            fake = draw if name == "randn_tensor" else lambda *_, **__: draw
            monkeypatch.setattr(module, name, fake)
    scheduler.set_timesteps(steps, **(case.timesteps or {}))
    x = torch.tensor(NOISE) * getattr(scheduler, "init_noise_sigma", 1.0)
    scale = getattr(scheduler, "scale_model_input", lambda x, t: x)
    constant = {name: as_torch(value) for name, value in (case.step or {}).items()}
    following = [*scheduler.timesteps[1:], None]
    for t, after in zip(scheduler.timesteps, following):
        options = (
            dict(prev_timestep=after) if kind == "UnCLIPScheduler" else constant
        )
        output = torch_toy(case, learned, scale(x, t), t)
        x = scheduler.step(output, t, x, **options).prev_sample
    return x.numpy()


def settings():
    for kind, case in CASES.items():
        for name, config in case.spacings.items():
            for steps in STEPS:
                yield pytest.param(kind, config, steps, id=f"{kind}-{name}-{steps}")
        for name, config in (case.more or {}).items():
            yield pytest.param(kind, config, 10, id=f"{kind}-{name}-10")


@pytest.mark.parametrize(("kind", "config", "steps"), list(settings()))
def test_a_sampler_is_its_scheduler(kind, config, steps, monkeypatch, request):
    case = CASES[kind]
    kind = kind.split(":")[0]
    given = config.get("prediction_type")
    names = [given] if given else case.predictions
    configs = [config | ({"prediction_type": n} if n else {}) for n in names]
    recipes = [
        scheduler_config.read({"_class_name": kind, **c}, tokens=case.tokens)
        for c in configs
    ]
    name = request.node.callspec.id.split("-")[1]
    for index, (prediction, config) in enumerate(zip(names, configs)):
        learned = recipes[index].learned_variance
        expected = theirs(kind, config, steps, case, learned, monkeypatch)
        got, alpha = ours(recipes, steps, index, case)
        if case.in_ratio:
            expected = expected * alpha
        difference = np.abs(got - expected).max() / np.abs(expected).max()
        print(f"parity | {kind} | {name} | {prediction} | {steps} | {difference:.1e}")
        assert difference < TOLERANCE, prediction
