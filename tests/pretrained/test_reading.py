"""A run's checkpoint as a source of weights, and what a source says about itself."""

import hashlib
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx

from glomjax import checkpoints, load_classifier
from glomjax.errors import UserError
from glomjax.models import create_model, params_of, settled_options
from glomjax.preprocessing.preprocessing import IMAGENET, Preprocessing
from glomjax.pretrained import load_weights, read_weights
from glomjax.pretrained.spec import NetworkSpec

KECAM = pathlib.Path(__file__).parents[1] / "data" / "davit_kecam" / "kecam_davit.h5"
SIZES = {"depths": (1, 1, 2, 1), "embed_dims": (16, 32, 64, 128), "num_heads": (2, 4, 8, 16)}
GREY = Preprocessing("standardize", (0.5, 0.25, 0.125), (0.1, 0.2, 0.3))
CLASSES = ("other", "round", "glomerulus", "scar", "vessel")
SPEC = NetworkSpec(
    architecture="davit_tiny",
    options=settled_options("davit_tiny", (64, 64), SIZES),
    outputs=5,
    classes=CLASSES,
    image_size=(64, 64),
    preprocessing=GREY,
)
METADATA = {"spec": SPEC.to_dict()}


@pytest.fixture(scope="module")
def weights():
    return read_weights(KECAM)[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory, weights) -> pathlib.Path:
    """The folder of a run whose best weights are the golden ones."""
    folder = tmp_path_factory.mktemp("runs") / "davit"
    arrays = {f"params/{path}": value for path, value in weights.items()}
    optimizer = {"optimizer/0": np.zeros((), np.int32)}
    checkpoints.save(folder / "checkpoints" / "best", arrays, METADATA)
    zeros = {path: np.zeros_like(value) for path, value in arrays.items()}
    checkpoints.save(folder / "checkpoints" / "last", zeros | optimizer, METADATA)
    return folder


def model(preset="kecam", image_size=(64, 64)):
    """A small DaViT without numbers: the source alone can give them."""
    options = {"num_classes": 5, "preset": preset} | SIZES
    return nnx.eval_shape(
        lambda: create_model("davit_tiny", image_size=image_size, rngs=nnx.Rngs(0), **options)
    )


@pytest.mark.parametrize("part", ["", "checkpoints/best"])
def test_a_run_and_its_best_checkpoint_give_the_best_weights_bit_for_bit(run, weights, part):
    network = model()
    report = load_weights(network, run / part)
    loaded = params_of(network)
    assert loaded.keys() == weights.keys()
    assert all(np.array_equal(loaded[path], weights[path]) for path in weights)
    assert (report.preset, report.preprocessing) == ("kecam", GREY.to_dict())


def test_another_checkpoint_is_named_by_its_folder_and_gives_parameters_alone(run, weights):
    params, _ = read_weights(run / "checkpoints" / "last")
    assert params.keys() == weights.keys()
    assert not any(value.any() for value in params.values())


def test_a_checkpoint_says_what_it_is(run):
    _, info = read_weights(run)
    best = run / "checkpoints" / "best"
    assert (info.path, info.layout, info.model) == (best, "checkpoint", "davit_tiny")
    assert (info.classes, info.unknown) == (tuple(CLASSES), ())
    assert info.sha256 == hashlib.sha256((best / "manifest.json").read_bytes()).hexdigest()


def test_a_checkpoint_of_another_preset_is_refused(run):
    with pytest.raises(UserError, match="preset 'kecam' .* preset 'msft'"):
        load_weights(model("msft"), run)


def test_a_checkpoint_with_a_flipped_bit_is_refused(run, tmp_path):
    copy = pathlib.Path(shutil.copytree(run, tmp_path / "run"))
    file = max((copy / "checkpoints/best/arrays").rglob("*"), key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"is damaged: file '.*{file.name}'"):
        read_weights(copy)


def test_a_checkpoint_that_is_not_that_of_a_run_is_refused(tmp_path):
    values = {"params/x": np.ones(2, np.float32)}
    checkpoints.save(tmp_path / "bare", values, {})
    with pytest.raises(UserError, match=r"does not name model, classes and preprocessing"):
        read_weights(tmp_path / "bare")
    checkpoints.save(tmp_path / "empty", {"x": np.ones(2, np.float32)}, METADATA)
    with pytest.raises(UserError, match=r"holds no parameters"):
        read_weights(tmp_path / "empty")


