"""Run, convert, load in another process: the run's own test logits, bit for bit."""

import csv
import json
import os
import pathlib
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image
from quick_programs import FEW_BLOCKS

from glomjax import __main__ as cli
from glomjax import load_classifier
from glomjax.cli.configuration import load_config
from glomjax.errors import UserError
from glomjax.models import googlenet
from glomjax.pretrained import read_weights
from glomjax.training import default_config, train_and_evaluate

SPLITS = ("train", "validation", "test")
DAVIT = {"depths": (1, 1), "embed_dims": (8, 16), "num_heads": (1, 2), "dropout_rate": 0.1}
# What may be lost between a run and its use elsewhere, a few to a run.
RUNS = {
    "davit, not square, Macenko, resampled, EMA": {
        "image_size": (64, 96),
        "target_mpp": 0.4,
        "stain_normalization": "macenko",
        "ema_decay": 0.5,
        "decision.threshold": "specificity=0.5",
        "decision.temperature": True,
    },
    "davit, Reinhard, pad, bfloat16, symmetries": {
        "image_size": (64, 64),
        "resize": "pad",
        "stain_normalization": "reinhard",
        "precision": "bfloat16",
        "test_time_augmentation": True,
    },
    "alexnet_mini, crop, three classes, a batch in three parts": {
        "model.name": "alexnet_mini",
        "image_size": (40, 48),
        "resize": "crop",
        "preprocessing": "standardize",
        "accumulation_steps": 3,
        "decision.temperature": True,
    },
    "googlenet, stretch, without kernels": {
        "model.name": "googlenet",
        "image_size": (96, 96),
        "target_mpp": 0.4,
        "preprocessing": "standardize",
        "ops.native": "off",
    },
}


def write_patches(folder: pathlib.Path, classes: tuple[str, ...], per_split: int = 9) -> None:
    """Pink tissue with as many violet spots as the class says, at two spacings."""
    rng = np.random.default_rng(0)
    rows = ["path,label,patient,slide,split,mpp"]
    for n, split in enumerate(np.repeat(SPLITS, per_split)):
        label, fine = n % len(classes), n % 2
        image = np.array([228.0, 178, 205]) + rng.normal(0, 6, (72, 84, 3))
        for _ in range(12 + 12 * label):
            y, x = rng.integers(4, 60), rng.integers(4, 72)
            image[y : y + 9, x : x + 9] = np.array([120.0, 70, 150]) + rng.normal(0, 9, (9, 9, 3))
        picture = Image.fromarray(image.clip(0, 255).astype(np.uint8))
        if fine:
            picture = picture.resize((168, 144), Image.Resampling.BICUBIC)
        picture.save(folder / f"{n:02d}.png")
        person = f"Anna Muster {split} {n % 3}"
        rows.append(f"{n:02d}.png,{classes[label]},{person},S{n},{split},{0.25 if fine else 0.5}")
    (folder / "all.csv").write_text("\n".join(rows) + "\n")
    # What the lab next door has: no labels, and no names.
    listed = [row.split(",") for row in rows]
    chosen = [row for row in listed if row[4] in ("split", "test")]
    (folder / "test.csv").write_text("\n".join(f"{row[0]},{row[5]}" for row in chosen) + "\n")


def config_of(folder: pathlib.Path, changes: dict):
    config = default_config()
    config.data.source = str(folder / "all.csv")
    config.report = "none"
    config.batch_size = 8
    config.num_epochs = 1
    config.learning_rate = 1e-3
    config.freeze.regime = "scratch"
    config.update_from_flattened_dict(changes)
    if config.model.name == "davit_tiny":
        config.model.options.update(DAVIT)
    return config


@pytest.fixture(scope="module")
def blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(googlenet, "_BLOCKS", FEW_BLOCKS)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory, blocks) -> pathlib.Path:
    """A folder with a run for each of `RUNS`, numbered, and its converted file beside it."""
    folder = tmp_path_factory.mktemp("runs")
    for number, changes in enumerate(RUNS.values()):
        patches = folder / f"patches {number}"
        patches.mkdir()
        three = changes.get("model.name") == "alexnet_mini"
        write_patches(patches, ("a", "b", "c") if three else ("other", "glomerulus"))
        train_and_evaluate(config_of(patches, changes), folder / str(number))
        assert (
            cli.main(
                ["convert", str(folder / str(number)), "--out", f"{folder}/{number}.safetensors"]
            )
            == 0
        )
    return folder


