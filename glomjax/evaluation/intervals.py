"""Confidence intervals that count patients: what is common to all metrics."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from glomjax.errors import UserError, plural

INDEPENDENT = "assumes that patches are independent"
# Below so many patients of a class an interval is called indicative.
FEW = 10
# With fewer patients a jackknife covers too little.
FEWEST_TO_LEAVE_OUT = 5
# (to a scale without limits, on which an interval is nearly symmetric; back from there)
Scale = tuple[Callable[[float], float], Callable[[float], float]]
LOGIT: Scale = (lambda x: math.log(x / (1 - x)), lambda y: 0.5 * (1 + math.tanh(y / 2)))
FISHER: Scale = (math.atanh, math.tanh)
PLAIN: Scale = (lambda x: x, lambda y: y)
# More independent examples than this are left out in so many random parts.
_MOST_PARTS = 200


@dataclasses.dataclass(frozen=True)
class Interval:
    """A confidence interval, how it was made, and what its reader should know."""

    low: float
    high: float
    method: str  # "none" where there is none, and `note` says why
    note: str = ""

    @property
    def is_known(self) -> bool:
        """Whether there is one."""
        return self.method != "none"

    def within(self, most: float) -> "Interval":
        """The same, of a difference that is at most so large."""
        return dataclasses.replace(self, low=max(self.low, -most), high=min(self.high, most))

    def to_dict(self) -> dict[str, float | str | None]:
        """JSON-ready, with None for bounds that are not known."""
        low, high = (self.low, self.high) if self.is_known else (None, None)
        return {"low": low, "high": high, "method": self.method, "note": self.note}


def no_interval(why: str) -> Interval:
    """There is none."""
    return Interval(math.nan, math.nan, "none", why)


def checked_level(level: float) -> float:
    """The coverage; UserError where it is no share."""
    if not isinstance(level, (int, float)) or not 0 < level < 1:
        raise UserError(f"level is {level!r}; it is a share between 0 and 1, such as 0.95")
    return level


def quantile(level: float, freedom: float = math.inf) -> float:
    """Student's, of both sides; the normal one without a number of degrees of freedom."""
    from scipy.special import ndtri, stdtrit  # here and below, since SciPy takes long to import

    share = (1 + level) / 2
    return float(ndtri(share) if math.isinf(freedom) else stdtrit(freedom, share))


def wilson(rate: float, count: float, q: float) -> tuple[float, float]:
    """Wilson's score interval (1927, J Am Stat Assoc 22:209-212) of a share of so many."""
    center = (rate + q * q / (2 * count)) / (1 + q * q / count)
    spread = rate * (1 - rate) / count + q * q / (4 * count * count)
    half = q / (1 + q * q / count) * math.sqrt(spread)
    # Where all or none are counted a bound is that share itself, but for rounding.
    return min(max(center - half, 0.0), rate), max(min(center + half, 1.0), rate)


def newcombe(area: float, positives: float, negatives: float, q: float) -> tuple[float, float]:
    """Newcombe's score interval of an AUROC (2006, Stat Med 25:559-573, method 5).

    The bounds are the areas t with |t - area| = q sqrt(V(t)), where V is Hanley and McNeil's
    variance with both numbers less one replaced by half of their sum less one.
    """
    half = (positives + negatives) / 2 - 1

    def excess(t: float) -> float:
        shape = 1 + half * ((1 - t) / (2 - t) + t / (1 + t))
        return (t - area) ** 2 - q * q * t * (1 - t) / (positives * negatives) * shape

    def root(inside: float, outside: float) -> float:
        for _ in range(50):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if excess(middle) < 0 else (inside, middle)
        return outside

    # At an area of 0 or 1 the excess is zero at the area itself, which is that bound.
    low = root(area, 0.0) if area > 0 else 0.0
    high = root(area, 1.0) if area < 1 else 1.0
    return low, high


def patient_numbers(groups: Sequence[str] | np.ndarray | None, count: int) -> np.ndarray:
    """int [N]: the number of each example's patient, from 0; without patients each example is one,
    or, where they are many, is in one of 200 random parts."""
    if groups is not None:
        if len(groups) != count:
            raise UserError(
                f"{len(groups)} patients were given for {count} examples; give one per example"
            )
        if np.ndim(groups) != 1 or any(_is_missing(name) for name in groups):
            raise UserError("a patient has no name; give one for each example, or groups=None")
        return np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    if count <= _MOST_PARTS:
        return np.arange(count)
    return np.random.default_rng(0).permutation(count) % _MOST_PARTS


def _is_missing(name: object) -> bool:
    return name is None or name != name or name == ""  # NaN is not itself


def fewest_patients(labels: np.ndarray, patient: np.ndarray) -> int:
    """How many patients the class has that the fewest have.

    Args:
      labels: [N], of each example its class.
      patient: int [N], the number of its patient.
    """
    return min(len(np.unique(patient[labels == label])) for label in np.unique(labels))


def few(patients: int, kind: str) -> str:
    """The note on so many patients of a class, "" where they are enough."""
    if patients >= FEW:
        return ""
    return f"indicative: {patients} {kind if patients == 1 else plural(kind)}"


