"""Grids against diffusers' schedulers: timesteps, and sigmas to 1e-4.

Each case is a scheduler class with its flags, and the grid and schedule that give what
it visits. Where theirs interpolates sigma itself between whole steps (Euler and its
kin with linspace), ours interpolates its logarithm, and 1e-4 still holds.
"""

from __future__ import annotations

import functools
import inspect

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusion_jax.diffusion import grids, schedules

# Old code in diffusers, where it meets a new NumPy; torchsde is optional there.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True, scope="module")
def _quick_compilation():
    """These programs run for milliseconds: compile them fast rather than well."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


STABLE_DIFFUSION = dict(
    beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
)
SD = schedules.Discrete()
STEPS = (5, 10, 25)
NUMBERS = [*range(1, 50), *range(50, 1000, 29), 96, 480, 1000]
EVEN = dict(
    leading=functools.partial(grids.leading, offset=1, end=0),
    trailing=grids.trailing,
    linspace=grids.linspace,
)
ROUNDED = EVEN | dict(linspace=functools.partial(grids.linspace, rounded=True))
OPEN = dict(
    leading=functools.partial(grids.leading_open, offset=1),
    trailing=grids.trailing,
    linspace=grids.linspace_open,
)
SHAPES = dict(
    use_karras_sigmas=grids.karras,
    use_exponential_sigmas=grids.exponential,
    use_beta_sigmas=functools.partial(grids.beta, over="noise"),
)
# how often each step but the first is listed
EULER_KIN = {
    "EulerDiscreteScheduler": 1,
    "EulerAncestralDiscreteScheduler": 1,
    "HeunDiscreteScheduler": 2,
    "LMSDiscreteScheduler": 1,
    "KDPM2DiscreteScheduler": 2,
    "KDPM2AncestralDiscreteScheduler": 2,
    "DPMSolverSDEScheduler": 2,
}
OPEN_KIN = [
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "SASolverScheduler",
]
STOP_EARLY = ["DEISMultistepScheduler", "SASolverScheduler"]


def made(name, **flags):
    return getattr(diffusers, name)(**STABLE_DIFFUSION | flags)


def flags_of(name):
    return inspect.signature(getattr(diffusers, name).__init__).parameters


@functools.partial(jax.jit, static_argnums=0)
def padded_level(schedule, times):
    return schedule(times)


def level_at(schedule, times):
    """In one shape, hence compiled once for a schedule."""
    padded = np.append(times, np.full(1001 - len(times), times[-1], np.float32))
    level = padded_level(schedule, padded)
    return jax.tree.map(lambda a: np.asarray(a)[: len(times)], level)


def compare(what, schedule, times, timesteps, sigmas=None, atol=2e-2):
    """`atol` in timesteps, which float32 finds to a hundredth from a sigma."""
    level = level_at(schedule, times)
    timesteps = np.asarray(timesteps, float)
    off = np.abs(np.asarray(level.time[:-1]) - timesteps).max()
    relative = 0.0
    if sigmas is not None:
        ours = level.sigma / level.alpha
        sigmas = np.asarray(sigmas, float)
        assert ours.shape == sigmas.shape
        relative = np.max(np.abs(ours - sigmas) / np.maximum(sigmas, 1e-10))
    print(f"parity | grid {what} | timesteps {off:.1e} | sigma {relative:.1e}")
    assert off <= atol, what
    assert relative < 1e-4, what
    return off, relative


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "DDIMParallelScheduler"]
)
def test_whole_steps(name):
    for spacing, grid in ROUNDED.items():
        flags = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
        scheduler = made(name, timestep_spacing=spacing, steps_offset=1, **flags)
        for steps in STEPS:
            scheduler.set_timesteps(steps)
            # PNDM visits one of them twice, which is its own affair.
            visited = np.unique(scheduler.timesteps.numpy())[::-1]
            times = grid(SD, steps)
            compare(f"{name} {spacing} {steps}", SD, times, visited, atol=0)


def test_every_number_of_steps():
    for spacing, grid in ROUNDED.items():
        scheduler = made("DDIMScheduler", timestep_spacing=spacing, steps_offset=0)
        grid = functools.partial(grid, offset=0) if spacing == "leading" else grid
        for steps in NUMBERS[spacing == "linspace" :]:
            scheduler.set_timesteps(steps)
            theirs = scheduler.timesteps.numpy()
            assert_array_equal(np.asarray(grid(SD, steps))[:-1] - 1, theirs[:steps])
    scheduler = made("UniPCMultistepScheduler")
    for steps in NUMBERS[:-1]:
        scheduler.set_timesteps(steps)
        theirs = scheduler.timesteps.numpy()
        assert_array_equal(np.asarray(grids.linspace_open(SD, steps))[:-1] - 1, theirs)


# ---- Euler and its kin: real times, other shapes between the first and the last ------


@pytest.mark.parametrize("name", EULER_KIN)
@pytest.mark.parametrize("shape", [None, *SHAPES])
def test_real_times(name, shape):
    if name == "DPMSolverSDEScheduler":
        pytest.importorskip("torchsde")
    if shape not in (None, *flags_of(name)):
        pytest.skip(f"{name} has no {shape}")
    often = EULER_KIN[name]
    is_rounded = shape == "use_karras_sigmas" and "KDPM2" in name
    schedule = schedules.WholeTimes(SD) if is_rounded else SD
    for spacing, grid in EVEN.items():
        flags = {} if shape is None else {shape: True}
        scheduler = made(name, timestep_spacing=spacing, steps_offset=1, **flags)
        shaped = functools.partial(SHAPES[shape], within=grid) if shape else grid
        for steps in STEPS:
            scheduler.set_timesteps(steps)
            # The second evaluation of a step is listed beside the first.
            heard = scheduler.timesteps.numpy()[::often]
            sigmas = [scheduler.sigmas[0], *scheduler.sigmas[1::often][: steps - 1], 0]
            what = f"{name} {spacing} {shape} {steps}"
            compare(what, schedule, shaped(SD, steps), heard, sigmas)


@pytest.mark.parametrize("name", OPEN_KIN)
def test_open_grids(name):
    endings = ["zero", "sigma_min"] if "final_sigmas_type" in flags_of(name) else [None]
    spacings = OPEN if "timestep_spacing" in flags_of(name) else ["linspace"]
    for ending in endings:
        for spacing in spacings:
            flags = {} if ending is None else {"final_sigmas_type": ending}
            if len(spacings) > 1:
                flags |= dict(timestep_spacing=spacing, steps_offset=1)
            scheduler = made(name, **flags)
            for steps in STEPS:
                scheduler.set_timesteps(steps)
                what = f"{name} {spacing} {ending} {steps}"
                times = OPEN[spacing](SD, steps, end=0 if ending == "zero" else 1)
                compare(what, SD, times, scheduler.timesteps, scheduler.sigmas, atol=0)


@pytest.mark.parametrize("name", OPEN_KIN)
@pytest.mark.parametrize("shape", [*SHAPES, "use_lu_lambdas"])
def test_shapes_over_the_whole_table(name, shape):
    if shape not in flags_of(name):
        pytest.skip(f"{name} has no {shape}")
    grid = SHAPES.get(shape, grids.uniform_logsnr)
    rounding = (
        "nearest" if shape in ("use_karras_sigmas", "use_lu_lambdas") else "below"
    )
    schedule = schedules.WholeTimes(SD, rounding)
    scheduler = made(name, **{shape: True})
    for steps in STEPS:
        scheduler.set_timesteps(steps)
        # DEIS and SA-Solver end where they are already, at the first whole step.
        times = grid(SD, steps, end=1 if name in STOP_EARLY else 0)
        what = f"{name} {shape} {steps}"
        compare(what, schedule, times, scheduler.timesteps, scheduler.sigmas, atol=0)


def test_steps_below_a_logsnr_are_left_out():
    cosine = schedules.Discrete("cosine")
    for name in ("DPMSolverMultistepScheduler", "SASolverScheduler"):
        for spacing in ("leading", "linspace"):
            scheduler = made(
                name,
                beta_schedule="squaredcos_cap_v2",
                lambda_min_clipped=-5.1,
                timestep_spacing=spacing,
                steps_offset=1,
            )
            for steps in STEPS:
                scheduler.set_timesteps(steps)
                times = OPEN[spacing](cosine, steps, logsnr_min=-10.2)
                what = f"{name} {spacing} clipped {steps}"
                compare(what, cosine, times, scheduler.timesteps, atol=0)


@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler"])
def test_distilled_steps(name):
    for original, strength in ((50, 1.0), (50, 0.6), (30, 1.0)):
        scheduler = made(name, original_inference_steps=original)
        options = dict(original_steps=original, strength=strength)
        for steps in (1, 4, 7):
            scheduler.set_timesteps(steps, strength=strength)
            times = grids.distilled(SD, steps, **options)
            what = f"{name} {original} {strength} {steps}"
            compare(what, SD, times, scheduler.timesteps, atol=0)


def test_unclip():
    scheduler = diffusers.UnCLIPScheduler()
    schedule = schedules.Discrete("cosine")
    for steps in (2, 7, *STEPS):
        scheduler.set_timesteps(steps)
        times = grids.linspace(schedule, steps, rounded=True)
        compare(
            f"UnCLIPScheduler {steps}", schedule, times, scheduler.timesteps, atol=0
        )


# ---- other schedules ----------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"]
)
def test_edm(name):
    schedule = schedules.VarianceExploding()
    for shape, grid in (("karras", grids.karras), ("exponential", grids.exponential)):
        scheduler = getattr(diffusers, name)(sigma_schedule=shape)
        for steps in STEPS:
            scheduler.set_timesteps(steps)
            times = grid(schedule, steps)
            what = f"{name} {shape} {steps}"
            compare(what, schedule, times, scheduler.timesteps, scheduler.sigmas, 1e-5)


def test_angles_between_noises():
    pytest.importorskip("torchsde")
    schedule = schedules.Cosine(s=0.0)
    scheduler = diffusers.CosineDPMSolverMultistepScheduler()
    for steps in STEPS:
        scheduler.set_timesteps(steps)
        times = grids.exponential(schedule, steps, sigma_min=0.3, sigma_max=500)
        what = f"CosineDPMSolverMultistepScheduler {steps}"
        compare(what, schedule, times, scheduler.timesteps, scheduler.sigmas, 1e-5)


def test_angles_of_a_squared_sine():
    schedule = schedules.Cosine(s=0.0)
    scheduler = diffusers.IPNDMScheduler()
    for steps in STEPS:
        scheduler.set_timesteps(steps)
        times = grids.crash(schedule, steps)
        what = f"IPNDMScheduler {steps}"
        compare(what, schedule, times, scheduler.timesteps, atol=1e-3)


def test_consistency_models():
    schedule = schedules.VarianceExploding(time_scale=1000.0)
    scheduler = diffusers.CMStochasticIterativeScheduler()
    for steps in STEPS:
        scheduler.set_timesteps(steps)
        times = grids.thinned(schedule, steps, end=schedule.t_min)
        what = f"CMStochasticIterativeScheduler {steps}"
        compare(what, schedule, times, scheduler.timesteps, scheduler.sigmas)


FLOW = schedules.RectifiedFlow(time_scale=1000.0)


def flow_sigmas(what, schedule, times, scheduler, atol=1e-3):
    """On a flow diffusers' sigmas are ours, not sigma / alpha."""
    compare(what, schedule, times, scheduler.timesteps, atol=atol)
    ours = level_at(schedule, times).sigma
    assert_allclose(ours, scheduler.sigmas, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("shape", [None, *SHAPES])
def test_flow_matching(shape):
    flags = {} if shape is None else {shape: True}
    for shift in (1.0, 3.0):
        grid = functools.partial(grids.sd3, shift=shift)
        if shape is not None:
            bare = SHAPES[shape]
            bare = bare.func if isinstance(bare, functools.partial) else bare
            grid = functools.partial(bare, over="time", within=grid)
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift, **flags)
        for steps in STEPS:
            scheduler.set_timesteps(steps)
            what = f"FlowMatchEulerDiscreteScheduler {shift} {shape} {steps}"
            flow_sigmas(what, FLOW, grid(FLOW, steps), scheduler)


