"""TFDS data sets: which feature is what, which splits are kept, and what is refused."""

import hashlib
import io
import pathlib
import re
import socket
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download import checksums, downloader

from glomjax.data.examples import SPLITS
from glomjax.data.sources import load_source
from glomjax.data.sources import tfds as tfds_source
from glomjax.data.sources.manifest import Patch
from glomjax.data.sources.tfds import read_tfds
from glomjax.errors import UserError

F = tfds.features
TUFT, REST = ("glomerulus", "other")  # as the ClassLabels below count them: 0 and 1
RED, BLUE = (255, 0, 0), (0, 0, 255)


def png(color=RED) -> io.BytesIO:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(file, "PNG")
    file.seek(0)
    return file


def color_of(encoded: bytes) -> tuple[int, ...]:
    return Image.open(io.BytesIO(encoded)).getpixel((0, 0))


def build(folder: pathlib.Path, dataset: str, features: dict, splits: dict, keys=None) -> None:
    """Prepares a data set of which no builder is known afterwards, as a user's own ones."""

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = f"{dataset}"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=F.FeaturesDict(features),
                supervised_keys=keys,
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {split: enumerate(rows) for split, rows in splits.items()}

        def _generate_examples(self):
            raise NotImplementedError

    Builder(data_dir=folder).download_and_prepare(file_format="array_record")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of all data sets of this module."""
    folder = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def kidney(folder):
    """Red tufts and blue rest; each split has two patients of its own, with one tuft each."""
    features = {
        "image": F.Image(),
        "label": F.ClassLabel(names=[TUFT, REST]),
        "Patient-ID": F.Text(),
        "slide": np.int64,
        "site": F.ClassLabel(names=["Oslo", "Bergen"]),
        "stain": F.ClassLabel(names=["PAS", "HE"]),
        "mpp": np.float32,
        "weight": np.float32,
        "example_id": F.Text(),
        "split": F.Text(),
        "mask": F.LabeledImage(labels=3, shape=(None, None, 1)),
        "boxes": F.Sequence({"box": F.BBoxFeature()}),
        "notes": {"patient": F.Text()},
    }

    def row(split, i):
        return {
            "image": png((RED, BLUE)[i % 2]),
            "label": i % 2,
            "Patient-ID": f"{split} ü{i // 2} ",
            "slide": 10 * SPLITS.index(split) + i // 2,
            "site": i // 2,
            "stain": (0, -1)[i // 2],
            "mpp": 0.2525,
            "weight": i,
            "example_id": f"{split}-{9 - i}",
            "split": "all",
            "mask": png(),
            "boxes": [{"box": tfds.features.BBox(0.0, 0.0, 1.0, 1.0)}],
            "notes": {"patient": "x"},
        }

    build(folder, "kidney", features, {s: [row(s, i) for i in range(4)] for s in SPLITS})
    return "kidney"


def small(folder, dataset, splits=("train",), keys=None, image="image", **features):
    """A data set of a red and a blue image per split; `features` are {name: (kind, values)}."""

    def row(i):
        return {image: png((RED, BLUE)[i])} | {n: values[i] for n, (_, values) in features.items()}

    kinds = {image: F.Image()} | {name: kind for name, (kind, _) in features.items()}
    build(folder, dataset, kinds, {s: [row(i) for i in range(2)] for s in splits}, keys)
    return dataset


LABEL = (F.ClassLabel(names=[TUFT, REST]), (0, 1))


# What is read.


def test_rows_have_the_names_columns_and_splits_of_the_data_set(kidney):
    patches, _, notes = read_tfds(kidney)
    assert notes == []
    assert len(patches) == 12
    assert patches[2] == Patch(
        id="train-7",
        label="glomerulus",
        split="train",
        patient="train ü1",
        slide="1",
        site="Bergen",
        weight=2.0,
        mpp=0.2525,
        further={"stain": ""},
    )
    assert [p.split for p in patches] == [s for s in SPLITS for _ in range(4)]
    assert patches[1].further == {"stain": "PAS"}
    assert patches[1].weight == 1.0


def test_read_gives_the_encoded_image_with_that_id(kidney):
    patches, read, _ = read_tfds(kidney)
    assert read("validation-9") == png(RED).getvalue()
    for patch in reversed(patches):
        assert color_of(read(patch.id)) == (RED if patch.label == TUFT else BLUE)


@pytest.mark.parametrize("classes", [(), (REST, TUFT), (TUFT, REST)])
def test_labels_follow_the_classes_and_not_the_order_of_the_class_label(kidney, classes):
    data = load_source(f"tfds:{kidney}", classes=classes)
    assert data.classes == (classes or (REST, TUFT))
    for split in SPLITS:
        examples = data[split]
        assert sorted(examples.labels) == [0, 0, 1, 1]
        for i, label in enumerate(examples.labels):
            expected = RED if data.classes[label] == TUFT else BLUE
            assert color_of(examples.read(i)) == expected
        assert {p.split()[0] for p in examples.patients} == {split}


def test_version_and_default_folder(kidney, folder, monkeypatch):
    assert len(read_tfds(f"{kidney}:1.0.0")[0]) == 12
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(folder.parent / "home"))
    with pytest.raises(UserError, match=rf"{folder.parent}/home/tensorflow_datasets: correct"):
        read_tfds(kidney)


def test_a_label_of_whole_numbers_and_ids_that_repeat(folder):
    name = small(folder, "numbers", label=(np.int64, (7, 3)), id=(F.Text(), ("a", "a")))
    patches, read, notes = read_tfds(name)
    assert patches == [
        Patch("train/000000", "7"),
        Patch("train/000001", "3"),
    ]
    assert color_of(read("train/000001")) == BLUE
    assert notes == []  # one split alone: it is divided by patient


def test_more_examples_than_are_read_at_once(folder):
    rows = [{"image": png((i, 0, 0)), "label": str(i), "file_name": f"{i}.png"} for i in range(150)]
    features = {"image": F.Image(), "label": F.Text(), "file_name": F.Text()}
    build(folder, "many", features, {"train": rows})
    patches, read, _ = read_tfds("many")
    assert [p.id for p in patches] == [f"{i}.png" for i in range(150)]
    assert all(color_of(read(p.id)) == (int(p.label), 0, 0) for p in patches)


@pytest.mark.parametrize(
    ("keys", "label"),
    [(None, "the label"), (("scan", "stain"), "HE")],
)
def test_the_plain_name_comes_before_the_supervised_keys(folder, keys, label):
    features = {"label": (F.Text(), ("the label", "x"))} if keys is None else {}
    name = small(
        folder,
        f"keys_{label.split()[0].lower()}",
        keys=keys,
        image="scan",
        stain=(F.ClassLabel(names=["HE", "PAS"]), (0, 1)),
        grade=(F.ClassLabel(names=["1", "2"]), (0, 1)),
        **features,
    )
    assert read_tfds(name)[0][0].label == label


# Splits.


@pytest.mark.parametrize(
    ("splits", "expected", "note"),
    [
        (("everything",), {""}, ""),
        (("train", "test"), {"train", "test"}, ""),
        (("train", "val"), {"train", "validation"}, ""),
        (("train", "unlabelled"), {""}, "unlabelled of 'tfds:.*' are left out"),
        (("train", "val", "test", "x"), {*SPLITS}, "x of 'tfds:.*' are left out"),
    ],
)
def test_splits_are_kept_and_one_alone_is_left_to_be_divided(folder, splits, expected, note):
    name = small(folder, "splits_" + "_".join(splits), splits, label=LABEL)
    patches, _, notes = read_tfds(name)
    assert {p.split for p in patches} == expected
    known = {"train": "train", "val": "validation", "test": "test"}
    for patch in patches:
        assert patch.split in ("", known.get(patch.id.split("/")[0]))
    assert bool(notes) == bool(note)
    assert not note or any(re.search(note, n) for n in notes)


def test_splits_without_train_are_refused(folder):
    name = small(folder, "no_train", ("test", "fold_1"), label=LABEL)
    with pytest.raises(UserError, match=r"has the splits \['.*'\]: train is needed"):
        read_tfds(name)


def test_near_misses_of_a_patient_and_a_split_as_a_feature_are_taken(folder):
    features = {"PatientID": (F.Text(), ("a", "b")), "subset": (F.Text(), ("train", "Test"))}
    patches, _, notes = read_tfds(small(folder, "near", label=LABEL, **features))
    assert [(p.patient, p.split) for p in patches] == [("a", "train"), ("b", "test")]
    assert notes == ["'tfds:near' has no feature 'patient': 'PatientID' is taken for it."]


def test_one_patient_in_two_spellings_is_refused(folder):
    name = small(folder, "spelt", label=LABEL, patient=(F.Text(), ("P_1", "p-01")))
    with pytest.raises(UserError, match="1 patient in several spellings: 'P_1' = 'p-01'"):
        load_source(f"tfds:{name}")


# What is refused.


FLOATS = (np.float32, (0.5, 1.0))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({}, "has no label of text or whole numbers"),
        ({"label": FLOATS}, "has no label of text or whole numbers"),
        ({"stain": LABEL, "grade": LABEL}, "2 features that may be the label .grade, stain."),
        ({"stain": LABEL, "target": (np.int64, (0, 1))}, "may be the label .stain, target."),
        ({"label": (F.ClassLabel(names=["a", "b"]), (0, -1))}, "Image 'train/000001' .* no label"),
        (
            {"label": LABEL, "case_id": (F.Text(), "ab"), "subject": (F.Text(), "ab")},
            "2 features that may be the patient .case_id, subject.",
        ),
        ({"label": LABEL, "patient": (F.Text(), ("a", " "))}, "the patient of 1 of 2 .*/000001'"),
        ({"label": LABEL, "slide": (F.Text(), ("", "b"))}, "the slide of 1 of 2 .*/000000'"),
        ({"label": LABEL, "patient": (F.Text(), ("a", "N/A"))}, "the patient of 1 of 2 .*/000001'"),
        ({"label": LABEL, "split": (F.Text(), ("train", "all"))}, "has the split 'all', which is"),
        ({"label": LABEL, "mpp": (np.float32, (0.5, np.nan))}, "the mpp of 1 of 2"),
        (
            {"label": LABEL, "mpp": (np.float32, (0.5, 0.0))},
            "01'.*: the mpp is '0.0'; write",
        ),
        ({"label": LABEL, "weight": (F.Text(), ("1", "high"))}, "is 'high'; write a number"),
        ({"label": LABEL, "weight": (np.float32, (1, -1))}, "is '-1.0'; write .* at least 0"),
        ({"label": LABEL, "picture": (F.Image(), [])}, "2 features that may be the image"),
    ],
)
def test_features_and_values_that_mean_nothing_certain_are_refused(
    folder, request, features, message
):
    number = request.node.callspec.indices["features"]
    if "picture" in features:
        features = features | {"picture": (F.Image(), (png(), png()))}
    name = small(folder, f"refused_{number}", image="scan", **features)
    with pytest.raises(UserError, match=message):
        read_tfds(name)


def test_data_without_an_image_of_8_or_16_bit_is_refused(folder):
    build(folder, "no_image", {"label": np.int64}, {"train": [{"label": 1}]})
    with pytest.raises(UserError, match=r"has no image but the features \['label'\]"):
        read_tfds("no_image")
    name = small(folder, "float_image", label=LABEL)
    kinds = folder / name / "1.0.0" / "features.json"  # only TensorFlow writes such images
    text = kinds.read_text().replace('"uint8"', '"float32"').replace('"3"', '"1"')
    kinds.write_text(text)
    with pytest.raises(UserError, match="are of float32: export them"):
        read_tfds(name)


@pytest.mark.parametrize("name", ["", "a b", "robotics:x", "kidney/a=1", "../kidney", "kidney:1"])
def test_other_spellings_are_refused(name):
    with pytest.raises(UserError, match="names no data set: write tfds:name"):
        read_tfds(name)


def test_another_file_format_is_refused(folder):
    name = small(folder, "records", label=LABEL)
    info = folder / name / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(UserError, match=r"as tfrecord, .* convert_format --dataset_version_dir"):
        read_tfds(name)


def test_damaged_files_are_told(folder):
    name = small(folder, "damaged", label=LABEL)
    assert len(read_tfds(name)[0]) == 2
    (shard,) = (folder / name / "1.0.0").glob("*.array_record*")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100])
    with pytest.raises(UserError, match=r"cannot be read \(.*\): prepare the data set again"):
        read_tfds(name)
    shard.unlink()
    with pytest.raises(UserError, match=r"cannot be read \(.*\): prepare the data set again"):
        read_tfds(name)


# Data sets that are not there yet.


class GlomjaxTestReady(tfds.core.GeneratorBasedBuilder):
    """Needs no download."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = F.FeaturesDict({"image": F.Image(), "label": F.ClassLabel(names=[TUFT, REST])})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(2):
            yield i, {"image": png(), "label": i}


