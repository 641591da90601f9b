"""Temperature and threshold of a run: chosen on validation, stored with the best weights, applied
by all that predict with them."""

import csv
import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from small_runs import CLASSES, config_for

from glomjax import checkpoints, load_classifier
from glomjax.cli.main import main
from glomjax.errors import UserError
from glomjax.evaluation import choose_threshold, fit_temperature
from glomjax.evaluation.calibration import apply_temperature
from glomjax.inference.evaluation import evaluate
from glomjax.pretrained import convert_weights, read_weights, write_weights
from glomjax.training import loop, train_and_evaluate

RULE = "sensitivity=0.5"
ASKED = {"decision.threshold": RULE, "decision.temperature": True}


@pytest.fixture(scope="module")
def patches(small_run) -> pathlib.Path:
    return small_run[0]


@pytest.fixture(scope="module")
def decided(patches, tmp_path_factory) -> tuple[pathlib.Path, dict]:
    """(folder, metrics) of the small run with a temperature and a threshold; not to be changed."""
    folder = tmp_path_factory.mktemp("decided") / "run"
    return folder, train_and_evaluate(config_for(patches, **ASKED), folder, progress=False)


def rows_of(file: pathlib.Path) -> list[dict]:
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))


def logits_of(file: pathlib.Path) -> np.ndarray:
    return np.array([[row["logit"]] for row in rows_of(file)], np.float32)


def labels_of(file: pathlib.Path) -> np.ndarray:
    return np.array([CLASSES.index(row["label"]) for row in rows_of(file)])


def test_both_are_those_of_the_validation_split_and_of_nothing_else(small_run, decided):
    folder, metrics = decided
    plain = small_run[1] / "predictions_validation.csv"
    labels = labels_of(plain)
    temperature = fit_temperature(labels, logits_of(plain))
    assert metrics["temperature"] == temperature != 1
    scaled = apply_temperature(logits_of(plain), temperature)
    assert logits_of(folder / "predictions_validation.csv").tobytes() == scaled.tobytes()
    threshold = choose_threshold(labels, scaled[:, 0], RULE)
    assert (metrics["threshold"], metrics["threshold_rule"]) == (threshold, RULE)
    test = apply_temperature(logits_of(small_run[1] / "predictions.csv"), temperature)
    assert logits_of(folder / "predictions.csv").tobytes() == test.tobytes()
    notes = [note for note in metrics["notes"] if "by the rule sensitivity=0.5" in note]
    assert "on the validation, where it was chosen, that has sensitivity" in notes[0]
    assert json.loads((small_run[1] / "test_metrics.json").read_text())["threshold"] == 0.5


@pytest.mark.parametrize("split", ["predictions.csv", "predictions_validation.csv"])
def test_what_is_predicted_and_counted_is_what_lies_above_the_threshold(decided, split):
    folder, metrics = decided
    rows = rows_of(folder / split)
    positive = [float(row["probability_glomerulus"]) > metrics["threshold"] for row in rows]
    assert [row["prediction"] for row in rows] == [CLASSES[above] for above in positive]
    if split == "predictions.csv":
        confusion = np.zeros((2, 2), int)
        np.add.at(confusion, (labels_of(folder / split), np.array(positive, int)), 1)
        assert metrics["confusion_matrix"] == confusion.tolist()
        # It is another decision than at 0.5, or nothing of this would show.
        assert positive != [float(row["probability_glomerulus"]) > 0.5 for row in rows]


def test_run_converted_file_and_loaded_network_agree_to_the_bit(decided, patches, tmp_path):
    folder, metrics = decided
    convert_weights(folder, tmp_path / "w.safetensors")
    rows = rows_of(folder / "predictions.csv")
    images = [patches / row["id"] for row in rows]
    specs = [read_weights(source)[1].spec for source in (folder, tmp_path / "w.safetensors")]
    assert specs[0] == specs[1]
    assert (specs[0].threshold, specs[0].threshold_rule) == (metrics["threshold"], RULE)
    for source in (folder, folder / "checkpoints" / "best", tmp_path / "w.safetensors"):
        classifier = load_classifier(source)
        found = classifier.predict(images)
        assert found.logits.tobytes() == logits_of(folder / "predictions.csv").tobytes()
        assert list(found.labels) == [row["prediction"] for row in rows]
    # Of the last weights, which are others, nothing was chosen.
    assert load_classifier(folder / "checkpoints" / "last").threshold == 0.5