PREDICT = f"""
import sys
import numpy as np
from glomjax import load_classifier
from glomjax.models import googlenet
googlenet._BLOCKS = {FEW_BLOCKS}
for number in range({len(RUNS)}):
    found = load_classifier(f"{{number}}.safetensors").predict(f"patches {{number}}/test.csv")
    assert not found.problems, found.problems
    np.savez(f"{{number}}.npz", logits=found.logits, labels=found.labels, ids=found.ids)
"""


@pytest.fixture(scope="module")
def elsewhere(runs) -> pathlib.Path:
    """The same folder after another process has predicted with what was converted."""
    root = pathlib.Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", PREDICT], cwd=runs, env=environment, check=True)
    return runs


def logits_of(run: pathlib.Path) -> tuple[np.ndarray, list[str]]:
    """(logits float32 [N, K], predictions) that a run left of its test split."""
    with open(run / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = [name for name in rows[0] if name.startswith("logit")]
    logits = np.array([[row[name] for name in columns] for row in rows], np.float32)
    return logits, [row["prediction"] for row in rows]


@pytest.mark.parametrize("number", range(len(RUNS)), ids=list(RUNS))
def test_another_process_gives_the_run_s_own_logits_bit_for_bit(elsewhere, number):
    logits, predicted = logits_of(elsewhere / str(number))
    with np.load(elsewhere / f"{number}.npz") as found:
        assert found["logits"].tobytes() == logits.tobytes()
        assert found["labels"].tolist() == predicted
    assert np.unique(logits, axis=0).shape[0] > 5


@pytest.mark.parametrize("number", range(len(RUNS)), ids=list(RUNS))
def test_the_run_s_folder_does_and_other_batches_nearly(runs, number):
    logits, _ = logits_of(runs / str(number))
    images = runs / f"patches {number}" / "test.csv"
    assert load_classifier(runs / str(number)).predict(images).logits.tobytes() == logits.tobytes()
    found = load_classifier(runs / str(number), device_batch=5).predict(images)
    np.testing.assert_allclose(found.logits, logits, atol=1e-5 * max(1, np.abs(logits).max()))


@pytest.mark.parametrize("number", range(len(RUNS)), ids=list(RUNS))
def test_what_travels_names_nobody(runs, number):
    """No patient, path, user or host, neither in the file nor in any file of a checkpoint."""
    secrets = ["Anna", "Muster", str(runs), os.path.expanduser("~"), "patches "]
    secrets += [os.uname().nodename] if len(os.uname().nodename) > 3 else []
    files = [runs / f"{number}.safetensors"]
    files += [f for f in (runs / str(number) / "checkpoints").rglob("*") if f.is_file()]
    assert len(files) > 10
    for file in files:
        content = file.read_bytes()
        for secret in secrets:
            assert secret.encode() not in content, (file, secret)


def test_the_spec_says_what_the_run_was(runs):
    first, second, third, fourth = (load_classifier(runs / str(n)).spec for n in range(4))
    assert first.classes == ("other", "glomerulus")
    assert (first.positive, first.outputs) == ("glomerulus", 1)
    assert first.options["window_size"] == (2, 3)
    assert first.options["embed_dims"] == (8, 16)
    assert (first.preprocessing.target_mpp, first.preprocessing.seen_mpp) == (0.4, None)
    assert first.preprocessing.stain.method == "macenko"
    assert first.source_size == (72, 84)
    assert (first.device_batch, third.device_batch) == (8, 9)
    assert (second.precision, second.symmetries) == ("bfloat16", True)
    assert second.preprocessing.resize == "pad"
    assert (third.outputs, third.positive, third.classes) == (3, "", ("a", "b", "c"))
    assert (fourth.native, fourth.architecture) == ("off", "googlenet")
    assert (first.threshold_rule, third.threshold_rule) == ("specificity=0.5", "0.5")
    assert first.threshold != 0.5
    assert 1 not in (first.temperature, third.temperature)
    record = first.trained_on
    assert (record.regime, record.initial_weights) == ("scratch", "none")
    for split in (record.train, record.validation):
        assert (split.images, split.patients, split.slides) == (9, 3, 9)
        assert len(split.patient_digests) == 3
        assert 1 < len(split.hashes()) <= 9
    assert not set(record.train.patient_digests) & set(record.validation.patient_digests)


def test_three_classes_have_no_threshold(runs):
    assert "threshold" not in json.loads((runs / "2" / "test_metrics.json").read_text())
    with pytest.raises(UserError, match="threshold is 0.3, and the network has 3 classes"):
        load_classifier(runs / "2", threshold=0.3)


def test_a_converted_file_says_the_same_as_the_run(runs):
    for number in range(len(RUNS)):
        from_run = read_weights(runs / str(number))[1].spec
        assert read_weights(runs / f"{number}.safetensors")[1].spec == from_run


@pytest.mark.parametrize("number", [2, 3])
def test_every_network_may_start_from_its_own_run_or_its_file(runs, tmp_path, number):
    """AlexNet-mini and GoogLeNet by the source's own pixels, on its own data, whose test patients
    it has not seen."""
    own = read_weights(runs / str(number))[1].spec
    source = runs / (f"{number}.safetensors" if number == 2 else str(number))
    changes = list(RUNS.values())[number] | {"preprocessing": "auto", "freeze.regime": "full"}
    changes |= {"pretrained.source": str(source)}
    metrics = train_and_evaluate(config_of(runs / f"patches {number}", changes), tmp_path / "run")
    spec = read_weights(tmp_path / "run")[1].spec
    assert (spec.preprocessing.mean, spec.preprocessing.std) == (
        own.preprocessing.mean,
        own.preprocessing.std,
    )
    assert spec.trained_on.ancestors == (own.trained_on,)
    assert any("have seen part of the validation split" in note for note in metrics["notes"])
    assert not any("part of the test split" in note for note in metrics["notes"])


def test_a_network_whose_images_were_resampled_asks_for_their_spacing(runs):
    classifier = load_classifier(runs / "0")
    image = np.asarray(Image.open(runs / "patches 0" / "18.png"))
    with pytest.raises(UserError, match=r"resampled to 0.4 microns per pixel: give it as mpp"):
        classifier.predict(image)
    logits, _ = logits_of(runs / "0")
    given = classifier.predict(image, mpp=0.5).logits
    np.testing.assert_allclose(given, logits[:1], atol=1e-5)
    assert np.abs(classifier.predict(image, mpp=0.25).logits - given).max() > 1e-4


def test_images_at_another_spacing_than_in_training_are_warned_of(runs, tmp_path):
    table = (runs / "patches 1" / "test.csv").read_text()
    (runs / "patches 1" / "finer.csv").write_text(table.replace(",0.5", ",0.3"))
    classifier = load_classifier(runs / "1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier.predict(runs / "patches 1" / "test.csv")
    with pytest.warns(UserWarning, match=r"5 of 9 images do not .*: 5 another spacing \(0.394 in"):
        found = classifier.predict(runs / "patches 1" / "finer.csv")
    assert len(found.unlike) == 5
    assert set(found.unlike.values()) == {
        ("another spacing (0.394 in place of 0.656 microns per pixel)",)
    }


def test_members_of_an_ensemble_must_have_the_same_classes_and_size(runs):
    for other, what in (("2", "classes"), ("1", "image_size")):
        with pytest.raises(UserError, match=f"cannot be one ensemble: their {what} differ"):
            load_classifier([runs / "0", runs / other])


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """(folder of patches, run folder, configuration) of a run that drew its splits and stopped."""
    folder = tmp_path_factory.mktemp("stopped")
    write_patches(folder, ("other", "glomerulus"))
    table = (folder / "all.csv").read_text().splitlines()
    without = [",".join(row.split(",")[:4]) for row in table]  # neither splits nor spacings
    (folder / "all.csv").write_text("\n".join(without) + "\n")
    config = config_of(folder, {"image_size": (40, 40), "model.name": "alexnet_mini"})
    train_and_evaluate(config, folder / "run", shipped=("mini", config))
    (folder / "run" / "test_metrics.json").unlink()  # as if it had been stopped
    return folder, folder / "run", config


@pytest.fixture
def begun(stopped, tmp_path):
    """The same with a run folder and a configuration of the test's own."""
    patches, run, config = stopped
    config = config.copy_and_resolve_references()
    config.num_epochs = 2
    return patches, pathlib.Path(shutil.copytree(run, tmp_path / "run")), config


def test_a_begun_run_keeps_its_own_splits(begun, monkeypatch):
    _, run, config = begun
    splits = (run / "splits.csv").read_bytes()
    monkeypatch.setattr(
        "glomjax.data.sources.make_splits", lambda *_, **__: pytest.fail("divided anew")
    )
    train_and_evaluate(config, run, shipped=("mini", config))
    assert (run / "splits.csv").read_bytes() == splits


def test_a_default_that_changes_is_no_other_configuration_but_a_user_s_change_is(begun, capsys):
    _, run, config = begun
    base = config.copy_and_resolve_references()
    config.clip_norm = base.clip_norm = 7.5  # as a later version's file has it
    # By another configuration's name, or by none, it is what the user wants now.
    for shipped in (("other", base), None):
        with pytest.raises(UserError, match=r"clip_norm was 0\.0, now 7\.5"):
            train_and_evaluate(config, run, shipped=shipped)
    train_and_evaluate(config, run, shipped=("mini", base))
    assert "the run keeps its own: clip_norm was 0.0, now 7.5 by default" in capsys.readouterr().out
    effective = json.loads((run / "config.json").read_text())["effective"]
    assert effective["clip_norm"] == 0.0
    config.clip_norm = 1.0  # on the command line
    with pytest.raises(UserError, match=r"clip_norm was 0\.0, now 1\.0"):
        train_and_evaluate(config, run, shipped=("mini", base))


def test_another_shipped_configuration_in_the_same_folder_is_refused(begun):
    _, run, config = begun
    for name in ("davit", "davit:scratch", "googlenet"):
        other = load_config(name)
        other.data.source = config.data.source
        with pytest.raises(UserError, match="holds a run with another configuration"):
            train_and_evaluate(other, run, shipped=(name, load_config(name)))


def test_splits_that_the_source_gives_are_not_kept_against_it(begun):
    patches, run, config = begun
    swapped = {"train": "train", "validation": "test", "test": "validation"}
    with open(run / "splits.csv", newline="") as file:
        rows = [row | {"split": swapped[row["split"]]} for row in csv.DictReader(file)]
    columns = ("path", "label", "patient", "slide", "split")
    lines = [",".join(columns), *(",".join(row[name] for name in columns) for row in rows)]
    table = (patches / "all.csv").read_text()
    try:
        (patches / "all.csv").write_text("\n".join(lines) + "\n")
        with pytest.raises(UserError, match=r"not those of the run"):
            train_and_evaluate(config, run, shipped=("mini", config))
    finally:
        (patches / "all.csv").write_text(table)


@pytest.mark.parametrize("damage", ["id;part\n1;2\n", "\xff\xfe"])
def test_a_table_of_splits_that_was_changed_is_one_sentence(begun, damage):
    _, run, config = begun
    (run / "splits.csv").write_bytes(damage.encode("latin-1"))
    with pytest.raises(UserError, match=r"splits.csv' is not the table that the run wrote"):
        train_and_evaluate(config, run, shipped=("mini", config))


def test_what_weights_have_seen_before_is_remembered(runs, tmp_path):
    patches = runs / "patches 0"
    config = config_of(
        patches,
        RUNS["davit, not square, Macenko, resampled, EMA"]
        | {"pretrained.source": str(runs / "0"), "freeze.regime": "head_only"},
    )
    train_and_evaluate(config, tmp_path / "again")
    before = load_classifier(runs / "0").spec.trained_on
    record = load_classifier(tmp_path / "again").spec.trained_on
    assert record.ancestors == (before,)
    assert record.initial_weights.startswith("sha256 ")
