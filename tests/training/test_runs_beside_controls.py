"""Controls in the results of runs, and a run on permuted labels that nobody takes for another."""

import csv
import json
import pathlib

import pytest
from small_runs import config_for, write_patches

from glomjax import load_classifier
from glomjax.cli.inspect import describe_weights
from glomjax.errors import UserError
from glomjax.inference.evaluation import evaluate
from glomjax.pretrained import read_weights
from glomjax.training import train_and_evaluate


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> pathlib.Path:
    return write_patches(tmp_path_factory.mktemp("data") / "elsewhere", first=500, numbered=True)


def test_a_run_on_colours_says_first_that_colours_do_as_much(small_run):
    metrics = json.loads((small_run[1] / "test_metrics.json").read_text())
    assert list(metrics["controls"]) == ["16 x 16 thumbnails", "colour statistics", "file facts"]
    colours = metrics["controls"]["colour statistics"]
    assert colours["auroc"] == 1
    assert set(colours) == {"auroc", "loss", "accuracy", "difference"}
    lines = [line.split(" ", 1)[-1] for line in (small_run[1] / "run.log").read_text().splitlines()]
    start = next(i for i, line in enumerate(lines) if "test: loss" in line)
    assert "is not shown to be better than a logistic regression on colour" in lines[start + 1]
    assert "controls: AUROC of colour statistics 1.000" in lines[start + 2]
    assert "these test images were judged once" in lines[start + 3]


def test_elsewhere_controls_are_fitted_without_the_patients_that_they_judge(
    small_run, elsewhere, tmp_path
):
    classifier = load_classifier(small_run[1])
    found = evaluate(classifier, elsewhere, tmp_path / "out")
    assert found.text.splitlines()[0] == found.metrics["control_message"] != ""
    assert "fitted on this data, 5 parts of its patients left out in turn" in found.text
    again = evaluate(classifier, elsewhere, tmp_path / "again")
    assert again.metrics["controls"] == found.metrics["controls"]
    assert "judged 2 times (1 here, 1 in 'out')" in again.looks


def test_a_network_of_permuted_labels_is_called_so_wherever_it_is_used(
    small_run, tmp_path, capsys, caplog
):
    config = config_for(small_run[0], **{"data.permute_labels": True})
    run = tmp_path / "run"
    metrics = train_and_evaluate(config, run)
    said = capsys.readouterr().out
    assert "permuted within patients, as config.data.permute_labels=True says" in said.replace(
        " = ", "="
    )
    assert "trained on permuted labels: this is what a control reaches" in said
    assert metrics["permuted_labels"] is True
    assert any("permuted within patients" in note for note in metrics["notes"])
    assert metrics["controls"]["colour statistics"]["auroc"] < 1
    assert read_weights(run)[1].spec.trained_on.permuted_labels
    for name, of in (("splits.csv", "permuted_label"), ("predictions_validation.csv", "labels")):
        with open(run / name, newline="") as file:
            assert of in next(csv.reader(file))
    load_classifier(run)
    assert "trained on permuted labels" in caplog.text
    assert "PERMUTED" in describe_weights(run)
    # Called again, it is the same finished run, and with its own labels it is another one.
    assert train_and_evaluate(config, run)["loss"] == metrics["loss"]
    with pytest.raises(UserError, match=r"data.permute_labels was True, now False"):
        train_and_evaluate(config_for(small_run[0]), run)
