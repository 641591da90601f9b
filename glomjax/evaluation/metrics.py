"""Metrics of a classifier from its labels and logits, in float64 NumPy.

A binary model gives one logit per example (that of the positive class, `classes[1]`) or two; with
more classes it gives one per class. Ranking always uses log-odds, never probabilities: a sigmoid
saturates and would tie scores that differ.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from glomjax.errors import UserError
from glomjax.evaluation.auroc import Interval, auroc, auroc_interval
from glomjax.evaluation.calibration import predicted_classes

# What counts as collapsed: see `_collapsed_reason`.
_EQUAL_PROBABILITIES = 1e-2  # standard deviation
_AT_PRIOR_ENTROPY = 0.985  # share of the entropy: 0.01 below ln 2 for balanced classes


def probabilities(logits: ArrayLike) -> np.ndarray:
    """Class probabilities, float64 [N, C], of logits [N, K].

    K = 1 is the logit of the positive class and gives two columns (1 - p, p); K > 1 is a softmax.

    Raises:
      UserError: a logit is NaN or infinite, or there is no example.
    """
    z = _checked_logits(logits)
    if z.shape[1] == 1:
        z = np.concatenate([np.zeros_like(z), z], axis=1)  # the sigmoid is a softmax over (0, z)
    exponentials = np.exp(z - z.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def classification_metrics(
    labels: ArrayLike,
    logits: ArrayLike,
    classes: Sequence[str],
    groups: Sequence[str] | np.ndarray | None = None,
    *,
    threshold: float = 0.5,
) -> dict[str, Any]:
    """Every number of a test report, as plain Python values.

    Args:
      labels: int [N], indices into `classes`.
      logits: float [N, 1] or [N, 2] for two classes, else [N, C]. Probabilities in their place are
        refused where they can be told: rows that sum to 1; of one column, values from 0 to 1 on
        both sides of 0.5, which as logits would call every example positive. A network whose logits
        do lie so gives the two columns (0, logit), which mean the same.
      classes: class names; for two classes (negative, positive).
      groups: one patient name per example [N], or None; see `auroc_interval`.
      threshold: of two classes, the probability above which an example is positive.

    Returns:
      `n`, `classes`, `loss` (mean cross-entropy, nats), `accuracy` (most probable class; of two
      the positive one above the threshold), `auroc`, `auroc_interval` (`low`, `high`,
      `level`, `method`, `note`, and `patients` with groups), `confusion_matrix` (rows true, columns
      predicted), `class_prior` and `prior_entropy` (nats) of these labels, `prediction_spread`
      (largest standard deviation of a class's probability), `collapsed`, `collapsed_reason`; for
      two classes also `positive_class`, `sensitivity` and `specificity`. With more classes `auroc`
      is the macro average of one class against the rest, without an interval. What is undefined
      (an AUROC with a class absent, the sensitivity without positives) is NaN.

    Raises:
      UserError: a logit is not finite, there are probabilities in place of logits, or labels,
        logits, classes and groups do not fit together.
    """
    _refuse_probabilities(_checked_logits(logits))
    return metrics_of_network(labels, logits, classes, groups, threshold=threshold)


def metrics_of_network(
    labels: ArrayLike,
    logits: ArrayLike,
    classes: Sequence[str],
    groups: Sequence[str] | np.ndarray | None = None,
    *,
    threshold: float = 0.5,
) -> dict[str, Any]:
    """`classification_metrics` of what a network has just given, and so of logits, whatever their
    values: a run must not end over an epoch in which they happen to look like probabilities."""
    predicted = probabilities(logits)  # [N, C]
    targets = checked_labels(labels, predicted, classes)
    log_odds = _log_odds(np.asarray(logits, dtype=np.float64))  # [N, C]
    n, class_count = predicted.shape
    if groups is not None and np.shape(groups) != (n,):
        raise UserError(
            f"{np.size(groups)} patients were given for {n} examples; give one per example"
        )

    confusion = np.zeros((class_count, class_count), dtype=np.int64)
    np.add.at(confusion, (targets, predicted_classes(logits, threshold)), 1)
    prior = confusion.sum(axis=1) / n
    level = 0.95
    if class_count == 2:
        area = auroc(targets, log_odds[:, 1])
        interval = auroc_interval(targets, log_odds[:, 1], groups, level=level)
    else:
        area = float(np.mean([auroc(targets == c, log_odds[:, c]) for c in range(class_count)]))
        interval = Interval(math.nan, math.nan, "none", "no interval for more than two classes")

    metrics: dict[str, Any] = {
        "n": n,
        "classes": [str(name) for name in classes],
        # -log p of the true class, from its log-odds: exact where p rounds to 0 or 1
        "loss": float(np.logaddexp(0.0, -log_odds[np.arange(n), targets]).mean()),
        "accuracy": float(np.trace(confusion) / n),
        "auroc": area,
        "auroc_interval": {**dataclasses.asdict(interval), "level": level},
        "confusion_matrix": confusion.tolist(),
        "class_prior": {str(name): float(p) for name, p in zip(classes, prior, strict=True)},
        "prior_entropy": prior_entropy(targets),
        "prediction_spread": float(predicted.std(axis=0).max()),
    }
    if groups is not None:
        metrics["auroc_interval"]["patients"] = len(set(groups))
    if class_count == 2:
        (tn, fp), (fn, tp) = metrics["confusion_matrix"]
        metrics["positive_class"] = str(classes[1])
        metrics["sensitivity"] = tp / (tp + fn) if tp + fn else math.nan
        metrics["specificity"] = tn / (tn + fp) if tn + fp else math.nan
    metrics["collapsed_reason"] = _collapsed_reason(metrics)
    metrics["collapsed"] = bool(metrics["collapsed_reason"])
    return metrics


def prior_entropy(labels: ArrayLike) -> float:
    """The loss (nats) of a model that knows how often each class occurs and nothing else.

    labels: int [N].
    """
    counts = np.unique(np.asarray(labels), return_counts=True)[1]
    return float(-sum(p * math.log(p) for p in counts / counts.sum()))


def collapse_message(metrics: dict[str, Any]) -> str:
    """What to tell the user of a collapsed run, given its `classification_metrics`; '' if none."""
    if not metrics["collapsed"]:
        return ""
    return (
        f"The model has collapsed: {metrics['collapsed_reason']}; "
        "try a lower learning rate, standardised inputs or more epochs."
    )


def _collapsed_reason(metrics: dict[str, Any]) -> str:
    """Why these predictions are as good as constant, or ''.

    Collapsed means that predictions are nearly equal and the loss is no lower than that of the best
    constant, the entropy of the class prior, however well such predictions rank: a network that
    learns to rank before it is calibrated has not finished. With one class present nothing can be
    said: a constant is then the right answer.
    """
    spread, loss, entropy = (metrics[k] for k in ("prediction_spread", "loss", "prior_entropy"))
    if entropy == 0 or spread >= _EQUAL_PROBABILITIES or loss < _AT_PRIOR_ENTROPY * entropy:
        return ""
    return (
        f"all {metrics['n']} predictions are nearly equal (standard deviation of the probability "
        f"{spread:.2g}) and the loss, {loss:.4f}, is not clearly below the entropy of the class "
        f"prior, {entropy:.4f}"
    )


def _log_odds(logits: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)) of every class, [N, C], without computing p."""
    if logits.shape[1] == 1:
        return np.concatenate([-logits, logits], axis=1)
    rest = [
        np.logaddexp.reduce(np.delete(logits, c, axis=1), axis=1) for c in range(logits.shape[1])
    ]
    return logits - np.stack(rest, axis=1)


def _refuse_probabilities(z: np.ndarray) -> None:
    """Raises UserError where float64 [N, K] are probabilities as far as can be told."""
    if z.min() < 0 or z.max() > 1:
        return
    if z.shape[1] == 1:
        if z.min() < 0.5 < z.max():
            raise UserError(
                "logits lie between 0 and 1 on both sides of 0.5, as probabilities do; give the "
                "logits before the sigmoid, or, if these are logits, both columns (0, logit)"
            )
    elif (abs(z.sum(axis=1) - 1) < 1e-3).all():
        raise UserError(
            "logits lie between 0 and 1 and each row sums to 1, as probabilities do; give the "
            "logits before the softmax"
        )


def _checked_logits(logits: ArrayLike) -> np.ndarray:
    try:
        if np.iscomplexobj(logits):
            raise ValueError("they are complex")
        z = np.asarray(logits, dtype=np.float64)
    except (TypeError, ValueError) as error:  # texts, or rows of several lengths
        raise UserError(
            f"logits are no array of numbers ({error}); give float [examples, logits]"
        ) from error
    if z.ndim != 2 or 0 in z.shape:
        raise UserError(f"logits have shape {z.shape}; give [examples, logits], at least one each")
    bad = int((~np.isfinite(z)).any(axis=1).sum())
    if bad:
        raise UserError(
            f"{bad} of {len(z)} predictions are not finite (NaN or infinite logits), so no metric "
            "is given; train with a lower learning rate or check the weights and the images"
        )
    return z


def checked_labels(labels: ArrayLike, predicted: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Labels as int64 [N], the indices of `classes`, for predictions [N, C].

    Raises:
      UserError: they are of another kind, or do not fit the predictions or the classes.
    """
    n, class_count = predicted.shape
    # A set has no order.
    if not isinstance(classes, (Sequence, np.ndarray)) or isinstance(classes, str):
        raise UserError(f"classes is {classes!r}; it is a name for each class, negative first")
    if len(classes) != class_count:
        raise UserError(
            f"the model predicts {class_count} classes but {len(classes)} are named "
            f"({', '.join(map(str, classes))}); give one name per class"
        )
    try:
        targets = np.asarray(labels)
    except ValueError as error:  # rows of several lengths
        raise UserError(f"labels are no array ({error}); give one number each") from error
    if targets.shape != (n,):
        raise UserError(f"labels have shape {targets.shape} for {n} predictions; give one each")
    wanted = (
        f"they must be whole numbers from 0 to {class_count - 1}, the indices of "
        f"{', '.join(map(str, classes))}"
    )
    if targets.dtype.kind not in "biuf":
        raise UserError(f"labels are of {targets.dtype}, such as {targets.tolist()[0]!r}; {wanted}")
    if not np.isin(targets, np.arange(class_count)).all():
        raise UserError(f"labels run from {targets.min()} to {targets.max()}; {wanted}")
    return targets.astype(np.int64)
