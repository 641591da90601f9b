"""What the networks of a cross-validation say together, each of the patients that it has not seen.

The logits of two networks need not mean the same, so there are two ways to put folds together, and
they estimate two things:

- `pooled`: each network's logits are recalibrated on its own validation split, and then all images
  are judged at once, pairs of images of different folds among them;
- `within_folds`: only pairs of images of one fold are compared, which one network has ranked.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from glomjax.evaluation.auroc import auroc
from glomjax.evaluation.calibration import fit_recalibration, fit_temperature
from glomjax.evaluation.intervals import (
    LOGIT,
    fewest_patients,
    jackknife_interval,
    jackknife_on_scale,
    means_estimated,
    patient_numbers,
)
from glomjax.evaluation.logits import log_odds_of
from glomjax.evaluation.metrics import metrics_of_network

_WORST = 3  # patients whose names are listed


@dataclasses.dataclass(frozen=True)
class OutOfFold:
    """Predictions of N examples by R repeats of K folds.

    Attributes:
      labels: int [N], indices into `classes`.
      logits: float64 [R, N, L], of each example by the network of the fold that tested it,
        recalibrated; L as for `probabilities`.
      folds: int [R, N], which fold tested each example.
      classes: names [C]; of two the second is the positive one.
      groups: one patient per example [N], or None, where they are not known.
    """

    labels: np.ndarray
    logits: np.ndarray
    folds: np.ndarray
    classes: Sequence[str]
    groups: Sequence[str] | None = None

    @property
    def compared(self) -> list[int]:
        """The classes that are ranked against the rest: of two the positive one."""
        return [1] if len(self.classes) == 2 else list(range(len(self.classes)))

    @property
    def scores(self) -> np.ndarray:
        """float64 [R, N, len(compared)]: the log-odds of each of these classes."""
        return np.stack([log_odds_of(logits)[:, self.compared] for logits in self.logits])


def recalibration(labels: ArrayLike, logits: np.ndarray) -> tuple[float, float]:
    """(slope, intercept) that make the logits of one network comparable to those of others: by
    `fit_recalibration` for two classes; for more, slope is one over `fit_temperature`.

    Args:
      labels: int [N], of the network's validation split, in which every class occurs.
      logits: float [N, L].
    """
    if logits.shape[1] == 1:
        return fit_recalibration(labels, logits[:, 0])
    return 1 / fit_temperature(labels, logits), 0.0


def pooled(data: OutOfFold, *, kind: str = "patient") -> dict[str, Any]:
    """The metrics of all folds as one test, for each repeat and as the mean over repeats.

    The interval of the mean has the mean of the repeats' bounds. In each of these a patient counts
    once, so the interval does not shrink as one is tested again; and since a mean over repeats
    varies no more than one repeat does, it covers at least as often as they do. That of one repeat
    is its own.

    Args:
      kind: what a group is, for methods and notes.

    Returns:
      `n`, the mean of each number of `classification_metrics`, `estimates` of the means, and
      `repeats`, the metrics of each.
    """
    repeats = [
        metrics_of_network(data.labels, logits, data.classes, data.groups, kind=kind)
        for logits in data.logits
    ]
    means = {
        name: float(np.mean([metrics[name] for metrics in repeats]))
        for name, value in repeats[0].items()
        if isinstance(value, float)
    }
    estimates = {
        name: _mean_estimate([metrics["estimates"][name] for metrics in repeats])
        for name in repeats[0]["estimates"]
    }
    return {"n": len(data.labels), **means, "estimates": estimates, "repeats": repeats}


def within_folds(data: OutOfFold, *, kind: str = "patient", level: float = 0.95) -> dict[str, Any]:
    """The AUROC over pairs of images of one fold, each pair with the same weight.

    With more than two classes it is the mean over classes, each against the rest; with several
    repeats the mean over these. Its interval is by the jackknife that leaves a patient out of all
    repeats at once, on the logit scale.

    Args:
      kind: what a group is, for methods and notes.
      level: coverage.

    Returns:
      `auroc`, `interval` (`low`, `high`, `method`, `note`), `pairs` (of a repeat, the mean).
    """
    estimate, without, pairs = _areas_within_folds(data)
    patient = patient_numbers(data.groups, len(data.labels))
    interval = jackknife_on_scale(
        LOGIT,
        estimate,
        without,
        np.bincount(patient),
        fewest=fewest_patients(data.labels, patient),
        kind=None if data.groups is None else kind,
        level=level,
    )
    return {"auroc": estimate, "interval": dataclasses.asdict(interval), "pairs": pairs}


def against_controls(
    data: OutOfFold,
    controls: Mapping[str, np.ndarray],
    *,
    kind: str = "patient",
    level: float = 0.95,
) -> dict[str, dict[str, Any]]:
    """How much larger the AUROC within folds is than those of negative controls, which were fitted
    in the same folds.

    Args:
      controls: {name: logits [R, N, L]}.
      kind: what a group is, for methods and notes.
      level: coverage.

    Returns:
      {name: `auroc`, `difference`}, where `difference` is {`value`, `low`, `high`, `method`,
      `note`}, by the jackknife that leaves a patient out of both.
    """
    ours, ours_without, _ = _areas_within_folds(data)
    patient = patient_numbers(data.groups, len(data.labels))
    sizes, means = np.bincount(patient), means_estimated(data.labels, patient)
    found = {}
    for name, logits in controls.items():
        theirs, without, _ = _areas_within_folds(dataclasses.replace(data, logits=logits))
        interval, _ = jackknife_interval(
            ours - theirs,
            ours_without - without,
            sizes,
            means,
            kind=None if data.groups is None else kind,
            level=level,
        )
        difference = {"value": ours - theirs, **dataclasses.asdict(interval.within(1.0))}
        found[name] = {"auroc": theirs, "difference": difference}
    return found


def between_patients(data: OutOfFold) -> dict[str, Any] | None:
    """How the patients differ: of the accuracy, and of the AUROC within each patient who has all
    classes, median, quartiles and the worst; None without patients. With several repeats a
    patient's number is the mean over these.

    Returns:
      {"accuracy" or "auroc": {"patients", "median", "quartiles", "worst": [{"patient", "value",
      "n"}]}}; numbers are NaN where no patient has one.
    """
    if data.groups is None:
        return None
    scores = data.scores
    chosen = (scores[..., 0] > 0) if len(data.classes) == 2 else data.logits.argmax(axis=2)
    right = (chosen == data.labels).mean(axis=0)  # [N]
    names = np.asarray(data.groups, dtype=str)
    values: dict[str, list[tuple[float, str, int]]] = {"accuracy": [], "auroc": []}
    for name in np.unique(names):
        rows = names == name
        n = int(rows.sum())
        values["accuracy"].append((float(right[rows].mean()), str(name), n))
        areas = [
            auroc(data.labels[rows] == c, repeat[rows, i])
            for repeat in scores
            for i, c in enumerate(data.compared)
        ]
        if not np.isnan(areas).any():
            values["auroc"].append((float(np.mean(areas)), str(name), n))
    return {metric: _spread(found) for metric, found in values.items()}


def between_repeats(pooled_metrics: dict[str, Any]) -> dict[str, float] | None:
    """{metric: standard deviation over repeats} of what `pooled` gives, which differ in seed and in
    folds; None of one repeat, which does not tell it."""
    repeats = pooled_metrics["repeats"]
    if len(repeats) == 1:
        return None
    return {
        name: float(np.std([metrics[name] for metrics in repeats], ddof=1))
        for name, value in repeats[0].items()
        if isinstance(value, float)
    }


def _mean_estimate(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of the values and of the bounds of each repeat, or those of the one repeat."""
    first = found[0]
    if len(found) == 1:
        return first
    mean: dict[str, Any] = {
        key: None if any(part[key] is None for part in found) else _mean(found, key)
        for key in ("value", "low", "high")
    }
    if mean["low"] is None:
        missing = next((part for part in found if part["low"] is None), first)
        return {**missing, "value": mean["value"]}
    note = f"the mean of the bounds of {len(found)} repeats"
    notes = [part for part in (first["note"], note) if part]
    return {**mean, "method": first["method"], "note": "; ".join(notes)}


