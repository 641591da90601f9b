"""The area under the ROC curve and its confidence interval, of independent examples or by patient.

Only the order of the scores counts: give log-odds, for probabilities that round to 0 or 1 would tie
scores that differ.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from glomjax.errors import UserError
from glomjax.evaluation.intervals import (
    INDEPENDENT,
    LOGIT,
    Interval,
    checked_level,
    few,
    fewest_patients,
    newcombe,
    no_interval,
    patient_numbers,
    quantile,
)
from glomjax.evaluation.similarity import (
    USUAL_CORRELATION,
    USUAL_WEIGHT,
    Members,
    both_below,
    correlation,
    normal_quantile,
    normal_scores_by_class,
    shared_correlation,
)


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve: the probability that a positive outranks a negative, ties 1/2.

    This is the exact Mann-Whitney statistic (Hanley and McNeil 1982, Radiology 143:29-36).

    Args:
      labels: int [N], 1 for the positive class and 0 for the negative one.
      scores: float [N], higher for the positive class.

    Returns:
      A number in [0, 1], or NaN if only one class is present: the area is then undefined.

    Raises:
      UserError: lengths differ, a label is not 0 or 1, or a score is not finite.
    """
    positive, scores = _checked_binary(labels, scores)
    _, ranks = np.unique(scores, return_inverse=True)
    positives = np.bincount(ranks, positive)  # at each distinct score
    negatives = np.bincount(ranks, ~positive)
    pairs = positives.sum() * negatives.sum()
    if pairs == 0:
        return math.nan
    return float(positives @ (np.cumsum(negatives) - negatives / 2) / pairs)


def auroc_interval(
    labels: ArrayLike,
    scores: ArrayLike,
    groups: Sequence[str] | np.ndarray | None = None,
    *,
    level: float = 0.95,
    kind: str = "patient",
) -> Interval:
    """A confidence interval of the AUROC; it always contains the estimate and stays in [0, 1].

    Without `groups` every example is independent, which the note says. The variance is that of
    DeLong et al. (1988, Biometrics 44:837-845), the interval is symmetric on the logit scale (Qin
    and Hotilovac 2008, Stat Methods Med Res 17:207-221). That variance is zero for perfect or
    constant scores and undefined for a class with one example; there the score interval of
    Newcombe (2006, Stat Med 25:559-573, method 5) is given.

    With `groups` (one patient per example; equal names are one patient) it is Newcombe's, of the
    numbers of positives and negatives divided by the design effect: how much larger the variance is
    for the correlation of a patient's scores (`similarity`), after Obuchowski (1997, Biometrics
    53:567-578), whose clustered variance of binormal scores it is. The quantile is Student's for
    the patients (Satterthwaite 1946, Biometrics Bulletin 2:110-114), and for the two more that the
    usual correlation counts for. How often it covers is measured by
    `benchmarks/interval_coverage.py`.

    Args:
      labels, scores: as for `auroc`.
      groups: one patient name per example [N], or None.
      level: coverage.
      kind: what a group is, for notes.

    Returns:
      The interval, its method and a note; NaN bounds and the method "none" where only one class or
      one patient is present.

    Raises:
      UserError: as `auroc`, or the number of groups is not that of the examples.
    """
    level = checked_level(level)
    positive, scores = _checked_binary(labels, scores)
    if groups is not None:
        patient = patient_numbers(groups, len(scores))
    if positive.all() or not positive.any():
        return no_interval("only one class is present")
    estimate = auroc(positive, scores)
    if groups is None:
        q = quantile(level)
        positives, negatives = int(positive.sum()), int((~positive).sum())
        variance = _delong_variance(positive, scores)
        if not variance > 0 or not 0 < estimate < 1:
            note = f"no pair is ranked otherwise, or a class has one patch; {INDEPENDENT}"
            return Interval(*newcombe(estimate, positives, negatives, q), "newcombe", note)
        center = math.log(estimate / (1 - estimate))
        half = q * math.sqrt(variance) / (estimate * (1 - estimate))
        back = LOGIT[1]
        return Interval(back(center - half), back(center + half), "delong", INDEPENDENT)

    patients = int(patient.max()) + 1
    if patients < 2:
        return no_interval(f"one {kind} says nothing of others")
    low, high = _Design.of(estimate, positive, scores, patient).bounds(level)
    note = few(fewest_patients(positive, patient), kind)
    return Interval(low, high, f"newcombe by {kind}", note)


def patients_needed(
    labels: ArrayLike,
    scores: ArrayLike,
    groups: Sequence[str] | np.ndarray,
    *,
    level: float = 0.95,
) -> dict[str, Any] | None:
    """How much patients count, and how many more of them would help.

    Args:
      labels, scores: as for `auroc`.
      groups: one patient per example [N].
      level: of the intervals.

    Returns:
      `patients`; `correlation`, the one assumed of two scores of one class and patient;
      `design_effect`, how many times larger it makes the variance of the AUROC;
      `effective_patches`, the number of independent patches that would tell as much; and
      `expected_width`, {how many times as many patients: the width of the AUROC's interval}, for
      1, 2, 4 and 8 times, if the further ones are like these and the AUROC stays. None where the
      AUROC has no interval.
    """
    if not auroc_interval(labels, scores, groups, level=level).is_known:
        return None
    positive, scores = _checked_binary(labels, scores)
    patient = patient_numbers(groups, len(scores))
    design = _Design.of(auroc(labels, scores), positive, scores, patient)
    widths = {}
    for times in (1, 2, 4, 8):
        low, high = design.bounds(level, times)
        widths[str(times)] = high - low
    return {
        "patients": int(patient.max()) + 1,
        "correlation": design.correlation,
        "design_effect": design.effect,
        "effective_patches": len(scores) / design.effect,
        "expected_width": widths,
    }


