"""The test report of a run: its metrics and every prediction, as files that others can read."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from glomjax.errors import UserError
from glomjax.evaluation.metrics import checked_labels, probabilities
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
) -> None:
    """Writes `test_metrics.json` and `predictions.csv` into `folder`, which is made if needed.

    The JSON has sorted keys, and null where a number is undefined. The CSV (UTF-8) has one row per
    example, in the order given: `id`, `patient` (empty if unknown), the further columns of the
    data, `label`, `prediction` (class names), `probability_<class>` for every class and, since
    probabilities saturate, `logit` (of the positive class) or `logit_<class>`. Numbers have all
    their digits: loss and AUROC computed from the logits are those of the JSON. Texts are written
    as `csv_text` writes them.

    Args:
      folder: where the two files go; existing ones are replaced, each in one step.
      metrics: as `classification_metrics` gives them; further entries are welcome.
      ids: one name per example [N].
      labels: int [N], indices into `classes`.
      logits: float [N, K], as for `probabilities`.
      classes: class names [C].
      patients: one name per example [N], or None.
      columns: {name: one cell per example [N]} of what else is known of the examples, such as their
        slides; one that is called as a column of the table itself becomes `data_<name>`.

    Raises:
      UserError: the arguments differ in length, a logit is not finite, or the folder cannot be
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
    scores = [f"probability_{name}" for name in classes]
    scores += ["logit"] if raw.shape[1] == 1 else [f"logit_{name}" for name in classes]
    taken = {"id", "patient", "label", "prediction", *scores}
    headings = []
    for name in further:
        while name in taken:
            name = f"data_{name}"
        taken.add(name)
        headings.append(name)
    rows: list[list[Any]] = [["id", "patient", *headings, "label", "prediction", *scores]]
    for i, (chances, values) in enumerate(zip(predicted.tolist(), raw.tolist(), strict=True)):
        known = [ids[i], names[i], *(cells[i] for cells in further.values())]
        chosen = [classes[truth[i]], classes[int(predicted[i].argmax())]]
        rows.append([*known, *chosen, *map(repr, (*chances, *values))])

    text = json.dumps(
        jsonable(metrics), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False
    )
    write_file(Path(folder) / "predictions.csv", csv_text(rows).encode())
    # The metrics come last: where they are, everything is.
    write_file(Path(folder) / "test_metrics.json", (text + "\n").encode())
