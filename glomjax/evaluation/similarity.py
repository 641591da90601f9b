"""How alike the patches of a patient are, and so for how many independent ones they count.

Scores of a class are taken as normal ones with an effect of the patient, whatever their scale: each
is replaced by the normal quantile of its rank within its class. From few patients their correlation
is hardly known, so it is drawn towards what is usual. The errors of a network, which may be none or
one, would tell far less of it than all its scores do.
"""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

# The correlation of scores that is assumed before any is seen, and for how many degrees of freedom
# it counts, in the estimate and in Student's quantile: chosen on the cells of
# `benchmarks/interval_coverage.py`, as those by which no metric covers too little there.
USUAL_CORRELATION, USUAL_WEIGHT = 0.4, 2.0
# The same of what is right or wrong, whose correlation is always smaller.
USUAL_OF_ERRORS = 0.3


@dataclasses.dataclass(frozen=True)
class Members:
    """How many patches each patient has.

    Attributes:
      counts: float64 [P].
    """

    counts: np.ndarray

    @classmethod
    def of(cls, patient: np.ndarray, patients: int) -> "Members":
        """Those of the patients with these numbers, int [N]."""
        return cls(np.bincount(patient, minlength=patients).astype(np.float64))

    @property
    def patients(self) -> int:
        """Those that have any."""
        return int((self.counts > 0).sum())

    @property
    def total(self) -> float:
        """All patches."""
        return float(self.counts.sum())

    @property
    def mean_size(self) -> float:
        """The patches of the patient of a patch, on average: what a correlation multiplies."""
        return float((self.counts**2).sum() / self.counts.sum())

    @property
    def freedom(self) -> float:
        """Degrees of freedom between patients: of their effective number (Kish 1965), which is
        smaller where a few of them have most of the patches."""
        return max(self.total / self.mean_size - 1, 0.5)


def normal_scores(values: np.ndarray) -> np.ndarray:
    """float64 [N]: the normal quantile of each value's rank, equal values in the middle."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return normal_quantile(((np.cumsum(counts) - counts / 2) / len(values))[which])


def normal_scores_by_class(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """float64 [N]: `normal_scores` of each of two classes by itself."""
    normal = np.empty(len(scores))
    for part in (positive, ~positive):
        if part.any():
            normal[part] = normal_scores(scores[part])
    return normal


def normal_quantile(shares: ArrayLike) -> np.ndarray:
    """float64, of any shape: below which standard normal values have these shares."""
    from scipy.special import ndtri  # here and below, since SciPy takes long to import

    return ndtri(shares)


def correlation(
    parts: list[tuple[np.ndarray, np.ndarray]], patients: int, usual: float, freedom: float
) -> float:
    """The correlation of two values of one patient, by one-way analysis of variance over all parts
    together, drawn towards the usual one.

    Args:
      parts: of each class the values [N] and the numbers of their patients [N].
      usual: what is usual.
      freedom: degrees of freedom between patients.
    """
    between = within = between_freedom = within_freedom = size = 0.0
    for values, patient in parts:
        if not len(values):
            continue
        counts = np.bincount(patient, minlength=patients)
        sums = np.bincount(patient, values, minlength=patients)
        there = counts > 0
        total = float(((values - values.mean()) ** 2).sum())
        ours = float((sums[there] ** 2 / counts[there]).sum() - sums.sum() ** 2 / len(values))
        between, within = between + ours, within + total - ours
        between_freedom += int(there.sum()) - 1
        within_freedom += len(values) - int(there.sum())
        size += len(values) - float((counts**2).sum()) / len(values)
    found = usual
    if between_freedom > 0 and within_freedom > 0:
        inside = within / within_freedom
        outside = (between / between_freedom - inside) / (size / between_freedom)
        if outside + inside > 1e-12:
            found = max(outside / (outside + inside), 0.0)
    return (freedom * found + USUAL_WEIGHT * usual) / (freedom + USUAL_WEIGHT)


def shared_correlation(
    scores: np.ndarray, positive: np.ndarray, patient: np.ndarray, patients: int, limit: float
) -> float:
    """The correlation of the scores of a positive and a negative of one patient, from 0, as which
    it is assumed, to `limit`.

    Args:
      scores: normal scores within each class [N].
    """
    means, counts = [], []
    for part in (positive, ~positive):
        count = np.bincount(patient[part], minlength=patients)
        means.append(np.bincount(patient[part], scores[part], patients) / np.maximum(count, 1))
        counts.append(count)
    weights = counts[0] * counts[1] / np.maximum(counts[0] + counts[1], 1)
    both = int((weights > 0).sum())
    if both < 2:
        return 0.0
    weights = weights / weights.sum()
    spread = [mean - weights @ mean for mean in means]
    found = float(weights @ (spread[0] * spread[1]) / (1 - weights @ weights))
    freedom = both - 1
    return freedom * min(max(found, 0.0), limit) / (freedom + USUAL_WEIGHT)


def both_below(height: float, correlated: float) -> float:
    """The probability that two standard normal values with this correlation are both below a
    height."""
    from scipy.special import ndtr, owens_t

    slope = np.sqrt((1 - correlated) / (1 + correlated))
    return float(ndtr(height) - 2 * owens_t(height, slope))


def correlation_of_errors(rate: float, correlated: float) -> float:
    """The correlation of two decisions that are right at a rate, where the scores behind them have
    this one."""
    height = float(normal_quantile(rate))
    return max((both_below(height, correlated) - rate**2) / (rate * (1 - rate)), 0.0)
