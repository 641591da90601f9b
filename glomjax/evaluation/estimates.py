"""Every metric of two classes with an interval that counts patients.

Shares of right decisions have Wilson's interval of the number of patches divided by the design
effect of their patients; what combines several of them combines their intervals; what has no such
form has a jackknife over patients, on a scale on which it is nearly symmetric. Where simulation
found too low a coverage there is none (`benchmarks/interval_coverage.py`).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import ndtri

from glomjax.evaluation.auroc import auroc_interval
from glomjax.evaluation.intervals import (
    INDEPENDENT,
    Interval,
    few,
    jackknife_interval,
    no_interval,
    patient_numbers,
    quantile,
    wilson,
)
from glomjax.evaluation.measures import MEASURES, measures, measures_without
from glomjax.evaluation.similarity import (
    USUAL_CORRELATION,
    USUAL_OF_ERRORS,
    USUAL_WEIGHT,
    Members,
    correlation,
    correlation_of_errors,
    normal_scores,
    shared_correlation,
)

# (to a scale without limits, back from there)
Scale = tuple[Callable[[float], float], Callable[[float], float]]
_LOGIT: Scale = (lambda x: math.log(x / (1 - x)), lambda y: 0.5 * (1 + math.tanh(y / 2)))
_FISHER: Scale = (math.atanh, math.tanh)
_ROOT: Scale = (math.sqrt, lambda y: max(y, 0.0) ** 2)
_PLAIN: Scale = (lambda x: x, lambda y: y)
_JACKKNIFED: dict[str, Scale] = {
    "average_precision": _LOGIT,
    "mcc": _FISHER,
    "brier": _ROOT,
    "loss": _ROOT,
    "calibration_slope": _PLAIN,
    "calibration_intercept": _PLAIN,
}
_NONE = {"ece": "it is larger than the true one in every sample, the more the fewer the patches"}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A metric of a sample, and between which limits that of other patients may lie."""

    value: float
    interval: Interval


def binary_estimates(
    labels: np.ndarray,
    log_odds: np.ndarray,
    groups: Sequence[str] | np.ndarray | None = None,
    *,
    threshold: float = 0.5,
    level: float = 0.95,
    kind: str = "patient",
) -> dict[str, Estimate]:
    """{metric: its value and interval}, the metrics of `MEASURES`.

    Args:
      labels: int [N], 1 for the positive class and 0 for the negative one.
      log_odds: float64 [N], of the positive class.
      groups: one patient per example [N], or None, where examples are taken for independent.
      threshold: the probability above which an example is positive.
      level: coverage.
      kind: what a group is, for notes.
    """
    positive = np.asarray(labels) == 1
    patients = None if groups is None else patient_numbers(groups, len(positive))
    decided = log_odds > math.log(threshold / (1 - threshold))
    sample = _Sample(positive, log_odds, decided, patients, level, kind)
    values = measures(labels, log_odds[:, None], threshold)
    found = {
        "auroc": auroc_interval(labels, log_odds, groups, level=level, kind=kind),
        "sensitivity": sample.of_class(True),
        "specificity": sample.of_class(False),
        "accuracy": sample.accuracy(),
        "balanced_accuracy": sample.balanced_accuracy(),
        "ppv": sample.share(decided, positive),
        "npv": sample.share(~decided, ~positive),
        "f1": sample.f1(),
    }
    found |= sample.jackknifed(labels, threshold)
    found |= {name: no_interval(why) for name, why in _NONE.items()}
    return {name: Estimate(values[name], found[name]) for name in MEASURES}