def test_flow_matching_by_resolution():
    for kind in ("exponential", "linear"):
        for terminal in (None, 0.1):
            scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True, time_shift_type=kind, shift_terminal=terminal
            )
            options = dict(tokens=2048, kind=kind, terminal=terminal)
            mu = 0.5 + 0.65 * (2048 - 256) / (4096 - 256)
            for steps in STEPS:
                scheduler.set_timesteps(steps, mu=mu)
                times = grids.resolution_shifted(FLOW, steps, of="linspace", **options)
                what = f"FlowMatchEulerDiscreteScheduler {kind} {terminal} {steps}"
                flow_sigmas(what, FLOW, times, scheduler)
                # As the pipeline of FLUX calls it.
                evenly = np.linspace(1, 1 / steps, steps)
                scheduler.set_timesteps(sigmas=evenly, mu=mu)
                times = grids.resolution_shifted(FLOW, steps, **options)
                flow_sigmas(f"{what} sigmas", FLOW, times, scheduler)


def test_flow_sigmas_of_multistep_solvers():
    schedule = schedules.WholeTimes(FLOW, "down")
    impure = functools.partial(grids.trailing, first=0.999)
    for name in OPEN_KIN:
        flags = dict(use_flow_sigmas=True, flow_shift=3.0)
        scheduler = getattr(diffusers, name)(**flags)
        for steps in STEPS:
            scheduler.set_timesteps(steps)
            of = "linspace_open" if name == "UniPCMultistepScheduler" else impure
            times = grids.shifted(FLOW, steps, of=of)
            # These two repeat their last time in place of an end.
            times = times.at[-1].set(times[-2] if name in STOP_EARLY else 0)
            flow_sigmas(f"{name} flow {steps}", schedule, times, scheduler, atol=1)


