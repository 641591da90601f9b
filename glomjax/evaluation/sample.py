"""The intervals of one class's decisions on patches of patients.

Shares of right decisions have Wilson's interval of the number of patches divided by the design
effect of their patients; what combines several of them combines their intervals; what has no such
form has a jackknife over patients, on a scale on which it is nearly symmetric.
"""

import dataclasses
import math
from collections.abc import Collection, Sequence

import numpy as np

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
from glomjax.evaluation.measures import average_precision, measures_without
from glomjax.evaluation.similarity import (
    USUAL_CORRELATION,
    USUAL_OF_ERRORS,
    USUAL_WEIGHT,
    Members,
    correlation,
    correlation_of_errors,
    normal_quantile,
    normal_scores_by_class,
    shared_correlation,
)

JACKKNIFED: dict[str, Scale] = {
    "average_precision": LOGIT,
    "mcc": FISHER,
    "brier": LOGIT,
    "calibration_slope": PLAIN,
    "calibration_intercept": PLAIN,
}
# Of more than two classes the Brier score is a sum, at most 2.
_OF_MANY: Scale = (lambda x: LOGIT[0](x / 2), lambda y: 2 * LOGIT[1](y))


@dataclasses.dataclass(frozen=True)
class Sample:
    """Decisions on patches of patients.

    Attributes:
      positive, log_odds, decided: of each patch [N]: its class, its score, and whether it was
        taken for positive.
      patient: the number of its patient [N], or None where patches are taken for independent.
      fewest: how many patients the class has that the fewest have.
      level: coverage.
      kind: what a patient is called, for methods and notes.
    """

    positive: np.ndarray
    log_odds: np.ndarray
    decided: np.ndarray
    patient: np.ndarray | None
    fewest: int
    level: float
    kind: str

    @property
    def note(self) -> str:
        """What a reader should know of a metric of all classes."""
        return INDEPENDENT if self.patient is None else few(self.fewest, self.kind)

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
        return self._wilson(right, members, effect, few(members.patients, self.kind))

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
        scores = normal_scores_by_class(self.log_odds, self.positive)
        shared = shared_correlation(scores, self.positive, self.patient, self.patients, alike)
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
        low, high = max(middle - below, 0.0), min(middle + above, 1.0)
        return Interval(low, high, both[0].method, self.note)

    def f1(self) -> Interval:
        """2 J / (1 + J), where J is the share of true positives among the patches that are positive
        or taken for it."""
        interval = self.share(self.positive | self.decided, self.positive & self.decided)
        if not interval.is_known:
            return interval
        low, high = (2 * bound / (1 + bound) for bound in (interval.low, interval.high))
        return dataclasses.replace(interval, low=low, high=high)

    def predictive_value(self, of_positive: bool, prevalence: float) -> tuple[float, Interval]:
        """(value, interval) of the PPV, or the NPV, where so large a share of patches is of that
        class, from the intervals of the share r that is right of the class and of the share f that
        is taken for it of the other one: its odds are those of the prevalence times r / f, and the
        squares of the distances of their logarithms add up (Zou and Donner 2008)."""
        own, other = self.of_class(of_positive), self.of_class(not of_positive)
        right = (self.decided == self.positive).astype(np.float64)
        part = self.positive == of_positive
        if not (own.is_known and other.is_known):
            missing = other if own.is_known else own
            if not part.any() or part.all():
                return math.nan, missing
        r, f = float(right[part].mean()), float(1 - right[~part].mean())
        odds = prevalence / (1 - prevalence)
        value = odds * r / (odds * r + f) if r or f else math.nan
        if math.isnan(value):
            return value, no_interval("no patch is taken for this class")
        if not (own.is_known and other.is_known):
            return value, missing
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
        return value, dataclasses.replace(own, low=low, high=high, note=self.note)

    def average_precision(self) -> Interval:
        """Of the average precision of one class against the rest."""

        def without(kept: np.ndarray) -> float:
            return average_precision(self.positive[kept], self.log_odds[kept])

        everything = np.ones(len(self.positive), bool)
        parts = self._parts()
        others = [without(parts != p) for p in range(int(parts.max()) + 1)]
        return self._jackknife(LOGIT, without(everything), np.array(others))

    def jackknifed(
        self,
        names: Collection[str],
        labels: np.ndarray,
        logits: np.ndarray,
        threshold: float = 0.5,
    ) -> dict[str, Interval]:
        """The metrics of these names, which have a jackknife over patients."""
        whole, without = measures_without(labels, logits, self._parts(), threshold)
        scales = JACKKNIFED if logits.shape[1] < 3 else {**JACKKNIFED, "brier": _OF_MANY}
        return {name: self._jackknife(scales[name], whole[name], without[name]) for name in names}

    def _parts(self) -> np.ndarray:
        """int [N]: what a jackknife leaves out in turn."""
        return patient_numbers(None, len(self.positive)) if self.patient is None else self.patient

    def _jackknife(self, scale: Scale, value: float, without: np.ndarray) -> Interval:
        return jackknife_on_scale(
            scale,
            value,
            without,
            np.bincount(self._parts()),
            fewest=self.fewest,
            kind=None if self.patient is None else self.kind,
            level=self.level,
        )

    def _correlation_of_scores(self, parts: Sequence[np.ndarray], freedom: float) -> float:
        assert self.patient is not None
        scores = normal_scores_by_class(self.log_odds, self.positive)
        values = [(scores[part], self.patient[part]) for part in parts]
        return correlation(values, self.patients, USUAL_CORRELATION, freedom)

    def _wilson(
        self,
        which: np.ndarray,
        members: Members | None,
        effect: float = 1.0,
        note: str | None = None,
    ) -> Interval:
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
        return Interval(low, high, f"wilson by {self.kind}", self.note if note is None else note)
