"""What the folder of a run, an evaluation or a cross-validation says, read once for its report."""

import contextlib
import csv
import dataclasses
import functools
import io
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from glomjax.data.examples import join_clusters
from glomjax.data.permuted_labels import PERMUTED_LABELS
from glomjax.environment import ENVIRONMENT
from glomjax.errors import UserError, plural
from glomjax.evaluation.intervals import FEW, fewest_patients, patient_numbers
from glomjax.evaluation.metrics import collapse_message
from glomjax.inference.saved_predictions import (
    OUT_OF_FOLD,
    SavedPredictions,
    read_object,
    read_predictions,
)

RUN, EVALUATION, CROSSVAL = "run", "evaluation", "cross-validation"


@dataclasses.dataclass(frozen=True)
class Result:
    """A folder's files.

    Attributes:
      folder: where they are.
      kind: "run", "evaluation" or "cross-validation".
      metrics: of `test_metrics.json`, or of a cross-validation's `metrics.json`; empty while a run
        trains.
      estimates: {metric: `value`, `low`, `high`, `method`, `note`}, of a cross-validation the
        pooled ones.
      config: what took effect, as `config.json` has it; of a cross-validation that of its first
        fold; empty of an evaluation.
      environment, history, splits, summary: `environment.json`, the rows of `metrics.jsonl` and of
        `splits.csv`, the text of `summary.txt`; empty where the folder has none.
      predictions: of the images that were judged, None while a run trains.
      labels: int [N], the true classes of these.
    """

    folder: pathlib.Path
    kind: str
    metrics: dict[str, Any]
    estimates: dict[str, dict[str, Any]]
    config: dict[str, Any]
    environment: dict[str, Any]
    history: list[dict[str, Any]]
    splits: list[dict[str, str]]
    summary: str
    predictions: SavedPredictions | None
    labels: np.ndarray

    @property
    def finished(self) -> bool:
        """Whether there is something that was judged."""
        return self.predictions is not None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; of two the second is the positive one."""
        return self.predictions.classes if self.predictions else ()

    @property
    def folds(self) -> list[pathlib.Path]:
        """The folders of a cross-validation's runs; none of other results."""
        return _folds(self.folder) if self.kind == CROSSVAL else []

    @functools.cached_property
    def clusters(self) -> tuple[str, ...] | None:
        """Who or what the images that were judged are of [N], None where that is not known."""
        kind = self.metrics.get("clustered_by")
        if self.predictions is None or kind is None:
            return None
        columns = self.predictions.columns
        if kind in ("patient", "slide") or kind not in columns:
            return columns.get(kind)
        return join_clusters(columns.get("patient", columns.get("slide")), columns[kind])

    @property
    def facts(self) -> dict[str, Any]:
        """The same as plain JSON values, as checklists take them."""
        kinds = {RUN: "run", EVALUATION: "evaluation", CROSSVAL: "crossval"}
        return {
            "kind": kinds[self.kind],
            "config": self.config,
            "environment": self.environment,
            "metrics": self.metrics,
            "estimates": self.estimates,
            "history": self.history,
            "splits": self.splits,
            "summary": self.summary,
        }


def read_result(folder: str | os.PathLike[str]) -> Result:
    """Reads what a folder holds.

    Args:
      folder: of a run, finished or not, of what `evaluate` wrote, or of a cross-validation.

    Raises:
      UserError: it is none of these, or a file in it is not what was written.
    """
    path = pathlib.Path(folder).expanduser()
    if not path.is_dir():
        raise UserError(
            f"'{path}' is no folder; name that of a run, of a cross-validation, or one that "
            "evaluate wrote"
        )
    if (path / OUT_OF_FOLD).is_file():
        return _crossval(path)
    if not (path / "test_metrics.json").is_file() and (path / "crossval.json").is_file():
        raise UserError(
            f"the cross-validation in '{path}' has not finished; the command that began it goes on "
            "with it, and each of its folds has a report of its own"
        )
    begun = (path / "config.json").is_file()
    if not begun and not (path / "test_metrics.json").is_file():
        raise UserError(
            f"folder '{path}' holds no result; name that of a run, of a cross-validation, or one "
            "that evaluate wrote"
        )
    metrics = _json(path / "test_metrics.json")
    if metrics:
        # Results of an earlier version say no more than whether patients were known.
        metrics.setdefault("clustered_by", "patient" if metrics.get("patients") else None)
    predictions = read_predictions(path) if metrics else None
    return Result(
        folder=path,
        kind=RUN if begun else EVALUATION,
        metrics=metrics,
        estimates=metrics.get("estimates", {}),
        predictions=predictions,
        labels=_labels(path, predictions),
        **_of_training(path),
    )


