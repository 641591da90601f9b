"""What is fitted on a validation split before a test is looked at: temperature, recalibration and
the threshold of a decision."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize, minimize_scalar

# Logits that separate the classes of a validation split are best made infinite: this is as far as
# a temperature goes.
_TEMPERATURES = (0.1, 10.0)


def fit_temperature(labels: ArrayLike, logits: ArrayLike) -> float:
    """The number by which logits are divided so that their mean cross-entropy is least (Guo et al.
    2017, ICML), within 0.1 and 10. It changes no ranking and no most probable class.

    Args:
      labels: int [N], class indices.
      logits: float [N, K], as for `probabilities`.
    """
    y = np.asarray(labels, dtype=np.int64)
    z = _two_columns(logits)

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
    y, z = np.asarray(labels, dtype=bool), np.asarray(logits, dtype=np.float64)
    positives, negatives = int(y.sum()), int((~y).sum())
    targets = np.where(y, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    center, scale = z.mean(), max(float(z.std()), 1e-12)
    x = (z - center) / scale

    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        fitted = line[0] * x + line[1]
        error = 0.5 * (1 + np.tanh(fitted / 2)) - targets
        value = np.logaddexp(0, fitted) - targets * fitted
        return float(value.mean()), np.array([(error * x).mean(), error.mean()])

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS")
    slope = float(found.x[0]) / scale
    return slope, float(found.x[1]) - slope * float(center)


def _two_columns(logits: ArrayLike) -> np.ndarray:
    z = np.asarray(logits, dtype=np.float64)
    return np.concatenate([np.zeros_like(z), z], axis=1) if z.shape[1] == 1 else z