def saved_again(folder: pathlib.Path, name: str, content: bytes) -> None:
    """Another content of a checkpoint's file, as if the manifest had been written after it."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest[name] = f"{len(content)}:{hashlib.sha256(content).hexdigest()}"
    (folder / "manifest.json").write_text(json.dumps(manifest))


# TensorStore's threads answer after the loop that asked has ended.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["_METADATA", "manifest.ocdbt"])
def test_arrays_that_were_damaged_before_their_digests_were_taken_are_refused(run, tmp_path, name):
    folder = shutil.copytree(run / "checkpoints/best", tmp_path / "best")
    content = (folder / "arrays" / name).read_bytes()
    saved_again(folder, f"arrays/{name}", content[: len(content) // 2] + b"\xff" * 9)
    for read in (read_weights, checkpoints.restore):
        with pytest.raises(UserError, match=r"best' cannot be read \(\w+\); restore the folder"):
            read(folder)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"5", b"[" * 100_000])
def test_metadata_that_is_none_is_damage(run, tmp_path, content):
    folder = shutil.copytree(run / "checkpoints/best", tmp_path / "best")
    saved_again(folder, "metadata.json", content)
    for read in (read_weights, checkpoints.restore, checkpoints.read_metadata):
        with pytest.raises(UserError, match="is damaged: file 'metadata.json'"):
            read(folder)
    (folder / "manifest.json").write_bytes(content)
    for read in (read_weights, checkpoints.restore, checkpoints.read_metadata):
        with pytest.raises(UserError, match="is damaged: file 'manifest.json'"):
            read(folder)


def test_metadata_that_is_gone_from_folder_and_manifest_is_damage(run, tmp_path):
    folder = shutil.copytree(run / "checkpoints/best", tmp_path / "best")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["metadata.json"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "metadata.json").unlink()
    with pytest.raises(UserError, match="is damaged: file 'metadata.json'"):
        checkpoints.restore(folder)


OLD = {
    "model": {"name": "davit_tiny", "options": {**SIZES}, "image_size": [64, 64]},
    "classes": CLASSES,
    "preprocessing": {"name": "imagenet", "mean": [0.5] * 3, "std": [0.2] * 3, "mpp": 0.5},
}


@pytest.mark.parametrize(
    "damage",
    [
        {"model": OLD["model"] | {"image_size": [64]}},
        {"model": OLD["model"] | {"name": ["davit_tiny"]}},
        {"preprocessing": {"name": "imagenet", "mean": [0.5] * 3}},
        {"preprocessing": OLD["preprocessing"] | {"mean": 0.5}},
    ],
)
def test_damaged_metadata_of_format_1_is_one_sentence(tmp_path, damage):
    values = {"params/x": np.ones(2, np.float32)}
    checkpoints.save(tmp_path / "old", values, OLD | damage)
    with pytest.raises(UserError, match="does not name model, classes and preprocessing"):
        read_weights(tmp_path / "old")


@pytest.mark.parametrize(
    "damage", [{"accumulation_steps": 0}, {"batch_size": "32"}, {"ops": 5}, {"freeze": "full"}]
)
def test_a_damaged_configuration_beside_format_1_is_one_sentence(tmp_path, damage):
    values = {"params/x": np.ones(2, np.float32)}
    checkpoints.save(tmp_path / "checkpoints/best", values, OLD)
    (tmp_path / "config.json").write_text(json.dumps({"effective": damage}))
    with pytest.raises(UserError, match="lies in a run whose config.json is damaged"):
        read_weights(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)  # as good as none
    assert read_weights(tmp_path)[1].spec.device_batch == 0


def test_a_folder_without_a_checkpoint_names_the_way_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, "."):
        with pytest.raises(UserError, match=r"is a folder without a checkpoint: name a run's"):
            read_weights(folder)


def test_a_checkpoint_from_images_of_another_size_is_refused_for_its_window(run):
    with pytest.raises(UserError, match=r"window_size=2 and the model davit_tiny has 3 ") as caught:
        load_weights(model(image_size=(96, 96)), run)
    assert "64 x 64 pixels and the model's are 96 x 96" in str(caught.value)
    assert "config.model.options.window_size = 2" in str(caught.value)
    load_weights(model(image_size=(96, 96)), run, preset_mismatch="allow")


@pytest.mark.parametrize(
    ("option", "value"), [("head_norm_first", False), ("num_heads", (1, 2, 4, 8))]
)
def test_options_that_the_tensors_do_not_show_are_compared(run, option, value):
    options = {"num_classes": 5, "image_size": (64, 64)} | SIZES | {option: value}
    other = nnx.eval_shape(lambda: create_model("davit_tiny", rngs=nnx.Rngs(0), **options))
    with pytest.raises(UserError, match=f"was trained with {option}=.* the tensors would fit"):
        load_weights(other, run)


def test_a_checkpoint_of_format_1_away_from_its_run_loads_but_is_not_applied(tmp_path, weights):
    old = OLD | {"initial_weights": "/home/somebody/Miller/davit.h5"}
    arrays = {f"params/{path}": value for path, value in weights.items()}
    checkpoints.save(tmp_path / "alone", arrays, old)
    load_weights(model(), tmp_path / "alone")
    with pytest.raises(UserError, match="what took effect in its run is not beside it"):
        load_classifier(tmp_path / "alone")
    spec = read_weights(tmp_path / "alone")[1].spec
    assert spec.trained_on.initial_weights == "unpublished"


def test_published_layouts_come_with_imagenet_s_preprocessing():
    info = read_weights(KECAM)[1]
    assert info.preprocessing == IMAGENET.to_dict()
    assert (info.model, info.classes, info.origin) == ("", (), "")


def test_importing_the_package_loads_nothing_heavy():
    program = "import sys, glomjax.pretrained; print(*{n.split('.')[0] for n in sys.modules})"
    loaded = subprocess.check_output([sys.executable, "-c", program], text=True).split()
    assert not {"grain", "matplotlib", "orbax", "sklearn", "tensorflow_datasets"}.intersection(
        loaded
    )
