"""Measures of predictions as plain numbers, all at once: what a comparison takes differences of."""

import math
from collections.abc import Sequence

import numpy as np

from glomjax.evaluation.calibration import predicted_classes
from glomjax.evaluation.logits import log_odds_of, probabilities

# name: (what it is called in a table, the largest difference that two predictions can have).
MEASURES: dict[str, tuple[str, float]] = {
    "auroc": ("AUROC", 1.0),
    "average_precision": ("average precision", 1.0),
    "accuracy": ("accuracy", 1.0),
    "balanced_accuracy": ("balanced accuracy", 1.0),
    "sensitivity": ("sensitivity", 1.0),
    "specificity": ("specificity", 1.0),
    "f1": ("F1", 1.0),
    "mcc": ("MCC", 2.0),
    "ppv": ("PPV", 1.0),
    "npv": ("NPV", 1.0),
    "brier": ("Brier score", 2.0),
    "loss": ("log loss", math.inf),
    "calibration_slope": ("calibration slope", math.inf),
    "calibration_intercept": ("calibration intercept", math.inf),
    "ece": ("ECE", 1.0),
}
# Of these less is better; a calibration slope is best at 1 and an intercept at 0.
LESS_IS_BETTER = ("brier", "loss", "ece")
_BINS = 10  # of the expected calibration error, equally wide


def measures(labels: np.ndarray, logits: np.ndarray, threshold: float = 0.5) -> dict[str, float]:
    """Every measure that the number of classes has, as in `MEASURES`; NaN where it is undefined.

    With two classes: the AUROC; the average precision (area below the steps of the
    precision-recall curve); what follows from the decisions at the threshold; the Brier score and
    the log loss (nats); the slope of the logistic regression of the labels on the log-odds, and
    its intercept where the slope is 1 (Van Calster et al. 2019, BMC Med 17:230); the expected
    calibration error of the positive class's probability in 10 equal bins. With more: macro
    averages of one class against the rest for AUROC, average precision and F1, the mean recall,
    the MCC of Gorodkin (2004, Comput Biol Chem 28:367-374), the Brier score summed over classes,
    and the calibration error of the most probable class (Guo et al. 2017, ICML).

    Args:
      labels: int [N], class indices; for two classes 1 is positive.
      logits: float64 [N, K], as for `probabilities`.
      threshold: the probability above which an example is positive; of two classes alone.
    """
    if logits.shape[1] > 2:
        return _of_many(labels, logits)
    z = log_odds_of(logits)[:, 1]
    positive = labels == 1
    p = 0.5 * (1 + np.tanh(z / 2))
    decided = predicted_classes(logits, threshold) == 1
    tp, fp, fn, tn = _counts(positive, decided)
    of_class = class_measures(positive, z, decided)
    slope, intercept = _calibration(positive, z)
    found = {
        **of_class,
        "accuracy": _ratio(tp + tn, len(z)),
        "balanced_accuracy": (of_class["sensitivity"] + of_class["specificity"]) / 2,
        "mcc": _ratio(
            tp * tn - fp * fn,
            math.sqrt(float(tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)),
        ),
        "brier": float(((p - positive) ** 2).mean()),
        "loss": float(np.logaddexp(0, np.where(positive, -z, z)).mean()),
        "calibration_slope": slope,
        "calibration_intercept": intercept,
        "ece": _calibration_error(p, positive),
    }
    return {name: found[name] for name in MEASURES}


def class_measures(
    positive: np.ndarray, scores: np.ndarray, decided: np.ndarray
) -> dict[str, float]:
    """What is measured of one class: its AUROC and average precision, sensitivity, specificity,
    PPV, NPV and F1.

    Args:
      positive: bool [N], whether an example is of the class.
      scores: float64 [N].
      decided: bool [N], whether it was taken for one of the class.
    """
    tp, fp, fn, tn = _counts(positive, decided)
    area, precision = _ranking(positive, scores)
    return {
        "auroc": area,
        "average_precision": precision,
        "sensitivity": _ratio(tp, tp + fn),
        "specificity": _ratio(tn, tn + fp),
        "ppv": _ratio(tp, tp + fp),
        "npv": _ratio(tn, tn + fn),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
    }


def average_precision(positive: np.ndarray, scores: np.ndarray) -> float:
    """The area below the steps of the precision-recall curve; NaN without positives."""
    return _ranking(positive, scores)[1]