class GlomjaxTestBeam(GlomjaxTestReady):
    """Needs what is not installed."""

    def _split_generators(self, dl_manager):
        import apache_beam_that_is_not_there  # noqa: F401


class GlomjaxTestManual(GlomjaxTestReady):
    """Needs files that its user fetches."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "Ask the authors."

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(dl_manager.manual_dir)}


def test_a_known_data_set_is_prepared_once_and_prints_nothing(folder, capfd):
    first = read_tfds("glomjax_test_ready")[0]
    info = folder / "glomjax_test_ready" / "1.0.0" / "dataset_info.json"
    written = info.stat().st_mtime_ns
    assert read_tfds("glomjax_test_ready")[0] == first
    assert len(first) == 2
    assert info.stat().st_mtime_ns == written
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("glomjax_test_beam", r"\(No module named 'apache_beam_that_is_not_there'\): run `tfds"),
        ("glomjax_test_manual", r"\(Manual directory .* does not exist or is empty"),
        ("glomjax_test_ready:2.0.0", r"cannot be loaded at version 2.0.0"),
        ("glomjax_test_ready/high", r"cannot be loaded \("),
    ],
)
def test_what_cannot_be_prepared_here_says_why(folder, capfd, name, message):
    with pytest.raises(UserError, match=message):
        read_tfds(name)
    assert capfd.readouterr().out == ""
    assert not any((folder / name).glob("*"))


class GlomjaxTestDownload(GlomjaxTestReady):
    """Downloads a file."""

    URL = "http://files.invalid/patches.zip"

    def _split_generators(self, dl_manager):
        dl_manager.download(self.URL)
        return {"train": self._generate_examples()}


@pytest.mark.parametrize(
    ("recorded", "message"),
    [(None, "Missing checksums url"), (b"what was published", "has wrong checksum")],
)
def test_a_download_is_checked_by_a_recorded_checksum(folder, monkeypatch, recorded, message):
    def download(self, url, folder, verify):
        file = folder / "patches.zip"
        file.write_bytes(b"something else")
        return downloader.DownloadResult(file, checksums.compute_url_info(file))

    monkeypatch.setattr(downloader._Downloader, "_sync_download", download)
    monkeypatch.setattr(tfds_source, "_check_network", lambda builder: None)
    known = {}
    if recorded is not None:
        digest = hashlib.sha256(recorded).hexdigest()
        known[GlomjaxTestDownload.URL] = checksums.UrlInfo(len(recorded), digest, "patches.zip")
    monkeypatch.setattr(GlomjaxTestDownload, "url_infos", known)
    with pytest.raises(UserError, match=message) as refused:
        read_tfds("glomjax_test_download")
    assert "cannot be prepared here" in str(refused.value)
    assert not any((folder / "glomjax_test_download").glob("*"))


@pytest.fixture
def no_network(monkeypatch):
    """Counts the tries to reach a server, which all fail."""
    tries = []

    def fail(*args, **kwargs):
        tries.append(args)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    return tries


def test_an_unknown_name_is_refused_without_a_network(folder, no_network):
    with pytest.raises(UserError, match=rf"no data set 'glomeruli', and there is none in {folder}"):
        read_tfds("glomeruli")
    assert no_network == []


def test_a_server_that_cannot_be_reached_is_tried_once(folder, no_network):
    with pytest.raises(UserError, match=r"'tfds:mnist' is not in .* \(https://.* be reached\)"):
        read_tfds("mnist")
    assert len(no_network) == 1


def test_tensorflow_is_never_imported(kidney):
    code = f"""
import sys
from glomjax.data.sources import load_source
from glomjax.errors import UserError
data = load_source("tfds:{kidney}")
data.train.read(0)
try:
    load_source("tfds:unknown_name")
except UserError:
    assert not {{"tensorflow", "torch", "apache_beam"}} & {{*sys.modules}}
    print(len(data.train))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout == "4\n"
