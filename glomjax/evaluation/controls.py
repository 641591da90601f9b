"""Negative controls: what colours, a thumbnail or the file alone tell of the classes.

A network that does no better than a logistic regression on these need not have looked at the
tissue. The controls are fitted on the same examples as the network, scored on the same ones, and
compared with it by patient.
"""

import csv
import dataclasses
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from glomjax.errors import plural
from glomjax.evaluation.intervals import paired_difference
from glomjax.evaluation.logits import log_odds_of
from glomjax.evaluation.metrics import metrics_of_network
from glomjax.files import csv_text

# How strongly weights of D standardised features are held back: C is this over D, so that the
# variance which the log-odds may have does not grow with the number of features. Of 1, 10, D and
# D / 100 it gave the best mean AUROC of colours and thumbnails on two sets of kidney patches, not
# the best of each.
_VARIANCE = 10.0
_MOST_FITTED = 10_000  # images; more change little and take minutes
_AT_ONCE = 10_000  # images whose features are floats at a time
_FOLDS = 5
CONTROLS = "controls.csv"  # the table in the folder of a fold's run
Features = Mapping[str, np.ndarray]


def fit_controls(train: Features, labels: ArrayLike, test: Features) -> dict[str, np.ndarray]:
    """{name: logits float64 [M, 1] or, of more than two classes, [M, C]} for test examples, of
    logistic regressions that are fitted on training examples.

    Features are standardised; the penalty is fixed. Of more than 10,000 training examples so many
    are drawn. Nothing depends on chance.

    Args:
      train, test: {name: [N, D]} and {name: [M, D]}; a control is fitted where both have it.
      labels: int [N], all of the classes.
    """
    y = np.asarray(labels, dtype=np.int64)
    rows = np.arange(len(y))
    if len(y) > _MOST_FITTED:
        rows = np.sort(np.random.default_rng(0).permutation(len(y))[:_MOST_FITTED])
    return {name: _fit(train[name][rows], y[rows], test[name]) for name in train if name in test}


