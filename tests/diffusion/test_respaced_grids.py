"""Laws of the grids that are some steps of a longer one."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from diffusion_jax.diffusion import grids, schedules

TABLE = schedules.Discrete()


def heard(times):
    return np.asarray(times)[-2::-1] - 1


def test_one_section_spans_all_steps_evenly():
    for steps in (7, 25, 250):
        evenly = grids.linspace(TABLE, steps, rounded=True)
        assert_array_equal(grids.respaced(TABLE, steps), evenly)
    assert_array_equal(heard(grids.respaced(TABLE, 1000)), np.arange(1000))


def test_each_section_spans_its_share():
    found = heard(grids.respaced(TABLE, 60, sections=(10, 20, 30)))
    sections = np.split(found, [10, 30])
    # 1000 steps make sections of 334, 333 and 333.
    assert [s[0] for s in sections] == [0, 334, 667]
    assert [s[-1] for s in sections] == [333, 666, 999]
    for section in sections:
        assert np.ptp(np.diff(section)) <= 1


def test_sections_may_be_written_out():
    expected = grids.respaced(TABLE, 50, sections=(10, 40))
    assert_array_equal(grids.respaced(TABLE, 50, sections="10,40"), expected)
    fast = grids.respaced(TABLE, 27, sections=(10, 10, 3, 2, 2))
    assert_array_equal(grids.respaced(TABLE, 27, sections="fast27"), fast)


def test_a_section_of_one_step_gives_its_first():
    assert_array_equal(heard(grids.respaced(TABLE, 2, sections=(1, 1))), [0, 500])


def test_a_whole_stride_starts_at_the_cleanest_step():
    for steps, stride in ((50, 20), (27, 38), (1000, 1)):
        found = heard(grids.respaced(TABLE, steps, sections="ddim"))
        assert_array_equal(found, stride * np.arange(steps))
    named = grids.respaced(TABLE, 50, sections="ddim50")
    assert_array_equal(named, grids.respaced(TABLE, 50, sections="ddim"))


def test_thinned_visits_some_times_of_the_grid_that_was_trained_on():
    schedule = schedules.VarianceExploding()
    trained = grids.karras(schedule, 40)
    assert_allclose(grids.thinned(schedule, 40), trained)
    few = grids.thinned(schedule, 5, end=schedule.t_min)
    assert_allclose(few, [*trained[:-1:8], 0.002])
    # One that does not divide: every tenth, of which there are four.
    assert_allclose(grids.thinned(schedule, 3), [*trained[:-1:13][:3], 0])


def test_a_schedule_may_have_few_steps():
    few = schedules.Discrete(num_steps=10)
    assert_array_equal(heard(grids.respaced(few, 5, sections="ddim")), [0, 2, 4, 6, 8])


def test_impossible_sections_are_refused():
    with pytest.raises(ValueError, match="sections '25,25' make 50 steps, not 60"):
        grids.respaced(TABLE, 60, sections="25,25")
    with pytest.raises(ValueError, match="'ddim27' make 27 steps, not 25"):
        grids.respaced(TABLE, 25, sections="ddim27")
    with pytest.raises(ValueError, match="no whole stride takes 999 of 1000"):
        grids.respaced(TABLE, 999, sections="ddim")
    with pytest.raises(ValueError, match="section of 500 steps cannot give 600"):
        grids.respaced(TABLE, 601, sections=(1, 600))
    with pytest.raises(ValueError, match="counts, ddim or one of .*'fast'"):
        grids.respaced(TABLE, 10, sections="fast")
    with pytest.raises(ValueError, match="whole steps.*RectifiedFlow"):
        grids.respaced(schedules.RectifiedFlow(), 10)
    with pytest.raises(ValueError, match="41 steps of original_steps = 40"):
        grids.thinned(schedules.VarianceExploding(), 41)


def test_times_are_real_numbers():
    assert grids.respaced(TABLE, 4).dtype == jnp.float32
