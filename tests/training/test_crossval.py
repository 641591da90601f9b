"""A cross-validation: whom it tests, who trains which fold, and what it leaves."""

import csv
import dataclasses
import json
import pathlib
import shutil
import time

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from small_runs import CLASSES, blots, config_for, write_patches

from glomjax import load_classifier
from glomjax.errors import UserError
from glomjax.evaluation import write_report
from glomjax.evaluation.calibration import fit_recalibration, fit_temperature
from glomjax.evaluation.metrics import metrics_of_network
from glomjax.evaluation.report import write_predictions
from glomjax.inference.saved_predictions import read_predictions
from glomjax.pretrained import read_weights
from glomjax.training import Interrupted, cross_validate, crossval, loop
from glomjax.training.crossval_results import fold_folder, write_results
from glomjax.training.interrupts import STOP, Interrupts
from glomjax.training.run_lock import LOCK, Holder

FOLDS = 2


def rows_of(file: pathlib.Path) -> list[dict[str, str]]:
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))


def take(folder: pathlib.Path) -> None:
    """The lock of a process that lives, as if it trained in that folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LOCK).write_text(json.dumps(dataclasses.asdict(Holder.here())))


def no_training(patch: pytest.MonkeyPatch) -> None:
    def fit(_):
        raise AssertionError("this should not train")

    patch.setattr(loop.Trainer, "fit", fit)


@pytest.fixture(scope="module")
def patches(tmp_path_factory) -> pathlib.Path:
    return write_patches(tmp_path_factory.mktemp("patches"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, patches) -> tuple[pathlib.Path, list[str]]:
    """(A finished cross-validation, its folds in the order in which they were finished); while it
    began, another process trained the first fold, and gave it back. Not to be changed."""
    folder = tmp_path_factory.mktemp("crossval") / "cv"
    taken = fold_folder(folder, 0, 0)
    order: list[str] = []
    train = crossval.train_and_evaluate

    def trained(config, path, **options):
        metrics = train(config, path, **options)
        order.append(path.name)
        return metrics

    def draw(runs):
        take(taken)
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crossval, "train_and_evaluate", trained)
        patch.setattr(crossval, "_draw", draw)
        patch.setattr(crossval.time, "sleep", lambda s: (taken / LOCK).unlink(missing_ok=True))
        cross_validate(config_for(patches, num_epochs=1), folder, folds=FOLDS, progress=False)
    return folder, order


def test_a_fold_that_another_process_trains_is_passed_over_and_come_back_to(finished):
    folder, order = finished
    assert order == ["fold_1", "fold_0"]
    assert not list(folder.rglob(LOCK))


def test_it_says_on_what_its_folds_ran_and_what_they_took(finished, tmp_path):
    folder = tmp_path / "cv"
    shutil.copytree(finished[0], folder)
    files = [fold_folder(folder, 0, fold) / "environment.json" for fold in range(FOLDS)]
    folds = [json.loads(file.read_text()) for file in files]
    whole = json.loads((folder / "environment.json").read_text())
    assert whole["total_seconds"] == pytest.approx(sum(fold["total_seconds"] for fold in folds))
    assert whole["peak_memory_bytes"] == max(fold["peak_memory_bytes"] for fold in folds)
    assert whole["started"] == min(fold["started"] for fold in folds)
    (ran,) = whole["environments"]  # both in this process
    assert ran.items() < folds[0].items()
    # No number depends on it, so a fold without it is no reason to refuse the others.
    files[0].write_text("[")
    write_results(folder, 1, FOLDS, "patient")
    again = json.loads((folder / "environment.json").read_text())
    assert again == whole | {
        "started": folds[1]["started"],
        "total_seconds": None,
        "peak_memory_bytes": folds[1]["peak_memory_bytes"],
    }


def test_every_patient_is_tested_once_with_all_of_his_patches(finished, patches):
    folder, _ = finished
    rows = rows_of(folder / "out_of_fold.csv")
    manifest = {row["path"]: row for row in rows_of(patches / "manifest.csv")}
    assert [row["id"] for row in rows] == sorted(manifest)
    fold_of: dict[str, set[str]] = {}
    for row in rows:
        known = manifest[row["id"]]
        assert (row["label"], row["patient"]) == (known["label"], known["patient"])
        assert (row["block"], row["repeat"]) == (known["block"], "0")
        fold_of.setdefault(row["patient"], set()).add(row["fold"])
    assert len(fold_of) == 12
    assert all(len(folds) == 1 for folds in fold_of.values())
    assert {row["fold"] for row in rows} == {"0", "1"}


def test_a_finished_one_trains_nothing_and_writes_its_results_anew(finished, patches, tmp_path):
    folder = tmp_path / "cv"
    shutil.copytree(finished[0], folder)
    before = {name: (folder / name).read_bytes() for name in ("out_of_fold.csv", "metrics.json")}
    for name in before:
        (folder / name).unlink()
    with pytest.MonkeyPatch.context() as patch:
        no_training(patch)
        cross_validate(config_for(patches, num_epochs=1), folder, folds=FOLDS, progress=False)
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_one_that_a_signal_stops_goes_on_to_the_same_result(finished, patches, tmp_path):
    folder, config = tmp_path / "cv", config_for(patches, num_epochs=1)
    shutil.copytree(finished[0], folder, ignore=shutil.ignore_patterns("fold_1", "metrics.json"))
    looks = iter(range(1000))
    with pytest.MonkeyPatch.context() as patch:
        # After the second step of the fold.
        asked = property(lambda _: STOP if next(looks) >= 2 else 0)
        patch.setattr(Interrupts, "request", asked)
        with pytest.raises(Interrupted):
            cross_validate(config, folder, folds=FOLDS, progress=False)
    assert (fold_folder(folder, 0, 1) / "checkpoints" / "last").is_dir()
    with pytest.raises(UserError, match=r"has not finished"):
        load_classifier(folder)
    cross_validate(config, folder, folds=FOLDS, progress=False)
    for name in ("out_of_fold.csv", "metrics.json", "report.txt"):
        assert (folder / name).read_bytes() == (finished[0] / name).read_bytes(), name


def test_a_finished_one_looks_at_its_data_and_a_refused_call_changes_nothing(
    finished, patches, tmp_path, monkeypatch
):
    no_training(monkeypatch)
    folder = tmp_path / "cv"
    shutil.copytree(finished[0], folder)
    before = {file: file.read_bytes() for file in folder.rglob("*.json")}
    other = write_patches(tmp_path / "other", first=900)
    for source in (other, tmp_path / "nowhere"):
        config = config_for(source, num_epochs=1)
        for repeats in (1, 9):
            with pytest.raises(UserError):
                cross_validate(config, folder, folds=FOLDS, repeats=repeats, progress=False)
    assert {file: file.read_bytes() for file in folder.rglob("*.json")} == before


def test_a_shortened_table_of_a_fold_is_refused(finished, tmp_path):
    folder = tmp_path / "cv"
    shutil.copytree(finished[0], folder)
    file = fold_folder(folder, 0, 1) / "predictions_validation.csv"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-2]))
    with pytest.raises(UserError, match=r"predictions_validation.csv' is not what the run"):
        write_results(folder, 1, FOLDS, "patient")


def test_what_a_single_fold_says_reaches_the_report(finished, tmp_path):
    folder = tmp_path / "cv"
    shutil.copytree(finished[0], folder)
    file = fold_folder(folder, 0, 1) / "test_metrics.json"
    metrics = json.loads(file.read_text())
    metrics["notes"].append("The weights have seen 3 test images.")
    metrics["permuted_labels"] = True
    file.write_text(json.dumps(metrics))
    result, report = write_results(folder, 1, FOLDS, "patient")
    told = "In 1 of 2 folds, of which repeat_0/fold_1: The weights have seen 3 test images."
    assert told in result["notes"]
    assert f"note: {told}" in report
    assert result["permuted_labels"]
    assert "trained on permuted labels" in report.splitlines()[0]


def test_its_folder_is_no_single_network_and_a_lost_fold_is_named(finished, tmp_path):
    folder = tmp_path / "cv"
    shutil.copytree(finished[0], folder)
    with pytest.raises(UserError, match=r"is a cross-validation, of several networks: name one of"):
        read_weights(folder)
    shutil.rmtree(fold_folder(folder, 0, 1))
    with pytest.raises(UserError, match=r"has lost '.*fold_1'; restore it from a copy"):
        load_classifier(folder)


def test_its_networks_keep_their_threshold_beside_others(finished, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(finished[0], other)
    metrics = json.loads((other / "metrics.json").read_text())
    metrics["per_fold"] = metrics["per_fold"][:1]
    metrics["threshold"] = 0.2
    (other / "metrics.json").write_text(json.dumps(metrics))
    alone = load_classifier([other, fold_folder(finished[0], 0, 1)])
    assert alone.threshold == pytest.approx((0.2 + 0.5) / 2)


def test_a_copy_of_its_table_is_compared_as_itself(finished, tmp_path):
    copied = tmp_path / "renamed.csv"
    shutil.copy(finished[0] / "out_of_fold.csv", copied)
    one, two = read_predictions(finished[0]), read_predictions(copied)
    np.testing.assert_array_equal(one.logits, two.logits)


def test_controls_are_judged_within_the_same_folds(finished):
    folder, _ = finished
    metrics = json.loads((folder / "metrics.json").read_text())
    with open(folder / "out_of_fold.csv", newline="", encoding="utf-8") as stream:
        network = {row["id"]: row for row in csv.DictReader(stream)}
    won = {name: [] for name in [*metrics["controls"], "network"]}
    for fold in metrics["per_fold"]:
        with open(folder / fold["folder"] / "controls.csv", newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        scores = {name: [float(row[name]) for row in rows] for name in metrics["controls"]}
        scores["network"] = [float(network[row["id"]]["logit"]) for row in rows]
        positive = [network[row["id"]]["label"] == metrics["classes"][1] for row in rows]
        for name, values in scores.items():
            won[name] += [
                (np.sign(a - b) + 1) / 2
                for a, first in zip(values, positive, strict=True)
                for b, second in zip(values, positive, strict=True)
                if first and not second
            ]
    areas = {name: np.mean(pairs) for name, pairs in won.items()}
    assert len(areas) == 4
    for name, control in metrics["controls"].items():
        assert control["auroc"] == pytest.approx(areas[name])
        assert control["difference"]["value"] == pytest.approx(areas["network"] - areas[name])
    report = (folder / "report.txt").read_text()
    assert metrics["control_message"] in report.splitlines()[0]
    assert "controls: AUROC of" in report


def test_its_networks_load_as_one_ensemble_on_one_scale(finished, patches):
    folder, _ = finished
    ensemble, metrics = load_classifier(folder), json.loads((folder / "metrics.json").read_text())
    assert len(ensemble.specs) == FOLDS
    assert ensemble.threshold == metrics["threshold"]
    assert ensemble.threshold_rule == "youden, on the out-of-fold predictions"
    images = str(patches / "other")
    chances = []
    for fold in metrics["per_fold"]:
        alone = load_classifier(folder / fold["folder"])
        assert alone.threshold == 0.5
        log_odds = fold["slope"] * alone.predict(images).logits + fold["intercept"]
        chances.append(1 / (1 + np.exp(-log_odds)))
    expected = np.mean(chances, axis=0)
    np.testing.assert_allclose(ensemble.predict(images).probabilities[:, 1:], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "arguments", "said"),
    [
        ({"learning_rate": 1e-3}, {}, r"learning_rate was 0.003, now 0.001"),
        ({"num_epochs": 3}, {}, r"num_epochs was 1, now 3"),
        ({}, {"folds": 3}, r"data.folds was 2, now 3"),
        ({"data.fold": 1, "data.folds": 3}, {}, r"goes through all of its folds; leave it at 0"),
        ({}, {"folds": 1}, r"folds is 1; it is a whole number from 2"),
        ({}, {"repeats": 0}, r"repeats is 0; it is a whole number from 1"),
        ({}, {"max_hours": -1}, r"max_hours is -1"),
    ],
)
def test_another_configuration_is_refused_in_its_folder(
    finished, patches, monkeypatch, changes, arguments, said
):
    no_training(monkeypatch)
    config = config_for(patches, **({"num_epochs": 1} | changes))
    with pytest.raises(UserError, match=said):
        cross_validate(config, finished[0], **({"folds": FOLDS, "progress": False} | arguments))


def test_fewer_repeats_than_there_are_and_folders_of_other_things_are_refused(
    patches, tmp_path, monkeypatch
):
    no_training(monkeypatch)
    config, folder = config_for(patches, num_epochs=1), tmp_path / "cv"
    with pytest.raises(AssertionError):  # so that a fold is taken
        cross_validate(config, folder, folds=FOLDS, repeats=3, progress=False)
    (fold_folder(folder, 0, 0) / LOCK).write_text("{}")
    with pytest.raises(UserError, match=r"of 3 repeats, and repeats is 1"):
        cross_validate(config, folder, folds=FOLDS, progress=False)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds no cross-validation \('thesis.tex' for one\)"):
        cross_validate(config, other, folds=FOLDS, progress=False)


@pytest.mark.parametrize(
    ("rows", "arguments", "said"),
    [
        ("split", {}, r"has splits of its own"),
        ("", {"folds": 13}, r"at least 13 patients with it are needed for the folds"),
    ],
)
def test_data_that_give_no_such_folds_are_refused_before_anything_trains(
    tmp_path, patches, monkeypatch, rows, arguments, said
):
    no_training(monkeypatch)
    source = tmp_path / "data"
    shutil.copytree(patches, source)
    if rows:
        lines = (source / "manifest.csv").read_text().splitlines()
        splits = ["split", *(("train", "validation", "test")[i // 4 % 3] for i in range(48))]
        table = "\n".join(f"{a},{b}" for a, b in zip(lines, splits, strict=True))
        (source / "manifest.csv").write_text(table + "\n")
    with pytest.raises(UserError, match=said):
        cross_validate(
            config_for(source), tmp_path / "cv", **({"folds": 3, "progress": False} | arguments)
        )


@pytest.mark.parametrize("change", ["pixels", "images"])
def test_other_data_than_those_of_its_finished_folds_are_refused(
    finished, patches, tmp_path, monkeypatch, change
):
    no_training(monkeypatch)
    folder, source = tmp_path / "cv", tmp_path / "data"
    shutil.copytree(finished[0], folder, ignore=shutil.ignore_patterns("fold_1", "metrics.json"))
    shutil.copytree(patches, source)
    manifest = source / "manifest.csv"
    if change == "pixels":
        blots(1000).save(source / "other" / "02.png")
    else:  # those of a patient are gone
        lines = manifest.read_text().splitlines(keepends=True)
        manifest.write_text("".join([lines[0], *lines[5:]]))
        for line in lines[1:5]:
            (source / line.partition(",")[0]).unlink()
    with pytest.raises(UserError, match=r"are not those of the run|have changed since it"):
        cross_validate(config_for(source, num_epochs=1), folder, folds=FOLDS, progress=False)


def test_the_end_of_its_time_stops_it_while_it_waits_for_others(tmp_path, patches, monkeypatch):
    no_training(monkeypatch)
    begun = time.monotonic()
    others = [fold_folder(tmp_path / "cv", 0, fold) for fold in range(FOLDS)]
    monkeypatch.setattr(crossval, "_draw", lambda runs: list(map(take, others)) and [])
    monkeypatch.setattr(crossval, "_POLL_SECONDS", 0.01)
    config = config_for(patches)
    with pytest.raises(Interrupted) as caught:
        cross_validate(config, tmp_path / "cv", folds=FOLDS, max_hours=5.5 / 3600, progress=False)
    assert caught.value.exit_code == 75
    assert time.monotonic() - begun < 5


# What the folds say together, from folders without networks.


def write_folds(folder, *, repeats=2, folds=3, classes=CLASSES, patients=True, divided=False):
    """Fold folders as runs leave them, with noisy logits that differ in scale."""
    rng = np.random.default_rng(0)
    patient, outputs = np.arange(60) // 5, 1 if len(classes) == 2 else len(classes)
    labels = np.arange(60) % len(classes)
    signal = labels[:, None] == (1 if outputs == 1 else np.arange(outputs))
    ids = [f"patch {i:02d}.png" for i in range(60)]
    for r in range(repeats):
        of = (rng.permutation(60) if divided else rng.permutation(12)[patient]) % folds
        for f in range(folds):
            path, scale = fold_folder(folder, r, f), rng.uniform(0.2, 4)
            for split, rows in (("validation", of == (f + 1) % folds), ("test", of == f)):
                rows = np.flatnonzero(rows)
                about = {
                    "ids": [ids[i] for i in rows],
                    "labels": labels[rows],
                    "classes": classes,
                    "logits": scale * (2 * signal[rows] + rng.normal(size=(len(rows), outputs))),
                    "patients": [f"P{patient[i]}" for i in rows] if patients else None,
                    "columns": {"fold": [f"F{i}" for i in rows]},
                }
                if split == "validation":
                    write_predictions(path / "predictions_validation.csv", **about)
                else:
                    metrics = metrics_of_network(about["labels"], about["logits"], classes)
                    metrics |= {"notes": ["of all"], "patients": 4, "best_epoch": 1}
                    write_report(path, metrics=metrics, **about)


def recalibrated(folder: pathlib.Path, repeat: int, folds: int = 3):
    """(labels, logits, patients) of one repeat, each fold on its own validation split."""
    labels, logits, patients = [], [], []
    for fold in range(folds):
        path = fold_folder(folder, repeat, fold)
        known = rows_of(path / "predictions_validation.csv")
        slope, intercept = fit_recalibration(
            np.array([row["label"] == CLASSES[1] for row in known]),
            np.array([float(row["logit"]) for row in known]),
        )
        for row in rows_of(path / "predictions.csv"):
            labels.append(row["label"] == CLASSES[1])
            logits.append(slope * float(row["logit"]) + intercept)
            patients.append(row["patient"])
    return np.array(labels), np.array(logits), patients


def test_the_pooled_numbers_are_those_of_the_table(tmp_path):
    write_folds(tmp_path)
    metrics, report = write_results(tmp_path, 2, 3, "patient")
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert (tmp_path / "report.txt").read_text() == f"{report}\n"
    assert metrics["notes"] == ["of all"]
    table = rows_of(tmp_path / "out_of_fold.csv")
    assert len(table) == 120
    areas, accuracies, losses = [], [], []
    for repeat in range(2):
        rows = [row for row in table if row["repeat"] == str(repeat)]
        labels = np.array([row["label"] == CLASSES[1] for row in rows])
        scores = np.array([float(row["recalibrated_logit"]) for row in rows])
        expected = recalibrated(tmp_path, repeat)
        np.testing.assert_allclose(np.sort(scores), np.sort(expected[1]), rtol=1e-9)
        areas.append(roc_auc_score(labels, scores))
        accuracies.append(accuracy_score(labels, scores > 0))
        losses.append(log_loss(labels, 1 / (1 + np.exp(-scores))))
        assert rows[0]["data_fold"] == "F0"
    whole = metrics["pooled_recalibrated"]
    assert whole["auroc"] == pytest.approx(np.mean(areas))
    assert whole["accuracy"] == pytest.approx(np.mean(accuracies))
    assert whole["loss"] == pytest.approx(np.mean(losses))
    assert metrics["between_repeats"]["auroc"] == pytest.approx(np.std(areas, ddof=1))
    assert metrics["clusters"] == 12
    assert [fold["folder"] for fold in metrics["per_fold"]] == [
        f"repeat_{r}/fold_{f}" for r in range(2) for f in range(3)
    ]
    within = []
    for repeat in range(2):
        won = pairs = 0.0
        for fold in range(3):
            rows = [r for r in table if (r["repeat"], r["fold"]) == (str(repeat), str(fold))]
            labels = np.array([row["label"] == CLASSES[1] for row in rows])
            count = labels.sum() * (~labels).sum()
            won += count * roc_auc_score(labels, [float(row["logit"]) for row in rows])
            pairs += count
        within.append(won / pairs)
    assert metrics["pooled_within_folds"]["auroc"] == pytest.approx(np.mean(within))


def test_more_classes_are_recalibrated_by_a_temperature(tmp_path):
    classes = ("artery", "other", "glomerulus")
    write_folds(tmp_path, classes=classes, repeats=1)
    metrics, report = write_results(tmp_path, 1, 3, "patient")
    assert metrics["threshold"] is None
    assert "not known from one repeat; repeats=3 tells it" in report
    for fold in metrics["per_fold"]:
        known = rows_of(tmp_path / fold["folder"] / "predictions_validation.csv")
        logits = np.array([[float(row[f"logit_{name}"]) for name in classes] for row in known])
        labels = [classes.index(row["label"]) for row in known]
        assert fold["slope"] == pytest.approx(1 / fit_temperature(labels, logits))
        assert fold["intercept"] == 0


def test_without_patients_nothing_is_said_of_them(tmp_path):
    write_folds(tmp_path, patients=False, divided=True)
    metrics, report = write_results(tmp_path, 2, 3, "patient")
    assert metrics["clusters"] is None
    assert metrics["between_patients"] is None
    assert "Between patients" not in report


def test_folds_that_divide_a_patient_are_refused(tmp_path):
    write_folds(tmp_path, divided=True)
    with pytest.raises(UserError, match="an image or a patient is tested twice or is missing"):
        write_results(tmp_path, 2, 3, "patient")


def test_a_damaged_table_of_a_fold_is_named(tmp_path):
    write_folds(tmp_path)
    file = fold_folder(tmp_path, 1, 2) / "predictions.csv"
    whole = file.read_bytes()
    for left in (whole[:-30], whole[: whole[:-1].rindex(b"\n") + 1], b"id,label\n", b""):
        file.write_bytes(left)
        with pytest.raises(UserError, match=r"fold_2/predictions.csv' is not what the run"):
            write_results(tmp_path, 2, 3, "patient")
