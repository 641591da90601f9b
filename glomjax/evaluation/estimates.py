"""Every metric of two classes with an interval that counts patients.

Shares of right decisions have Wilson's interval of the number of patches divided by the design
effect of their patients; what combines several of them combines their intervals; what has no such
form has a jackknife over patients, on a scale on which it is nearly symmetric. Where simulation
found too low a coverage there is none (`benchmarks/interval_coverage.py`).
"""

import dataclasses
import math
from collections.abc import Collection, Sequence

import numpy as np

from glomjax.evaluation.auroc import auroc_interval
from glomjax.evaluation.calibration import predicted_classes
from glomjax.evaluation.intervals import (
    FISHER,
    INDEPENDENT,
    LOGIT,
    PLAIN,
    Interval,
    Scale,
    few,
    jackknife_on_scale,
    no_interval,
    patient_numbers,
    quantile,
    wilson,
)
from glomjax.evaluation.measures import (
    MEASURES,
    average_precision,
    class_measures,
    measures,
    measures_without,
)
from glomjax.evaluation.similarity import (
    USUAL_CORRELATION,
    USUAL_OF_ERRORS,
    USUAL_WEIGHT,
    Members,
    correlation,
    correlation_of_errors,
    normal_quantile,
    normal_scores,
    shared_correlation,
)

