"""What is fitted on a validation split before a test is looked at: temperature, recalibration and
the threshold of a decision; and how a temperature and a threshold are applied."""

import dataclasses
import math
import numbers
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from glomjax.errors import UserError, argument, shown
from glomjax.evaluation.logits import checked_labels, checked_logits, log_odds_of

# Logits that separate the classes of a validation split are best made infinite: this is as far as
# a temperature goes.
_TEMPERATURES = (0.1, 10.0)
FIXED = "0.5"  # the rule that looks at no example


@dataclasses.dataclass(frozen=True)
class Decision:
    """How the logits of a network become a decision, as `fit_decision` has found it.

    Attributes:
      temperature: by which logits are divided.
      threshold: the probability, after that, above which an example is positive.
      rule: by which the threshold was chosen.
      notes: a sentence each on what a reader of results should know.
    """

    temperature: float = 1.0
    threshold: float = 0.5
    rule: str = FIXED
    notes: tuple[str, ...] = ()


def fit_decision(
    labels: ArrayLike, logits: np.ndarray, rule: str, *, temperature: bool
) -> Decision:
    """Temperature and threshold by a validation split.

    Where no threshold can be chosen there, it is 0.5, and rule and notes say so: a run that has
    trained for hours does not end over it.

    Args:
      labels: int [N], class indices.
      logits: float32 [N, K], as for `probabilities`.
      rule: of the threshold, as for `choose_threshold`; `FIXED` for other than two classes.
      temperature: whether to fit one.
    """
    y, notes = np.asarray(labels, dtype=np.int64), []
    number, threshold = 1.0, 0.5
    if temperature:
        number = fit_temperature(y, logits)
        notes.append(
            f"The logits are divided by {number:.4g}, the temperature that fits the validation."
        )
        if min(number / _TEMPERATURES[0], _TEMPERATURES[1] / number) < 1.001:
            notes[-1] += (
                " That is as far as it goes: the validation has too few errors, or nothing but "
                "errors, for a temperature, and the probabilities mean little."
            )
    if rule != FIXED:
        log_odds = log_odds_of(checked_logits(apply_temperature(logits, number)))[:, 1]
        try:
            threshold = choose_threshold(y, log_odds, rule)
            positive = log_odds > _cut(threshold)
            sensitivity, specificity = positive[y == 1].mean(), (~positive)[y == 0].mean()
            notes.append(
                f"Positive is a probability above {probability_text(threshold)}, by the rule "
                f"{rule}: on the validation, where it was chosen, that has sensitivity "
                f"{sensitivity:.3f} and specificity {specificity:.3f}."
            )
        except UserError as error:
            notes.append(f"The threshold is 0.5 in place of one by the rule {rule}: {error}.")
            rule = f"{FIXED}, since the validation allows none by the rule {rule}"
    return Decision(number, threshold, rule, tuple(notes))


def parse_rule(rule: str) -> tuple[str, float]:
    """(`FIXED`, "youden", "sensitivity" or "specificity"; the value that is stated, else 0).

    Raises:
      UserError: it is none of these.
    """
    rule = str(rule)
    name, _, value = rule.partition("=")
    if rule in (FIXED, "youden"):
        return rule, 0.0
    if (
        name in ("sensitivity", "specificity")
        and re.fullmatch(r"0?\.\d{1,9}|1|1\.0{1,9}", value, re.ASCII)
        and float(value) > 0
    ):
        return name, float(value)
    raise UserError(
        f"the rule of a threshold is {shown(rule)}; it is '{FIXED}', 'youden', 'sensitivity=VALUE' "
        "or 'specificity=VALUE' with a value above 0 and at most 1, such as 'sensitivity=0.95'"
    )


def choose_threshold(labels: ArrayLike, log_odds: ArrayLike, rule: str) -> float:
    """The probability of the positive class above which an example is positive, by a rule.

    It lies midway, in log-odds, between two neighbouring scores, or one unit beyond all of them, so
    that no example lies on it. Youden's (1950, Cancer 3:32-35) has the largest sum of sensitivity
    and specificity, and of several the one nearest to 0.5; a stated sensitivity has the highest
    threshold that reaches it, a stated specificity the lowest. Examples of equal score are on one
    side of it.

    Probabilities near 1 have few digits, and beyond log-odds of 37 none: what is chosen from are
    the thresholds that are numbers, each judged by what it does.

    Args:
      labels: int [N], 1 for the positive class and 0 for the negative one.
      log_odds: float [N], of the positive class.
      rule: "0.5", "youden", or "sensitivity=0.95" and "specificity=0.9" with other values.

    Raises:
      UserError: there is no such rule; a class is absent; scores that are not finite; no threshold
        tells the classes apart better than chance; or none that is a number reaches the value.
    """
    name, target = parse_rule(rule)
    if name == FIXED:
        return 0.5
    positive, scores = np.asarray(labels, dtype=bool), np.asarray(log_odds, dtype=np.float64)
    if positive.ndim != 1 or positive.shape != scores.shape:
        raise UserError(
            f"labels {positive.shape} and log-odds {scores.shape} differ in shape; give [N] twice"
        )
    if not positive.any() or positive.all():
        raise UserError("only one class is present, and a threshold needs both")
    if not np.isfinite(scores).all():
        raise UserError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} are not finite")
    levels = np.unique(scores)
    between = levels[:-1] + np.diff(levels) / 2
    cuts = np.concatenate([levels[:1] - 1, between, levels[-1:] + 1])
    small = np.exp(-np.abs(cuts))
    thresholds = np.unique(np.where(cuts < 0, small, 1) / (1 + small))
    thresholds = thresholds[(thresholds > 0) & (thresholds < 1)]
    cuts = np.array([_cut(threshold) for threshold in thresholds.tolist()])
    ones, zeros = np.sort(scores[positive]), np.sort(scores[~positive])
    right_ones = len(ones) - ones.searchsorted(cuts, "right")
    right_zeros = zeros.searchsorted(cuts, "right")
    if name == "youden":
        # Whole numbers, in which equals are equal: what is right by chance is the product.
        gain = right_ones * len(zeros) + right_zeros * len(ones)
        best = np.flatnonzero(gain == gain.max()) if len(gain) else gain
        if not len(best) or gain[best[0]] <= len(ones) * len(zeros):
            raise UserError("no threshold tells the classes apart better than chance")
        return float(thresholds[best[np.abs(cuts[best]).argmin()]])
    share = right_ones / len(ones) if name == "sensitivity" else right_zeros / len(zeros)
    reached = thresholds[share >= target]
    if not len(reached):
        raise UserError(
            f"no threshold that is a number has a {name} of {target:g}, since the log-odds, "
            f"{scores.min():.3g} to {scores.max():.3g}, are too large for probabilities"
        )
    return float(reached.max() if name == "sensitivity" else reached.min())


