"""Laws of the grids of rectified flows that are shifted towards the noise."""

from __future__ import annotations

import functools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from diffusion_jax.diffusion import grids, process, schedules

FLOW = schedules.RectifiedFlow(time_scale=1000.0)
TABLE = schedules.Discrete()


def shift_of(t, s):
    """Esser et al. (2024), eq. 23."""
    return s * t / (1 + (s - 1) * t)


def test_times_of_a_flow_are_shifted_by_the_published_formula():
    for of in ("trailing", "linspace", "linspace_open"):
        even = np.asarray(grids.GRIDS[of](FLOW, 9))
        for shift in (0.5, 3.0, 12.0):
            times = grids.shifted(FLOW, 9, shift=shift, of=of)
            assert_allclose(times, shift_of(even, shift), rtol=2e-5)


def test_a_shift_is_a_shift_of_logsnr_on_every_schedule():
    # The same noise is visited by an even grid on the schedule that is shifted.
    for bare in (FLOW, schedules.Cosine(), schedules.VarianceExploding(t_max=500.0)):
        even = functools.partial(grids.explicit, times=(0.9, 0.6, 0.1))
        level = bare(grids.shifted(bare, 3, shift=3.0, of=even))
        wrapped = schedules.ShiftedSNR(bare, shift=-2 * math.log(3))
        expected = wrapped(even(bare, 3))
        assert_allclose(level.sigma, expected.sigma, rtol=1e-4)
        assert_allclose(level.alpha, expected.alpha, rtol=1e-4)


def test_no_shift_is_the_identity_and_shifts_multiply():
    assert_allclose(grids.shifted(FLOW, 8, shift=1), grids.trailing(FLOW, 8), rtol=1e-6)
    once = functools.partial(grids.shifted, shift=2.0)
    twice = grids.shifted(FLOW, 8, shift=3.0, of=once)
    assert_allclose(twice, grids.shifted(FLOW, 8, shift=6), rtol=1e-5)


def test_the_ends_of_a_flow_stay_where_they_are():
    times = grids.shifted(FLOW, 8, shift=5.0)
    assert (times[0], times[-1]) == (1, 0)
    assert np.all(np.diff(times) < 0)


def test_stable_diffusion_3_shifts_its_last_time_twice():
    times = grids.sd3(FLOW, 28)
    assert times[0] == 1
    assert_allclose(times[-2], shift_of(shift_of(1e-3, 3), 3), rtol=1e-4)
    back = shift_of(np.asarray(times, float), 1 / 3)
    assert_allclose(np.diff(back[:-1], n=2), 0, atol=1e-6)


def test_more_tokens_are_shifted_more():
    def shifted_by(tokens, **options):
        times = grids.resolution_shifted(FLOW, 4, tokens=tokens, **options)
        return float(times[2] / (1 - times[2]))  # 1 unless shifted

    for tokens, mu in ((256, 0.5), (4096, 1.15), (2176, 0.825), (8192, 1.8433)):
        assert_allclose(shifted_by(tokens), math.exp(mu), rtol=1e-4)
        assert_allclose(shifted_by(tokens, kind="linear"), mu, rtol=1e-4)
    line = ((100, 0.0), (200, 1.0))
    assert_allclose(shifted_by(150, mu_by_tokens=line), math.exp(0.5), rtol=1e-5)


def test_a_terminal_stretches_the_times_from_one():
    plain = np.asarray(grids.shifted(FLOW, 8))
    times = np.asarray(grids.shifted(FLOW, 8, terminal=0.1))
    assert_allclose(times[[0, -2, -1]], [1, 0.1, 0], rtol=1e-5)
    stretch = (1 - times[1:-1]) / (1 - plain[1:-1])
    assert_allclose(stretch, stretch[0], rtol=1e-5)
    by_tokens = grids.resolution_shifted(FLOW, 8, terminal=0.02)
    assert_allclose(by_tokens[-2], 0.02, rtol=1e-4)


def test_a_table_is_shifted_within_its_noise():
    times = grids.shifted(TABLE, 5, shift=0.5)
    even = grids.trailing(TABLE, 5)
    difference = process.logsnr(TABLE(times[:-1])) - process.logsnr(TABLE(even[:-1]))
    assert_allclose(difference, 2 * math.log(2), rtol=1e-3)


def test_impossible_shifts_are_refused():
    with pytest.raises(ValueError, match="shift must be above 0, got -1"):
        grids.shifted(FLOW, 4, shift=-1)
    with pytest.raises(ValueError, match="unknown grid 'karras' to shift"):
        grids.shifted(FLOW, 4, of="karras")
    with pytest.raises(ValueError, match="unknown kind 'quadratic'; one of"):
        grids.resolution_shifted(FLOW, 4, kind="quadratic")
    with pytest.raises(ValueError, match="terminal must lie in"):
        grids.shifted(FLOW, 4, terminal=1.5)
    with pytest.raises(ValueError, match="terminal must lie in"):
        grids.shifted(TABLE, 4, shift=0.5, terminal=0.1)
    with pytest.raises(ValueError, match="do not fit Discrete"):
        grids.shifted(TABLE, 50, shift=20)


def test_times_are_the_same_under_a_whole_times_wrapper():
    whole = schedules.WholeTimes(FLOW, "down")
    assert_array_equal(grids.shifted(whole, 6), grids.shifted(FLOW, 6))
    level = whole(grids.shifted(whole, 6))
    assert_array_equal(level.time, jnp.floor(1000 * level.sigma + 2e-4))
