"""A run that starts from another run: its preprocessing, and whom its weights have seen."""

import json
import pathlib
import shutil

import pytest
from flax import nnx
from small_runs import CLASSES, config_for, write_patches

from glomjax import load_classifier
from glomjax.errors import UserError
from glomjax.models import create_model, params_of, settled_options
from glomjax.preprocessing.preprocessing import Preprocessing
from glomjax.pretrained import write_weights
from glomjax.pretrained.spec import NetworkSpec, SplitRecord, TrainingRecord
from glomjax.training import train_and_evaluate

FULL = {"freeze.regime": "full", "num_epochs": 1}


def config_of(source: pathlib.Path, name: str, **changes):
    config = config_for(source, num_epochs=1)
    config.model.name = name
    if name != "davit_tiny":
        config.model.options = {}
        config.image_size = (40, 40)
    config.learning_rate = 1e-4
    config.data.folds = 3
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def patches(small_run) -> pathlib.Path:
    return small_run[0]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, patches) -> dict[str, pathlib.Path]:
    """A run of DaViT on fold 0, and random weights of AlexNet-mini in a file that says what images
    they know and on whom they were trained: nobody here."""
    folder = tmp_path_factory.mktemp("runs")
    train_and_evaluate(config_of(patches, "davit_tiny"), folder / "davit", progress=False)
    spec = NetworkSpec(
        architecture="alexnet_mini",
        options=settled_options("alexnet_mini", (40, 40), {}),
        outputs=1,
        classes=CLASSES,
        image_size=(40, 40),
        preprocessing=Preprocessing("standardize", (0.5, 0.25, 0.125), (0.1, 0.2, 0.3)),
        trained_on=TrainingRecord(
            regime="scratch", train=SplitRecord(images=3, patient_digests=("0",))
        ),
    )
    model = create_model("alexnet_mini", image_size=(40, 40), rngs=nnx.Rngs(0))
    write_weights(folder / "alexnet.safetensors", params_of(model), spec)
    return {"davit_tiny": folder / "davit", "alexnet_mini": folder / "alexnet.safetensors"}


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("alexnet_mini", "imagenet", "leave it at 'auto', which takes that of the weights"),
        ("alexnet_mini", "standardize", "leave it at 'auto', which takes theirs"),
        ("davit_tiny", "standardize", "takes mean and deviation from this run's training images"),
    ],
)
def test_another_preprocessing_than_that_of_the_weights_is_refused(
    runs, patches, tmp_path, name, asked, message
):
    changes = FULL | {"pretrained.source": str(runs[name]), "preprocessing": asked}
    with pytest.raises(UserError, match=message):
        train_and_evaluate(config_of(patches, name, **changes), tmp_path / "run")


def test_weights_of_another_network_or_size_say_so(runs, patches, tmp_path):
    changes = FULL | {"pretrained.source": str(runs["alexnet_mini"])}
    with pytest.raises(
        UserError, match=r"is of the network alexnet_mini, and this run has googlenet"
    ):
        train_and_evaluate(
            config_of(patches, "googlenet", **changes, image_size=(96, 96)), tmp_path / "run"
        )
    changes["image_size"] = (64, 64)
    with pytest.raises(
        UserError, match=r"trained with image_size \(40, 40\), and this run has \(64,"
    ):
        train_and_evaluate(config_of(patches, "alexnet_mini", **changes), tmp_path / "other")


def test_another_stain_normalisation_than_that_of_the_weights_is_said(
    runs, patches, tmp_path, capsys
):
    changes = FULL | {"pretrained.source": str(runs["davit_tiny"])}
    changes["stain_normalization"] = "reinhard"
    train_and_evaluate(config_of(patches, "davit_tiny", **changes), tmp_path / "run")
    assert "was trained on images with stain None, and this run has" in capsys.readouterr().out


def test_the_regime_of_random_values_says_how_weights_are_taken(runs, patches, tmp_path):
    changes = {"pretrained.source": str(runs["alexnet_mini"])}
    with pytest.raises(UserError, match=r"as in config.freeze.regime = 'full'"):
        train_and_evaluate(config_of(patches, "alexnet_mini", **changes), tmp_path / "run")


