"""What starts from an image, and steps taken one by one, with networks of milliseconds."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import (
    denoiser,
    grids,
    parameterization,
    process,
    schedules,
)
from diffusion_jax.diffusion.interpolation import lerp, slerp
from diffusion_jax.diffusion.samplers import SAMPLERS, integrate
from diffusion_jax.pipelines import edits, stepwise
from diffusion_jax.pipelines.stage import Stage, sample, times
from diffusion_jax.types import Conditioning

SHAPE = (4, 4, 2)
KEYS = jax.random.split(jax.random.key(0), 3)


class Network(nn.Module):
    """Predicts eps of data around 0.5; it needs no parameters."""

    def __call__(self, x, time, cond):
        level = SCHEDULE(time + 1)
        alpha, sigma = (a[:, None, None, None] for a in level[:2])
        return (x - alpha * 0.5) * sigma / (sigma**2 + 0.01 * alpha**2)


SCHEDULE = schedules.Discrete()


def stage(sampler="ddim", steps=10, grid="leading", **fields):
    eps = parameterization.eps()
    return Stage(
        Network(), SCHEDULE, eps, SAMPLERS[sampler], grids.GRIDS[grid], steps, **fields
    )


def draw(made, **options):
    return jax.jit(lambda: sample(made, {}, KEYS, SHAPE, Conditioning(), **options))()


# ---- one step at a time --------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["ddim", "ddpm", "dpmpp_2m", "unipc", "heun", "plms", "dpmpp_2m_sde"]
)
def test_steps_one_by_one_are_the_whole_sampler(name):
    def run(keys):
        return sample(stage(name), {}, keys, SHAPE, Conditioning())

    num_steps = stepwise.num_steps(run, KEYS)
    carry = jax.jit(lambda keys: stepwise.first_carry(run, keys))(KEYS)
    step = jax.jit(lambda carry, i, keys: stepwise.one_step(run, carry, i, keys))
    outputs = []
    for i in range(num_steps):
        carry, output = step(carry, i, KEYS)
        outputs.append(output)
    x = jax.jit(lambda *args: stepwise.last_sample(run, *args))(carry, KEYS)
    expected, trace = jax.jit(run)(KEYS)
    np.testing.assert_allclose(x, expected, atol=1e-6)
    np.testing.assert_allclose(np.stack(outputs), trace, atol=1e-6)


def test_a_sampler_whose_steps_are_samplers_has_its_own_steps():
    def twice(key, denoise, schedule, x, ts):
        def step(x, key, here, there):
            pair = jnp.stack([here.time + 1, there.time + 1])
            x, trace = SAMPLERS["ddim"](key, denoise, schedule, x, pair)
            return x, trace[0]

        return integrate.integrate(step, x, key, schedule(ts))

    def run(keys):
        made = dataclasses.replace(stage(), sampler=twice)
        return sample(made, {}, keys, SHAPE, Conditioning())

    assert stepwise.num_steps(run, KEYS) == 10
    carry = jax.jit(lambda keys: stepwise.first_carry(run, keys))(KEYS)
    step = jax.jit(lambda *args: stepwise.one_step(run, *args)[0])
    for i in range(10):
        carry = step(carry, i, KEYS)
    x = jax.jit(lambda *args: stepwise.last_sample(run, *args))(carry, KEYS)
    np.testing.assert_allclose(x, jax.jit(run)(KEYS)[0], atol=1e-5)


def test_a_sampler_without_a_loop_has_no_steps_to_take():
    def run(keys):
        return jnp.zeros(3), None

    assert stepwise.num_steps(run, KEYS) is None
    with pytest.raises(ValueError, match="0 loops"):
        stepwise.first_carry(run, KEYS)


# ---- starts --------------------------------------------------------------------------


def test_full_strength_is_the_whole_grid():
    assert times(edits.partial_stage(stage(), 1.0)).tolist() == times(stage()).tolist()


@pytest.mark.parametrize("strength, taken", [(0.8, 8), (0.75, 7), (0.1, 1)])
def test_strength_takes_the_last_steps(strength, taken):
    part = times(edits.partial_stage(stage(), strength))
    assert part.tolist() == times(stage())[-taken - 1 :].tolist()


@pytest.mark.parametrize("strength", [0.0, 0.05, -1.0, 1.1])
def test_a_strength_without_steps_is_an_error(strength):
    with pytest.raises(ValueError, match="strength"):
        edits.partial_stage(stage(), strength)


def test_the_weaker_the_nearer_to_the_image():
    x0 = jax.random.normal(jax.random.key(5), (3, *SHAPE))
    distances = [
        float(jnp.abs(draw(edits.partial_stage(stage(), s), x0=x0)[0] - x0).mean())
        for s in (0.1, 0.4, 1.0)
    ]
    assert distances == sorted(distances)
    assert distances[0] < 0.3 * distances[-1]


def test_sampling_from_an_image_starts_from_it_with_the_noise_of_its_level():
    x0 = jnp.full((3, *SHAPE), 2.0)
    noise = jax.random.normal(jax.random.key(6), x0.shape)
    seen = []

    def stay(key, denoise, schedule, x, ts):
        seen.append(schedule(ts[0]))
        return x, x[None]

    part = dataclasses.replace(edits.partial_stage(stage(), 0.5), sampler=stay)
    x, _ = sample(part, {}, KEYS, SHAPE, Conditioning(), x0=x0, noise=noise)
    np.testing.assert_allclose(x, process.add_noise(x0, noise, seen[0]))
    x, _ = sample(part, {}, KEYS, SHAPE, Conditioning(), x=x0, noise=noise)
    np.testing.assert_array_equal(x, x0)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "plms", "unipc"])
def test_what_is_known_stays_and_the_rest_is_painted(name):
    known = jax.random.normal(jax.random.key(7), (3, *SHAPE))
    noise = jax.random.normal(jax.random.key(8), known.shape)
    mask = jnp.zeros((1, 4, 4, 1)).at[:, :2].set(1.0)

    def wrap(denoise):
        return denoiser.blended(denoise, known, mask, noise)

    made = stage(name, grid="trailing")
    x, _ = draw(made, noise=noise, wrap=wrap)
    np.testing.assert_allclose(x[:, :2], known[:, :2], atol=1e-5)
    free, _ = draw(made, noise=noise)
    # This network treats every pixel alone, so the rest is as if nothing were known.
    np.testing.assert_allclose(x[:, 2:], free[:, 2:], atol=1e-5)


def test_the_mask_of_latents_is_that_of_their_first_pixel():
    mask = np.zeros((1, 16, 16, 1), np.float32)
    mask[:, 8:, 3:] = 1
    small = edits.to_latent_mask(jnp.asarray(mask), 8)[0, :, :, 0]
    assert small.tolist() == [[0, 0], [0, 1]]


# ---- hand-over -----------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.8, 0.5, 0.25])
@pytest.mark.parametrize("grid", ["leading", "trailing"])
def test_a_hand_over_takes_every_step_once(grid, share):
    first, second = edits.split_stage(stage(grid=grid), stage(grid=grid), share)
    joined = [*times(first).tolist()[:-1], *times(second).tolist()]
    assert joined == times(stage(grid=grid)).tolist()
    assert times(first)[-1] == times(second)[0] < 1000 * (1 - share) + 1
    assert times(first)[-2] >= 1000 * (1 - share)


def test_handing_over_to_oneself_changes_nothing():
    whole, _ = draw(stage())
    first, second = edits.split_stage(stage(), stage(), 0.6)
    middle, _ = draw(first)
    end, _ = draw(second, x=middle)
    np.testing.assert_allclose(end, whole, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 1.0, 0.999])
def test_a_hand_over_that_leaves_nothing_is_an_error(share):
    with pytest.raises(ValueError, match="share|hand-over"):
        edits.split_stage(stage(), stage(), share)


# ---- between -------------------------------------------------------------------------


def test_slerp_goes_along_the_arc():
    a, b = jax.random.normal(jax.random.key(1), (2, 1000))
    np.testing.assert_allclose(slerp(a, b, 0.0), a, atol=1e-5)
    np.testing.assert_allclose(slerp(a, b, 1.0), b, atol=1e-5)
    a, b = a / jnp.linalg.norm(a), b / jnp.linalg.norm(b)
    middle = slerp(a, b, 0.5)
    assert float(jnp.linalg.norm(middle)) == pytest.approx(1, abs=1e-5)
    assert float(jnp.linalg.norm(lerp(a, b, 0.5))) < 0.8
    third = slerp(a, b, 1 / 3)
    angle = float(jnp.arccos(jnp.vdot(a, b)))
    assert float(jnp.arccos(jnp.vdot(a, third))) == pytest.approx(angle / 3, abs=1e-4)


def test_slerp_of_parallel_vectors_is_finite_with_its_gradient():
    a = jnp.arange(1.0, 5.0)
    np.testing.assert_allclose(slerp(a, a, 0.3), a, rtol=1e-5)
    np.testing.assert_allclose(slerp(a, -a, 0.25), 0.5 * a, rtol=1e-4)
    np.testing.assert_array_equal(slerp(0 * a, a, 0.0), 0 * a)
    gradient = jax.grad(lambda a: slerp(a, a, 0.3).sum())(a)
    assert np.isfinite(gradient).all()
