"""The test report of a run: its metrics and every prediction, as files that others can read."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from glomjax.errors import UserError
from glomjax.evaluation.metrics import probabilities
from glomjax.files import jsonable, write_file


def write_report(
    folder: str | Path,
    *,
    metrics: Mapping[str, Any],
    ids: Sequence[str],
    labels: ArrayLike,
    logits: ArrayLike,
    classes: Sequence[str],
    patients: Sequence[str] | None = None,
) -> None:
    """Writes `test_metrics.json` and `predictions.csv` into `folder`, which is made if needed.

    The JSON has sorted keys, and null where a number is undefined. The CSV (UTF-8) has one row per
    example, in the order given: `id`, `patient` (empty if unknown), `label`, `prediction` (class
    names), `probability_<class>` for every class and, since probabilities saturate, `logit` (of the
    positive class) or `logit_<class>`, all to nine significant digits, which float32 needs.

    Args:
      folder: where the two files go; existing ones are replaced, each in one step.
      metrics: as `classification_metrics` gives them; further entries are welcome.
      ids: one name per example [N].
      labels: int [N], indices into `classes`.
      logits: float [N, K], as for `probabilities`.
      classes: class names [C].
      patients: one name per example [N], or None.

    Raises:
      UserError: the arguments differ in length, a logit is not finite, or the folder cannot be
        written.
    """
    predicted = probabilities(logits)  # [N, C]
    truth = np.asarray(labels).tolist()
    names = [""] * len(ids) if patients is None else patients
    lengths = {"ids": len(ids), "labels": len(truth), "patients": len(names)}
    wrong = [f"{count} {what}" for what, count in lengths.items() if count != len(predicted)]
    if wrong or len(classes) != predicted.shape[1]:
        raise UserError(
            f"{', '.join(wrong) or f'{len(classes)} class names'} for predictions of shape "
            f"{predicted.shape}; give one per example, and one class name per column"
        )

    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    raw = np.asarray(logits)  # [N, K]
    columns = [f"probability_{name}" for name in classes]
    columns += ["logit"] if raw.shape[1] == 1 else [f"logit_{name}" for name in classes]
    writer.writerow(["id", "patient", "label", "prediction", *columns])
    for name, patient, label, row, scores in zip(ids, names, truth, predicted, raw, strict=True):
        values = [f"{value:.9g}" for value in (*row, *scores)]
        writer.writerow([name, patient, classes[label], classes[int(row.argmax())], *values])

    text = json.dumps(
        jsonable(metrics), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False
    )
    write_file(Path(folder) / "predictions.csv", table.getvalue().encode())
    # The metrics come last: where they are, everything is.
    write_file(Path(folder) / "test_metrics.json", (text + "\n").encode())
