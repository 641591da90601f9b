"""Every metric of two or more classes with an interval that counts patients, and none where
simulation found that it would cover too little (`benchmarks/interval_coverage.py`)."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from glomjax.evaluation.auroc import auroc_interval
from glomjax.evaluation.calibration import predicted_classes
from glomjax.evaluation.intervals import Interval, fewest_patients, no_interval, patient_numbers
from glomjax.evaluation.measures import MEASURES, class_measures, measures
from glomjax.evaluation.sample import JACKKNIFED, Sample

_NONE = {
    "loss": "a few confident errors decide it, and no interval that was tried held it often enough",
    "ece": "it is larger than the true one in every sample, the more the fewer the patches",
}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A metric of a sample, and between which limits that of other patients may lie."""

    value: float
    interval: Interval

    def to_dict(self) -> dict[str, float | str | None]:
        """JSON-ready, with None for what is not known."""
        value = None if math.isnan(self.value) else float(self.value)
        return {"value": value, **self.interval.to_dict()}


def binary_estimates(
    labels: np.ndarray,
    log_odds: np.ndarray,
    groups: Sequence[str] | np.ndarray | None = None,
    *,
    threshold: float = 0.5,
    prevalence: float | None = None,
    level: float = 0.95,
    kind: str = "patient",
) -> dict[str, Estimate]:
    """{metric: its value and interval}, the metrics of `MEASURES`, and PPV and NPV at a prevalence
    where one is given.

    Args:
      labels: int [N], 1 for the positive class and 0 for the negative one.
      log_odds: float64 [N], of the positive class.
      groups: one patient per example [N], or None, where examples are taken for independent.
      threshold: the probability above which an example is positive.
      prevalence: the share of positives, between 0 and 1, for which PPV and NPV are also given.
      level: coverage.
      kind: what a group is, for notes.
    """
    positive = np.asarray(labels) == 1
    patients = None if groups is None else patient_numbers(groups, len(positive))
    decided = predicted_classes(log_odds[:, None], threshold) == 1
    fewest = 0 if patients is None else fewest_patients(positive, patients)
    sample = Sample(positive, log_odds, decided, patients, fewest, level, kind)
    values = measures(labels, log_odds[:, None], threshold)
    found = {
        "auroc": auroc_interval(labels, log_odds, groups, level=level, kind=kind),
        **sample.of_decisions(),
        "accuracy": sample.accuracy(),
        "balanced_accuracy": sample.balanced_accuracy(),
        **sample.jackknifed(JACKKNIFED, labels, log_odds[:, None], threshold),
        **{name: no_interval(why) for name, why in _NONE.items()},
    }
    estimates = {name: Estimate(values[name], found[name]) for name in MEASURES}
    if prevalence is not None:
        estimates |= {
            "ppv_at_prevalence": Estimate(*sample.predictive_value(True, prevalence)),
            "npv_at_prevalence": Estimate(*sample.predictive_value(False, 1 - prevalence)),
        }
    return estimates


def multiclass_estimates(
    labels: np.ndarray,
    logits: np.ndarray,
    log_odds: np.ndarray,
    groups: Sequence[str] | np.ndarray | None = None,
    *,
    level: float = 0.95,
    kind: str = "patient",
) -> tuple[dict[str, Estimate], dict[int, dict[str, Estimate]]]:
    """({metric: its value and interval}, the same of each class against the rest) of more than two
    classes. The bounds of a macro average are the averages of the classes' bounds: it is as wide as
    if all classes erred together.

    Args:
      labels: int [N], class indices.
      logits, log_odds: float64 [N, C], the second of each class against the rest.
      groups, level, kind: as of `binary_estimates`.
    """
    patients = None if groups is None else patient_numbers(groups, len(labels))
    fewest = 0 if patients is None else fewest_patients(labels, patients)
    chosen = logits.argmax(axis=1)
    by_class: dict[int, dict[str, Estimate]] = {}
    for c in range(logits.shape[1]):
        sample = Sample(labels == c, log_odds[:, c], chosen == c, patients, fewest, level, kind)
        intervals = {
            "auroc": auroc_interval(labels == c, log_odds[:, c], groups, level=level, kind=kind),
            "average_precision": sample.average_precision(),
            **sample.of_decisions(),
        }
        values = class_measures(labels == c, log_odds[:, c], chosen == c)
        by_class[c] = {name: Estimate(values[name], intervals[name]) for name in intervals}
    means = measures(labels, logits)
    right = chosen == labels
    whole = Sample(right, log_odds[:, 0], right, patients, fewest, level, kind)

    def macro(name: str) -> Interval:
        return _mean_interval([part[name] for part in by_class.values()], whole.note)

    found = {
        "accuracy": whole.share(np.ones(len(labels), bool), right),
        "balanced_accuracy": macro("sensitivity"),
        **{name: macro(name) for name in ("auroc", "average_precision", "f1")},
        **whole.jackknifed(set(JACKKNIFED) & set(means) - {"average_precision"}, labels, logits),
        **{name: no_interval(why) for name, why in _NONE.items()},
    }
    return {name: Estimate(means[name], found[name]) for name in means}, by_class


def _mean_interval(estimates: Sequence[Estimate], note: str) -> Interval:
    """The averages of the bounds; none where one of them has none."""
    intervals = [estimate.interval for estimate in estimates]
    if missing := [interval for interval in intervals if not interval.is_known]:
        return missing[0]
    return Interval(
        float(np.mean([interval.low for interval in intervals])),
        float(np.mean([interval.high for interval in intervals])),
        "mean of the classes' " + " and ".join(sorted({i.method for i in intervals})),
        note,
    )
