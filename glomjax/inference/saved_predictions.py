"""Predictions that are on the disk, with what is known of the networks that made them."""

import csv
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from glomjax import checkpoints
from glomjax.data.identities import is_missing, normal_form
from glomjax.errors import UserError, first_few, named, quoted, same_again
from glomjax.evaluation.logits import log_odds_of
from glomjax.files import flatten
from glomjax.pretrained import read_weights
from glomjax.pretrained.weight_file import tensor_digest

OUT_OF_FOLD = "out_of_fold.csv"  # of a cross-validation
TABLE = "predictions.csv"  # of a run and of `evaluate`
# The tables of a run, of which its other files say how they were made.
_OF_RUN = (TABLE, "predictions_validation.csv")
_RECALIBRATED = "recalibrated_"
# What a reader should know of predictions by where they are from.
_DOUBTS = {
    "predictions": "whether its networks were trained on these images is not known",
    "table": "which network predicted this table, and whether it was trained on these images, is "
    "not known",
    "validation split": "the run's weights, and a threshold where it chose one, are those that are "
    "best on these images",
}


@dataclasses.dataclass(frozen=True)
class SavedPredictions:
    """A table of predictions.

    Attributes:
      source: the folder or file that was named.
      ids: of the images [N], each once.
      columns: {name: one cell per image [N]} of the table.
      classes: class names [C]; for two classes (negative, positive).
      logits: float64 [N, K], as for `classification_metrics`.
      threshold: of two classes, the probability above which an image is positive.
      about: JSON-ready, what is known of the network or networks.
      settings: {"section.field": value} that took effect in the run; empty where that is not known.
      trained_on: the patients, else the images, of the run's train split; empty where not known.
      notes: a sentence each on what a reader of results should know.
    """

    source: str
    ids: tuple[str, ...]
    columns: dict[str, tuple[str, ...]]
    classes: tuple[str, ...]
    logits: np.ndarray
    threshold: float
    about: dict[str, Any]
    settings: dict[str, Any]
    trained_on: tuple[str, frozenset[str]]
    notes: tuple[str, ...]


def read_predictions(source: str | os.PathLike[str]) -> SavedPredictions:
    """Reads the predictions of a finished run, of a folder that `evaluate` wrote, of a
    cross-validation, or of a table that one of these or `predict` wrote.

    Of a cross-validation, the logits that were recalibrated for each fold count, since those of
    different networks mean different things, and of several repeats their mean.

    Args:
      source: a folder or a CSV file.

    Raises:
      UserError: there are none, or they are not what was written.
    """
    path = pathlib.Path(source).expanduser()
    table = _table_of(path)
    header, rows = _read(table)
    classes, logit_columns = _scores(table, header)
    notes = []
    out_of_fold = {"repeat", *(_RECALIBRATED + name for name in logit_columns)} <= {*header}
    if out_of_fold:
        logit_columns = [_RECALIBRATED + name for name in logit_columns]
        notes.append(f"'{source}': out-of-fold predictions, recalibrated for each fold.")
    cells = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    problems = cells.get("problem", [""] * len(rows))
    if unread := [name for name, why in zip(cells["id"], problems, strict=True) if why]:
        raise UserError(
            f"'{table}' has no prediction for {len(unread)} of {len(rows)} images "
            f"({quoted(unread)}), which could not be read; restore them and predict again"
        )
    logits = _numbers(table, cells["id"], [cells[name] for name in logit_columns])
    ids, first, logits = _once(table, cells, logits, out_of_fold)
    if len(ids) < len(rows):
        notes.append(
            f"'{source}': the mean of the logits of {len(rows) // len(ids)} repeats of each image."
        )
    about, settings, trained_on = _made_by(table)
    threshold = _threshold(table, about.pop("threshold", None), len(classes))
    if len(classes) == 2 and not out_of_fold:
        _check_decisions(table, cells, classes, logits, threshold)
    if about["kind"] in _DOUBTS:
        notes.append(f"'{source}': {_DOUBTS[about['kind']]}.")
    if about.pop("seen_in_training", None):
        notes.append(
            f"'{source}': THE NETWORK HAS SEEN PART OF THESE IMAGES in its training or validation, "
            "as its report says."
        )
    return SavedPredictions(
        source=os.fspath(source),
        ids=ids,
        columns={name: tuple(column[i] for i in first) for name, column in cells.items()},
        classes=classes,
        logits=logits,
        threshold=threshold,
        about=about,
        settings=settings,
        trained_on=trained_on,
        notes=tuple(notes),
    )


