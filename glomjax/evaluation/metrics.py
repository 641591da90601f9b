"""Metrics of a classifier from its labels and logits, in float64 NumPy."""

import dataclasses
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from glomjax.errors import UserError, argument
from glomjax.evaluation.auroc import auroc, patients_needed
from glomjax.evaluation.calibration import predicted_classes
from glomjax.evaluation.estimates import Estimate, binary_estimates, multiclass_estimates
from glomjax.evaluation.intervals import patient_numbers
from glomjax.evaluation.logits import (
    checked_labels,
    checked_logits,
    log_odds_of,
    probabilities,
    refuse_probabilities,
)

LEVEL = 0.95  # of intervals
# What counts as collapsed: see `_collapsed_reason`.
_EQUAL_PROBABILITIES = 1e-2  # standard deviation
_AT_PRIOR_ENTROPY = 0.985  # share of the entropy: 0.01 below ln 2 for balanced classes


def classification_metrics(
    labels: ArrayLike,
    logits: ArrayLike,
    classes: Sequence[str],
    groups: Sequence[str] | np.ndarray | None = None,
    *,
    threshold: float = 0.5,
    prevalence: float | None = None,
    kind: str = "patient",
) -> dict[str, Any]:
    """Every number of a test report, as plain Python values.

    Args:
      labels: int [N], indices into `classes`.
      logits: float [N, 1] or [N, 2] for two classes, else [N, C]. Probabilities in their place are
        refused where they can be told: rows that sum to 1; of one column, values from 0 to 1 on
        both sides of 0.5, which as logits would call every example positive. A network whose logits
        do lie so gives the two columns (0, logit), which mean the same.
      classes: class names; for two classes (negative, positive).
      groups: one patient name per example [N], or None, where examples are taken for independent.
      threshold: of two classes, the probability above which an example is positive.
      prevalence: of two classes, the share of positives for which PPV and NPV are also given.
      kind: what a group is ("patient", "slide", ...), for methods and notes.

    Returns:
      `n`, `classes`, `loss` (mean cross-entropy, nats), `accuracy` (most probable class; of two
      the positive one above the threshold), `auroc`, `auroc_interval` (`low`, `high`,
      `level`, `method`, `note`, and `patients` with groups), `confusion_matrix` (rows true, columns
      predicted), `class_prior` and `prior_entropy` (nats) of these labels, `prediction_spread`
      (largest standard deviation of a class's probability), `collapsed`, `collapsed_reason`; for
      two classes also `positive_class`, `sensitivity` and `specificity`. What is undefined there
      (an AUROC with a class absent, the sensitivity without positives) is NaN.

      `estimates` is {metric: `value`, `low`, `high`, `method`, `note`}, the metrics those of
      `MEASURES`, with 95% intervals, and None for what is undefined or has no interval; `note` says
      why, or what its reader should know. With a prevalence, `ppv_at_prevalence` and
      `npv_at_prevalence` are among them. With groups and two classes, `patients_needed` is what the
      function of that name gives. With more than two classes they are macro averages of one
      class against the rest, and `estimates_by_class` has those of each class.

    Raises:
      UserError: a logit is not finite, there are probabilities in place of logits, or labels,
        logits, classes and groups do not fit together.
    """
    refuse_probabilities(checked_logits(logits))
    return metrics_of_network(
        labels, logits, classes, groups, threshold=threshold, prevalence=prevalence, kind=kind
    )