def test_fold_1_is_not_tested_by_weights_that_fold_0_has_trained(runs, patches, tmp_path):
    changes = FULL | {"pretrained.source": str(runs["davit_tiny"]), "data.fold": 1}
    with pytest.raises(UserError) as refused:
        train_and_evaluate(config_of(patches, "davit_tiny", **changes), tmp_path / "run")
    text = str(refused.value)
    assert "16 of 16 images are, or nearly are, images that it was trained or validated" in text
    assert "4 of 4 patients have the names of its patients and such images ('Frau " in text
    assert "config.pretrained.allow_seen = True, which the results then say" in text
    changes |= {"pretrained.allow_seen": True, "num_epochs": 2}
    metrics = train_and_evaluate(config_of(patches, "davit_tiny", **changes), tmp_path / "run")
    (note,) = [note for note in metrics["notes"] if "part of the test split" in note]
    assert "as config.pretrained.allow_seen = True allows: 16 of 16 images" in note
    # A run that goes on knows it, too, and does not need the weights for it.
    changes["num_epochs"] = 3
    again = train_and_evaluate(config_of(patches, "davit_tiny", **changes), tmp_path / "run")
    assert again["test_evaluations"] == 2
    assert note in again["notes"]


def test_the_pixels_are_those_of_the_weights_also_when_a_run_goes_on_without_them(
    runs, patches, tmp_path, capsys
):
    source = pathlib.Path(shutil.copy(runs["alexnet_mini"], tmp_path / "weights.safetensors"))
    changes = {"pretrained.source": str(source), "freeze.regime": "partial", "freeze.until": "fc1"}
    train_and_evaluate(config_of(patches, "alexnet_mini", **changes), tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["effective"]["preprocessing"] == "auto"
    before = load_classifier(tmp_path / "run").spec
    assert before.preprocessing.mean == (0.5, 0.25, 0.125)
    assert before.preprocessing.std == (0.1, 0.2, 0.3)
    assert len(before.trained_on.ancestors) == 1
    source.unlink()
    changes["num_epochs"] = 2
    train_and_evaluate(config_of(patches, "alexnet_mini", **changes), tmp_path / "run")
    assert load_classifier(tmp_path / "run").spec.preprocessing == before.preprocessing
    out = capsys.readouterr().out
    assert "the head is that of the weights" in out
    assert "mean and deviation of pixels are those that the weights were trained with" in out
    assert "resumed after 1 epochs" in out


def test_weights_of_an_unfinished_run_are_said(runs, patches, tmp_path, caplog, capsys):
    unfinished = tmp_path / "unfinished"
    (unfinished / "checkpoints").mkdir(parents=True)
    run = runs["davit_tiny"]
    (unfinished / "config.json").write_bytes((run / "config.json").read_bytes())
    (unfinished / "checkpoints" / "best").symlink_to(run / "checkpoints" / "best")
    load_classifier(unfinished)
    assert f"the run in '{unfinished}' has not finished; its best weights so far predict" in (
        caplog.text
    )
    caplog.clear()
    load_classifier(run)
    assert "finished" not in caplog.text
    changes = FULL | {"pretrained.source": str(unfinished), "num_epochs": 1}
    train_and_evaluate(config_of(patches, "davit_tiny", **changes), tmp_path / "run")
    assert "has not finished; its best weights so far are taken ***" in capsys.readouterr().out


def test_patients_of_another_hospital_with_the_same_numbers_are_told_apart_from_a_leak(
    patches, tmp_path
):
    """Numbers as names, which match, on images that do not."""
    numbered = write_patches(tmp_path / "first", numbered=True)
    other = write_patches(tmp_path / "second", first=1000, numbered=True)
    train_and_evaluate(config_of(numbered, "davit_tiny"), tmp_path / "run")
    changes = FULL | {"pretrained.source": str(tmp_path / "run"), "data.fold": 1}
    with pytest.raises(UserError) as refused:
        train_and_evaluate(config_of(other, "davit_tiny", **changes), tmp_path / "next")
    text = str(refused.value)
    assert "4 of 4 patients have the names of its patients and none of its images" in text
    assert "such short names are given in many places, so these may be other patients" in text
    assert "for certain" not in text