def test_the_same_split_judged_elsewhere_gives_the_run_s_own_numbers(decided, patches, tmp_path):
    folder, metrics = decided
    own = pathlib.Path(shutil.copytree(patches, tmp_path / "patches"))
    shutil.copy(folder / "splits.csv", own / "manifest.csv")
    found = evaluate(load_classifier(folder), own, tmp_path / "out", split="test")
    for name in ("loss", "accuracy", "confusion_matrix", "threshold", "threshold_rule"):
        assert found.metrics[name] == metrics[name], name
    assert found.metrics["networks"][0]["temperature"] == metrics["temperature"]
    assert f"from a probability of {metrics['threshold']:.4g}; threshold: {RULE})" in found.text
    given = evaluate(load_classifier(folder, threshold=0.01), own, tmp_path / "all", split="test")
    assert (given.metrics["threshold"], given.metrics["threshold_rule"]) == (0.01, "given")
    assert {row["prediction"] for row in rows_of(tmp_path / "all" / "predictions.csv")} == {
        "glomerulus"
    }
    assert given.metrics["sensitivity"] == 1


def test_the_command_predicts_by_it_and_by_another_that_is_given(
    decided, patches, tmp_path, capsys
):
    folder, metrics = decided
    command = ["predict", str(folder), "--data", str(patches), "--out"]
    assert main([*command, str(tmp_path / "a.csv")]) == 0
    assert f"; threshold: {RULE}\n" in capsys.readouterr().err
    for row in rows_of(tmp_path / "a.csv"):
        above = float(row["probability_glomerulus"]) > metrics["threshold"]
        assert row["prediction"] == CLASSES[above]
    assert main([*command, str(tmp_path / "b.csv"), "--threshold", "0.999"]) == 0
    assert {row["prediction"] for row in rows_of(tmp_path / "b.csv")} == {"other"}
    about = [json.loads((tmp_path / f"{name}.csv.json").read_text()) for name in "ab"]
    assert [a["threshold"] for a in about] == [metrics["threshold"], 0.999]
    assert [a["threshold_rule"] for a in about] == [RULE, "given"]
    assert {a["networks"][0]["temperature"] for a in about} == {metrics["temperature"]}
    capsys.readouterr()
    assert main(["inspect", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert f"{metrics['threshold']:.4g} ({RULE})" in printed
    assert f"{metrics['temperature']:.4g}, by which logits are divided" in printed
    assert main([*command, "c.csv", "--threshold", "1.5"]) == 2
    assert "--threshold is 1.5; it is a probability above 0 and below 1" in capsys.readouterr().err


def changed(run: pathlib.Path, file: pathlib.Path, **changes) -> pathlib.Path:
    """The run's weights, each a little larger, with something else in what they carry."""
    params, info = read_weights(run)
    params = {name: value * np.float32(1.01) for name, value in params.items()}
    write_weights(file, params, dataclasses.replace(info.spec, **changes))
    return file


def test_an_ensemble_averages_calibrated_members_and_their_thresholds(
    decided, patches, tmp_path, caplog
):
    folder, metrics = decided
    other = changed(folder, tmp_path / "o.safetensors", temperature=3.0, threshold=0.9)
    images = sorted((patches / "other").iterdir())[:9]
    both = load_classifier([folder, other])
    assert both.threshold == pytest.approx((metrics["threshold"] + 0.9) / 2)
    assert both.threshold_rule.startswith("mean of the members' thresholds (")
    assert "the members' thresholds differ" in caplog.text
    found, one, two = (x.predict(images) for x in (both, *map(load_classifier, (folder, other))))
    mean = (one.probabilities + two.probabilities) / 2
    np.testing.assert_allclose(found.probabilities, mean, rtol=1e-12)
    assert found.labels == tuple(CLASSES[int(p > both.threshold)] for p in mean[:, 1])
    same = changed(folder, tmp_path / "s.safetensors")
    alike = load_classifier([folder, same])
    assert (alike.threshold, alike.threshold_rule) == (metrics["threshold"], RULE)


class Killed(BaseException):
    """As SIGKILL would end the process."""


def test_a_run_that_is_killed_before_its_results_goes_on_to_the_same(
    small_run, decided, patches, tmp_path, monkeypatch
):
    """At first as a kill before the choice leaves it, and then as one behind it does."""
    folder, metrics = decided
    run = pathlib.Path(shutil.copytree(folder, tmp_path / "run"))
    for name in ("test_metrics.json", "predictions.csv", "predictions_validation.csv"):
        (run / name).unlink()
    shutil.rmtree(run / "checkpoints" / "best")
    shutil.copytree(small_run[1] / "checkpoints" / "best", run / "checkpoints" / "best")

    def kill(setup, *_):
        setup.checkpoints.wait()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop, "report_test", kill)
        with pytest.raises(Killed):
            train_and_evaluate(config_for(patches, **ASKED), run, progress=False)
    # What was chosen is on the disk, and no result.
    assert load_classifier(run).threshold == metrics["threshold"]
    assert not (run / "test_metrics.json").exists()
    assert train_and_evaluate(config_for(patches, **ASKED), run, progress=False) == metrics
    for name in ("predictions.csv", "predictions_validation.csv"):
        assert (run / name).read_bytes() == (folder / name).read_bytes()
    assert load_classifier(run).threshold == metrics["threshold"]


def test_a_run_that_goes_on_chooses_anew_for_its_other_weights(decided, patches, tmp_path):
    run = pathlib.Path(shutil.copytree(decided[0], tmp_path / "run"))
    config = config_for(patches, **ASKED | {"num_epochs": 3})
    metrics = train_and_evaluate(config, run, progress=False)
    table = run / "predictions_validation.csv"
    assert metrics["best_epoch"] == 3
    assert metrics["threshold"] == choose_threshold(labels_of(table), logits_of(table)[:, 0], RULE)
    assert metrics["threshold"] != decided[1]["threshold"]
    assert read_weights(run)[1].spec.threshold == metrics["threshold"]


def test_nothing_is_chosen_that_was_not_asked_for(small_run):
    metrics = json.loads((small_run[1] / "test_metrics.json").read_text())
    assert (metrics["threshold"], metrics["threshold_rule"], metrics["temperature"]) == (
        (0.5, "0.5", 1.0)
    )
    metadata = checkpoints.read_metadata(small_run[1] / "checkpoints" / "best")
    assert metadata["spec"]["format"] == 2


def test_another_rule_is_another_run(decided, patches, tmp_path):
    run = pathlib.Path(shutil.copytree(decided[0], tmp_path / "run"))
    asked = ASKED | {"decision.threshold": "youden"}
    with pytest.raises(UserError, match=r"decision.threshold was 'sensitivity=0.5', now 'youden'"):
        train_and_evaluate(config_for(patches, num_epochs=3, **asked), run)


def test_a_threshold_of_three_classes_is_refused_before_the_training(patches, tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (9, 32, 32, 3)).astype(np.uint8)
    data = {
        split: (images + np.uint8(i), np.arange(9) % 3)
        for i, split in enumerate(("train", "validation", "test"))
    }
    with pytest.raises(UserError, match="which two classes have and not 3; leave it at"):
        train_and_evaluate(config_for(patches, **ASKED), tmp_path / "run", data=data)
    assert not (tmp_path / "run" / "checkpoints" / "last").exists()
