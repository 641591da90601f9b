"""The same numbers for parts of the images that were judged: each patient, stain, site, ..."""

import dataclasses
import math
from typing import Any

import numpy as np

from glomjax.evaluation.measures import measures
from glomjax.evaluation.metrics import metrics_of_network
from glomjax.report.result import Result

MOST_VALUES = 60  # of a column that are shown
# Columns of a table of predictions that are none of the data.
_OWN = (
    "id",
    "label",
    "label_before",
    "prediction",
    "problem",
    "unlike_training",
    "repeat",
    "fold",
    "weight",
)
_OWN_PREFIXES = ("probability_", "logit", "recalibrated_")
# What a page shows first of a result, and of each of its parts.
MAIN_METRICS = ("auroc", "accuracy", "sensitivity", "specificity")


@dataclasses.dataclass(frozen=True)
class Group:
    """The images that share a value of a column.

    Attributes:
      name: that value.
      n, positives: how many images, and of these how many of the positive class; None of more than
        two classes.
      clusters: how many patients, or what stands in for them; None where that is not known.
      estimates: {metric: `value`, `low`, `high`} of those shown; None where it is undefined, or has
        no interval.
    """

    name: str
    n: int
    positives: int | None
    clusters: int | None
    estimates: dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class GroupTable:
    """A column of the data.

    Attributes:
      column: its name.
      groups: of its values, in their order; of too many, those with the least accuracy.
      values: how many there are.
      spread: {metric: (lowest, median, highest) over the groups that have it}.
    """

    column: str
    groups: list[Group]
    values: int
    spread: dict[str, tuple[float, float, float]]


def group_tables(result: Result) -> list[GroupTable]:
    """The patients, and every column that divides the images into 2 to 60 parts.

    A part's interval counts patients, and a part of one patient has none.
    """
    predictions = result.predictions
    if predictions is None:
        return []
    tables = []
    for name, cells in predictions.columns.items():
        if name in _OWN or name.startswith(_OWN_PREFIXES) or _one_each(cells):
            continue
        values = sorted(set(cells))
        many = len(values) > MOST_VALUES
        if len(values) < 2 or (many and name != result.metrics.get("clustered_by")):
            continue
        known = np.asarray(cells)
        groups = [_group(result, value, known == value) for value in values]
        spread = _spread(groups)
        if many:
            groups = sorted(groups, key=lambda group: group.estimates["accuracy"]["value"])
        tables.append(GroupTable(name, groups[:MOST_VALUES], len(values), spread))
    return tables


def _one_each(cells: tuple[str, ...]) -> bool:
    """Whether most values occur once, as names of files do."""
    return 2 * len(set(cells)) > len(cells)


def _group(result: Result, value: str, rows: np.ndarray) -> Group:
    predictions = result.predictions
    assert predictions is not None
    labels, logits = result.labels[rows], predictions.logits[rows]
    clusters = None if result.clusters is None else np.asarray(result.clusters)[rows]
    if clusters is not None and len(set(clusters)) == 1:
        values = measures(labels, logits, predictions.threshold)
        estimates = {
            name: {"value": None if math.isnan(value) else value, "low": None, "high": None}
            for name, value in values.items()
        }
    else:
        estimates = metrics_of_network(
            labels,
            logits,
            predictions.classes,
            clusters,
            threshold=predictions.threshold,
            kind=result.metrics.get("clustered_by") or "patient",
        )["estimates"]
    shown = {
        name: {end: estimates[name][end] for end in ("value", "low", "high")}
        for name in MAIN_METRICS
        if name in estimates
    }
    return Group(
        name=value,
        n=int(rows.sum()),
        positives=int((labels == 1).sum()) if len(predictions.classes) == 2 else None,
        clusters=None if clusters is None else len(set(clusters)),
        estimates=shown,
    )


def _spread(groups: list[Group]) -> dict[str, tuple[float, float, float]]:
    found = {}
    for name in MAIN_METRICS:
        values = [group.estimates[name]["value"] for group in groups if name in group.estimates]
        known = [value for value in values if value is not None]
        if len(known) > 1:
            found[name] = (min(known), float(np.median(known)), max(known))
    return found
