"""Trained networks judged on other data: the numbers, and what is asked before there are any."""

import csv
import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image
from small_runs import CLASSES, blots, write_patches

from glomjax import load_classifier
from glomjax.errors import UserError
from glomjax.inference.evaluation import evaluate
from glomjax.pretrained import read_weights, write_weights


@pytest.fixture(scope="module")
def classifier(small_run):
    return load_classifier(small_run[1])


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> pathlib.Path:
    """Patches that are none of the training."""
    return write_patches(tmp_path_factory.mktemp("data") / "elsewhere", first=500, numbered=True)


@pytest.fixture
def copy(elsewhere, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(elsewhere, tmp_path / "copy"))


def changed(classifier, folder: pathlib.Path, small_run, **changes) -> pathlib.Path:
    """The run's weights in a file, with something else in what they carry."""
    params, info = read_weights(small_run[1])
    write_weights(folder / "w.safetensors", params, dataclasses.replace(info.spec, **changes))
    return folder / "w.safetensors"


def rows_of(folder: pathlib.Path) -> list[dict]:
    with open(folder / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_s_own_test_split_gives_its_own_report(classifier, small_run, tmp_path):
    patches, run = small_run
    own = pathlib.Path(shutil.copytree(patches, tmp_path / "patches"))
    shutil.copy(run / "splits.csv", own / "manifest.csv")
    found = evaluate(classifier, own, tmp_path / "out", split="test")
    theirs = json.loads((run / "test_metrics.json").read_text())
    same = ["loss", "auroc", "accuracy", "auroc_interval", "confusion_matrix", "n", "patients"]
    assert {name: found.metrics[name] for name in same} == {name: theirs[name] for name in same}
    assert found.metrics["seen_in_training"] is None
    assert (
        json.loads((tmp_path / "out" / "test_metrics.json").read_text())["loss"] == theirs["loss"]
    )
    ours, others = rows_of(tmp_path / "out"), rows_of(run)
    assert [row["logit"] for row in ours] == [row["logit"] for row in others]
    assert (tmp_path / "out" / "report.txt").read_text() == found.text + "\n"
    assert "split test" in found.text


def test_a_folder_of_one_split_or_none_is_taken_whole(classifier, elsewhere, copy, tmp_path):
    found = evaluate(classifier, elsewhere, tmp_path / "one")
    assert (found.metrics["n"], found.metrics["split"]) == (48, "all")
    ran = json.loads((tmp_path / "one" / "environment.json").read_text())
    assert ran["processor"]
    assert ran["seconds"] > 0
    table = copy / "manifest.csv"
    lines = table.read_text().splitlines()
    table.write_text(
        "\n".join([lines[0] + ",split", *(f"{line},test" for line in lines[1:])]) + "\n"
    )
    again = evaluate(classifier, copy, tmp_path / "two")
    assert again.metrics["loss"] == found.metrics["loss"]
    assert evaluate(classifier, copy, tmp_path / "three", split="testing").metrics["n"] == 48
    with pytest.raises(UserError, match=r"no split 'val' \(it has test\)"):
        evaluate(classifier, copy, tmp_path / "four", split="val")
    with pytest.raises(UserError, match=r"no split 'test' \(it tells none at all\)"):
        evaluate(classifier, elsewhere, tmp_path / "five", split="test")


def test_several_splits_are_judged_together_and_it_is_said(classifier, copy, tmp_path):
    table = copy / "manifest.csv"
    lines = table.read_text().splitlines()
    split = ["train"] * 24 + ["test"] * 24
    rows = [f"{line},{part}" for line, part in zip(lines[1:], split, strict=True)]
    table.write_text("\n".join([lines[0] + ",split", *rows]) + "\n")
    found = evaluate(classifier, copy, tmp_path / "out")
    assert "All splits of the data are judged together: train, test." in found.metrics["notes"]
    assert evaluate(classifier, copy, tmp_path / "test", split="test").metrics["n"] == 24


def test_patients_and_images_of_the_training_are_refused_by_name(classifier, small_run, tmp_path):
    with pytest.raises(UserError) as refused:
        evaluate(classifier, small_run[0], tmp_path / "out")
    text = str(refused.value)
    assert "of 48 images are, or nearly are, images that it was trained or validated on" in text
    assert "of 12 patients have the names of its patients and such images ('Frau " in text
    assert "allow_seen=True, which the report then says" in text
    assert not list((tmp_path / "out").iterdir())
    found = evaluate(classifier, small_run[0], tmp_path / "out", allow_seen=True)
    first = found.text.splitlines()[0]
    assert first.startswith("THE NETWORK HAS SEEN PART OF THIS DATA, and then this is no estimate")
    assert "'Frau " in first
    seen = found.metrics["seen_in_training"]
    with open(small_run[1] / "splits.csv", newline="") as file:
        splits = {row["path"]: row for row in csv.DictReader(file)}
    trained = {name for name, row in splits.items() if row["split"] != "test"}
    assert set(seen["images"]) == trained
    assert set(seen["patients_by_name_and_image"]) == {splits[name]["patient"] for name in trained}
    assert seen["patients_by_name_alone"] == []


def test_copies_are_found_without_names_and_however_they_were_saved(
    classifier, small_run, tmp_path
):
    patches, run = small_run
    with open(run / "splits.csv", newline="") as file:
        trained = [row for row in csv.DictReader(file) if row["split"] == "train"][:6]
    folder = tmp_path / "unnamed"
    for i, row in enumerate(trained):
        (folder / row["label"]).mkdir(parents=True, exist_ok=True)
        with Image.open(patches / row["path"]) as image:
            if i % 2:
                image = image.transpose(Image.Transpose.ROTATE_90).resize((80, 80))
            image.save(folder / row["label"] / f"{i}.jpg", quality=85)
    for i in range(4):
        (folder / CLASSES[i % 2]).mkdir(exist_ok=True)
        blots(900 + i, 50 * (i % 2)).save(folder / CLASSES[i % 2] / f"new {i}.png")
    with pytest.raises(UserError, match=r"part of this data: 6 of 10 images are"):
        evaluate(classifier, folder, tmp_path / "out")


def test_names_alone_are_no_certain_leak_and_not_passed_over(classifier, copy, tmp_path):
    table = copy / "manifest.csv"
    table.write_text(table.read_text().replace(",1,B", ",frau_a,B"))
    with pytest.raises(UserError) as refused:
        evaluate(classifier, copy, tmp_path / "out")
    text = str(refused.value)
    assert "1 of 12 patients have the names of its patients and none of its images" in text
    assert "('frau_a'): names as long as these are hardly given to two patients" in text
    found = evaluate(classifier, copy, tmp_path / "out", allow_seen=True)
    assert found.metrics["seen_in_training"]["patients_by_name_alone"] == ["frau_a"]


def test_a_network_that_does_not_say_whom_it_has_seen_is_noted(
    classifier, elsewhere, small_run, tmp_path
):
    file = changed(classifier, tmp_path, small_run, trained_on=None)
    found = evaluate(load_classifier(file), elsewhere, tmp_path / "out")
    assert "do not tell on whom they were trained" in found.text


def test_an_exported_file_alone_gives_the_same(classifier, elsewhere, small_run, tmp_path):
    file = changed(classifier, tmp_path, small_run)
    run = evaluate(classifier, elsewhere, tmp_path / "run").metrics
    alone = evaluate(load_classifier(file), elsewhere, tmp_path / "file").metrics
    assert alone["loss"] == run["loss"]
    with pytest.raises(UserError, match="hold the same weights, which an ensemble would count tw"):
        load_classifier([file, small_run[1]])
    params, info = read_weights(file)
    other = tmp_path / "other.safetensors"
    write_weights(
        other, {path: value * np.float32(1.25) for path, value in params.items()}, info.spec
    )
    both = evaluate(load_classifier([file, other]), elsewhere, tmp_path / "both")
    assert both.metrics["loss"] != run["loss"]
    assert "\nensemble: davit_tiny" in both.text
    assert len(both.metrics["networks"]) == 2


def test_classes_under_other_names_are_mapped_on_request(classifier, copy, tmp_path):
    before = evaluate(classifier, copy, tmp_path / "before").metrics
    table = copy / "manifest.csv"
    (copy / "other").rename(copy / "Tubule")
    (copy / "glomerulus").rename(copy / "Glomeruli")
    text = table.read_text().replace("other/", "Tubule/").replace("glomerulus/", "Glomeruli/")
    table.write_text(text.replace(",other,", ",Tubule,").replace(",glomerulus,", ",Glomeruli,"))
    with pytest.raises(UserError) as refused:
        evaluate(classifier, copy, tmp_path / "out")
    assert "the network has 'other', 'glomerulus'" in str(refused.value)
    assert "has 'Glomeruli', 'Tubule'; say what 'Tubule' is, as in rename 'Tubule=other'" in str(
        refused.value
    )
    for n, pair in enumerate([("Tubule", "other"), ("other", "Tubule")]):
        found = evaluate(classifier, copy, tmp_path / str(n), rename=[pair])
        assert found.metrics["loss"] == before["loss"]
        assert {row["label"] for row in rows_of(tmp_path / str(n))} == set(CLASSES)
        assert "The class 'Tubule' of the data is taken for the network's 'other'." in found.text


def test_one_class_alone_has_no_area_and_says_why(classifier, copy, tmp_path):
    shutil.rmtree(copy / "other")
    table = copy / "manifest.csv"
    lines = [line for line in table.read_text().splitlines() if not line.startswith("other")]
    table.write_text("\n".join(lines) + "\n")
    found = evaluate(classifier, copy, tmp_path / "out")
    assert "no interval: only one class is present" in found.text
    assert "The data has no image of the network's class 'other'." in found.text
    assert json.loads((tmp_path / "out" / "test_metrics.json").read_text())["auroc"] is None


def test_images_that_cannot_be_read_are_refused_or_counted(classifier, copy, tmp_path):
    (copy / "other" / "00.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 of 48 images cannot be read.*skip_unreadable=True:"):
        evaluate(classifier, copy, tmp_path / "out")
    found = evaluate(classifier, copy, tmp_path / "out", skip_unreadable=True)
    assert (found.metrics["n"], found.metrics["unreadable"]) == (47, 1)
    assert any("1 image(s) cannot be read and are left out: 'other/00.png'" in n
               for n in found.metrics["notes"])  # fmt: skip


def test_what_does_not_resemble_the_training_is_in_a_column_and_counted(classifier, copy, tmp_path):
    Image.new("RGB", (40, 40), (250, 250, 250)).save(copy / "other" / "00.png")
    blots(700, size=90).save(copy / "other" / "02.png")
    found = evaluate(classifier, copy, tmp_path / "out")
    flagged = {row["id"]: row["unlike_training"] for row in rows_of(tmp_path / "out")}
    assert flagged["other/00.png"] == "blank"
    assert flagged["other/02.png"].startswith("another size (90 x 90 in place of 40 x 40)")
    assert found.metrics["unlike_training"] == sum(map(bool, flagged.values()))
    assert any("do not resemble those of the training" in note for note in found.metrics["notes"])


def test_a_spacing_that_is_not_the_network_s_is_refused(classifier, copy, small_run, tmp_path):
    rules = classifier.spec.preprocessing
    seen = dataclasses.replace(rules, seen_mpp=0.5)
    file = changed(classifier, tmp_path, small_run, preprocessing=seen)
    network = load_classifier(file)
    # 40 pixels of 0.4 become 32 of 0.5.
    assert evaluate(network, copy, tmp_path / "right", mpp=0.4).metrics["n"] == 48
    with pytest.raises(
        UserError, match=r"saw its images at 0.5 .* would see 48 of 48 here at 0.25"
    ):
        evaluate(network, copy, tmp_path / "wrong", mpp=0.2)
    resampled = dataclasses.replace(rules, target_mpp=0.5)
    network = load_classifier(changed(classifier, tmp_path, small_run, preprocessing=resampled))
    with pytest.raises(
        UserError, match=r"resampled to 0.5 .*; say it with mpp, or fill in an 'mpp'"
    ):
        evaluate(network, copy, tmp_path / "unknown")
    assert evaluate(network, copy, tmp_path / "known", mpp=0.2).metrics["n"] == 48
    assert {float(row["mpp"]) for row in rows_of(tmp_path / "known")} == {0.2}
    for mpp in (0.0, -1.0, float("nan"), 400.0):
        with pytest.raises(UserError, match=r"mpp is .*; it is in microns per pixel"):
            evaluate(network, copy, tmp_path / "bad", mpp=mpp)


def test_without_patients_the_report_says_what_the_interval_assumes(classifier, copy, tmp_path):
    (copy / "manifest.csv").unlink()
    found = evaluate(classifier, copy, tmp_path / "out")
    assert found.metrics["patients"] is None
    assert (
        "the interval takes images for independent, and images of one patient are not" in found.text
    )


def test_classes_that_all_become_one_are_refused(classifier, copy, tmp_path):
    text = (copy / "manifest.csv").read_text().replace(",other,", ",Tubule,")
    (copy / "list.csv").write_text(text.replace("other/", f"{copy}/other/"))
    (copy / "manifest.csv").unlink()
    pairs = [("Tubule", "glomerulus")]
    with pytest.raises(
        UserError, match="makes all classes of the data 'glomerulus', so that there"
    ):
        evaluate(classifier, copy / "list.csv", tmp_path / "out", rename=pairs)


def test_images_that_are_there_twice_are_noted(classifier, copy, tmp_path):
    (copy / "manifest.csv").unlink()
    shutil.copy(copy / "other" / "00.png", copy / "glomerulus" / "again.png")
    found = evaluate(classifier, copy, tmp_path / "out")
    assert "1 image(s) occur more than once, 1 of them with different labels" in found.text


def test_results_are_never_written_over_others(classifier, elsewhere, tmp_path):
    evaluate(classifier, elsewhere, tmp_path / "out")
    with pytest.raises(UserError, match=r"is not empty \('predictions.csv' for one\); name a new"):
        evaluate(classifier, elsewhere, tmp_path / "out")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be made"):
        evaluate(classifier, elsewhere, tmp_path / "file")


def test_two_spellings_of_a_patient_are_refused_unless_they_are_two(classifier, copy, tmp_path):
    table = copy / "manifest.csv"
    table.write_text(table.read_text().replace("00.png,other,1,", "00.png,other,01,"))
    with pytest.raises(UserError, match=r"in several spellings: '01' = '1'"):
        evaluate(classifier, copy, tmp_path / "out")
    found = evaluate(classifier, copy, tmp_path / "out", exact_names=True)
    assert found.metrics["patients"] == 13


def test_tables_of_predictions_have_all_that_the_data_says(classifier, elsewhere, tmp_path):
    evaluate(classifier, elsewhere, tmp_path / "out")
    (row, *_) = rows_of(tmp_path / "out")
    assert list(row) == [
        *("id", "patient", "block", "unlike_training", "label", "prediction"),
        *("probability_other", "probability_glomerulus", "logit"),
    ]
    assert (row["patient"], row["block"]) == ("1", "B1")
    logit = float(row["logit"])
    np.testing.assert_allclose(float(row["probability_glomerulus"]), 1 / (1 + np.exp(-logit)))