def _mean(found: Sequence[dict[str, Any]], key: str) -> float:
    return float(np.mean([part[key] for part in found]))


def _spread(found: list[tuple[float, str, int]]) -> dict[str, Any]:
    values = [value for value, _, _ in found] or [math.nan]
    low, middle, high = np.percentile(values, (25, 50, 75)).tolist()
    return {
        "patients": len(found),
        "median": middle,
        "quartiles": [low, high],
        "worst": [
            {"patient": name, "value": value, "n": n} for value, name, n in sorted(found)[:_WORST]
        ],
    }


def _areas_within_folds(data: OutOfFold) -> tuple[float, np.ndarray, float]:
    """(the AUROC as of `within_folds`, the same without each patient [P], the pairs of a
    repeat)."""
    scores, is_class = data.scores, np.stack([data.labels == c for c in data.compared], axis=1)
    repeats, count = len(data.folds), int(data.folds.max()) + 1
    won = np.zeros((repeats, count, len(data.compared)))
    pairs = np.zeros_like(won)

    def judge(r: int, fold: int, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = (data.folds[r] == fold) & kept
        ones = is_class[rows].sum(axis=0)
        of = (ones * (rows.sum() - ones)).astype(np.float64)  # [C]
        areas = [
            auroc(is_class[rows, c], scores[r, rows, c]) if of[c] else 0.0 for c in range(len(of))
        ]
        return of * areas, of

    def area(won: np.ndarray, pairs: np.ndarray) -> float:
        total = pairs.sum(axis=1)  # [R, C]
        return float((won.sum(axis=1) / total).mean()) if total.all() else math.nan

    everyone = np.ones(len(data.labels), bool)
    for r in range(repeats):
        for fold in range(count):
            won[r, fold], pairs[r, fold] = judge(r, fold, everyone)
    patient = patient_numbers(data.groups, len(data.labels))
    without = []
    for left_out in range(int(patient.max()) + 1):
        kept, less, fewer = patient != left_out, won.copy(), pairs.copy()
        for r in range(repeats):
            for fold in np.unique(data.folds[r, ~kept]):
                less[r, fold], fewer[r, fold] = judge(r, fold, kept)
        without.append(area(less, fewer))
    return area(won, pairs), np.array(without), float(pairs.sum(axis=(1, 2)).mean())
