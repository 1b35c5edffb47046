"""Samplers against diffusers' schedulers, with one toy network and the same noise.

DDIMScheduler with linspace spacing is left out: it steps to t - T // n, which is not
the next time of its own list. HeunDiscreteScheduler has no x0 prediction.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusion_jax.diffusion import grids, parameterization, schedules
from diffusion_jax.diffusion.denoiser import from_network
from diffusion_jax.diffusion.samplers import SAMPLERS, integrate
from diffusion_jax.types import Conditioning

# Old code in diffusers, where it meets a new NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")

STABLE_DIFFUSION = dict(
    beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
)
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
STEPS = [5, 10, 25]
KEY = jax.random.key(0)
NOISE = np.asarray(jax.random.normal(jax.random.key(1), (2, 4, 4, 3)))
GRIDS = {
    "leading": functools.partial(grids.leading, end=0),
    "trailing": grids.trailing,
    "linspace": grids.linspace,
}


def toy(x, time, cond):
    time = time.reshape(-1, *[1] * (x.ndim - 1))
    return jnp.tanh(1.3 * x + 0.4 * jnp.sin(time / 100))


def torch_toy(x, time):
    return torch.tanh(1.3 * x + 0.4 * torch.sin(time.to(torch.float32) / 100))


def denoise_as(p):
    conditional = from_network(toy, p)
    return lambda x, level: conditional(x, level, Conditioning())


@functools.partial(jax.jit, static_argnames=("name", "schedule"))
def sample(name, schedule, prediction, ts, options):
    """`prediction` is an index, so that one compiled program serves them all."""
    makers = [parameterization.PARAMETERIZATIONS[p] for p in PREDICTIONS.values()]
    denoisers = [denoise_as(make()) for make in makers]

    def denoise(x, level):
        return jax.lax.switch(prediction, denoisers, x, level)

    x = jnp.asarray(NOISE)
    return SAMPLERS[name](KEY, denoise, schedule, x, ts, **options)[0]


def ours(name, prediction, schedule, ts, **options):
    return sample(name, schedule, list(PREDICTIONS).index(prediction), ts, options)


def theirs(scheduler, steps, start=1.0, noises=None):
    """Run a diffusers scheduler as its pipelines do; `start` scales the first x."""
    scheduler.set_timesteps(steps)
    x = torch.tensor(NOISE) * start
    for i, t in enumerate(scheduler.timesteps):
        options = {} if noises is None else {"variance_noise": noises[i]}
        output = torch_toy(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x, **options).prev_sample
    return x.numpy()


def noises_of(steps):
    """The noise that our samplers draw, step by step."""
    keys = integrate.split(KEY, steps)
    return [
        torch.tensor(np.asarray(integrate.normal_like(key, jnp.asarray(NOISE))))
        for key in keys
    ]


def compare(what, got, expected):
    difference = np.abs(got - expected).max() / np.abs(expected).max()
    print(f"parity | {what} | {difference:.1e}")
    assert difference < 1e-4


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", STEPS)
def test_ddim(prediction, spacing, eta, steps):
    is_leading = spacing == "leading"
    scheduler = diffusers.DDIMScheduler(
        **STABLE_DIFFUSION,
        prediction_type=prediction,
        timestep_spacing=spacing,
        clip_sample=False,
        set_alpha_to_one=not is_leading,
        steps_offset=1,
    )
    scheduler.step = functools.partial(scheduler.step, eta=eta)
    expected = theirs(scheduler, steps, noises=noises_of(steps))
    schedule = schedules.Discrete()
    ts = (grids.leading if is_leading else grids.trailing)(schedule, steps)
    got = ours("ddim", prediction, schedule, ts, eta=eta)
    compare(f"DDIM eta={eta} {spacing} {prediction} {steps}", got, expected)


@pytest.mark.parametrize("steps", [5, 25])
def test_ddim_from_zero_terminal_snr(steps):
    scheduler = diffusers.DDIMScheduler(
        **STABLE_DIFFUSION,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        rescale_betas_zero_snr=True,
    )
    schedule = schedules.ZeroTerminalSNR()
    got = ours("ddim", "v_prediction", schedule, grids.trailing(schedule, steps))
    compare(f"DDIM zero-SNR trailing v {steps}", got, theirs(scheduler, steps))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", GRIDS)
@pytest.mark.parametrize("steps", STEPS)
def test_ddpm(prediction, spacing, steps, monkeypatch):
    scheduler = diffusers.DDPMScheduler(
        **STABLE_DIFFUSION,
        prediction_type=prediction,
        timestep_spacing=spacing,
        clip_sample=False,
        steps_offset=1,
    )
    noises = iter(noises_of(steps))
    module = diffusers.schedulers.scheduling_ddpm
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(noises))
    schedule = schedules.Discrete()
    rounded = {"rounded": True} if spacing == "linspace" else {}
    ts = GRIDS[spacing](schedule, steps, **rounded)
    got = ours("ddpm", prediction, schedule, ts)
    compare(f"DDPM {spacing} {prediction} {steps}", got, theirs(scheduler, steps))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", GRIDS)
@pytest.mark.parametrize("name", ["euler", "heun"])
@pytest.mark.parametrize("steps", STEPS)
def test_euler_and_heun(name, prediction, spacing, steps):
    make = {
        "euler": diffusers.EulerDiscreteScheduler,
        "heun": diffusers.HeunDiscreteScheduler,
    }[name]
    scheduler = make(
        **STABLE_DIFFUSION,
        prediction_type=prediction,
        timestep_spacing=spacing,
        steps_offset=1,
    )
    schedule = schedules.Discrete()
    ts = GRIDS[spacing](schedule, steps)
    # Theirs works on x / alpha.
    expected = theirs(scheduler, steps, start=1 / float(schedule(ts[0]).alpha))
    got = ours(name, prediction, schedule, ts)
    compare(f"{name} {spacing} {prediction} {steps}", got, expected)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", GRIDS)
@pytest.mark.parametrize("steps", STEPS)
def test_dpmpp_2m(prediction, spacing, steps):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **STABLE_DIFFUSION,
        prediction_type=prediction,
        timestep_spacing=spacing,
        steps_offset=1,
    )
    expected = theirs(scheduler, steps)
    # Its leading and linspace differ from those of the other classes.
    ts = jnp.asarray([*(scheduler.timesteps.numpy() + 1), 0], jnp.float32)
    got = ours("dpmpp_2m", prediction, schedules.Discrete(), ts)
    compare(f"DPM++ 2M {spacing} {prediction} {steps}", got, expected)


@pytest.mark.parametrize("steps", [5, 10])
def test_dpmpp_2m_that_ends_at_the_first_step(steps):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **STABLE_DIFFUSION, timestep_spacing="trailing", final_sigmas_type="sigma_min"
    )
    schedule = schedules.Discrete()
    got = ours("dpmpp_2m", "epsilon", schedule, grids.trailing(schedule, steps, end=1))
    compare(f"DPM++ 2M sigma_min trailing {steps}", got, theirs(scheduler, steps))


@pytest.mark.parametrize(
    ("betas", "theirs_is"),
    [
        ("linear", "linear"),
        ("scaled_linear", "scaled_linear"),
        ("cosine", "squaredcos_cap_v2"),
    ],
)
def test_schedules(betas, theirs_is):
    ends = dict(beta_start=0.0001, beta_end=0.02)
    scheduler = diffusers.DDPMScheduler(beta_schedule=theirs_is, **ends)
    level = schedules.Discrete(betas, **ends)(jnp.arange(1, 1001.0))
    expected = np.sqrt(scheduler.alphas_cumprod.numpy())
    np.testing.assert_allclose(level.alpha, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("steps", [*STEPS, 7, 30])
def test_times_of_the_grids(steps):
    schedule = schedules.Discrete()
    for spacing, grid in GRIDS.items():
        scheduler = diffusers.DDIMScheduler(
            **STABLE_DIFFUSION, timestep_spacing=spacing, steps_offset=1
        )
        scheduler.set_timesteps(steps)
        rounded = {"rounded": True} if spacing == "linspace" else {}
        times = np.asarray(grid(schedule, steps, **rounded))
        np.testing.assert_array_equal(times[:-1] - 1, scheduler.timesteps.numpy())


@pytest.mark.parametrize("steps", [5, 20])
def test_karras_grid(steps):
    scheduler = diffusers.EulerDiscreteScheduler(
        **STABLE_DIFFUSION, use_karras_sigmas=True, timestep_spacing="linspace"
    )
    scheduler.set_timesteps(steps)
    schedule = schedules.Discrete()
    level = schedule(grids.karras(schedule, steps))
    ratios = np.asarray(level.sigma / level.alpha)
    np.testing.assert_allclose(ratios, scheduler.sigmas.numpy(), rtol=1e-4)
    times = scheduler.timesteps.numpy()
    np.testing.assert_allclose(level.time[:-1], times, atol=2e-2)
