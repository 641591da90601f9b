"""The report's files can be read by others and are never half written."""

import csv
import json
import math
import os

import numpy as np
import pytest

from glomjax.errors import UserError
from glomjax.evaluation import classification_metrics, write_report

CLASSES = ("andere, sonstige", "gloméruleux")
IDS = ["a/Niere, Rinde.png", 'b/"zwei".png', "腎臓\n3.png"]
LABELS = np.array([0, 1, 1], np.int32)
LOGITS = np.array([[-1.5], [2.25], [-0.125]], np.float32)


def _write(folder, **changes):
    arguments = {"metrics": {}, "ids": IDS, "labels": LABELS, "logits": LOGITS, "classes": CLASSES}
    write_report(folder, **{**arguments, **changes})


def _rows(folder):
    with open(folder / "predictions.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_predictions_survive_commas_quotes_newlines_and_unicode(tmp_path):
    _write(tmp_path, patients=["Ä, 1", "Ä, 1", "p2"])
    rows = _rows(tmp_path)
    assert [row["id"] for row in rows] == IDS
    assert [row["patient"] for row in rows] == ["Ä, 1", "Ä, 1", "p2"]
    assert [row["label"] for row in rows] == [CLASSES[0], CLASSES[1], CLASSES[1]]
    assert [row["prediction"] for row in rows] == [CLASSES[0], CLASSES[1], CLASSES[0]]
    positive = np.array([float(row[f"probability_{CLASSES[1]}"]) for row in rows])
    np.testing.assert_allclose(positive, 1 / (1 + np.exp(-LOGITS[:, 0].astype(float))), rtol=1e-8)
    negative = np.array([float(row[f"probability_{CLASSES[0]}"]) for row in rows])
    np.testing.assert_allclose(positive + negative, 1, atol=1e-8)


def test_unknown_patients_are_empty_cells(tmp_path):
    _write(tmp_path)
    assert [row["patient"] for row in _rows(tmp_path)] == ["", "", ""]
    assert list(_rows(tmp_path)[0])[:4] == ["id", "patient", "label", "prediction"]


def test_metrics_come_back_from_json_as_they_were(tmp_path):
    metrics = classification_metrics(LABELS, LOGITS, CLASSES)
    _write(tmp_path / "new" / "report", metrics=metrics)
    text = (tmp_path / "new" / "report" / "test_metrics.json").read_text(encoding="utf-8")
    assert json.loads(text) == metrics
    assert list(json.loads(text)) == sorted(metrics)
    assert CLASSES[1] in text


def test_undefined_numbers_are_null_and_numpy_values_are_plain(tmp_path):
    metrics = {"auroc": math.nan, "deep": [{"x": np.float32("inf")}], "n": np.int64(3)}
    _write(tmp_path, metrics={**metrics, "matrix": np.eye(2, dtype=int)})
    text = (tmp_path / "test_metrics.json").read_text()
    assert json.loads(text) == {
        "auroc": None, "deep": [{"x": None}], "n": 3, "matrix": [[1, 0], [0, 1]],
    }  # fmt: skip
    assert "NaN" not in text
    assert "Infinity" not in text


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch):
    _write(tmp_path, metrics={"run": 1})

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="No space left"):
        _write(tmp_path, metrics={"run": 2})
    assert json.loads((tmp_path / "test_metrics.json").read_text()) == {"run": 1}
    assert sorted(os.listdir(tmp_path)) == ["predictions.csv", "test_metrics.json"]


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "report").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        _write(tmp_path / "report")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": IDS[:2]}, "2 ids"),
        ({"patients": ["p"]}, "1 patients"),
        ({"classes": ("a", "b", "c")}, "3 class names"),
        ({"logits": np.full((3, 1), np.nan)}, "3 of 3 predictions are not finite"),
    ],
)
def test_arguments_that_do_not_fit_write_nothing(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        _write(tmp_path, **changes)
    assert not os.listdir(tmp_path)
