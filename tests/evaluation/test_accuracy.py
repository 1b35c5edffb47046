"""Shares of true captions and Wilson's interval around them."""

import itertools

import numpy as np
import pytest
from scipy import stats

from diffusion_jax.evaluation import accuracy

COUNTS = [(0, 1), (1, 1), (0, 128), (128, 128), (3, 10), (116, 128), (500, 1000)]


@pytest.mark.parametrize("k, n", COUNTS)
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_the_bounds_are_where_the_score_test_begins_to_reject(k, n, confidence):
    """The definition: |k/n - p| = z sqrt(p (1 - p) / n) at either bound inside (0, 1)."""
    z = stats.norm.ppf((1 + confidence) / 2)
    for bound in accuracy.wilson_interval(k, n, confidence=confidence):
        if 0 < bound < 1:
            error = np.sqrt(bound * (1 - bound) / n)
            assert abs(k / n - bound) == pytest.approx(z * error, rel=1e-9)


def test_where_all_trials_agree_a_bound_is_exactly_zero_or_one():
    confidences = np.linspace(0.01, 0.999, 50).tolist()
    for confidence, n in itertools.product(confidences, (1, 3, 10, 128, 10**6)):
        assert accuracy.wilson_interval(0, n, confidence=confidence)[0] == 0
        assert accuracy.wilson_interval(n, n, confidence=confidence)[1] == 1


@pytest.mark.parametrize("k, n", COUNTS)
def test_the_interval_holds_the_share_and_mirrors_the_failures(k, n):
    low, high = accuracy.wilson_interval(k, n)
    assert 0 <= low <= k / n <= high <= 1 and low < high
    assert (1 - high, 1 - low) == pytest.approx(accuracy.wilson_interval(n - k, n))
    assert (low == 0) == (k == 0) and (high == 1) == (k == n)


def test_it_rises_with_successes_and_narrows_with_trials_and_lower_confidence():
    intervals = [accuracy.wilson_interval(k, 20) for k in range(21)]
    assert intervals == sorted(intervals)
    assert [high for _, high in intervals] == sorted(high for _, high in intervals)
    widths = [np.ptp(accuracy.wilson_interval(8 * n, 10 * n)) for n in (1, 4, 16, 4096)]
    assert widths == sorted(widths, reverse=True)
    assert widths[-2] / widths[-1] == pytest.approx(16, rel=0.05)  # 1 / sqrt(n)
    sure, less = (
        np.ptp(accuracy.wilson_interval(8, 10, confidence=c)) for c in (0.99, 0.9)
    )
    assert less < sure


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_it_covers_the_truth_as_often_as_it_says(p):
    n = 128
    ks = np.arange(n + 1)
    bounds = np.array([accuracy.wilson_interval(int(k), n) for k in ks])
    covers = (bounds[:, 0] <= p) & (p <= bounds[:, 1])
    assert stats.binom.pmf(ks, n, p)[covers].sum() == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("k, n, confidence", [(1, 0, 0.9), (3, 2, 0.9), (-1, 2, 0.9)])
def test_impossible_counts_are_refused(k, n, confidence):
    with pytest.raises(ValueError, match="not a proportion"):
        accuracy.wilson_interval(k, n, confidence=confidence)


def test_fraction_true_asks_the_verifier_about_every_pair_in_order():
    images = np.zeros((5, 2, 2, 3), np.float32) + np.arange(5)[:, None, None, None]
    captions = ["0", "1", "x", "3", "x"]
    found = accuracy.fraction_true(
        lambda image, caption: str(int(image[0, 0, 0])) == caption, images, captions
    )
    assert found.verdicts.tolist() == [True, True, False, True, False]
    assert found.fraction == 0.6
    assert (found.low, found.high) == accuracy.wilson_interval(3, 5)


def test_images_without_captions_are_refused():
    images = np.zeros((2, 2, 2, 3), np.float32)
    with pytest.raises(ValueError):
        accuracy.fraction_true(lambda *_: True, images, ["one"])