@dataclasses.dataclass(frozen=True)
class _Design:
    """What patients do to the variance of an AUROC.

    Attributes:
      area, positives, negatives: of the sample.
      correlation: of two scores of one class and patient.
      effect: how many times as large the variance is.
      freedom: degrees of freedom.
    """

    area: float
    positives: int
    negatives: int
    correlation: float
    effect: float
    freedom: float

    def bounds(self, level: float, times: int = 1) -> tuple[float, float]:
        """Newcombe's interval, for so many times as many patients."""
        q = quantile(level, (self.freedom + 1) * times - 1 + USUAL_WEIGHT)
        m, n = (max(times * x / self.effect, 1.0) for x in (self.positives, self.negatives))
        return newcombe(self.area, m, n, q)

    @classmethod
    def of(
        cls, area: float, positive: np.ndarray, scores: np.ndarray, patient: np.ndarray
    ) -> "_Design":
        """That of a sample: an area, and of each example whether it is positive, its score and the
        number of its patient [N].

        Of binormal scores with an area A the placement of a positive among the negatives has
        variance Phi2(h, h, 1/2) - A^2, where Phi(h) = A; of two positives of one patient, whose
        scores have the correlation r, the covariance is Phi2(h, h, r/2) - A^2, and of a positive
        and a negative, whose scores have the correlation s, it is Phi2(h, h, -s/2) - A^2, which is
        negative: what moves both changes no ranking.
        """
        patients = int(patient.max()) + 1
        members = [Members.of(patient[part], patients) for part in (positive, ~positive)]
        everybody = Members.of(patient, patients)
        normal = normal_scores_by_class(scores, positive)
        parts = [(normal[part], patient[part]) for part in (positive, ~positive)]
        within = correlation(parts, patients, USUAL_CORRELATION, everybody.freedom)
        shared = shared_correlation(normal, positive, patient, patients, within)
        # An area of 1 was seen in so many patches, and is no certain one.
        nearest = 1 - 0.5 / (min(part.total for part in members) + 1)
        larger = min(max(area, 1 - area), nearest)
        height, square = float(normal_quantile(larger)), larger**2
        variance = both_below(height, 0.5) - square
        alike = (both_below(height, within / 2) - square) / variance
        opposite = (both_below(height, -shared / 2) - square) / variance
        shares = [(1 + (part.mean_size - 1) * alike) / part.total for part in members]
        together = float(members[0].counts @ members[1].counts)
        together /= members[0].total * members[1].total
        effect = (sum(shares) + 2 * together * opposite) / sum(1 / part.total for part in members)
        freedom = sum(shares) ** 2 / sum(
            share**2 / part.freedom for share, part in zip(shares, members, strict=True)
        )
        return cls(
            area,
            int(positive.sum()),
            int((~positive).sum()),
            within,
            max(effect, 1.0),
            min(freedom, everybody.freedom),
        )


def _delong_variance(positive: np.ndarray, scores: np.ndarray) -> float:
    """DeLong's variance of the AUROC; NaN if a class has fewer than two examples."""
    ones, zeros = np.sort(scores[positive]), np.sort(scores[~positive])
    if min(len(ones), len(zeros)) < 2:
        return math.nan
    # Structural components: the share of the other class below each score, ties 1/2.
    v10 = (zeros.searchsorted(ones, "left") + zeros.searchsorted(ones, "right")) / 2 / len(zeros)
    v01 = (ones.searchsorted(zeros, "left") + ones.searchsorted(zeros, "right")) / 2 / len(ones)
    return float(v10.var(ddof=1) / len(ones) + v01.var(ddof=1) / len(zeros))


def _checked_binary(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Labels as bool [N] and scores as float64 [N]."""
    try:
        y, raw = np.asarray(labels), np.asarray(scores)
        if raw.dtype.kind not in "biuf":
            raise ValueError(f"they are of {raw.dtype}")
    except ValueError as error:  # texts, complex numbers, or rows of several lengths
        raise UserError(
            f"labels and scores are no arrays of numbers ({error}); give int [N] and float [N]"
        ) from error
    s = raw.astype(np.float64)
    if y.ndim != 1 or y.shape != s.shape:
        raise UserError(f"labels {y.shape} and scores {s.shape} differ in shape; give [N] and [N]")
    if not np.isin(y, (0, 1)).all():
        raise UserError(f"labels hold {sorted(set(y.tolist()) - {0, 1})}; AUROC needs 0 and 1")
    if not np.isfinite(s).all():
        raise UserError(f"{int((~np.isfinite(s)).sum())} of {len(s)} scores are not finite")
    return y.astype(bool), s
