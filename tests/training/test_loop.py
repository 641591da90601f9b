"""A whole run on toy images: what it learns, leaves behind, refuses and continues."""

import csv
import dataclasses
import datetime
import json
import math
import os
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from sklearn.metrics import roc_auc_score

from glomjax import checkpoints, load_classifier, pretrained
from glomjax.data.sources import load_source
from glomjax.errors import UserError
from glomjax.evaluation import classification_metrics
from glomjax.models import create_model, params_of
from glomjax.preprocessing.preprocessing import IMAGENET
from glomjax.training import Interrupted, default_config, loop, phases, setup, train_and_evaluate
from glomjax.training.config import RunConfig
from glomjax.training.initial_weights import WeightSource, load_initial
from glomjax.training.progress import EpochBar, Terminal
from glomjax.training.run_folder import RunFolder
from glomjax.training.steps import make_train_step

KECAM = pathlib.Path(__file__).parents[1] / "data" / "davit_kecam" / "kecam_davit.h5"
KECAM_SIZES = {
    "depths": (1, 1, 2, 1),
    "embed_dims": (16, 32, 64, 128),
    "num_heads": (2, 4, 8, 16),
}


def toy(n: int, seed: int, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Noisy grey squares, a little brighter in the colour channel of their class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    images = rng.uniform(70, 170, (n, 1, 1, 1)) + rng.normal(0, 12, (n, 32, 32, 3))
    images[np.arange(n), :, :, labels] += 25
    return images.clip(0, 255).astype(np.uint8), labels


DATA = {"train": toy(50, 0), "validation": toy(20, 1), "test": toy(30, 2)}
GREY = {
    split: (np.full_like(images, 128), labels) for split, (images, labels) in DATA.items()
}  # nothing to learn


def tiny_config(**changes):
    """A DaViT of one block on 32 x 32 images, from random values."""
    config = default_config()
    config.image_size = (32, 32)
    config.batch_size = 8
    config.report = "none"
    config.num_epochs = 4
    config.learning_rate = 3e-3
    config.model.options.update(
        {"depths": (1,), "embed_dims": (8,), "num_heads": (1,), "dropout_rate": 0.1}
    )
    config.freeze.regime = "scratch"
    config.early_stopping.monitor = "val_auroc"
    config.update_from_flattened_dict(changes)
    return config


def rows_of(workdir: pathlib.Path) -> list[dict]:
    """`metrics.jsonl` without the times."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        assert row.pop("time")["images_per_second"] > 0
    return rows


def predictions_of(workdir: pathlib.Path) -> list[dict]:
    with open(workdir / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, returned metrics) of one uninterrupted run."""
    workdir = tmp_path_factory.mktemp("runs") / "toy"
    return workdir, train_and_evaluate(tiny_config(), workdir, data=DATA)


def test_a_learnable_task_is_learned(run):
    workdir, metrics = run
    rows = rows_of(workdir)
    assert rows[-1]["loss"] < 0.8 * math.log(2)
    assert rows[-1]["val_loss"] < 0.9 * math.log(2)
    assert metrics["auroc"] > 0.9
    assert metrics["collapsed"] is False


def test_a_run_leaves_the_files_a_reviewer_asks_for(run):
    workdir, metrics = run
    assert {path.name for path in workdir.iterdir()} == {
        "checkpoints",
        "config.json",
        "environment.json",
        "history.png",
        "metrics.jsonl",
        "predictions.csv",
        "predictions_validation.csv",
        "run.log",
        "splits.csv",
        "summary.txt",
        "tensorboard",
        "test_metrics.json",
    }
    kept = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert kept == {"best", "last"}  # and not the one before the last, which no one needs now
    config = json.loads((workdir / "config.json").read_text())
    assert config["requested"]["learning_rate"] == 3e-3
    assert config["effective"] == config["requested"] | {"preprocessing": "imagenet"}
    environment = json.loads((workdir / "environment.json").read_text())
    assert environment["seed"] == 0
    assert "resumed" not in environment
    assert environment["packages"]["jax"] != "not installed"
    assert (workdir / "history.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((workdir / "test_metrics.json").read_text()) == metrics
    assert (metrics["split"], metrics["n"], metrics["epochs"]) == ("test", 30, 4)
    summary = (workdir / "summary.txt").read_text()
    assert "32 x 32 x 3" in summary
    assert "stages/0/blocks/0/spatial/attention/qkv/kernel" in summary


def test_the_log_of_a_run_has_every_line_with_its_time(run):
    lines = (run[0] / "run.log").read_text().splitlines()
    times = [datetime.datetime.fromisoformat(line.partition(" ")[0]) for line in lines]
    assert times == sorted(times)
    assert all(time.tzinfo is not None for time in times)
    said = [line.partition(" ")[2] for line in lines]
    assert said[0] == "classes: negative '0', positive '1'"
    assert [line[:13] for line in said if line.startswith("epoch")] == [
        f"epoch   {n}/4  " for n in (1, 2, 3, 4)
    ]
    assert said[-1] == f"results: {run[0]}"


def test_every_epoch_has_a_line_with_its_step_and_rate(run):
    workdir, _ = run
    rows = rows_of(workdir)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert [row["step"] for row in rows] == [7, 14, 21, 28]  # 50 images in batches of 8
    assert all(row["learning_rate"] == np.float32(3e-3) for row in rows)


def test_the_test_metrics_are_those_of_the_predictions(run):
    workdir, metrics = run
    rows = predictions_of(workdir)
    assert [row["id"] for row in rows] == [f"test/{i}" for i in range(30)]
    labels = np.array([int(row["label"]) for row in rows])
    assert labels.tolist() == DATA["test"][1].tolist()
    positive = np.array([float(row["probability_1"]) for row in rows])
    assert metrics["auroc"] == pytest.approx(roc_auc_score(labels, positive))
    assert metrics["accuracy"] == pytest.approx(((positive > 0.5) == labels).mean())
    logits = np.array([[float(row["logit"])] for row in rows])
    again = classification_metrics(labels, logits, ("0", "1"))
    assert (again["loss"], again["auroc"]) == (metrics["loss"], metrics["auroc"])


def test_the_best_weights_are_scored_not_the_last(run):
    workdir, metrics = run
    areas = [row["val_auroc"] for row in rows_of(workdir)]
    assert metrics["best_epoch"] == 1 + int(np.argmax(areas)) < 4
    scores = {}
    for name in ("best", "last"):
        classifier = load_classifier(workdir / "checkpoints" / name)
        assert classifier.classes == ("0", "1")
        scores[name] = classifier.predict(DATA["test"][0]).probabilities[:, 1]
    written = [float(row["probability_1"]) for row in predictions_of(workdir)]
    np.testing.assert_allclose(written, scores["best"], atol=1e-5)
    assert np.abs(scores["best"] - scores["last"]).max() > 1e-2


def test_a_finished_run_is_returned_as_it_is(run, monkeypatch):
    workdir, metrics = run
    before = (workdir / "predictions.csv").stat().st_mtime_ns
    monkeypatch.setattr(loop.Trainer, "fit", None)  # not to be called
    assert train_and_evaluate(tiny_config(), workdir, data=DATA) == metrics
    assert (workdir / "predictions.csv").stat().st_mtime_ns == before


def test_a_run_may_replace_the_one_in_its_folder(run, tmp_path, capsys):
    workdir = pathlib.Path(shutil.copytree(run[0], tmp_path / "x"))
    config = tiny_config(num_epochs=1)
    with pytest.raises(UserError, match=r"now 0\.001.*or replace the run with overwrite=True"):
        train_and_evaluate(tiny_config(learning_rate=1e-3), workdir, data=DATA)
    capsys.readouterr()
    metrics = train_and_evaluate(config, workdir, data=DATA, overwrite=True, progress=False)
    assert metrics["epochs"] == len(rows_of(workdir)) == 1
    assert capsys.readouterr().out == ""
    assert "results: " in (workdir / "run.log").read_text()


def test_a_folder_with_the_log_of_a_run_alone_may_be_taken(tmp_path):
    (tmp_path / "run.log").write_text("")
    RunFolder(tmp_path).claim(RunConfig())
    assert (tmp_path / "config.json").is_file()


def test_a_folder_of_another_kind_is_refused():
    with pytest.raises(UserError, match="workdir is None; it is the path of the run's folder"):
        train_and_evaluate(tiny_config(), None, data=DATA)


def test_another_configuration_in_the_same_folder_is_refused_by_the_key(run):
    config = tiny_config(**{"learning_rate": 1e-3, "plateau.patience": 4})
    with pytest.raises(UserError, match=r"learning_rate was 0\.003, now 0\.001; plateau\.patience"):
        train_and_evaluate(config, run[0], data=DATA)


def interrupt_at(monkeypatch, batch: int, how) -> None:
    """Calls `how` once, after the step of this batch, counted from 1 over the whole run."""
    advance, batches = EpochBar.advance, []

    def counted(bar, images):
        advance(bar, images)
        batches.append(images)
        if len(batches) == batch:
            how()

    monkeypatch.setattr(EpochBar, "advance", counted)


def interrupt():
    raise KeyboardInterrupt


def assert_same_run(workdir: pathlib.Path, expected: pathlib.Path) -> None:
    """Bit for bit but for the times."""
    assert rows_of(workdir) == rows_of(expected)
    for name in ("best", "last"):
        theirs, _ = checkpoints.restore(expected / "checkpoints" / name)
        ours, _ = checkpoints.restore(workdir / "checkpoints" / name)
        assert ours.keys() == theirs.keys()
        assert all(ours[path].tobytes() == theirs[path].tobytes() for path in theirs)


@pytest.mark.parametrize(
    ("how", "batch", "position"),
    [
        ("kill", 2 * 7 + 3, (2, 0)),
        ("kill", 3, None),
        (signal.SIGTERM, 2 * 7 + 3, (2, 3)),
        (signal.SIGINT, 3, (0, 3)),
        (signal.SIGTERM, 7, (0, 7)),
    ],
    ids=["kill -9", "kill -9 in epoch 1", "SIGTERM", "Ctrl-C in epoch 1", "after the last step"],
)
def test_an_interrupted_run_goes_on_to_the_very_same_numbers(
    run, tmp_path, monkeypatch, how, batch, position
):
    workdir = tmp_path / "toy"
    last = workdir / "checkpoints" / "last"
    if how == "kill":
        interrupt_at(monkeypatch, batch, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_and_evaluate(tiny_config(), workdir, data=DATA)
    else:
        interrupt_at(monkeypatch, batch, lambda: os.kill(os.getpid(), how))
        with pytest.raises(Interrupted) as interrupted:
            train_and_evaluate(tiny_config(), workdir, data=DATA)
        assert interrupted.value.exit_code == 128 + how
    monkeypatch.undo()
    if position is None:
        assert not checkpoints.exists(last)
    else:
        saved = checkpoints.restore(last)[1]["position"]
        assert (saved["epoch"], saved["batch"]) == position
    assert train_and_evaluate(tiny_config(), workdir, data=DATA) == run[1]
    assert_same_run(workdir, run[0])
    log = (workdir / "run.log").read_text()
    assert log.count("classes: ") == 2
    assert (" resumed after " in log, " came; " in log) == (position is not None, False)
    environment = json.loads((workdir / "environment.json").read_text())
    resumed = environment.get("resumed", [])
    assert [later["seed"] for later in resumed] == ([0] if position else [])
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_an_augmented_run_goes_on_to_the_very_same_numbers_too(run, tmp_path, monkeypatch):
    config = tiny_config(**{"augmentation.preset": "histology", "num_epochs": 2})
    train_and_evaluate(config, tmp_path / "whole", data=DATA)
    interrupt_at(monkeypatch, 7 + 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        train_and_evaluate(config, tmp_path / "x", data=DATA)
    monkeypatch.undo()
    train_and_evaluate(config, tmp_path / "x", data=DATA)
    assert_same_run(tmp_path / "x", tmp_path / "whole")
    assert rows_of(tmp_path / "x")[0]["loss"] != rows_of(run[0])[0]["loss"]


def test_every_draw_of_an_epoch_is_augmented_by_its_number_alone(tmp_path, monkeypatch):
    drawn = {}
    for size in (8, 5):
        draws = []

        def step(phase, trainable, frozen, opt_state, sums, batch, *_, draws=draws):
            """Nothing is trained: it is what the step is given that counts."""
            real = np.asarray(batch["mask"]) > 0
            draws.append((np.asarray(batch["draw"])[real], np.asarray(batch["label"])[real]))
            return trainable, opt_state, sums | {"count": sums["count"] + real.sum()}

        config = tiny_config(batch_size=size, num_epochs=2, **{"augmentation.stain": 0.1})
        with monkeypatch.context() as patch:
            patch.setattr(phases.RunningPhase, "step", step)
            train_and_evaluate(config, tmp_path / str(size), data=DATA)
        drawn[size] = [np.concatenate(part) for part in zip(*draws, strict=True)]
    assert drawn[8][0].tolist() == drawn[5][0].tolist() == list(range(100))
    assert drawn[8][1].tolist() == drawn[5][1].tolist()


def test_the_test_images_may_be_scored_in_all_their_symmetries(run, tmp_path):
    config = tiny_config(test_time_augmentation=True)
    metrics = train_and_evaluate(config, tmp_path / "x", data=DATA)
    assert metrics["test_time_augmentation"] is True
    assert run[1]["test_time_augmentation"] is False
    assert rows_of(tmp_path / "x") == rows_of(run[0])
    classifier = load_classifier(tmp_path / "x", symmetries=False)
    images = DATA["test"][0]
    views = [
        np.rot90(flipped, turns, axes=(1, 2))
        for flipped in (images, images[:, :, ::-1])
        for turns in range(4)
    ]
    logits = np.mean([classifier.predict(view).logits for view in views], axis=0)[:, 0]
    written = [float(row["probability_1"]) for row in predictions_of(tmp_path / "x")]
    np.testing.assert_allclose(written, 1 / (1 + np.exp(-logits)), atol=1e-5)


def test_a_run_is_saved_within_an_epoch_when_it_is_time(run, tmp_path, monkeypatch):
    config = tiny_config(checkpoint_minutes=1e-9)
    interrupt_at(monkeypatch, 7 + 5, interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_and_evaluate(config, tmp_path / "x", data=DATA)
    monkeypatch.undo()
    saved = checkpoints.restore(tmp_path / "x" / "checkpoints" / "last")[1]["position"]
    assert (saved["epoch"], saved["batch"]) == (1, 4)
    # How often it is saved is no part of what is computed.
    train_and_evaluate(tiny_config(), tmp_path / "x", data=DATA)
    assert_same_run(tmp_path / "x", run[0])


def test_a_damaged_checkpoint_gives_way_to_the_one_before(run, tmp_path, monkeypatch, capsys):
    interrupt_at(monkeypatch, 2 * 7 + 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        train_and_evaluate(tiny_config(), tmp_path / "x", data=DATA)
    monkeypatch.undo()
    file = tmp_path / "x" / "checkpoints" / "last" / "metadata.json"
    file.write_text(file.read_text().replace("params", "parans", 1) + " ")
    train_and_evaluate(tiny_config(), tmp_path / "x", data=DATA)
    written = " ".join(capsys.readouterr().out.split())
    assert "'metadata.json' is not what was written; going on from the one before it" in written
    assert "resumed after 2 epochs of" in written
    assert_same_run(tmp_path / "x", run[0])


def test_a_run_from_before_a_field_existed_is_the_same_run(run, tmp_path):
    workdir = pathlib.Path(shutil.copytree(run[0], tmp_path / "x"))
    both = json.loads((workdir / "config.json").read_text())
    for config in (both["requested"], both["effective"]):
        del config["augmentation"], config["demo"]["batch_size"], config["ema_decay"]
    (workdir / "config.json").write_text(json.dumps(both))
    assert train_and_evaluate(tiny_config(), workdir, data=DATA) == run[1]
    with pytest.raises(UserError, match=r"ema_decay was 0\.0, now 0\.5"):
        train_and_evaluate(tiny_config(ema_decay=0.5), workdir, data=DATA)


def test_a_run_may_go_on_to_another_number_of_epochs(run, tmp_path, monkeypatch, capsys):
    interrupt_at(monkeypatch, 7 + 3, interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_and_evaluate(tiny_config(num_epochs=2), tmp_path / "x", data=DATA)
    monkeypatch.undo()
    train_and_evaluate(tiny_config(), tmp_path / "x", data=DATA)
    assert "other than before: num_epochs" in capsys.readouterr().out
    assert_same_run(tmp_path / "x", run[0])


def test_a_run_that_learns_nothing_stops_by_itself_and_says_that_it_has_collapsed(tmp_path, capsys):
    config = tiny_config(
        **{
            "learning_rate": 1e-6,
            "num_epochs": 50,
            "early_stopping.monitor": "val_loss",
            "early_stopping.patience": 2,
            "early_stopping.min_delta": 0.01,
        }
    )
    metrics = train_and_evaluate(config, tmp_path / "grey", data=GREY)
    assert (metrics["best_epoch"], metrics["epochs"]) == (1, 3)
    assert len(rows_of(tmp_path / "grey")) == 3
    assert metrics["collapsed"] is True
    written = capsys.readouterr().out
    assert "stopped after epoch 3: no better val_loss for 2 epochs" in written
    assert "*** The model has collapsed" in written


def test_a_loss_that_is_not_finite_names_the_step_and_a_lower_rate_may_follow(tmp_path):
    with pytest.raises(
        UserError, match=r"not finite in step \d \(epoch 1\) at learning rate 1e\+30"
    ):
        train_and_evaluate(tiny_config(learning_rate=1e30), tmp_path / "x", data=DATA)
    # Nothing was trained, so the folder is not taken.
    config = tiny_config(num_epochs=1)
    assert train_and_evaluate(config, tmp_path / "x", data=DATA)["epochs"] == 1


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint_and_names_its_images(
    tmp_path, monkeypatch
):
    workdir, step, seen = tmp_path / "x", phases.make_train_step, []

    def exploding(*args, **options):
        compiled = step(*args, **options)

        def stepped(trainable, frozen, opt_state, sums, batch, rate, key):
            seen.append(np.asarray(batch["image"]))
            if len(seen) == 2 * 7 + 4:
                trainable = {path: value * np.nan for path, value in trainable.items()}
            return compiled(trainable, frozen, opt_state, sums, batch, rate, key)

        stepped.lower = compiled.lower
        return stepped

    monkeypatch.setattr(phases, "make_train_step", exploding)
    with pytest.raises(UserError, match=r"step 18 \(epoch 3\).*before this epoch are in '.*last'"):
        train_and_evaluate(tiny_config(), workdir, data=DATA)
    about = json.loads((workdir / "not_finite.json").read_text())
    assert (about["step"], about["epoch"], len(about["ids"])) == (18, 3, 8)
    named = [int(name.removeprefix("train/")) for name in about["ids"]]
    assert np.array_equal(DATA["train"][0][named], seen[17])
    arrays, metadata = checkpoints.restore(workdir / "checkpoints" / "last")
    assert metadata["position"]["epoch"] == 2
    assert all(np.isfinite(value).all() for value in arrays.values())


def test_weights_are_needed_where_some_are_to_be_frozen(tmp_path):
    config = tiny_config(**{"freeze.regime": "partial"})
    with pytest.raises(UserError, match=r"'partial' needs pretrained weights.*davit:scratch"):
        train_and_evaluate(config, tmp_path / "x", data=DATA)


def auto_config():
    """`auto` with the settings of the fallback different from the run's own."""
    return tiny_config(
        **{
            "pretrained.source": "auto",
            "freeze.regime": "partial",
            "learning_rate": 0.5,
            "batch_size": 32,
            "demo.learning_rate": 3e-3,
            "demo.batch_size": 8,
            "demo.num_epochs": 1,
        }
    )


@pytest.fixture
def no_weights(monkeypatch):
    def unavailable(source):
        raise pretrained.WeightsUnavailable(f"the published weights {source} cannot be had")

    monkeypatch.setattr(pretrained, "resolve", unavailable)


@pytest.mark.usefixtures("no_weights")
def test_without_weights_the_demo_data_are_trained_from_random_values_and_it_is_said(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(setup, "load_splits", lambda *_: load_source(DATA))
    metrics = train_and_evaluate(auto_config(), tmp_path / "x")
    assert metrics["initial_weights"] == "none"
    assert rows_of(tmp_path / "x")[0]["step"] == 7  # batches of 8
    both = json.loads((tmp_path / "x" / "config.json").read_text())
    assert both["requested"]["pretrained"]["source"] == "auto"
    assert both["requested"]["learning_rate"] == 0.5
    effective = both["effective"]
    assert (effective["learning_rate"], effective["batch_size"]) == (3e-3, 8)
    assert (effective["pretrained"]["source"], effective["freeze"]["regime"]) == ("none", "scratch")
    written = capsys.readouterr().out
    assert "*** NO PRETRAINED WEIGHTS: the published weights kecam/davit_t_imagenet" in written
    assert "settings of config.demo take effect" in written
    assert "batch_size 8, " in written
    assert "config.demo.KEY changes them" in written


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("data", [None, DATA], ids=["folder", "arrays"])
def test_without_weights_the_data_of_a_user_are_refused(tmp_path, data):
    config = auto_config()
    if data is None:
        config.data.source = str(tmp_path)
    with pytest.raises(pretrained.WeightsUnavailable, match="cannot be had"):
        train_and_evaluate(config, tmp_path / "x", data=data)


def test_a_run_that_began_without_weights_goes_on_without_them(tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "load_splits", lambda *_: load_source(DATA))
    config = auto_config()
    config.demo.num_epochs = 2

    def unavailable(source):
        raise pretrained.WeightsUnavailable("cannot be had")

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as first:
        first.setattr(pretrained, "resolve", unavailable)
        first.setattr(Terminal, "epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_and_evaluate(config, tmp_path / "x")
    # Weights that have arrived in between belong to a new run.
    monkeypatch.setattr(pretrained, "resolve", lambda source: KECAM)
    metrics = train_and_evaluate(config, tmp_path / "x")
    assert (metrics["epochs"], metrics["initial_weights"]) == (2, "none")


def test_a_weight_file_is_loaded_without_its_head_and_its_frozen_part_never_moves(tmp_path, capsys):
    config = tiny_config(
        **{
            "num_epochs": 1,
            "learning_rate": 1e-3,
            "pretrained.source": str(KECAM),
            "freeze.regime": "partial",
        }
    )
    config.model.options.update(KECAM_SIZES)
    metrics = train_and_evaluate(config, tmp_path / "x", data=DATA)
    assert metrics["initial_weights"] == str(KECAM)
    assert "left at their initial value: head/" in capsys.readouterr().out
    summary = (tmp_path / "x" / "summary.txt").read_text().splitlines()
    frozen = {line.split()[0] for line in summary if line.endswith("  frozen")}
    assert len(frozen) == 44
    given, _ = pretrained.read_weights(KECAM)
    arrays, _ = checkpoints.restore(tmp_path / "x" / "checkpoints" / "best")
    for path, value in given.items():
        ours = arrays[f"params/{path}"]
        if path.startswith("head/"):
            assert ours.shape[-1] == 1
        else:
            assert (ours.tobytes() == value.tobytes()) == (path in frozen), path


def test_three_classes_train_with_a_logit_each(tmp_path):
    sizes = {"train": 60, "validation": 21, "test": 30}
    data = {split: toy(n, seed, 3) for seed, (split, n) in enumerate(sizes.items())}
    config = tiny_config(**{"data.classes": ("red", "green", "blue"), "num_epochs": 3})
    metrics = train_and_evaluate(config, tmp_path / "x", data=data)
    assert metrics["auroc"] > 0.9
    assert np.asarray(metrics["confusion_matrix"]).shape == (3, 3)
    (row, *_) = predictions_of(tmp_path / "x")
    total = sum(float(row[f"probability_{name}"]) for name in ("red", "green", "blue"))
    assert total == pytest.approx(1)
    arrays, metadata = checkpoints.restore(tmp_path / "x" / "checkpoints" / "best")
    assert arrays["params/head/kernel"].shape == (8, 3)
    assert metadata["spec"]["classes"] == ["red", "green", "blue"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"validation": None},
            r"data has the splits \['test', 'train'\]; it needs train, validation",
        ),
        ({"train": (DATA["train"][0].astype(np.float32), DATA["train"][1])}, r"'train'.*float32"),
        ({"test": (DATA["test"][0], DATA["test"][1][:-1])}, r"'test'.*with 29 labels"),
        ({"test": (DATA["test"][0][:0], DATA["test"][1][:0])}, r"'test'"),
        ({"train": (DATA["train"][0], DATA["train"][1] - 1)}, r"'train'"),
    ],
    ids=["split", "dtype", "length", "empty", "negative"],
)
def test_arrays_of_another_form_are_refused(tmp_path, change, message):
    data = {split: part for split, part in (DATA | change).items() if part is not None}
    with pytest.raises(UserError, match=message):
        train_and_evaluate(tiny_config(), tmp_path / "x", data=data)


def transfer_config(workdir: pathlib.Path, **changes):
    """The network of `run` again, from the weights that it left in `workdir`."""
    defaults = {"pretrained.source": str(workdir), "freeze.regime": "head_only"}
    return tiny_config(**(defaults | changes))


def tiny_network(classes: int = 2):
    config = tiny_config()
    return create_model(
        config.model.name,
        num_classes=1 if classes == 2 else classes,
        image_size=config.image_size,
        rngs=nnx.Rngs(0),
        **config.model.options.to_dict(),
    )


def test_weights_whose_images_came_in_otherwise_are_said(run):
    ours = dataclasses.replace(IMAGENET, resize="pad", seen_mpp=0.5)
    source = WeightSource("a run", *pretrained.read_weights(run[0]))
    (note,) = load_initial(tiny_network, source, ("0", "1"), ours).notes
    assert "was trained on images with resize stretch, and this run has pad" in note


@pytest.mark.parametrize(
    ("classes", "taken"), [(("0", "1"), True), (("1", "0"), False), (("0", "1", "2"), False)]
)
def test_a_head_is_taken_with_its_classes_in_their_order_alone(run, classes, taken):
    source = WeightSource("a run", *pretrained.read_weights(run[0]))
    found = load_initial(lambda: tiny_network(len(classes)), source, classes, IMAGENET)
    initial = params_of(tiny_network(len(classes)))["head/kernel"]
    given, _ = checkpoints.restore(run[0] / "checkpoints" / "best")
    kernel = np.asarray(found.params["head/kernel"])
    assert np.array_equal(kernel, given["params/head/kernel"] if taken else initial)
    written = " ".join(found.messages)
    assert ("the head is that of the weights" in written) == taken
    assert ("belongs to other classes (0, 1) and starts anew" in written) != taken


def test_cached_features_give_the_same_run_as_the_whole_network(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GLOMJAX_CACHE", str(tmp_path / "cache"))
    config = transfer_config(run[0])
    cached = train_and_evaluate(config, tmp_path / "cached", data=DATA)
    assert "the features before it are computed once" in capsys.readouterr().out
    config.freeze.cache_features = False
    whole = train_and_evaluate(config, tmp_path / "whole", data=DATA)
    assert cached["loss"] == pytest.approx(whole["loss"], abs=1e-5)
    for one, other in zip(rows_of(tmp_path / "cached"), rows_of(tmp_path / "whole"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one["val_loss"] == pytest.approx(other["val_loss"], abs=1e-5)


def test_augmented_images_are_never_taken_from_cached_features(run, tmp_path, monkeypatch):
    monkeypatch.setenv("GLOMJAX_CACHE", str(tmp_path / "cache"))
    config = transfer_config(run[0], num_epochs=1, **{"augmentation.symmetries": 1.0})
    train_and_evaluate(config, tmp_path / "x", data=DATA)
    assert not (tmp_path / "cache" / "features").exists()


def test_features_are_computed_once_and_never_taken_from_a_stale_or_damaged_file(
    run, tmp_path, monkeypatch
):
    monkeypatch.setenv("GLOMJAX_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "features"
    config = transfer_config(run[0], num_epochs=1)
    expected = train_and_evaluate(config, tmp_path / "a", data=DATA)
    files = {file: file.read_bytes() for file in folder.iterdir()}
    assert len(files) == 2  # training and validation
    assert train_and_evaluate(config, tmp_path / "b", data=DATA) == expected
    assert {file: file.stat().st_mtime_ns for file in files} == {
        file: file.stat().st_mtime_ns for file in folder.iterdir()
    }
    for file, content in files.items():
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert train_and_evaluate(config, tmp_path / "c", data=DATA) == expected
    assert {file: file.read_bytes() for file in folder.iterdir()} == files
    # One pixel, or other weights, and the files have other names.
    images, labels = DATA["train"]
    touched = images.copy()
    touched[0, 0, 0, 0] ^= 1
    train_and_evaluate(config, tmp_path / "d", data=DATA | {"train": (touched, labels)})
    assert len(list(folder.iterdir())) == 3
    config.pretrained.source = str(run[0] / "checkpoints" / "last")
    train_and_evaluate(config, tmp_path / "e", data=DATA)
    assert len(list(folder.iterdir())) == 5


def test_a_cache_that_cannot_be_written_is_one_sentence(run, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GLOMJAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"features cannot be kept in .*GLOMJAX_CACHE"):
        train_and_evaluate(transfer_config(run[0]), tmp_path / "x", data=DATA)


SCHEDULE = {"freeze.unfreeze": ("2:partial", "4:full:0.1"), "freeze.until": "stem"}


@pytest.fixture(scope="module")
def thawed(run, tmp_path_factory):
    """(workdir, parameters after each epoch) of a run that thaws twice."""
    workdir = tmp_path_factory.mktemp("thawed")
    config = transfer_config(run[0], **SCHEDULE, num_epochs=5)
    config.early_stopping.patience = 9
    after, epoch = [], loop.Trainer._epoch

    def noted(trainer):
        row = epoch(trainer)
        after.append(jax.device_get(dict(trainer.state.params)))
        return row

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Trainer, "_epoch", noted)
        train_and_evaluate(config, workdir, data=DATA)
    return workdir, after


def test_a_schedule_thaws_at_its_epochs_and_not_before(run, thawed):
    given, _ = checkpoints.restore(run[0] / "checkpoints" / "best")
    given = {path.removeprefix("params/"): value for path, value in given.items()}
    moved = []
    for params in thawed[1]:
        assert params.keys() == given.keys()
        moved.append({p for p in given if params[p].tobytes() != given[p].tobytes()})
    head = {"head/kernel", "head/bias"}
    behind_stem = {p for p in given if not p.startswith("stem/")}
    assert head < behind_stem < set(given)
    assert moved == [head, behind_stem, behind_stem, set(given), set(given)]


def test_a_run_that_stops_between_two_thaws_goes_on_to_the_very_same_numbers(
    run, thawed, tmp_path, monkeypatch
):
    config = transfer_config(run[0], **SCHEDULE, num_epochs=5)
    config.early_stopping.patience = 9
    # Right before the first thaw, then in the middle of the epoch of the second.
    for batch, how in ((7, interrupt), (2 * 7 + 3, lambda: os.kill(os.getpid(), signal.SIGTERM))):
        with monkeypatch.context() as patch:
            interrupt_at(patch, batch, how)
            with pytest.raises((KeyboardInterrupt, Interrupted)):
                train_and_evaluate(config, tmp_path / "x", data=DATA)
    train_and_evaluate(config, tmp_path / "x", data=DATA)
    assert_same_run(tmp_path / "x", thawed[0])


def test_a_thaw_that_is_never_reached_is_said(run, tmp_path, capsys):
    config = transfer_config(run[0], num_epochs=2, **{"freeze.unfreeze": ("7:full",)})
    train_and_evaluate(config, tmp_path / "x", data=DATA)
    assert "before epoch 7, from which freeze.unfreeze would" in " ".join(
        capsys.readouterr().out.split()
    )


def test_an_impossible_plan_ends_the_run_before_anything_is_computed(tmp_path):
    config = tiny_config(**{"freeze.unfreeze": ("3:full",)})
    with pytest.raises(UserError, match="'3:full' thaws nothing"):
        train_and_evaluate(config, tmp_path / "x", data=DATA)


# Folders and manifests.


@pytest.fixture
def patches(tmp_path):
    """A manifest of 48 patches of 12 patients with weights and a spacing; one file is empty."""
    folder = tmp_path / "patches"
    folder.mkdir()
    images, labels = toy(48, 3)
    lines = ["path,label,patient,weight,mpp"]
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image).resize((64, 64)).save(folder / f"{i:02d}.png")
        lines.append(f"{i:02d}.png,{'ab'[label]},P{i // 4},{0.25 * (i % 5)},0.25")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    (folder / "07.png").write_bytes(b"")
    return folder


def folder_config(patches, **changes):
    settings = {
        "data.source": str(patches / "list.csv"),
        "data.skip_unreadable": True,
        "resize": "pad",
        "stain_normalization": "reinhard",
        "num_epochs": 1,
    }
    return tiny_config(**(settings | changes))


def test_a_run_on_a_manifest_records_how_its_images_came_in(patches, tmp_path, monkeypatch, capsys):
    seen = {}

    def spy(*arguments, **options):
        step = make_train_step(*arguments, **options)

        def watched(*values):
            batch = values[4]
            for mask, weight, image in zip(
                *(np.asarray(batch[name]) for name in ("mask", "weight", "image")), strict=True
            ):
                if mask:
                    seen[image.tobytes()] = float(weight)
            return step(*values)

        watched.lower = step.lower
        return watched

    monkeypatch.setattr(phases, "make_train_step", spy)
    config = folder_config(patches)
    metrics = train_and_evaluate(config, tmp_path / "run", data=None)
    said = capsys.readouterr().out
    assert "spacing: 0.5 microns per pixel, as the network sees it" in said
    assert "read 48 images" in said
    assert "stains are normalised (reinhard)" in said
    assert all(note in said for note in metrics["notes"])
    assert any(n.startswith("1 image(s) cannot be read and are left out") for n in metrics["notes"])
    with open(tmp_path / "run" / "splits.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"] for row in rows} == {f"{i:02d}.png" for i in range(48) if i != 7}
    assert {row["mpp"] for row in rows} == {"0.25"}
    trained = [row for row in rows if row["split"] == "train"]
    # Every training image had its own weight: as many of each as the manifest says.
    assert sorted(seen.values()) == sorted(float(row["weight"]) for row in trained)
    for row in trained:
        assert float(row["weight"]) == 0.25 * (int(row["path"][:2]) % 5)
    _, about = checkpoints.restore(tmp_path / "run" / "checkpoints" / "best")
    preprocessing = about["spec"]["preprocessing"]
    assert preprocessing["resize"] == "pad"
    assert (preprocessing["seen_mpp"], preprocessing["target_mpp"]) == (0.5, None)
    assert preprocessing["stain"]["method"] == "reinhard"
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    took = json.loads(line)["time"]
    assert 0 < took["images_per_second"] <= took["step_images_per_second"]
    assert took["input_images_per_second"] > 0
    assert f"(step {took['step_images_per_second']:.1f}, input " in said


def test_a_run_that_left_an_image_out_does_not_go_on_with_it(patches, tmp_path, monkeypatch):
    train_and_evaluate(folder_config(patches), tmp_path / "run")
    (tmp_path / "run" / "test_metrics.json").unlink()  # as if it had not come to its end
    shutil.copy(patches / "06.png", patches / "07.png")
    with pytest.raises(UserError, match="not those of the run"):
        train_and_evaluate(folder_config(patches, num_epochs=2), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.skip_unreadable": False}, "1 of 48 images cannot be read.*\n  Image '07.png' is e"),
        ({"data.mpp": 0.3}, "data.mpp is 0.3, but .* gives the spacing of each image itself"),
        ({"data.folds": 40}, "at least 40 patients"),
    ],
)
def test_images_that_do_not_fit_end_the_run_at_once(patches, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train_and_evaluate(folder_config(patches, **changes), tmp_path / "run")


def test_a_spacing_for_all_images_resamples_them(tmp_path):
    config = tiny_config(**{"data.mpp": 0.5, "target_mpp": 1.0, "num_epochs": 1})
    train_and_evaluate(config, tmp_path / "run", data=DATA)
    _, about = checkpoints.restore(tmp_path / "run" / "checkpoints" / "best")
    preprocessing = about["spec"]["preprocessing"]
    assert (preprocessing["seen_mpp"], preprocessing["target_mpp"]) == (None, 1.0)
    with pytest.raises(UserError, match="target_mpp is 1.0, but .* does not give the spacing"):
        train_and_evaluate(tiny_config(target_mpp=1.0), tmp_path / "other", data=DATA)


def test_an_image_in_two_splits_ends_the_run(tmp_path):
    leaked = {s: (images.copy(), labels) for s, (images, labels) in DATA.items()}
    leaked["test"][0][3] = leaked["train"][0][5]
    with pytest.raises(UserError, match="in more than one split.*'train/5' .train. = 'test/3'"):
        train_and_evaluate(tiny_config(), tmp_path / "run", data=leaked)
