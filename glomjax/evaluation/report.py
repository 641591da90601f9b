"""The test report of a run: its metrics and every prediction, as files that others can read."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from glomjax.errors import UserError, plural
from glomjax.evaluation.calibration import predicted_classes
from glomjax.evaluation.logits import checked_labels, probabilities
from glomjax.evaluation.measures import MEASURES
from glomjax.files import csv_text, jsonable, write_file


def write_report(
    folder: str | Path,
    *,
    metrics: Mapping[str, Any],
    ids: Sequence[str],
    labels: ArrayLike,
    logits: ArrayLike,
    classes: Sequence[str],
    patients: Sequence[str] | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    threshold: float = 0.5,
) -> None:
    """Writes `test_metrics.json` and `predictions.csv` into `folder`, which is made if needed.

    The JSON has sorted keys, and null where a number is undefined; the CSV is that of
    `write_predictions`, and loss and AUROC computed from its logits are those of the JSON.

    Args:
      folder: where the two files go; existing ones are replaced, each in one step.
      metrics: as `classification_metrics` gives them; further entries are welcome.
      ids, labels, logits, classes, patients, columns, threshold: as in `write_predictions`.

    Raises:
      UserError: as of `write_predictions`.
    """
    write_predictions(
        Path(folder) / "predictions.csv",
        ids=ids,
        labels=labels,
        logits=logits,
        classes=classes,
        patients=patients,
        columns=columns,
        threshold=threshold,
    )
    text = json.dumps(
        jsonable(metrics), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False
    )
    # The metrics come last: where they are, everything is.
    write_file(Path(folder) / "test_metrics.json", (text + "\n").encode())


def write_predictions(
    file: str | Path,
    *,
    ids: Sequence[str],
    labels: ArrayLike,
    logits: ArrayLike,
    classes: Sequence[str],
    patients: Sequence[str] | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    threshold: float = 0.5,
) -> None:
    """Writes a CSV table (UTF-8) with a row for each example, in the order given.

    Its columns are `id`, `patient` (empty if unknown), the further ones of the data, `label`,
    `prediction` (class names), `probability_<class>` for every class and, since probabilities
    saturate, `logit` (of the positive class) or `logit_<class>`. Numbers have all their digits.
    Texts are written as `csv_text` writes them.

    Args:
      file: an existing one is replaced in one step.
      ids: one name per example [N].
      labels: int [N], indices into `classes`.
      logits: float [N, K], as for `probabilities`.
      classes: class names [C].
      patients: one name per example [N], or None.
      columns: {name: one cell per example [N]} of what else is known of the examples, such as their
        slides; one that is called as a column of the table itself becomes `data_<name>`.
      threshold: of two classes, the probability above which the prediction is the positive one.

    Raises:
      UserError: the arguments differ in length, a logit is not finite, or the file cannot be
        written.
    """
    predicted = probabilities(logits)  # [N, C]
    further = dict(columns or {})
    for what, given in (("ids", ids), ("patients", patients if patients is not None else ())):
        if not hasattr(given, "__len__"):
            raise UserError(f"{what} is of type {type(given).__name__}; give a list of names")
    names = [""] * len(ids) if patients is None else patients
    lengths = {"ids": len(ids), "labels": np.size(labels), "patients": len(names)}
    lengths |= {f"cells of column '{name}'": len(cells) for name, cells in further.items()}
    wrong = [f"{count} {what}" for what, count in lengths.items() if count != len(predicted)]
    if wrong or len(classes) != predicted.shape[1]:
        raise UserError(
            f"{', '.join(wrong) or f'{len(classes)} class names'} for predictions of shape "
            f"{predicted.shape}; give one per example, and one class name per column"
        )

    truth = checked_labels(labels, predicted, classes).tolist()
    raw = np.asarray(logits, dtype=np.float64)  # [N, K]
    decided = predicted_classes(raw, threshold).tolist()
    scores = score_columns(classes, raw.shape[1])
    headings = free_names(further, ["id", "patient", "label", "prediction", *scores])
    rows: list[list[Any]] = [["id", "patient", *headings, "label", "prediction", *scores]]
    for i, (chances, values) in enumerate(zip(predicted.tolist(), raw.tolist(), strict=True)):
        known = [ids[i], names[i], *(cells[i] for cells in further.values())]
        chosen = [classes[truth[i]], classes[decided[i]]]
        rows.append([*known, *chosen, *map(repr, (*chances, *values))])

    write_file(file, csv_text(rows).encode())


def score_columns(classes: Sequence[str], logits: int) -> list[str]:
    """The names of the columns for probabilities and logits, so many of these for an image."""
    names = [f"probability_{name}" for name in classes]
    return names + (["logit"] if logits == 1 else [f"logit_{name}" for name in classes])


def free_names(columns: Iterable[str], taken: Iterable[str]) -> list[str]:
    """Names for columns of the data beside those that the table has itself: one that is taken
    becomes `data_<name>`."""
    used = set(taken)
    names = []
    for name in columns:
        while name in used:
            name = f"data_{name}"
        used.add(name)
        names.append(name)
    return names


def summary_line(metrics: Mapping[str, Any], name: str) -> str:
    """The main numbers of a test on one line."""
    interval = metrics["auroc_interval"]
    spread = f"95% {interval['low']:.3f} to {interval['high']:.3f}, {interval['method']}"
    if interval["method"] == "none":
        spread = f"no interval: {interval['note']}"
    elif interval["note"]:
        spread += f"; {interval['note']}"
    return (
        f"{name}: loss {metrics['loss']:.4f}  accuracy {metrics['accuracy']:.3f}  AUROC "
        f"{metrics['auroc']:.3f} ({spread})  n {metrics['n']}"
    )


def decision_line(metrics: Mapping[str, Any]) -> str:
    """Sensitivity and specificity with their intervals; "" of more than two classes."""
    if "sensitivity" not in metrics:
        return ""
    parts = [
        f"{name} {estimate_text(metrics['estimates'][name])}"
        for name in ("sensitivity", "specificity")
    ]
    return "  ".join(parts)


def patients_line(metrics: Mapping[str, Any]) -> str:
    """What patients do to the interval of the AUROC, and what more of them would; "" where that is
    not known."""
    needed = metrics.get("patients_needed")
    if needed is None:
        return ""
    kinds = plural(needed["kind"])
    now, *more = (f"{width:.2f}" for width in needed["expected_width"].values())
    return (
        f"{needed['patients']} {kinds} whose scores correlate by about "
        f"{needed['correlation']:.2f}: {metrics['n']} patches tell as much as "
        f"{needed['effective_patches']:.0f} independent ones. The interval of the AUROC is {now} "
        f"wide; with 2, 4 and 8 times as many {kinds} it would be about {more[0]}, {more[1]} and "
        f"{more[2]}"
    )


def measure_title(name: str) -> str:
    """How a metric of `estimates` is called in a table."""
    plain, rare, _ = name.partition("_at_prevalence")
    return MEASURES[plain][0] + rare.replace("_", " ")


def estimates_lines(metrics: Mapping[str, Any]) -> list[str]:
    """A table of every metric with its interval and note."""
    prior = ", ".join(f"{name} {share:.3f}" for name, share in metrics["class_prior"].items())
    lines = [f"{'metric':<22}value (95% interval)"]
    for name, found in metrics["estimates"].items():
        title = measure_title(name)
        note = f"  {found['note']}" if found["note"] else ""
        if name == "average_precision":
            note += f"  (classes: {prior})"
        lines.append(f"{title:<22}{estimate_text(found)}{note}")
    return lines


def estimate_text(found: Mapping[str, Any]) -> str:
    """A metric with its interval, given what `estimates` holds of it."""
    if found["value"] is None:
        return "undefined"
    if found["low"] is None:
        return f"{found['value']:.3f} (no interval)"
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
