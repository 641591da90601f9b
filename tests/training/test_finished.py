"""A finished run: what it leaves for later, more epochs for it, and its data where they lie now."""

import csv
import json
import pathlib
import shutil

import pytest
from PIL import Image
from small_runs import CLASSES, config_for, write_patches

from glomjax.errors import UserError
from glomjax.evaluation import classification_metrics
from glomjax.pretrained import read_weights
from glomjax.training import train_and_evaluate
from glomjax.training.run_folder import RunFolder
from glomjax.training.scoring import overfitting


@pytest.fixture(scope="module")
def patches(small_run) -> pathlib.Path:
    return small_run[0]


@pytest.fixture
def copy(small_run, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(small_run[1], tmp_path / "run"))


def rows_of(workdir: pathlib.Path) -> list[dict]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "time"} for row in rows]


def test_a_run_that_its_limit_ended_goes_on_with_more_epochs_as_if_it_had_them(
    copy, patches, tmp_path, capsys
):
    metrics = train_and_evaluate(config_for(patches, num_epochs=4), copy)
    assert "resumed after 2 epochs" in capsys.readouterr().out
    whole = train_and_evaluate(config_for(patches, num_epochs=4), tmp_path / "whole")
    assert rows_of(copy) == rows_of(tmp_path / "whole")
    assert len(rows_of(copy)) == 4
    assert metrics["loss"] == whole["loss"]
    assert (whole["test_evaluations"], metrics["test_evaluations"]) == (1, 2)
    assert "judged 2 times, now after 4 epochs" in metrics["notes"][-1]
    assert not any("judged" in note for note in whole["notes"])
    # It is finished again, and may be given more again.
    assert train_and_evaluate(config_for(patches, num_epochs=4), copy) == metrics
    assert "is finished" in capsys.readouterr().out
    assert train_and_evaluate(config_for(patches, num_epochs=5), copy)["test_evaluations"] == 3


def test_fewer_epochs_or_early_stopping_leave_it_as_it_is(copy, patches, capsys):
    before = (copy / "test_metrics.json").read_bytes()
    train_and_evaluate(config_for(patches, num_epochs=1), copy)
    metadata = copy / "checkpoints" / "last" / "metadata.json"
    changed = json.loads(metadata.read_text())
    changed["position"]["stop"] = True
    old = metadata.read_bytes()
    metadata.write_text(json.dumps(changed))
    with pytest.raises(UserError, match=r"'metadata.json' is not what was written"):
        train_and_evaluate(config_for(patches, num_epochs=9), copy)
    metadata.write_bytes(old)
    shutil.rmtree(copy / "checkpoints" / "last")
    train_and_evaluate(config_for(patches, num_epochs=9), copy)  # what it would go on from is gone
    assert capsys.readouterr().out.count("is finished") == 2
    assert (copy / "test_metrics.json").read_bytes() == before


def test_a_run_that_stopped_by_itself_is_given_no_more_epochs(patches, tmp_path, capsys):
    changes = {"early_stopping.patience": 1, "early_stopping.min_delta": 10.0, "num_epochs": 5}
    first = train_and_evaluate(config_for(patches, **changes), tmp_path / "run")
    assert first["epochs"] < 5
    again = train_and_evaluate(
        config_for(patches, **changes | {"num_epochs": 50}), tmp_path / "run"
    )
    assert again == first
    assert "is finished" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["a pixel", "a label", "a patient", "a patch more"])
def test_a_finished_run_whose_data_have_changed_says_so(copy, patches, tmp_path, change):
    data = pathlib.Path(shutil.copytree(patches, tmp_path / "patches"))
    table = data / "manifest.csv"
    if change == "a pixel":
        with Image.open(data / "other" / "00.png") as image:
            image.putpixel((0, 0), (1, 2, 3))
            image.save(data / "other" / "00.png")
    elif change == "a label":
        (data / "other" / "00.png").rename(data / "glomerulus" / "00.png")
        table.write_text(
            table.read_text().replace("other/00.png,other", "glomerulus/00.png,glomerulus")
        )
    elif change == "a patient":
        table.write_text(table.read_text().replace("00.png,other,Frau A", "00.png,other,Frau Z"))
    else:
        shutil.copy(data / "other" / "00.png", data / "other" / "99.png")
        table.write_text(table.read_text() + "other/99.png,other,Frau A,B0\n")
    with pytest.raises(UserError, match=r"are not those of the run"):
        train_and_evaluate(config_for(data), copy)