@dataclasses.dataclass(frozen=True)
class _Sample:
    """Decisions on patches of patients.

    Attributes:
      positive, log_odds, decided: of each patch [N]: its class, its score, and whether it was
        taken for positive.
      patient: the number of its patient [N], or None where patches are taken for independent.
      level, kind: as of `binary_estimates`.
    """

    positive: np.ndarray
    log_odds: np.ndarray
    decided: np.ndarray
    patient: np.ndarray | None
    level: float
    kind: str

    @property
    def patients(self) -> int:
        """How many there are."""
        assert self.patient is not None
        return int(self.patient.max()) + 1

    def of_class(self, positive: bool) -> Interval:
        """Of the share of a class that is right, where the correlation is that of its scores."""
        part = self.positive == positive
        right = (self.decided == self.positive)[part]
        if self.patient is None or not part.any():
            return self._wilson(right, None)
        members = Members.of(self.patient[part], self.patients)
        alike = self._correlation_of_scores([part], members.freedom)
        rate = (right.sum() + 0.5) / (len(right) + 1)  # none wrong is none of so many
        effect = 1 + (members.mean_size - 1) * correlation_of_errors(rate, alike)
        return self._wilson(right, members, effect)

    def share(self, among: np.ndarray, which: np.ndarray) -> Interval:
        """Of the share of some patches that are of a kind, where the correlation is their own."""
        chosen = which[among]
        if self.patient is None or not among.any():
            return self._wilson(chosen, None)
        members = Members.of(self.patient[among], self.patients)
        parts = [(chosen.astype(np.float64), self.patient[among])]
        alike = correlation(parts, self.patients, USUAL_OF_ERRORS, members.freedom)
        return self._wilson(chosen, members, 1 + (members.mean_size - 1) * alike)

    def accuracy(self) -> Interval:
        """Of the share of all patches that are right. Its variance has three parts: of each class,
        of what moves both, which makes one class right where the other is wrong, and of patients
        who have more of the class that is easier."""
        right = self.decided == self.positive
        if self.patient is None or self.positive.all() or not self.positive.any():
            return self.share(np.ones(len(right), bool), right)
        everybody = Members.of(self.patient, self.patients)
        parts = (self.positive, ~self.positive)
        alike = self._correlation_of_scores(parts, everybody.freedom)
        shared = shared_correlation(
            self._normal_scores(), self.positive, self.patient, self.patients, alike
        )
        variance, density, rates, counts = 0.0, 1.0, [], []
        for part in parts:
            members = Members.of(self.patient[part], self.patients)
            rate = float((right[part].sum() + 0.5) / (part.sum() + 1))
            effect = 1 + (members.mean_size - 1) * correlation_of_errors(rate, alike)
            variance += members.total * rate * (1 - rate) * effect
            density *= math.exp(-(float(ndtri(rate)) ** 2) / 2) / math.sqrt(2 * math.pi)
            rates.append(rate)
            counts.append(members.counts)
        variance -= 2 * shared * density * float(counts[0] @ counts[1])
        total = everybody.total
        spread = counts[0] - everybody.counts * counts[0].sum() / total
        variance += (rates[0] - rates[1]) ** 2 * float(spread @ spread)
        rate = float((right.sum() + 0.5) / (total + 1))
        return self._wilson(right, everybody, variance / (total * rate * (1 - rate)))

    def balanced_accuracy(self) -> Interval:
        """Of the mean of two shares, from their intervals (Zou and Donner 2008, Stat Med
        27:1693-1702)."""
        both = [self.of_class(True), self.of_class(False)]
        if missing := [part for part in both if not part.is_known]:
            return missing[0]
        right = self.decided == self.positive
        rates = [float(right[part].mean()) for part in (self.positive, ~self.positive)]
        middle = sum(rates) / 2
        pairs = list(zip(rates, both, strict=True))
        below = math.hypot(*(rate - part.low for rate, part in pairs)) / 2
        above = math.hypot(*(part.high - rate for rate, part in pairs)) / 2
        notes = sorted({part.note for part in both if part.note})
        low, high = max(middle - below, 0.0), min(middle + above, 1.0)
        return Interval(low, high, both[0].method, notes[0] if notes else "")

    def f1(self) -> Interval:
        """2 J / (1 + J), where J is the share of true positives among the patches that are positive
        or taken for it."""
        interval = self.share(self.positive | self.decided, self.positive & self.decided)
        if not interval.is_known:
            return interval
        low, high = (2 * bound / (1 + bound) for bound in (interval.low, interval.high))
        return dataclasses.replace(interval, low=low, high=high)

    def jackknifed(self, labels: np.ndarray, threshold: float) -> dict[str, Interval]:
        """The metrics that have a jackknife over patients."""
        patient = self.patient
        parts = patient_numbers(None, len(labels)) if patient is None else patient
        if int(parts.max()) == 0:
            why = no_interval(f"one {self.kind} says nothing of others")
            return dict.fromkeys(_JACKKNIFED, why)
        whole, without = measures_without(labels, self.log_odds[:, None], parts, threshold)
        found = {}
        for name, (scaled, back) in _JACKKNIFED.items():
            try:
                value = scaled(whole[name])
                others = np.array([scaled(value) for value in without[name].tolist()])
            except (ValueError, ZeroDivisionError):  # at an end of its scale
                found[name] = no_interval("it has reached the end of its scale")
                continue
            interval, _ = jackknife_interval(
                value, others, np.bincount(parts), by_patient=patient is not None, level=self.level
            )
            if interval.is_known:
                interval = dataclasses.replace(
                    interval,
                    low=back(interval.low),
                    high=back(interval.high),
                    method=f"jackknife{'' if patient is None else f' by {self.kind}'}",
                    note=self._note(Members.of(parts, int(parts.max()) + 1)),
                )
            found[name] = interval
        return found

    def _normal_scores(self) -> np.ndarray:
        scores = np.empty(len(self.log_odds))
        for part in (self.positive, ~self.positive):
            if part.any():
                scores[part] = normal_scores(self.log_odds[part])
        return scores

    def _correlation_of_scores(self, parts: Sequence[np.ndarray], freedom: float) -> float:
        assert self.patient is not None
        scores = self._normal_scores()
        values = [(scores[part], self.patient[part]) for part in parts]
        return correlation(values, self.patients, USUAL_CORRELATION, freedom)

    def _wilson(self, which: np.ndarray, members: Members | None, effect: float = 1.0) -> Interval:
        if not len(which):
            return no_interval("there is no such patch")
        rate = float(which.mean())
        if members is None:
            low, high = wilson(rate, len(which), quantile(self.level))
            return Interval(low, high, "wilson", INDEPENDENT)
        if members.patients < 2:
            return no_interval(f"one {self.kind} says nothing of others")
        count = max(len(which) / max(effect, 1.0), 1.0)
        low, high = wilson(rate, count, quantile(self.level, members.freedom + USUAL_WEIGHT))
        return Interval(low, high, f"wilson by {self.kind}", self._note(members))

    def _note(self, members: Members) -> str:
        return INDEPENDENT if self.patient is None else few(members.patients, self.kind)
