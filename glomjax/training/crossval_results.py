"""What the finished folds of a cross-validation say together, from the files in their folders."""

import csv
import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import glomjax
from glomjax.data.examples import join_clusters
from glomjax.data.sources.columns import column_name
from glomjax.environment import ENVIRONMENT, parts_of, together
from glomjax.errors import UserError, argument
from glomjax.evaluation.calibration import FIXED, choose_threshold
from glomjax.evaluation.controls import (
    CONTROLS,
    control_message,
    read_controls_table,
)
from glomjax.evaluation.out_of_fold import (
    OutOfFold,
    against_controls,
    between_patients,
    between_repeats,
    pooled,
    recalibration,
    within_folds,
)
from glomjax.evaluation.report import score_columns, write_predictions
from glomjax.files import jsonable, write_file
from glomjax.inference.ensemble import METRICS
from glomjax.models import num_logits
from glomjax.training.crossval_report import describe

OUT_OF_FOLD, REPORT = "out_of_fold.csv", "report.txt"
# What is taken over from the test of a fold, whose logits are as the network gives them.
_OF_FOLD = (
    *("n", "patients", "loss", "accuracy", "auroc", "auroc_interval", "estimates"),
    *("best_epoch", "epochs"),
)
_ABOUT = {
    "pooled_recalibrated": (
        "All images of all folds as one test, after the logits of each network were recalibrated "
        "on its own validation split: how well one scale and one threshold hold for new patients. "
        "Pairs of images of different folds count, and so does what the recalibration got wrong."
    ),
    "pooled_within_folds": (
        "The AUROC over pairs of images of one fold alone, which one network has ranked: how well "
        "a network ranks the images of new patients, whatever its scale. It is another quantity "
        "than the AUROC over all pairs."
    ),
    "between_patients": (
        "How far patients differ from each other, after recalibration: what a further patient may "
        "be like. It does not become less with more patients."
    ),
    "between_repeats": (
        "The standard deviation of the pooled numbers over repeats, which differ in their seed and "
        "in who is in which fold. It says nothing of other patients."
    ),
}


@dataclasses.dataclass(frozen=True)
class _Table:
    """A table of predictions that a run wrote.

    Attributes:
      ids, labels, logits: N examples.
      columns: what else the data gave of each, with their patients as `patient`.
    """

    ids: list[str]
    labels: np.ndarray
    logits: np.ndarray
    columns: dict[str, list[str]]

    def at(self, rows: Sequence[int]) -> "_Table":
        """The examples at these rows, in that order."""
        columns = {name: [cells[i] for i in rows] for name, cells in self.columns.items()}
        chosen = np.asarray(rows)
        return _Table(
            [self.ids[i] for i in rows], self.labels[chosen], self.logits[chosen], columns
        )


def fold_folder(folder: pathlib.Path, repeat: int, fold: int) -> pathlib.Path:
    """Where the run of a fold lies."""
    return folder / f"repeat_{repeat}" / f"fold_{fold}"


def write_results(
    folder: pathlib.Path, repeats: int, folds: int, split_by: str, rule: str = FIXED
) -> tuple[dict[str, Any], str]:
    """Writes `out_of_fold.csv`, `report.txt`, `environment.json` and, last, `metrics.json`, each in
    one step, so that two processes may do it at once.

    Args:
      folder: of the cross-validation, whose folds are all finished.
      split_by, rule: of its configuration, the rule that of the ensemble's threshold: Youden's
        where it looks at no example.

    Returns:
      (what `metrics.json` holds, the text of the report).

    Raises:
      UserError: a file of a fold is not what its run wrote, or the folds are of different data.
    """
    per_fold: list[dict[str, Any]] = []
    tests: list[list[_Table]] = []
    controls: list[list[dict[str, np.ndarray]]] = []
    environments: list[dict[str, Any]] = []
    notes: dict[str, list[tuple[str, str]]] = {}
    permuted = False
    classes: list[str] = []
    for repeat in range(repeats):
        tests.append([])
        controls.append([])
        for fold in range(folds):
            path = fold_folder(folder, repeat, fold)
            metrics = _read_metrics(path)
            environments += _read_environments(path)
            classes = classes or metrics["classes"]
            validation = _read_table(path / "predictions_validation.csv", classes)
            slope, intercept = recalibration(validation.labels, validation.logits)
            test = _read_table(path / "predictions.csv", classes)
            if len(test.ids) != metrics["n"]:
                raise _damaged(path / "predictions.csv")
            for split, table in (("test", test), ("validation", validation)):
                known = _ids_in(path, split)
                if known is not None and known != set(table.ids):
                    name = "predictions" if split == "test" else "predictions_validation"
                    raise _damaged(path / f"{name}.csv")
            tests[-1].append(test)
            controls[-1].append(_read_controls(path, test))
            # As a user may move the folder, by its place in it.
            place = path.relative_to(folder).as_posix()
            about = {"repeat": repeat, "fold": fold, "folder": place}
            numbers = {key: metrics[key] for key in _OF_FOLD if key in metrics}
            line = {"slope": slope, "intercept": intercept}
            per_fold.append({**about, **numbers, **line})
            for note in metrics["notes"]:
                alike = re.sub(r"\d+|\(.*?\)|'.*?'", "", note)  # numbers and names differ by fold
                notes.setdefault(alike, []).append((place, note))
            permuted = permuted or bool(metrics.get("permuted_labels"))
    column, examples, data, raw = _together(folder, tests, per_fold, classes, split_by)
    compared = against_controls(data, _joined_controls(controls, tests), kind=column or "patient")
    common = [_note(found, len(per_fold)) for found in notes.values()]
    result: dict[str, Any] = {
        "n": len(data.labels),
        "folds": folds,
        "repeats": repeats,
        "classes": classes,
        "clustered_by": column,
        "clusters": None if data.groups is None else len(set(data.groups)),
        "pooled_recalibrated": pooled(data, kind=column or "patient"),
        "pooled_within_folds": within_folds(data, kind=column or "patient"),
        "controls": compared,
        "control_message": control_message(compared),
        "permuted_labels": permuted,
        "between_patients": between_patients(data),
        "per_fold": per_fold,
        "threshold": None,
        "threshold_rule": None,
        "notes": common + _notes(per_fold),
        "glomjax_version": glomjax.__version__,
    }
    result["between_repeats"] = between_repeats(result["pooled_recalibrated"])
    for name, about_it in _ABOUT.items():
        if result[name] is not None:
            result[name]["about"] = about_it
    if len(classes) == 2:
        every = np.tile(data.labels, repeats), data.logits[..., 0].ravel()
        result |= _threshold(*every, "youden" if rule == FIXED else rule)
    result = jsonable(result)
    report = describe(result)
    _write_table(folder / OUT_OF_FOLD, examples, data, raw)
    write_file(folder / REPORT, f"{report}\n".encode())
    environment = json.dumps(together(environments), indent=2)
    write_file(folder / ENVIRONMENT, f"{environment}\n".encode())
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False)
    write_file(folder / METRICS, f"{text}\n".encode())
    return result, report


