"""The report's files can be read by others and are never half written."""

import csv
import json
import math
import os

import numpy as np
import pytest

from glomjax.errors import UserError
from glomjax.evaluation import classification_metrics, probabilities, write_report

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
        ({"columns": {"slide": ["s"]}}, "1 cells of column 'slide'"),
        ({"classes": ("a", "b", "c")}, "3 class names"),
        ({"logits": np.full((3, 1), np.nan)}, "3 of 3 predictions are not finite"),
    ],
)
def test_arguments_that_do_not_fit_write_nothing(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        _write(tmp_path, **changes)
    assert not os.listdir(tmp_path)


def test_loss_and_auroc_come_back_exactly_where_probabilities_are_saturated(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    logits = (rng.normal(size=(40, 1)) + labels[:, None] + 40).astype(np.float32)
    metrics = classification_metrics(labels, logits, CLASSES)
    _write(tmp_path, metrics=metrics, ids=[str(i) for i in labels], labels=labels, logits=logits)
    rows = _rows(tmp_path)
    assert {row[f"probability_{CLASSES[1]}"] for row in rows} == {"1.0"}
    written = np.array([[float(row["logit"])] for row in rows])
    again = classification_metrics(labels, written, CLASSES)
    assert (again["auroc"], again["loss"]) == (metrics["auroc"], metrics["loss"])


def test_every_probability_and_every_logit_of_several_classes_has_all_its_digits(tmp_path):
    logits = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    _write(tmp_path, logits=logits, classes=("a", "b", "c"))
    rows = _rows(tmp_path)
    for what, expected in (("logit", logits.astype(float)), ("probability", probabilities(logits))):
        written = [[float(row[f"{what}_{name}"]) for name in "abc"] for row in rows]
        assert written == expected.tolist()


def test_further_columns_come_back_and_none_is_taken_for_one_of_the_table(tmp_path):
    columns = {"slide": ["S1", "S1", "=S2"], "label": ["x", "y", "z"], "logit": ["1", "2", "3"]}
    _write(tmp_path, patients=["p", "p", "q"], columns=columns)
    rows = _rows(tmp_path)
    assert list(rows[0])[:6] == ["id", "patient", "slide", "data_label", "data_logit", "label"]
    assert [row["slide"] for row in rows] == ["S1", "S1", "=S2"]
    assert [row["data_label"] for row in rows] == ["x", "y", "z"]
    assert [float(row["logit"]) for row in rows] == LOGITS[:, 0].tolist()


@pytest.mark.parametrize(
    "name", ["a\rb", "a\r\nb", "=1+1", "-2", "@x", "+3", 'a"b', "a;b", "", "\t"]
)
def test_every_name_comes_back_as_it_was(tmp_path, name):
    _write(tmp_path, ids=[name, "b", "c"], patients=[name] * 3, columns={"slide": [name] * 3})
    row = _rows(tmp_path)[0]
    assert (row["id"], row["patient"], row["slide"]) == (name, name, name)
    assert len(_rows(tmp_path)) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["a", "b", "b"]}, "labels are of <U1"),
        ({"labels": [0, 1, -1]}, "labels run from -1 to 1"),
        ({"labels": [0, 1, 5]}, "labels run from 0 to 5"),
        ({"ids": None}, "ids is of type NoneType; give a list of names"),
        ({"patients": iter("abc")}, "patients is of type str_.*; give a list of names"),
        ({"classes": {"a", "b"}}, "it is a name for each class"),
    ],
)
def test_arguments_of_another_kind_are_refused_before_anything_is_written(
    tmp_path, change, message
):
    with pytest.raises(UserError, match=message):
        _write(tmp_path, **change)
    assert list(tmp_path.iterdir()) == []
