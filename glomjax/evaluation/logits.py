"""Logits and what they mean: probabilities, log-odds, and whether they fit labels and classes.

A binary model gives one logit per example (that of the positive class, `classes[1]`) or two; with
more classes it gives one per class. Ranking always uses log-odds, never probabilities: a sigmoid
saturates and would tie scores that differ.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from glomjax.errors import UserError


def probabilities(logits: ArrayLike) -> np.ndarray:
    """Class probabilities, float64 [N, C], of logits [N, K].

    K = 1 is the logit of the positive class and gives two columns (1 - p, p); K > 1 is a softmax.

    Raises:
      UserError: a logit is NaN or infinite, or there is no example.
    """
    z = checked_logits(logits)
    if z.shape[1] == 1:
        z = np.concatenate([np.zeros_like(z), z], axis=1)  # the sigmoid is a softmax over (0, z)
    exponentials = np.exp(z - z.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def log_odds_of(logits: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)) of every class, [N, C], without computing p."""
    if logits.shape[1] == 1:
        return np.concatenate([-logits, logits], axis=1)
    rest = [
        np.logaddexp.reduce(np.delete(logits, c, axis=1), axis=1) for c in range(logits.shape[1])
    ]
    return logits - np.stack(rest, axis=1)


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


def checked_logits(logits: ArrayLike) -> np.ndarray:
    """float64 [N, K]; UserError where they are no finite numbers, or none."""
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


def refuse_probabilities(z: np.ndarray) -> None:
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