def _threshold(labels: np.ndarray, log_odds: np.ndarray, rule: str) -> dict[str, Any]:
    """The threshold of the ensemble and its rule, and none where the rule gives none."""
    try:
        return {"threshold": choose_threshold(labels, log_odds, rule), "threshold_rule": rule}
    except UserError as error:
        return {"threshold": None, "threshold_rule": f"none by the rule {rule}: {error}"}


def _together(
    folder: pathlib.Path,
    tests: Sequence[Sequence[_Table]],
    per_fold: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
    split_by: str,
) -> tuple[str | None, _Table, OutOfFold, np.ndarray]:
    """(The column that names the patients; the examples in the order of their ids; their
    recalibrated predictions; the logits [R, N, L] as the networks gave them.)"""
    wholes, folds, scaled = [], [], []
    for repeat, tables in enumerate(tests):
        lines = per_fold[repeat * len(tables) : (repeat + 1) * len(tables)]
        if any(table.columns.keys() != tests[0][0].columns.keys() for table in tables):
            raise _of_other_data(folder)
        joint = _joined(tables)
        order = sorted(range(len(joint.ids)), key=joint.ids.__getitem__)
        wholes.append(joint.at(order))
        folds.append(np.repeat(np.arange(len(tables)), [len(t.ids) for t in tables])[order])
        recalibrated = [
            table.logits * line["slope"] + line["intercept"]
            for table, line in zip(tables, lines, strict=True)
        ]
        scaled.append(np.concatenate(recalibrated)[order])
    first = wholes[0]
    for whole in wholes:
        same = whole.ids == first.ids and whole.columns == first.columns
        once = len({*whole.ids}) == len(whole.ids)
        if not (same and once and (whole.labels == first.labels).all()):
            raise _of_other_data(folder)
    column, groups = _clusters(first.columns, split_by)
    for fold in folds:
        if groups is not None and len({*zip(groups, fold.tolist(), strict=True)}) > len({*groups}):
            raise _of_other_data(folder)
    data = OutOfFold(first.labels, np.stack(scaled), np.stack(folds), classes, groups)
    return column, first, data, np.stack([whole.logits for whole in wholes])