def must_know(result: Result) -> list[str]:
    """What nobody may overlook who reads the numbers, the gravest first: a sentence each."""
    metrics = result.metrics
    if not result.finished:
        epochs = len(result.history)
        return [
            f"The run has not finished: it has trained for {epochs} epochs, and nothing has been "
            "judged on its test split."
        ]
    found = []
    if metrics.get("permuted_labels"):
        found.append(PERMUTED_LABELS)
    if metrics.get("seen_in_training"):
        found.append(
            "The network has seen part of these images, or their patients, in its training or "
            "validation: these numbers are no estimate for others."
        )
    found.append(metrics.get("control_message", ""))
    if metrics.get("collapsed"):
        found.append(collapse_message(metrics))
    notes = list(metrics.get("notes", ()))
    found += [note for note in notes if "overfitted" in note]
    kind = metrics.get("clustered_by")
    if kind is None:
        found.append(
            "No patients are known: the intervals take every image for independent, and are too "
            "narrow where several are of one patient."
        )
    elif (few := fewest_patients(result.labels, _cluster_numbers(result))) < FEW:
        name = f"{kind} was" if few == 1 else f"{plural(kind)} were"
        found.append(
            f"Only {few} {name} judged that have images of the rarer class: the intervals are "
            "indicative."
        )
    if metrics.get("initial_weights") == "none" or _from_scratch(result):
        found.append("The network was trained from random values, without pretrained weights.")
    return [text for text in found if text]


def _cluster_numbers(result: Result) -> np.ndarray:
    return patient_numbers(result.clusters, len(result.labels))


def _from_scratch(result: Result) -> bool:
    return result.kind == CROSSVAL and result.config["pretrained"]["source"] == "none"


def _crossval(path: pathlib.Path) -> Result:
    metrics = _json(path / "metrics.json")
    if "pooled_recalibrated" not in metrics:
        raise UserError(
            f"the cross-validation in '{path}' has not finished; the command that began it goes on "
            "with it"
        )
    predictions = read_predictions(path)
    first = next(iter(_folds(path)), path)
    return Result(
        folder=path,
        kind=CROSSVAL,
        metrics=metrics,
        estimates=metrics["pooled_recalibrated"]["estimates"],
        predictions=predictions,
        labels=_labels(path, predictions),
        **{
            **_of_training(first),
            "environment": _json(path / ENVIRONMENT),
            "history": [],
            "splits": [],
        },
    )


def _folds(path: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path.glob("repeat_*/fold_*"))


def _of_training(path: pathlib.Path) -> dict[str, Any]:
    """What the folder of a run says of how the network was trained; empty of other folders."""
    return {
        "config": _json(path / "config.json").get("effective") or {},
        "environment": _json(path / ENVIRONMENT),
        "history": _lines(path / "metrics.jsonl"),
        "splits": _table(path / "splits.csv"),
        "summary": _text(path / "summary.txt"),
    }


def _labels(path: pathlib.Path, predictions: SavedPredictions | None) -> np.ndarray:
    if predictions is None:
        return np.zeros(0, np.int32)
    if "label" not in predictions.columns:
        raise UserError(f"the predictions in '{path}' have no column 'label'; restore the file")
    numbers: Mapping[str, int] = {name: i for i, name in enumerate(predictions.classes)}
    names = predictions.columns["label"]
    if unknown := sorted(set(names) - set(numbers)):
        raise UserError(
            f"the predictions in '{path}' have the label '{unknown[0]}', which is none of their "
            "classes; restore the file"
        )
    return np.array([numbers[name] for name in names], np.int32)


def _json(file: pathlib.Path) -> dict[str, Any]:
    """What a file holds; nothing where there is none."""
    return read_object(file) if file.is_file() else {}


def _lines(file: pathlib.Path) -> list[dict[str, Any]]:
    with _errors_of(file):
        rows = [json.loads(line) for line in _text(file).splitlines()]
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("a line is no object")
        return rows


def _table(file: pathlib.Path) -> list[dict[str, str]]:
    with _errors_of(file):
        return list(csv.DictReader(io.StringIO(_text(file), newline="")))


def _text(file: pathlib.Path) -> str:
    """What a file holds; nothing where there is none."""
    with _errors_of(file):
        return file.read_text(encoding="utf-8") if file.is_file() else ""


@contextlib.contextmanager
def _errors_of(file: pathlib.Path) -> Iterator[None]:
    """Raises UserError for a file that cannot be read as what it should be."""
    try:
        yield
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(
            f"'{file}' is not what was written ({error}); restore it from a copy"
        ) from error