def paired_difference(
    measure: Callable[[np.ndarray, np.ndarray], float],
    labels: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    groups: Sequence[str] | np.ndarray | None = None,
    *,
    kind: str = "patient",
    level: float = 0.95,
) -> tuple[float, Interval]:
    """How much better a metric is of the first predictions than of the second ones of the same
    examples, with its interval: that of `jackknife_interval`.

    Args:
      measure: of labels [N] and predictions [N, ...]; NaN where it is undefined.
      labels, first, second: [N] and twice [N, ...].
      groups: one patient per example [N], or None, where examples are independent.
      kind: what a group is, for methods and notes.
      level: coverage.
    """
    patient = patient_numbers(groups, len(labels))
    sizes = np.bincount(patient)
    difference = measure(labels, first) - measure(labels, second)
    without = []
    if not math.isnan(difference) and len(sizes) > 1:
        for left_out in range(len(sizes)):
            kept = patient != left_out
            without.append(measure(labels[kept], first[kept]) - measure(labels[kept], second[kept]))
    interval, _ = jackknife_interval(
        difference,
        np.array(without),
        sizes,
        means_estimated(labels, patient),
        kind=None if groups is None else kind,
        identical=np.array_equal(first, second),
        level=level,
    )
    return difference, interval


def jackknife_interval(
    difference: float,
    without: np.ndarray,
    sizes: np.ndarray,
    means: int = 1,
    *,
    kind: str | None = "patient",
    identical: bool = False,
    level: float = 0.95,
) -> tuple[Interval, float]:
    """An interval of a paired difference from its values without each patient, and the two-sided p
    value of its being 0.

    The squared deviations are from the difference itself, the form that errs on the wide side
    (MacKinnon, Nielsen and Webb 2023, J Appl Econometrics 38:671-694, CV3). Where a few patients
    have most of the examples, fewer patients than there are decide the variance: the degrees of
    freedom of Student's quantile are Kish's effective number of patients, (sum n)^2 / sum n^2,
    less `means`, and at least 1. `benchmarks/difference_coverage.py` prints what it covers.

    Args:
      difference: of all examples; NaN where it is undefined.
      without: the same without each patient in turn [K].
      sizes: examples of each patient [K].
      means: as `means_estimated` gives it.
      kind: what a group is, for methods and notes; None where the parts that are left out are of
        independent examples.
      identical: both predictions are the same, so that there is no difference at all.
      level: coverage.

    Returns:
      The interval, and the p value; without an interval it is NaN.
    """
    from scipy.special import stdtr

    level, count = checked_level(level), len(sizes)
    if math.isnan(difference):
        return no_interval("the metric is not defined here"), math.nan
    if count < 2:
        return no_interval(f"one {kind or 'patch'} says nothing of others"), math.nan
    if np.isnan(without).any():
        left_out = "some patches" if kind is None else f"one {kind}"
        return no_interval(f"without {left_out} the metric is not defined"), math.nan
    method = "jackknife" if kind is None else f"jackknife by {kind}"
    if identical:
        return Interval(difference, difference, method, "the predictions are the same"), 1.0
    error = math.sqrt((count - 1) / count * float(((without - difference) ** 2).sum()))
    if np.ptp(without) < 1e-12:
        return no_interval(f"it is the same whichever {kind or 'patch'} is left out"), math.nan
    freedom = max(float(sizes.sum() ** 2 / (sizes.astype(float) ** 2).sum()) - means, 1.0)
    half = quantile(level, freedom) * error
    p = 2 * float(stdtr(freedom, -abs(difference) / error))
    return Interval(difference - half, difference + half, method), p


def means_estimated(labels: np.ndarray, patient: np.ndarray) -> int:
    """How many classes are samples of patients by themselves: all of them where each patient has
    one class alone, and else one sample has them all.

    Args:
      labels: int [N], class indices.
      patient: int [N], the number of each example's patient.
    """
    pairs = np.unique(patient * (int(labels.max()) + 1) + labels)
    return len(np.unique(labels)) if len(pairs) == len(np.unique(patient)) else 1


def jackknife_on_scale(
    scale: Scale,
    value: float,
    without: np.ndarray,
    sizes: np.ndarray,
    *,
    fewest: int = FEW,
    kind: str | None = "patient",
    level: float = 0.95,
) -> Interval:
    """The interval of a metric from its values without each patient.

    Args:
      scale: on which it is computed.
      value: of all examples.
      without: the same without each patient in turn [K].
      sizes: examples of each patient [K].
      fewest: patients that a class has, for the note.
      kind: what a group is, for method and note; None where the parts that are left out are of
        independent examples.
      level: coverage.
    """
    if kind is not None and len(sizes) < 2:
        return no_interval(f"one {kind} says nothing of others")
    if kind is not None and len(sizes) < FEWEST_TO_LEAVE_OUT:
        return no_interval(
            f"fewer than {FEWEST_TO_LEAVE_OUT} {plural(kind)}: so few give too narrow a one"
        )
    to, back = scale
    try:
        middle, others = to(value), np.array([to(x) for x in without.tolist()])
    except (ValueError, ZeroDivisionError):
        part = "some patches" if kind is None else f"one {kind}"
        return no_interval(f"it is as good, or as bad, as can be, with or without {part}")
    interval, _ = jackknife_interval(middle, others, sizes, kind=kind, level=level)
    if not interval.is_known:
        return interval
    return Interval(
        back(interval.low),
        back(interval.high),
        "jackknife" if kind is None else f"jackknife by {kind}",
        INDEPENDENT if kind is None else few(fewest, kind),
    )
