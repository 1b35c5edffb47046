"""How many pictures show what their captions say, and how sure that count makes us.

Wilson's score interval (E. B. Wilson, 1927, "Probable inference, the law of succession,
and statistical inference", JASA 22:209-212): the proportions p that n Bernoulli trials
with k successes do not reject, |k/n - p| <= z sqrt(p (1 - p) / n). Unlike k/n +- z
standard errors it stays inside [0, 1] and has width where k = 0 or k = n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float
from scipy import special


class Accuracy(NamedTuple):
    fraction: float
    low: float  # 95 % interval
    high: float
    verdicts: Bool[np.ndarray, "B"]


def fraction_true(
    verify: Callable[[np.ndarray, str], Any],
    images: Float[Array | np.ndarray, "B H W 3"],
    captions: Sequence[str],
) -> Accuracy:
    """The share of pairs of which `verify(image, caption)` is true."""
    pairs = zip(np.asarray(images), captions, strict=True)
    verdicts = np.array(
        [bool(verify(image, caption)) for image, caption in pairs], bool
    )
    low, high = wilson_interval(int(verdicts.sum()), len(verdicts))
    return Accuracy(float(verdicts.mean()), low, high, verdicts)


def wilson_interval(
    num_true: int, num_trials: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Bounds of the success probability behind `num_true` of `num_trials`."""
    if not 0 <= num_true <= num_trials or num_trials == 0:
        raise ValueError(f"{num_true} of {num_trials} trials is not a proportion")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
    z = float(special.ndtri(0.5 + 0.5 * confidence))
    return (
        _lower_bound(num_true, num_trials, z),
        1 - _lower_bound(num_trials - num_true, num_trials, z),
    )


def _lower_bound(num_true: int, num_trials: int, z: float) -> float:
    """Of no successes it is 0 to the last bit, so no bound leaves [0, 1]."""
    centre = num_true + 0.5 * z**2
    num_false = num_trials - num_true
    spread = z * math.sqrt(num_true * num_false / num_trials + 0.25 * z**2)
    return (centre - spread) / (num_trials + z**2)
