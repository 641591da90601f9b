"""Predictions of the same examples compared: paired differences of every measure with intervals by
patient, and McNemar's test.

Arrays in, numbers out; `glomjax.inference.comparison` reads them from runs and tables.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest, chi2

from glomjax.errors import UserError
from glomjax.evaluation.calibration import check_threshold
from glomjax.evaluation.intervals import (
    few,
    jackknife_interval,
    means_estimated,
    patient_numbers,
)
from glomjax.evaluation.logits import checked_labels, log_odds_of, probabilities
from glomjax.evaluation.measures import MEASURES, measures_without, right


@dataclasses.dataclass(frozen=True)
class McNemar:
    """McNemar's test of two predictions of the same examples.

    Attributes:
      first_only, second_only: examples that the first, or the second, alone has right.
      p: two-sided.
      statistic: of the clustered test, chi-square with one degree of freedom; else NaN.
      method: "clustered" or "exact".
      note: what its reader should know.
    """

    first_only: int
    second_only: int
    p: float
    statistic: float
    method: str
    note: str = ""


def compare_predictions(
    labels: Sequence[int] | np.ndarray,
    logits: Sequence[np.ndarray],
    classes: Sequence[str],
    groups: Sequence[str] | np.ndarray | None = None,
    *,
    thresholds: Sequence[float] | None = None,
    kind: str = "patient",
    level: float = 0.95,
) -> list[dict[str, Any]]:
    """What each of the further predictions differs in from the first ones, the reference.

    Args:
      labels: int [N], indices into `classes`.
      logits: of each of two or more predictions, float [N, K], as for `classification_metrics`.
      classes: class names; for two classes (negative, positive).
      groups: one patient per example [N], or None, where examples are taken for independent.
      thresholds: of each prediction the probability above which an example is positive, by default
        0.5; of two classes alone.
      kind: what a group is, for methods and notes.
      level: coverage of the intervals.

    Returns:
      Of each prediction behind the first: `differences`, {measure: `reference`, `value`,
      `difference` (value minus reference), `low`, `high`, `method`, `note`, `p`, `p_holm`}, the
      measures those of `MEASURES`; and `mcnemar`, the fields of `McNemar` (the first prediction is
      the reference) with `p_holm`. `p_holm` is corrected for the number of predictions that are
      compared to the reference, each measure by itself, as `holm` does it. What is undefined is
      NaN.

    Raises:
      UserError: there is one prediction alone, or labels, logits, classes, groups and thresholds do
        not fit together.
    """
    if len(logits) < 2:
        raise UserError(f"{len(logits)} prediction is given; a comparison needs two or more")
    predicted = [probabilities(part) for part in logits]
    shapes = sorted({part.shape for part in predicted})
    if len(shapes) > 1:
        raise UserError(
            f"predictions have shapes {', '.join(map(str, shapes))}; compare such of the same "
            "examples and classes"
        )
    y = checked_labels(labels, predicted[0], classes)
    if groups is not None and np.shape(groups) != y.shape:
        raise UserError(
            f"{np.size(groups)} patients were given for {len(y)} examples; give one per example"
        )
    cuts = [0.5] * len(logits) if thresholds is None else list(thresholds)
    for cut in cuts:
        check_threshold(cut)
    if len(cuts) != len(logits):
        raise UserError(
            f"{len(cuts)} thresholds were given for {len(logits)} predictions; give one for each"
        )
    if len(classes) > 2 and any(cut != 0.5 for cut in cuts):
        raise UserError(f"thresholds are {cuts}, and {len(classes)} classes have none; leave them")

    values = [np.asarray(part, dtype=np.float64) for part in logits]
    odds = [log_odds_of(part) for part in values]
    patient = patient_numbers(groups, len(y))
    sizes = np.bincount(patient)
    scored = [
        measures_without(y, part, patient, cut) for part, cut in zip(values, cuts, strict=True)
    ]
    correct = [right(y, part, cut) for part, cut in zip(values, cuts, strict=True)]
    found = []
    for i in range(1, len(values)):
        identical = np.array_equal(odds[0], odds[i]) and cuts[0] == cuts[i]
        differences = {}
        for name in scored[0][0]:
            reference, value = scored[0][0][name], scored[i][0][name]
            interval, p = jackknife_interval(
                value - reference,
                scored[i][1][name] - scored[0][1][name],
                sizes,
                means_estimated(y, patient),
                kind=None if groups is None else kind,
                identical=identical,
                level=level,
            )
            differences[name] = {
                "reference": reference,
                "value": value,
                "difference": value - reference,
                **dataclasses.asdict(interval.within(MEASURES[name][1])),
                "p": p,
            }
        test = mcnemar(correct[0], correct[i], None if groups is None else patient, kind=kind)
        found.append({"differences": differences, "mcnemar": dataclasses.asdict(test)})
    for name in found[0]["differences"]:
        _correct([part["differences"][name] for part in found])
    _correct([part["mcnemar"] for part in found])
    return found


def mcnemar(
    first: Sequence[bool] | np.ndarray,
    second: Sequence[bool] | np.ndarray,
    groups: Sequence[Any] | np.ndarray | None = None,
    *,
    kind: str = "patient",
) -> McNemar:
    """Whether two predictions are right equally often.

    With patients, the clustered test of Durkalski et al. (2003, Stat Med 22:2417-2428): of patient
    k with n_k examples, b_k that the first alone has right and c_k that the second alone has, the
    statistic is (sum (b_k - c_k) / n_k)^2 / sum ((b_k - c_k) / n_k)^2, chi-square with one degree
    of freedom. Each patient counts the same, however many examples it has. With few patients it
    rejects less often than it says: the statistic is at most their number. Without patients, the
    exact test, binomial of b among b + c.

    Args:
      first, second: bool [N], whether each example is right.
      groups: one patient per example [N], or None, where examples are taken for independent.
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    first_only, second_only = int((a & ~b).sum()), int((b & ~a).sum())
    if groups is None:
        discordant = first_only + second_only
        p = float(binomtest(first_only, discordant).pvalue) if discordant else 1.0
        note = "assumes that examples are independent"
        return McNemar(first_only, second_only, p, math.nan, "exact", note)
    patient = patient_numbers(groups, len(a))
    excess = np.bincount(patient, a.astype(float) - b) / np.bincount(patient)  # [K]
    squares = float((excess**2).sum())
    if len(excess) < 2:
        note = f"one {kind} says nothing of others"
        return McNemar(first_only, second_only, math.nan, math.nan, "none", note)
    note = few(len(excess), kind)
    if not squares:
        note = f"no {kind} has more right in one of them" + (f"; {note}" if note else "")
        return McNemar(first_only, second_only, 1.0, 0.0, "clustered", note)
    statistic = float(excess.sum()) ** 2 / squares
    p = float(chi2.sf(statistic, 1))
    return McNemar(first_only, second_only, p, statistic, "clustered", note)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979, Scand J Statist 6:65-70); one that is NaN is
    no test and counts for none."""
    p = np.array(p_values, dtype=np.float64)
    corrected = np.full(len(p), math.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = len(order) - np.arange(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return corrected.tolist()


def _correct(tests: Sequence[dict[str, Any]]) -> None:
    for test, p in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = p