def _read_controls(path: pathlib.Path, test: _Table) -> dict[str, np.ndarray]:
    """{name: logits [N, L]} of the negative controls of a fold, in the order of its test table;
    none of a run of an earlier version."""
    file = path / CONTROLS
    if not file.exists():
        return {}
    try:
        ids, found = read_controls_table(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(file) from error
    if ids != test.ids:
        raise _damaged(file)
    return found


def _joined_controls(
    controls: Sequence[Sequence[Mapping[str, np.ndarray]]], tests: Sequence[Sequence[_Table]]
) -> dict[str, np.ndarray]:
    """{name: logits [R, N, L]} of the controls that all folds have, in the order of the ids."""
    names = [name for name in controls[0][0] if all(name in c for part in controls for c in part)]
    orders = [np.argsort([name for t in part for name in t.ids], kind="stable") for part in tests]
    return {
        name: np.stack(
            [
                np.concatenate([fold[name] for fold in part])[order]
                for part, order in zip(controls, orders, strict=True)
            ]
        )
        for name in names
    }


def _joined(tables: Sequence[_Table]) -> _Table:
    """Several tables with the same columns, one below the other."""
    return _Table(
        [name for table in tables for name in table.ids],
        np.concatenate([table.labels for table in tables]),
        np.concatenate([table.logits for table in tables]),
        {key: [cell for t in tables for cell in t.columns[key]] for key in tables[0].columns},
    )


def _of_other_data(folder: pathlib.Path) -> UserError:
    return UserError(
        f"the folds in '{folder}' are not those of one division of one data set: an image or a "
        "patient is tested twice or is missing; restore the folder from a copy, or name another "
        f"with {argument('--workdir')}"
    )


def _clusters(
    columns: Mapping[str, Sequence[str]], split_by: str
) -> tuple[str | None, Sequence[str] | None]:
    """(what is independent, one name per example): patients, or slides in their place; or what the
    wider column holds together by which the data was split; None where nothing is known."""
    column = next((name for name in ("patient", "slide") if all(columns.get(name, ("",)))), None)
    patients = None if column is None else columns[column]
    wider = column_name(split_by)
    if wider in ("patient", "slide") or wider not in columns or not all(columns[wider]):
        return column, patients
    return wider, join_clusters(patients, columns[wider])


def _ids_in(path: pathlib.Path, split: str) -> set[str] | None:
    """Who is in a split of a fold, None where its table is gone."""
    file = path / "splits.csv"
    if not file.exists():
        return None
    try:
        with open(file, newline="", encoding="utf-8") as stream:
            return {row["path"] for row in csv.DictReader(stream) if row["split"] == split}
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise _damaged(file) from error


def _read_metrics(path: pathlib.Path) -> dict[str, Any]:
    file = path / "test_metrics.json"
    try:
        metrics = dict(json.loads(file.read_text(encoding="utf-8")))
        metrics["classes"], metrics["notes"] = list(metrics["classes"]), list(metrics["notes"])
        return metrics
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _damaged(file) from error


def _read_environments(path: pathlib.Path) -> list[dict[str, Any]]:
    """On what the parts of a fold's run ran; of one that does not tell, a part without anything,
    since no number depends on it."""
    try:
        return parts_of(dict(json.loads((path / ENVIRONMENT).read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError):
        return [{}]


def _read_table(file: pathlib.Path, classes: Sequence[str]) -> _Table:
    """A table that `write_predictions` wrote."""
    outputs = num_logits(len(classes))
    scores = score_columns(classes, outputs)
    try:
        with open(file, newline="", encoding="utf-8") as stream:
            header, *rows = csv.reader(stream)
        cells = dict(zip(header, zip(*rows, strict=True), strict=True))
        number = {name: c for c, name in enumerate(classes)}
        own = {"id", "label", "prediction", *scores}
        return _Table(
            list(cells["id"]),
            np.array([number[name] for name in cells["label"]], np.int64),
            np.array([cells[name] for name in scores[-outputs:]], np.float64).T,
            {name: list(column) for name, column in cells.items() if name not in own},
        )
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise _damaged(file) from error


def _damaged(file: pathlib.Path) -> UserError:
    return UserError(
        f"'{file}' is not what the run of this fold wrote; restore it from a copy, or remove the "
        f"folder '{file.parent}', so that the fold is trained anew"
    )


def _write_table(file: pathlib.Path, examples: _Table, data: OutOfFold, raw: np.ndarray) -> None:
    """A row for each example and repeat."""
    repeats, count, outputs = raw.shape
    names = score_columns(data.classes, outputs)[-outputs:]
    columns: dict[str, Sequence[Any]] = {
        "repeat": np.repeat(np.arange(repeats), count).tolist(),
        "fold": data.folds.ravel().tolist(),
    }
    for name, cells in examples.columns.items():
        if name != "patient":
            columns[f"data_{name}" if name in columns else name] = cells * repeats
    for i, name in enumerate(names):
        columns[f"recalibrated_{name}"] = list(map(repr, data.logits[..., i].ravel().tolist()))
    write_predictions(
        file,
        ids=examples.ids * repeats,
        labels=np.tile(data.labels, repeats),
        logits=raw.reshape(-1, outputs),
        classes=data.classes,
        patients=examples.columns["patient"] * repeats,
        columns=columns,
    )


def _note(found: Sequence[tuple[str, str]], folds: int) -> str:
    """A note of the folds in which it stands, as the first of them has it."""
    folder, note = found[0]
    if len(found) == folds and len({text for _, text in found}) == 1:
        return note
    return f"In {len(found)} of {folds} folds, of which {folder}: {note}"


def _notes(per_fold: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader must know of the recalibration."""
    reversed_in = [fold["folder"] for fold in per_fold if fold["slope"] < 0]
    if not reversed_in:
        return []
    return [
        f"On the validation split of {', '.join(reversed_in)} higher logits go with the other "
        "class, so that the recalibration reverses the ranking of that network: it has learnt "
        "nothing that holds for other patients, or has too few to validate on."
    ]