_JACKKNIFED: dict[str, Scale] = {
    "average_precision": LOGIT,
    "mcc": FISHER,
    "brier": LOGIT,
    "calibration_slope": PLAIN,
    "calibration_intercept": PLAIN,
}
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
    sample = _Sample(positive, log_odds, decided, patients, level, kind)
    values = measures(labels, log_odds[:, None], threshold)
    found = {
        "auroc": auroc_interval(labels, log_odds, groups, level=level, kind=kind),
        **sample.of_decisions(),
        "accuracy": sample.accuracy(),
        "balanced_accuracy": sample.balanced_accuracy(),
        **sample.jackknifed(_JACKKNIFED, labels, log_odds[:, None], threshold),
        **{name: no_interval(why) for name, why in _NONE.items()},
    }
    estimates = {name: Estimate(values[name], found[name]) for name in MEASURES}
    if prevalence is not None:
        estimates |= {
            "ppv_at_prevalence": sample.predictive_value(True, prevalence),
            "npv_at_prevalence": sample.predictive_value(False, 1 - prevalence),
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
    chosen = logits.argmax(axis=1)
    by_class: dict[int, dict[str, Estimate]] = {}
    for c in range(logits.shape[1]):
        sample = _Sample(labels == c, log_odds[:, c], chosen == c, patients, level, kind)
        intervals = {
            "auroc": auroc_interval(labels == c, log_odds[:, c], groups, level=level, kind=kind),
            "average_precision": sample.average_precision(),
            **sample.of_decisions(),
        }
        values = class_measures(labels == c, log_odds[:, c], chosen == c)
        by_class[c] = {name: Estimate(values[name], intervals[name]) for name in intervals}
    means = measures(labels, logits)
    whole = _Sample(chosen == labels, log_odds[:, 0], chosen == chosen, patients, level, kind)
    found = {
        "accuracy": whole.share(np.ones(len(labels), bool), chosen == labels),
        "balanced_accuracy": _mean_interval([by_class[c]["sensitivity"] for c in by_class]),
        **{
            name: _mean_interval([by_class[c][name] for c in by_class])
            for name in ("auroc", "average_precision", "f1")
        },
        **whole.jackknifed(set(_JACKKNIFED) & set(means) - {"average_precision"}, labels, logits),
        **{name: no_interval(why) for name, why in _NONE.items()},
    }
    return {name: Estimate(means[name], found[name]) for name in means}, by_class


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

    def of_decisions(self) -> dict[str, Interval]:
        """Of what is counted of one class."""
        return {
            "sensitivity": self.of_class(True),
            "specificity": self.of_class(False),
            "ppv": self.share(self.decided, self.positive),
            "npv": self.share(~self.decided, ~self.positive),
            "f1": self.f1(),
        }

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
            density *= math.exp(-(float(normal_quantile(rate)) ** 2) / 2) / math.sqrt(2 * math.pi)
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

    def predictive_value(self, of_positive: bool, prevalence: float) -> Estimate:
        """The PPV, or the NPV, where so large a share of patches is of that class, from the
        intervals of the share r that is right of the class and of the share f that is taken for it
        of the other one: its odds are those of the prevalence times r / f, and the squares of the
        distances of their logarithms add up (Zou and Donner 2008)."""
        own, other = self.of_class(of_positive), self.of_class(not of_positive)
        right = (self.decided == self.positive).astype(np.float64)
        part = self.positive == of_positive
        if not (own.is_known and other.is_known):
            missing = other if own.is_known else own
            if not part.any() or part.all():
                return Estimate(math.nan, missing)
        r, f = float(right[part].mean()), float(1 - right[~part].mean())
        odds = prevalence / (1 - prevalence)
        value = odds * r / (odds * r + f) if r or f else math.nan
        if math.isnan(value):
            return Estimate(value, no_interval("no patch is taken for this class"))
        if not (own.is_known and other.is_known):
            return Estimate(value, missing)
        # None of so many is not none at all.
        r = float((right[part].sum() + 0.5) / (part.sum() + 1))
        f = float(((1 - right[~part]).sum() + 0.5) / ((~part).sum() + 1))
        taken_low, taken_high = 1 - other.high, 1 - other.low
        middle = math.log(odds * r / f)

        def distance(bound: float, rate: float) -> float:
            return math.log(bound / rate) if bound > 0 else -math.inf

        below = math.hypot(distance(own.low, r), distance(taken_high, f))
        above = math.hypot(distance(own.high, r), distance(taken_low, f))
        back = LOGIT[1]
        low, high = min(back(middle - below), value), max(back(middle + above), value)
        return Estimate(value, dataclasses.replace(own, low=low, high=high))

    def average_precision(self) -> Interval:
        """Of the average precision of one class against the rest."""

        def without(kept: np.ndarray) -> float:
            return average_precision(self.positive[kept], self.log_odds[kept])

        everything = np.ones(len(self.positive), bool)
        parts = self._parts()
        others = [without(parts != p) for p in range(int(parts.max()) + 1)]
        return self._jackknife("average_precision", without(everything), np.array(others))

    def jackknifed(
        self,
        names: Collection[str],
        labels: np.ndarray,
        logits: np.ndarray,
        threshold: float = 0.5,
    ) -> dict[str, Interval]:
        """The metrics of these names, which have a jackknife over patients."""
        whole, without = measures_without(labels, logits, self._parts(), threshold)
        return {name: self._jackknife(name, whole[name], without[name]) for name in names}

    def _parts(self) -> np.ndarray:
        """int [N]: what a jackknife leaves out in turn."""
        return patient_numbers(None, len(self.positive)) if self.patient is None else self.patient

    def _jackknife(self, name: str, value: float, without: np.ndarray) -> Interval:
        return jackknife_on_scale(
            _JACKKNIFED[name],
            value,
            without,
            np.bincount(self._parts()),
            kind=None if self.patient is None else self.kind,
            level=self.level,
        )

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


def _mean_interval(estimates: Sequence[Estimate]) -> Interval:
    """The averages of the bounds; none where one of them has none."""
    intervals = [estimate.interval for estimate in estimates]
    if missing := [interval for interval in intervals if not interval.is_known]:
        return missing[0]
    return Interval(
        float(np.mean([interval.low for interval in intervals])),
        float(np.mean([interval.high for interval in intervals])),
        f"mean of the classes' {intervals[0].method}",
        max((interval.note for interval in intervals), key=len),
    )