def measures_without(
    labels: np.ndarray, logits: np.ndarray, patient: np.ndarray, threshold: float = 0.5
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The measures of all examples, and of those without each patient in turn.

    Args:
      labels, logits, threshold: as of `measures`.
      patient: int [N], the number of each example's patient, from 0.

    Returns:
      {name: value} and {name: float64 [patients]}.
    """
    whole = measures(labels, logits, threshold)
    parts = []
    for left_out in range(int(patient.max()) + 1):
        kept = patient != left_out
        if not kept.any():
            parts.append(dict.fromkeys(whole, math.nan))
        else:
            parts.append(measures(labels[kept], logits[kept], threshold))
    return whole, {name: np.array([part[name] for part in parts]) for name in whole}


def right(labels: np.ndarray, logits: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Whether each example is decided as it is labelled, bool [N]; arguments as of `measures`."""
    return predicted_classes(logits, threshold) == labels


def _counts(positive: np.ndarray, decided: np.ndarray) -> tuple[int, int, int, int]:
    """True and false positives, false and true negatives."""
    tp, fp = int((decided & positive).sum()), int((decided & ~positive).sum())
    return tp, fp, int(positive.sum()) - tp, int((~positive).sum()) - fp


def _of_many(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    n, classes = logits.shape
    p = probabilities(logits)
    confusion = np.zeros((classes, classes))
    chosen = logits.argmax(axis=1)
    np.add.at(confusion, (labels, chosen), 1)
    hits, true, called = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    log_odds = log_odds_of(logits)
    ranked = [_ranking(labels == c, log_odds[:, c]) for c in range(classes)]
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    whole = float(n) ** 2
    spread = math.sqrt((whole - called @ called) * (whole - true @ true))
    return {
        "auroc": float(np.mean([area for area, _ in ranked])),
        "average_precision": float(np.mean([precision for _, precision in ranked])),
        "accuracy": _ratio(hits.sum(), n),
        "balanced_accuracy": _mean([_ratio(h, t) for h, t in zip(hits, true, strict=True)]),
        "f1": _mean([_ratio(2 * h, t + c) for h, t, c in zip(hits, true, called, strict=True)]),
        "mcc": _ratio(float(hits.sum() * n - true @ called), spread),
        "brier": float(((p - np.eye(classes)[labels]) ** 2).sum(axis=1).mean()),
        "loss": float(-log_p[np.arange(n), labels].mean()),
        "ece": _calibration_error(p.max(axis=1), chosen == labels),
    }


def _ranking(positive: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """(AUROC, average precision); NaN where a class is absent."""
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives:
        return math.nan, math.nan
    order = np.argsort(-scores)
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # of equal scores
    tp = np.cumsum(positive[order])[last]
    fp = last + 1 - tp
    gained = np.diff(tp, prepend=0)
    precision = float(gained @ (tp / (tp + fp))) / positives
    if not negatives:
        return math.nan, precision
    below = negatives - (fp + np.append(0, fp[:-1])) / 2
    return float(gained @ below) / (positives * negatives), precision


def _calibration(positive: np.ndarray, z: np.ndarray) -> tuple[float, float]:
    """(slope, intercept) as `measures` has them; NaN where the labels do not determine them."""
    if positive.all() or not positive.any():
        return math.nan, math.nan
    intercept = 0.0
    for _ in range(100):
        p = 0.5 * (1 + np.tanh((z + intercept) / 2))
        curvature = float((p * (1 - p)).sum())
        step = float((positive - p).sum()) / max(curvature, 1e-12)
        step = float(np.clip(step, -5, 5))
        intercept += step
        if abs(step) < 1e-9:
            return _slope(positive, z), intercept
    return _slope(positive, z), math.nan


def _slope(positive: np.ndarray, z: np.ndarray) -> float:
    """Newton's method; the classes are separated by the log-odds where it finds no end."""
    separated = z[positive].min() >= z[~positive].max() or z[positive].max() <= z[~positive].min()
    scale = float(z.std())
    if separated or not scale > 0:
        return math.nan
    x = (z - z.mean()) / scale
    slope = height = 0.0  # from where the method converges, unlike from a steep line
    for _ in range(50):
        p = 0.5 * (1 + np.tanh((slope * x + height) / 2))
        weights, error = p * (1 - p), positive - p
        weighted = weights * x
        xx, xc, cc = float(weighted @ x), float(weighted.sum()), float(weights.sum())
        determinant = xx * cc - xc * xc
        if not determinant > 1e-12:
            return math.nan
        along, up = float(error @ x), float(error.sum())
        steps = (cc * along - xc * up) / determinant, (xx * up - xc * along) / determinant
        slope, height = slope + steps[0], height + steps[1]
        if max(map(abs, steps)) < 1e-9:
            return slope / scale
    return math.nan


def _calibration_error(p: np.ndarray, happened: np.ndarray) -> float:
    bins = np.minimum((p * _BINS).astype(int), _BINS - 1)
    excess = np.bincount(bins, p - happened, minlength=_BINS)
    return float(np.abs(excess).sum()) / len(p)


def _ratio(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else math.nan


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