def apply_temperature(logits: np.ndarray, temperature: float) -> np.ndarray:
    """float32 [N, K] logits divided by a temperature, always by this one division, so that a run
    and whoever predicts with its weights come to the same bits."""
    return np.divide(logits, np.float32(temperature), dtype=np.float32)


def predicted_classes(logits: ArrayLike, threshold: float = 0.5) -> np.ndarray:
    """int64 [N]: of two classes the positive one where its probability is above the threshold, of
    more the most probable one.

    Args:
      logits: float [N, K], as for `probabilities`.
      threshold: is compared as log-odds, since probabilities round to 0 and 1.

    Raises:
      UserError: it is no probability.
    """
    check_threshold(threshold)
    z = np.asarray(logits, dtype=np.float64)
    if z.shape[1] > 2:
        return z.argmax(axis=1)
    return (log_odds_of(z)[:, 1] > _cut(threshold)).astype(np.int64)


def check_threshold(threshold: float) -> None:
    """Raises UserError for what is no probability above 0 and below 1."""
    number = isinstance(threshold, numbers.Real) and not isinstance(threshold, bool)
    if not number or not 0 < threshold < 1:
        raise UserError(
            f"{argument('--threshold')} is {shown(threshold)}; it is a probability above 0 and "
            "below 1"
        )


def probability_text(probability: float) -> str:
    """Four digits of it, or all where it would read as 1."""
    text = f"{probability:.4g}"
    return text if float(text) < 1 else repr(probability)


def fit_temperature(labels: ArrayLike, logits: ArrayLike) -> float:
    """The number by which logits are divided so that their mean cross-entropy is least (Guo et al.
    2017, ICML), within 0.1 and 10. It changes no ranking and no most probable class.

    Args:
      labels: int [N], class indices.
      logits: float [N, K], as for `probabilities`.
    """
    from scipy.optimize import minimize_scalar  # which takes a second, and few need it

    z = checked_logits(logits)
    z = np.concatenate([np.zeros_like(z), z], axis=1) if z.shape[1] == 1 else z
    y = checked_labels(labels, z, [str(c) for c in range(z.shape[1])])

    def loss(log_temperature: float) -> float:
        scaled = z / np.exp(log_temperature)
        return float((np.logaddexp.reduce(scaled, axis=1) - scaled[np.arange(len(y)), y]).mean())

    low, high = np.log(_TEMPERATURES)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def fit_recalibration(
    labels: ArrayLike, logits: Sequence[float] | np.ndarray
) -> tuple[float, float]:
    """(slope, intercept) of the logistic regression of two classes on their log-odds, after which
    scores of different networks mean the same (Platt 1999, with his targets, which keep both
    finite where the classes are separated).

    Args:
      labels: int [N], 1 for the positive class and 0 for the negative one; both occur.
      logits: float [N], log-odds of the positive class.
    """
    from scipy.optimize import minimize

    y, z = np.asarray(labels, dtype=bool), np.asarray(logits, dtype=np.float64)
    positives, negatives = int(y.sum()), int((~y).sum())
    targets = np.where(y, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    center, scale = z.mean(), float(z.std())
    if not scale > 1e-9 * max(abs(float(center)), 1.0):  # they tell nothing
        share = float(targets.mean())
        return 0.0, math.log(share / (1 - share))
    x = (z - center) / scale

    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        fitted = line[0] * x + line[1]
        error = 0.5 * (1 + np.tanh(fitted / 2)) - targets
        value = np.logaddexp(0, fitted) - targets * fitted
        return float(value.mean()), np.array([(error * x).mean(), error.mean()])

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS")
    slope = float(found.x[0]) / scale
    return slope, float(found.x[1]) - slope * float(center)


def _cut(threshold: float) -> float:
    """The log-odds of a probability."""
    return math.log(threshold) - math.log1p(-threshold)