def fit_controls_in_folds(
    features: Features,
    labels: ArrayLike,
    groups: Sequence[str] | np.ndarray | None,
    classes: int,
    *,
    kind: str = "patient",
) -> tuple[dict[str, np.ndarray], str]:
    """The same for examples on which nothing was trained: in turn a part of their patients is left
    out, and scored by controls that are fitted on the others.

    Args:
      features: {name: [N, D]}.
      labels: int [N].
      groups: one patient per example [N], or None, where examples are left out.
      classes: how many there are.
      kind: what a group is, for the clause.

    Returns:
      ({name: logits}, a clause on how they were fitted); none, and why.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    y = np.asarray(labels, dtype=np.int64)
    names = np.arange(len(y)) if groups is None else np.asarray(groups, dtype=str)
    kind = "image" if groups is None else kind
    fewest = min(len(set(names[y == label])) for label in range(classes))
    if fewest < 2:
        what = "no image" if fewest == 0 else f"the images of one {kind} alone"
        return {}, f"a class has {what}, so that no {kind} can be left out"
    folds = min(_FOLDS, fewest)
    parts = list(StratifiedGroupKFold(folds).split(y, y, names))
    if any(len(set(y[rest])) < classes for rest, _ in parts):
        return {}, f"a class is missing where some {plural(kind)} are left out"
    found: dict[str, np.ndarray] = {}
    for rest, left_out in parts:
        here = {name: values[left_out] for name, values in features.items()}
        others = {name: values[rest] for name, values in features.items()}
        for name, logits in fit_controls(others, y[rest], here).items():
            found.setdefault(name, np.zeros((len(y), logits.shape[1])))[left_out] = logits
    return found, f"on this data, {folds} parts of its {plural(kind)} left out in turn"


def compare_with_controls(
    labels: ArrayLike,
    logits: ArrayLike,
    controls: Mapping[str, np.ndarray],
    classes: Sequence[str],
    groups: Sequence[str] | np.ndarray | None = None,
    *,
    kind: str = "patient",
) -> dict[str, dict[str, Any]]:
    """Of each control its metrics, and how much larger the network's AUROC is.

    Args:
      labels: int [N].
      logits: of the network, float [N, K].
      controls: {name: logits [N, K]} of the same examples.
      classes: their names.
      groups: one patient per example [N], or None.
      kind: what a group is, for methods and notes.

    Returns:
      {name: {`auroc`, `loss`, `accuracy`, `difference`}}, where `difference` is that of the AUROC
      (network minus control; of more than two classes the macro averages) with its interval as
      `paired_difference` gives it: `value`, `low`, `high`, `method`, `note`.
    """
    y = np.asarray(labels, dtype=np.int64)
    ours = _ranks(logits)
    compared = {}
    for name, theirs in controls.items():
        metrics = metrics_of_network(y, theirs, classes, intervals=False)
        value, interval = paired_difference(_area, y, ours, _ranks(theirs), groups, kind=kind)
        compared[name] = {key: metrics[key] for key in ("auroc", "loss", "accuracy")}
        compared[name]["difference"] = {
            "value": value,
            **dataclasses.asdict(interval.within(1.0)),
        }
    return compared


def controls_table(ids: Sequence[str], fitted: Mapping[str, np.ndarray]) -> str:
    """A CSV table of the logits of controls, a row for each example: `id`, and for each control a
    column of its name, or, of more than two classes, columns `<name>/<class number>`."""
    columns = {
        f"{name}/{c}" if logits.shape[1] > 1 else name: map(repr, logits[:, c].tolist())
        for name, logits in fitted.items()
        for c in range(logits.shape[1])
    }
    return csv_text([["id", *columns], *zip(ids, *columns.values(), strict=True)])


def read_controls_table(text: str) -> tuple[list[str], dict[str, np.ndarray]]:
    """(ids, {name: logits [N, K]}) of what `controls_table` wrote; ValueError for another table."""
    header, *rows = csv.reader(io.StringIO(text))
    ids, *cells = zip(*rows, strict=True)
    columns: dict[str, list[tuple[str, ...]]] = {}
    for heading, column in zip(header[1:], cells, strict=True):
        columns.setdefault(heading.partition("/")[0], []).append(column)
    return list(ids), {name: np.array(part, np.float64).T for name, part in columns.items()}


def controls_line(compared: Mapping[str, Mapping[str, Any]], how: str) -> str:
    """A line on all controls, or on why there is none.

    Args:
      compared: as `compare_with_controls` gives them.
      how: they were fitted, a clause.
    """
    if not compared:
        return f"controls: none, since {how}"
    listed = ", ".join(f"{name} {control['auroc']:.3f}" for name, control in compared.items())
    return f"controls: AUROC of {listed} (logistic regressions, fitted {how})"


def control_message(compared: Mapping[str, Mapping[str, Any]]) -> str:
    """What to tell the reader of a network that is not shown to be better than the best of its
    controls, "" of one that is and where there is no control."""
    areas = {name: control["auroc"] for name, control in compared.items()}
    defined = {name: area for name, area in areas.items() if not math.isnan(area)}
    if not defined:
        return ""
    best = max(defined, key=defined.__getitem__)
    difference = compared[best]["difference"]
    if difference["low"] > 0:
        return ""
    value = difference["value"]
    spread = f"95% {difference['low']:.3f} to {difference['high']:.3f}, {difference['method']}"
    if difference["method"] == "none":
        spread = f"no interval: {difference['note']}"
    return (
        f"The network, with an AUROC of {defined[best] + value:.3f}, is not shown to be better "
        f"than a logistic regression on {best}, with {defined[best]:.3f}: difference "
        f"{value:+.3f} ({spread})."
    )


def _fit(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    features = train.shape[1]
    regression = LogisticRegression(C=_VARIANCE / features, max_iter=1000)
    model = make_pipeline(StandardScaler(), regression)
    # Products as small as these take several times as long where threads share them.
    with warnings.catch_warnings(), threadpool_limits(1, "blas"):
        warnings.simplefilter("ignore", ConvergenceWarning)  # a weaker control at worst
        model.fit(train.astype(np.float64), labels)
        parts = [
            model.decision_function(test[start : start + _AT_ONCE].astype(np.float64))
            for start in range(0, len(test), _AT_ONCE)
        ]
    return np.concatenate(parts).reshape(len(test), -1)


def _ranks(logits: ArrayLike) -> np.ndarray:
    """int64 [N, A]: the ranks of the log-odds, equal ones alike; of two classes those of the
    second, of more those of each."""
    z = log_odds_of(np.asarray(logits, dtype=np.float64))
    z = z[:, 1:] if z.shape[1] == 2 else z
    return np.stack([np.unique(column, return_inverse=True)[1] for column in z.T], axis=1)


def _area(labels: np.ndarray, ranks: np.ndarray) -> float:
    """The AUROC by `_ranks`, of more than two classes the macro average; NaN where one is missing.
    As `auroc` has it, but without sorting anew for each patient that is left out."""
    columns = ranks.shape[1]
    areas: list[float] = []
    for c, column in enumerate(ranks.T):
        positive = labels == (1 if columns == 1 else c)
        ones, zeros = (
            np.bincount(column[part], minlength=column.max() + 1) for part in (positive, ~positive)
        )
        pairs = int(ones.sum()) * int(zeros.sum())
        wins = float((ones * (np.cumsum(zeros) - zeros / 2)).sum())
        areas.append(wins / pairs if pairs else math.nan)
    return float(np.mean(areas))