def metrics_of_network(
    labels: ArrayLike,
    logits: ArrayLike,
    classes: Sequence[str],
    groups: Sequence[str] | np.ndarray | None = None,
    *,
    threshold: float = 0.5,
    prevalence: float | None = None,
    kind: str = "patient",
    intervals: bool = True,
) -> dict[str, Any]:
    """`classification_metrics` of what a network has just given, and so of logits, whatever their
    values: a run must not end over an epoch in which they happen to look like probabilities.

    Args:
      intervals: False leaves out all that takes time, `auroc_interval` and `estimates`.
    """
    check_prevalence(prevalence, classes)
    predicted = probabilities(logits)  # [N, C]
    targets = checked_labels(labels, predicted, classes)
    log_odds = log_odds_of(np.asarray(logits, dtype=np.float64))  # [N, C]
    n, class_count = predicted.shape
    if groups is not None and np.shape(groups) != (n,):
        raise UserError(
            f"{np.size(groups)} patients were given for {n} examples; give one per example"
        )

    confusion = np.zeros((class_count, class_count), dtype=np.int64)
    np.add.at(confusion, (targets, predicted_classes(logits, threshold)), 1)
    prior = confusion.sum(axis=1) / n
    areas = [auroc(targets == c, log_odds[:, c]) for c in range(class_count)]

    metrics: dict[str, Any] = {
        "n": n,
        "classes": [str(name) for name in classes],
        # -log p of the true class, from its log-odds: exact where p rounds to 0 or 1
        "loss": float(np.logaddexp(0.0, -log_odds[np.arange(n), targets]).mean()),
        "accuracy": float(np.trace(confusion) / n),
        "auroc": areas[1] if class_count == 2 else float(np.mean(areas)),
        "confusion_matrix": confusion.tolist(),
        "class_prior": {str(name): float(p) for name, p in zip(classes, prior, strict=True)},
        "prior_entropy": prior_entropy(targets),
        "prediction_spread": float(predicted.std(axis=0).max()),
    }
    if class_count == 2:
        (tn, fp), (fn, tp) = metrics["confusion_matrix"]
        metrics["positive_class"] = str(classes[1])
        metrics["sensitivity"] = tp / (tp + fn) if tp + fn else math.nan
        metrics["specificity"] = tn / (tn + fp) if tn + fp else math.nan
    metrics["collapsed_reason"] = _collapsed_reason(metrics)
    metrics["collapsed"] = bool(metrics["collapsed_reason"])
    if intervals:
        options = {"threshold": threshold, "prevalence": prevalence, "kind": kind}
        metrics |= _with_intervals(targets, logits, metrics["classes"], groups, options)
    return metrics


def _with_intervals(
    targets: np.ndarray,
    logits: ArrayLike,
    classes: Sequence[str],
    groups: Sequence[str] | np.ndarray | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """`auroc_interval` and `estimates` as `classification_metrics` gives them."""
    z = np.asarray(logits, dtype=np.float64)
    if len(classes) == 2:
        log_odds = log_odds_of(z)[:, 1]
        found = binary_estimates(targets, log_odds, groups, level=LEVEL, **options)
        by_class: dict[int, dict[str, Estimate]] = {}
    else:
        found, by_class = multiclass_estimates(
            targets, z, log_odds_of(z), groups, level=LEVEL, kind=options["kind"]
        )
    interval = dataclasses.asdict(found["auroc"].interval) | {"level": LEVEL}
    if groups is not None:
        interval["patients"] = int(patient_numbers(groups, len(targets)).max()) + 1
    metrics: dict[str, Any] = {
        "auroc_interval": interval,
        "estimates": {name: estimate.to_dict() for name, estimate in found.items()},
    }
    if groups is not None and len(classes) == 2:
        needed = patients_needed(targets, log_odds, groups, level=LEVEL)
        metrics["patients_needed"] = needed and {"kind": options["kind"], **needed}
    if by_class:
        metrics["estimates_by_class"] = {
            classes[c]: {name: estimate.to_dict() for name, estimate in part.items()}
            for c, part in by_class.items()
        }
    return metrics


def check_prevalence(prevalence: float | None, classes: Sequence[str]) -> None:
    """Raises UserError where it is no share, or the classes are not two."""
    if prevalence is None:
        return
    number = isinstance(prevalence, numbers.Real) and not isinstance(prevalence, bool)
    if not number or not 1e-9 <= prevalence <= 1 - 1e-9:
        raise UserError(
            f"{argument('--prevalence')} is {prevalence!r}; it is a share between 0 and 1, such as "
            "0.1"
        )
    if len(classes) != 2:
        raise UserError(
            f"{argument('--prevalence')} is of the positive one of two classes, and there are "
            f"{len(classes)}; leave it"
        )


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