def _table_of(path: pathlib.Path) -> pathlib.Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(
            f"'{path}' does not exist; name a run, a folder that evaluate wrote, or a table of "
            "predictions"
        )
    if (path / OUT_OF_FOLD).is_file():
        return path / OUT_OF_FOLD
    # The metrics are the last file of a run.
    if (path / "config.json").is_file() and not (path / "test_metrics.json").is_file():
        raise UserError(
            f"the run in '{path}' has not finished, so that it has no results; {same_again()} that "
            "began it goes on with it"
        )
    if (path / TABLE).is_file():
        return path / TABLE
    raise UserError(
        f"folder '{path}' has no {TABLE} and no {OUT_OF_FOLD}; name a finished run, a folder that "
        "evaluate wrote, or a table of predictions"
    )


def _read(table: pathlib.Path) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of a table."""
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file, strict=True))
    except OSError as error:
        raise UserError(f"'{table}' cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise _no_table(table, str(error)) from error
    header, rows = (rows[0], rows[1:]) if rows else ([], [])
    if odd := [i for i, row in enumerate(rows) if len(row) != len(header)]:
        raise _no_table(table, f"row {odd[0] + 1} has {len(rows[odd[0]])} cells, not {len(header)}")
    if not rows:
        raise _no_table(table, "it has no row")
    return header, rows


def _no_table(table: pathlib.Path, why: str) -> UserError:
    return UserError(
        f"'{table}' is no table of predictions ({why}); name one that glomjax train, evaluate, "
        "crossval or predict wrote"
    )


def _scores(table: pathlib.Path, header: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """The classes, and the names of the columns of logits."""
    if len(set(header)) < len(header):
        raise _no_table(table, "two of its columns have one name")
    if missing := [name for name in ("id", "prediction") if name not in header]:
        raise _no_table(table, f"it has no column '{missing[0]}' but {named(header)}")
    # Before that column are those of the data, which may have any name.
    own = header[list(header).index("prediction") + 1 :]
    prefix = "probability_"
    classes = tuple(name.removeprefix(prefix) for name in own if name.startswith(prefix))
    logits = [f"logit_{name}" for name in classes]
    if len(classes) == 2 and "logit" in own:
        logits = ["logit"]
    if len(classes) < 2 or not set(logits) <= set(own):
        raise _no_table(table, "it has no probabilities and logits of two or more classes")
    return classes, logits


def _numbers(
    table: pathlib.Path, ids: Sequence[str], columns: Sequence[Sequence[str]]
) -> np.ndarray:
    try:
        logits = np.array(columns, dtype=np.float64).T  # [N, K]
    except ValueError as error:
        raise _no_table(table, str(error)) from error
    bad = ~np.isfinite(logits).all(axis=1)
    if bad.any():
        names = quoted(np.array(ids, dtype=object)[bad])
        raise UserError(f"'{table}' has logits that are not finite ({names}); predict these again")
    return logits


def _once(
    table: pathlib.Path, cells: dict[str, list[str]], logits: np.ndarray, out_of_fold: bool
) -> tuple[tuple[str, ...], list[int], np.ndarray]:
    """(ids, the row of each, logits), each image once."""
    rows: dict[str, list[int]] = {}
    for i, name in enumerate(cells["id"]):
        rows.setdefault(name, []).append(i)
    most = max(map(len, rows.values()))
    if most > 1 and not out_of_fold:
        twice = [name for name, places in rows.items() if len(places) > 1]
        raise UserError(f"'{table}' lists {quoted(twice)} more than once; keep one row each")
    if fewer := [name for name, places in rows.items() if len(places) < most]:
        raise UserError(
            f"'{table}' has {most} repeats of some images and fewer of {len(fewer)} others "
            f"({quoted(fewer)}); finish the cross-validation"
        )
    places = np.array(list(rows.values()))  # [N, repeats]
    return tuple(rows), places[:, 0].tolist(), logits[places].mean(axis=1)


def _made_by(
    table: pathlib.Path,
) -> tuple[dict[str, Any], dict[str, Any], tuple[str, frozenset[str]]]:
    """(about, settings, trained_on), as `SavedPredictions` has them, and the threshold in the first
    of them."""
    folder, nothing = table.parent, ("", frozenset[str]())
    if table.name == OUT_OF_FOLD:
        # All folds have one configuration, but for the fold itself.
        fold = next(iter(sorted(folder.glob("repeat_*/fold_*/config.json"))), None)
        settings = flatten(read_object(fold)["effective"]) if fold else {}
        dropped = ("data.fold", "seed", "data.split_seed")
        kept = {key: value for key, value in settings.items() if key not in dropped}
        return {"kind": "cross-validation", **_of_settings(settings)}, kept, nothing
    beside = table.with_name(f"{table.name}.json")
    if beside.is_file():
        found = read_object(beside)
        return {"kind": "predictions", **_some(found, "networks", "threshold")}, {}, nothing
    if table.name not in _OF_RUN or not (folder / "test_metrics.json").is_file():
        return {"kind": "table"}, {}, nothing
    metrics = read_object(folder / "test_metrics.json")
    if "networks" in metrics:
        facts = _some(metrics, "networks", "data", "split", "threshold", "seen_in_training")
        return {"kind": "evaluation", **facts}, {}, nothing
    if not (folder / "config.json").is_file():
        return {"kind": "table", "threshold": metrics.get("threshold")}, {}, nothing
    settings = flatten(read_object(folder / "config.json").get("effective") or {})
    facts = _some(metrics, "epochs", "best_epoch", "test_evaluations", "threshold")
    best = folder / "checkpoints" / "best"
    if checkpoints.exists(best):
        facts["sha256"] = tensor_digest(read_weights(folder)[0]).hexdigest()
    kind = "run" if table.name == TABLE else "validation split"
    about = {"kind": kind, **_of_settings(settings), **facts}
    return about, settings, _trained_on(folder / "splits.csv")


def _of_settings(settings: dict[str, Any]) -> dict[str, Any]:
    keys = {"architecture": "model.name", "seed": "seed"}
    return {name: settings[key] for name, key in keys.items() if key in settings}


def _some(facts: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: facts[key] for key in keys if key in facts}


def _trained_on(file: pathlib.Path) -> tuple[str, frozenset[str]]:
    """("patient" or "image", those of the train split)."""
    if not file.is_file():
        return "", frozenset()
    header, rows = _read(file)
    cells = [dict(zip(header, row, strict=True)) for row in rows]
    train = [row for row in cells if row.get("split") == "train"]
    if train and all(not is_missing(row.get("patient", "")) for row in train):
        return "patient", frozenset(normal_form(row["patient"]) for row in train)
    return "image", frozenset(row.get("path", "") for row in train)


def _threshold(table: pathlib.Path, stored: Any, classes: int) -> float:
    """The threshold that is stored with the predictions; 0.5 where none is."""
    if stored is None or classes > 2:
        return 0.5
    if not isinstance(stored, int | float) or not 0 < stored < 1:
        raise UserError(
            f"the threshold that is stored with '{table}' is {stored!r}, no probability between 0 "
            "and 1; restore the files from a copy"
        )
    return float(stored)


def _check_decisions(
    table: pathlib.Path,
    cells: dict[str, list[str]],
    classes: Sequence[str],
    logits: np.ndarray,
    threshold: float,
) -> None:
    """Refuses a table whose own decisions are at another threshold, as of a copy without the file
    that says which."""
    excess = log_odds_of(logits)[:, 1] - math.log(threshold / (1 - threshold))
    called = np.array([name == classes[1] for name in cells["prediction"]])
    other = (np.abs(excess) > 1e-6) & (called != (excess > 0))
    if other.any():
        names = quoted(np.array(cells["id"], dtype=object)[other])
        raise UserError(
            f"'{table}' calls {other.sum()} of {len(other)} images ({names}) otherwise than its "
            f"logits do at a threshold of {threshold:g}; name the folder or the table where it was "
            "written, which says its threshold"
        )


def read_object(file: pathlib.Path) -> dict[str, Any]:
    """What a JSON file of a result holds; UserError where that is no object."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
        why = "it holds no object"
    except (OSError, ValueError) as error:
        why = first_few([str(error)])
    raise UserError(f"'{file}' is not what was written ({why}); restore it from a copy")
