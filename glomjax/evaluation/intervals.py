"""Confidence intervals that count patients: what is common to all metrics."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import t as student

# More independent examples than this are left out in so many random parts.
_MOST_PARTS = 500


@dataclasses.dataclass(frozen=True)
class Interval:
    """A confidence interval, how it was made, and what its reader should know."""

    low: float
    high: float
    method: str  # "none" where there is none, and `note` says why
    note: str = ""


def no_interval(why: str) -> Interval:
    """There is none."""
    return Interval(math.nan, math.nan, "none", why)


def patient_numbers(groups: Sequence[str] | np.ndarray | None, count: int) -> np.ndarray:
    """int [N]: the number of each example's patient, from 0; without patients each example is one,
    or, where they are many, is in one of 500 random parts."""
    if groups is not None:
        return np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    if count <= _MOST_PARTS:
        return np.arange(count)
    return np.random.default_rng(0).permutation(count) % _MOST_PARTS


def paired_difference(
    measure: Callable[[np.ndarray, np.ndarray], float],
    labels: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    groups: Sequence[str] | np.ndarray | None = None,
    *,
    level: float = 0.95,
) -> tuple[float, Interval]:
    """How much better a metric is of the first predictions than of the second ones of the same
    examples, with its interval: the jackknife that leaves out a patient in turn, with Student's
    quantile for patients minus one.

    Args:
      measure: of labels [N] and predictions [N, ...]; NaN where it is undefined.
      labels, first, second: [N] and twice [N, ...].
      groups: one patient per example [N], or None, where examples are independent.
    """
    patient = patient_numbers(groups, len(labels))
    count = int(patient.max()) + 1
    difference = measure(labels, first) - measure(labels, second)
    if math.isnan(difference):
        return difference, no_interval("the metric is not defined here")
    if count < 2:
        return difference, no_interval("one patient says nothing of others")
    without = []
    for left_out in range(count):
        kept = patient != left_out
        without.append(measure(labels[kept], first[kept]) - measure(labels[kept], second[kept]))
    values = np.array(without)
    if np.isnan(values).any():
        return difference, no_interval("one patient alone has a class")
    if np.ptp(values) == 0 and not np.array_equal(first, second):
        return difference, no_interval("it is the same whichever patient is left out")
    variance = (count - 1) / count * float(((values - values.mean()) ** 2).sum())
    half = float(student.ppf((1 + level) / 2, count - 1)) * math.sqrt(variance)
    kind = "jackknife" if groups is None else "jackknife by patient"
    return difference, Interval(difference - half, difference + half, kind)