def moved_source(run: pathlib.Path, patches: pathlib.Path, to: pathlib.Path) -> None:
    """As if the run had read its data there."""
    file = run / "config.json"
    file.write_text(file.read_text().replace(str(patches), str(to)))


def test_a_run_from_before_paths_were_confined_goes_on_once_it_is_allowed(
    patches, tmp_path, capsys
):
    table = tmp_path / "lists" / "table.csv"
    table.parent.mkdir()
    text = (patches / "manifest.csv").read_text()
    for name in CLASSES:
        text = text.replace(f"\n{name}/", f"\n{patches}/{name}/")
    table.write_text(text)
    allowed = {"data.allow_outside": True}
    train_and_evaluate(config_for(table, num_epochs=1, **allowed), tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    lines = file.read_text().splitlines()
    kept = [line for line in lines if '"allow_outside"' not in line]
    assert len(lines) - len(kept) >= 2
    file.write_text("\n".join(kept))
    for epochs in (1, 2):
        with pytest.raises(UserError, match=r"48 image\(s\) outside .*data.allow_outside = True"):
            train_and_evaluate(config_for(table, num_epochs=epochs), tmp_path / "run")
    assert train_and_evaluate(config_for(table, num_epochs=1, **allowed), tmp_path / "run")
    assert "is finished" in capsys.readouterr().out
    again = train_and_evaluate(config_for(table, num_epochs=2, **allowed), tmp_path / "run")
    assert again["epochs"] == 2
    assert "other than before: data.allow_outside" in capsys.readouterr().out


def test_a_finished_run_whose_data_are_gone_says_that_it_cannot_compare_them(
    copy, patches, tmp_path, capsys
):
    moved_source(copy, patches, tmp_path / "gone")
    metrics = train_and_evaluate(config_for(tmp_path / "gone"), copy)
    assert metrics["epochs"] == 2
    out = capsys.readouterr().out
    assert "whether the data of this finished run have changed is not known" in out
    assert "gone' does not exist" in out


def test_a_finished_run_does_not_answer_for_other_data(copy, patches, tmp_path):
    """Under other names, mistyped, or no data at all any more."""
    others = write_patches(tmp_path / "others", first=500)
    table = others / "manifest.csv"
    table.write_text(
        table.read_text().replace("other/", "other/n").replace("glomerulus/", "glomerulus/n")
    )
    for folder in ("other", "glomerulus"):
        for file in (others / folder).iterdir():
            file.rename(file.with_name(f"n{file.name}"))
    with pytest.raises(UserError) as refused:
        train_and_evaluate(config_for(others), copy)
    assert "is listed there: they are other data" in str(refused.value)
    assert f"which read '{patches}'" in str(refused.value)
    with pytest.raises(
        UserError, match=r"are not those of the finished run .*typo' does not exist"
    ):
        train_and_evaluate(config_for(tmp_path / "typo"), copy)
    data = pathlib.Path(shutil.copytree(patches, tmp_path / "patches"))
    moved_source(copy, patches, data)
    shutil.rmtree(data / "other")
    with pytest.raises(UserError, match="are not those of the finished run"):
        train_and_evaluate(config_for(data), copy)


def test_while_more_epochs_run_the_folder_has_no_results_that_are_not_of_its_weights(
    copy, patches, tmp_path, monkeypatch
):
    (copy / "report").mkdir()
    (copy / "report" / "report.html").write_text("of two epochs")
    old = (copy / "test_metrics.json").read_bytes()
    with pytest.raises(UserError, match="are not those of the run"):  # which leaves it finished
        train_and_evaluate(config_for(write_patches(tmp_path / "x", first=9), num_epochs=3), copy)
    assert (copy / "test_metrics.json").read_bytes() == old

    def stopped(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("glomjax.training.loop.Trainer._epoch", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_and_evaluate(config_for(patches, num_epochs=3), copy)
    assert not (copy / "test_metrics.json").exists()
    assert (copy / "test_metrics_after_2_epochs.json").read_bytes() == old
    assert (copy / "predictions_after_2_epochs.csv").is_file()
    # Nor does the page of the earlier weights stand for the later ones.
    assert not (copy / "report").exists()
    assert (copy / "report_after_2_epochs" / "report.html").read_text() == "of two epochs"
    assert read_weights(copy)[1].unfinished
    metrics = train_and_evaluate(config_for(patches, num_epochs=3), copy)
    assert (metrics["epochs"], metrics["test_evaluations"]) == (3, 2)
    assert not read_weights(copy)[1].unfinished


def test_the_same_data_elsewhere_go_on(copy, patches, tmp_path, capsys):
    moved = pathlib.Path(shutil.copytree(patches, tmp_path / "moved"))
    metrics = train_and_evaluate(config_for(moved), copy)
    assert metrics["test_evaluations"] == 1
    out = capsys.readouterr().out
    assert "other than before: data.source" in out
    assert "is finished" in out
    train_and_evaluate(config_for(moved, num_epochs=3), copy)
    assert len(rows_of(copy)) == 3
    assert RunFolder(copy).effective().data.source == str(moved)
    with pytest.raises(UserError, match="learning_rate was"):
        train_and_evaluate(config_for(moved, learning_rate=1e-3), copy)


def test_the_validation_split_is_kept_as_the_best_weights_see_it(small_run):
    finished = small_run[1]
    with open(finished / "predictions_validation.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(finished / "splits.csv", newline="") as file:
        split = {row["path"]: row["split"] for row in csv.DictReader(file)}
    assert {split[row["id"]] for row in rows} == {"validation"}
    assert all(row["patient"].startswith("Frau ") for row in rows)
    best = min(rows_of(finished), key=lambda row: row["val_loss"])
    found = classification_metrics(
        [CLASSES.index(row["label"]) for row in rows],
        [[-float(row["logit"]) / 2, float(row["logit"]) / 2] for row in rows],
        CLASSES,
    )
    assert found["loss"] == pytest.approx(best["val_loss"], abs=1e-6)


def row(accuracy: float, val_accuracy: float, val_loss: float) -> dict:
    return {"accuracy": accuracy, "val_accuracy": val_accuracy, "val_loss": val_loss}


@pytest.mark.parametrize(
    ("history", "best", "said"),
    [
        ([row(0.7, 0.7, 0.5), row(1.0, 0.7, 0.9)], 1, True),
        ([row(0.7, 0.7, 0.5), row(0.9, 0.7, 0.9)], 1, False),  # does not know them by heart
        ([row(0.7, 0.7, 0.5), row(1.0, 0.98, 0.9)], 1, False),  # nor are others worse
        ([row(0.7, 0.7, 0.5), row(1.0, 0.7, 0.52)], 1, False),
        ([row(1.0, 0.9, 0.3)], 1, False),
    ],
)
def test_overfitting_is_said_where_training_images_are_known_by_heart(history, best, said):
    text = overfitting(history, best)
    assert bool(text) == said
    if said:
        assert "100.0% of the training images right and 70.0% of the validation images" in text
        assert "from 0.500 in epoch 1 to 0.900; the weights of epoch 1 are kept" in text


def test_overfitting_is_in_the_results_and_on_the_terminal(patches, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("glomjax.training.scoring.overfitting", lambda *_: "It has overfitted.")
    metrics = train_and_evaluate(config_for(patches, num_epochs=1), tmp_path / "run")
    assert "It has overfitted." in metrics["notes"]
    assert "*** It has overfitted. ***" in capsys.readouterr().out
