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
    examples, with its interval: that of `jackknife_interval`.

    Args:
      measure: of labels [N] and predictions [N, ...]; NaN where it is undefined.
      labels, first, second: [N] and twice [N, ...].
      groups: one patient per example [N], or None, where examples are independent.
    """
    patient = patient_numbers(groups, len(labels))
    sizes = np.bincount(patient)
    difference = measure(labels, first) - measure(labels, second)
    without = []
    if not math.isnan(difference):
        for left_out in range(len(sizes)):
            kept = patient != left_out
            without.append(measure(labels[kept], first[kept]) - measure(labels[kept], second[kept]))
    interval, _ = jackknife_interval(
        difference,
        np.array(without),
        sizes,
        by_patient=groups is not None,
        identical=np.array_equal(first, second),
        level=level,
    )
    return difference, interval


def jackknife_interval(
    difference: float,
    without: np.ndarray,
    sizes: np.ndarray,
    *,
    by_patient: bool = True,
    identical: bool = False,
    level: float = 0.95,
) -> tuple[Interval, float]:
    """An interval of a paired difference from its values without each patient, and the two-sided p
    value of its being 0.

    The squared deviations are from the difference itself, the form that errs on the wide side
    (MacKinnon, Nielsen and Webb 2023, J Appl Econometrics 38:671-694, CV3). Where a few patients
    have most of the examples, fewer patients than there are decide the variance: the degrees of
    freedom of Student's quantile are one less than Kish's effective number of patients,
    (sum n)^2 / sum n^2, and at least 1. `benchmarks/difference_coverage.py` prints what it covers.

    Args:
      difference: of all examples; NaN where it is undefined.
      without: the same without each patient in turn [K].
      sizes: examples of each patient [K].
      by_patient: False where the parts that are left out are of independent examples.
      identical: both predictions are the same, so that there is no difference at all.
      level: coverage.

    Returns:
      The interval, and the p value; without an interval it is NaN.
    """
    count = len(sizes)
    if math.isnan(difference):
        return no_interval("the metric is not defined here"), math.nan
    if count < 2:
        return no_interval("one patient says nothing of others"), math.nan
    if np.isnan(without).any():
        return no_interval("one patient alone has a class"), math.nan
    kind = "jackknife by patient" if by_patient else "jackknife"
    if identical:
        return Interval(difference, difference, kind, "the predictions are the same"), 1.0
    error = math.sqrt((count - 1) / count * float(((without - difference) ** 2).sum()))
    if np.ptp(without) < 1e-12:
        return no_interval("it is the same whichever patient is left out"), math.nan
    freedom = max(float(sizes.sum() ** 2 / (sizes.astype(float) ** 2).sum()) - 1, 1.0)
    half = float(student.ppf((1 + level) / 2, freedom)) * error
    p = 2 * float(student.sf(abs(difference) / error, freedom))
    return Interval(difference - half, difference + half, kind), p