def test_zero_terminal_snr_that_is_not_quite_zero():
    schedule = schedules.ZeroTerminalSNR(SD, terminal_alpha2=2.0**-24)
    for name in ("EulerDiscreteScheduler", "UniPCMultistepScheduler"):
        scheduler = made(name, rescale_betas_zero_snr=True, timestep_spacing="trailing")
        for steps in STEPS:
            scheduler.set_timesteps(steps)
            times = grids.trailing(schedule, steps)
            what = f"{name} zero SNR {steps}"
            compare(what, schedule, times, scheduler.timesteps, scheduler.sigmas)


def test_the_first_noise_of_euler():
    scheduler = made(
        "EulerDiscreteScheduler", timestep_spacing="leading", steps_offset=1
    )
    scheduler.set_timesteps(20)
    level = level_at(SD, grids.leading(SD, 20)[:1])
    # x has unit power where ours does: theirs is x / alpha.
    assert_allclose(1 / level.alpha, scheduler.init_noise_sigma, rtol=1e-5)


def test_published_tables():
    published = diffusers.schedulers.AysSchedules
    for model, name in (("sd15", ""), ("sdxl", "XL"), ("svd", "Video")):
        sigmas = np.asarray(published[f"StableDiffusion{name}Sigmas"])
        exploding = schedules.VarianceExploding(t_max=700.0)
        times = grids.align_your_steps(exploding, 10, model=model)
        assert_allclose(times, sigmas, rtol=1e-5)
        if model != "svd":
            whole = published[f"StableDiffusion{name}Timesteps"]
            times = grids.align_your_steps(SD, 10, model=model, whole=True)
            assert_array_equal(times[:-1] - 1, whole)
            # The two tables agree to the three digits that they have.
            times = grids.align_your_steps(SD, 10, model=model)
            assert_allclose(times[:-1] - 1, whole, atol=2)


def test_custom_sigmas_and_timesteps():
    scheduler = made("EulerDiscreteScheduler")
    scheduler.set_timesteps(sigmas=[14.6, 3.0, 0.5, 0.0])
    times = grids.from_sigmas(SD, 3, sigmas=(14.6, 3.0, 0.5))
    compare("custom sigmas", SD, times, scheduler.timesteps, scheduler.sigmas)
    scheduler.set_timesteps(timesteps=[900, 500, 20])
    times = grids.explicit(SD, 3, times=(901, 501, 21))
    compare("custom timesteps", SD, times, scheduler.timesteps, scheduler.sigmas)
