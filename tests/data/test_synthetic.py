"""The embedded data set: reproducible, leak-free, not solvable by colour, solvable by texture."""

import io
import itertools
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from glomjax.data import synthetic
from glomjax.data.examples import SPLITS
from glomjax.data.image_facts import COLOURS, FILES, THUMBNAILS, ImageFacts
from glomjax.data.synthetic import drawing
from glomjax.data.synthetic.drawing import draw_patch
from glomjax.errors import UserError
from glomjax.evaluation.controls import fit_controls
from glomjax.files import cache_dir

SMALL = {"train": (8, 2), "validation": (4, 1), "test": (4, 1)}


@pytest.fixture(scope="module")
def demo_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("synthetic")


@pytest.fixture(scope="module")
def demo(demo_dir):
    return synthetic.load(data_dir=demo_dir)


@pytest.fixture(scope="module")
def demo_pixels(demo):
    """(images, labels) of the train and of the test split of `demo`."""

    def decode(examples):
        images = [
            np.asarray(Image.open(io.BytesIO(examples.read(i)))) for i in range(len(examples))
        ]
        return images, examples.labels

    return decode(demo.train), decode(demo.test)


@pytest.fixture(scope="module")
def more_pixels():
    """Another seed with more patients, drawn without TFDS."""

    def draw(split, count, patients):
        patches = [draw_patch(1, split, i, patients) for i in range(count)]
        return [p.image for p in patches], np.array([p.label for p in patches])

    return draw("train", 280, 20), draw("test", 160, 10)


@pytest.fixture
def small_demo(monkeypatch):
    monkeypatch.setitem(synthetic.SIZES, "demo", SMALL)


def test_examples_are_encoded_rgb_patches_with_stable_names(demo):
    assert {split: len(demo[split]) for split in SPLITS} == {
        split: count for split, (count, _) in synthetic.SIZES["demo"].items()
    }
    assert demo.classes == ("other", "glomerulus")
    assert demo.train.ids[12] == "train/0012"
    png = demo.test.read(3)
    assert isinstance(png, bytes)
    image = Image.open(io.BytesIO(png))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (280, 280))


def test_the_cache_holds_exactly_what_is_drawn(demo):
    for split, index in (("train", 17), ("test", 40)):
        _, patients = synthetic.SIZES["demo"][split]
        patch = draw_patch(0, split, index, patients)
        decoded = np.asarray(Image.open(io.BytesIO(demo[split].read(index))))
        np.testing.assert_array_equal(decoded, patch.image)
        assert (demo[split].labels[index], demo[split].patients[index]) == (
            patch.label,
            patch.patient,
        )


def test_seed_split_and_index_each_change_the_pixels():
    first = draw_patch(0, "train", 4, 4).image
    np.testing.assert_array_equal(first, draw_patch(0, "train", 4, 4).image)
    for other in ((1, "train", 4), (0, "test", 4), (0, "train", 6)):
        assert np.mean(first != draw_patch(*other, 4).image) > 0.5


@pytest.mark.parametrize("size", synthetic.SIZES)
def test_every_split_and_patient_is_balanced(size):
    for count, patients in synthetic.SIZES[size].values():
        # Pairs of the two classes go to the patients in turn.
        assert patients > 1
        assert count % 2 == 0
        assert count // 2 >= patients


def test_patients_stay_in_one_split_and_have_both_classes(demo):
    seen = [set(demo[split].patients) for split in SPLITS]
    assert sum(map(len, seen)) == len(set.union(*seen))
    for split in SPLITS:
        labels = demo[split].labels
        assert labels.mean() == 0.5
        for patient in set(demo[split].patients):
            assert set(labels[np.array(demo[split].patients) == patient]) == {0, 1}


def test_tufts_are_where_the_data_set_says_and_mostly_off_centre(demo, demo_dir):
    tufts = synthetic.tuft_locations("train", data_dir=demo_dir)
    labels = demo.train.labels
    assert tufts.dtype == np.float32
    assert tufts.shape == (len(labels), 3)
    assert not tufts[labels == 0].any()
    centres, radii = tufts[labels == 1, :2], tufts[labels == 1, 2:]
    assert radii.min() >= 75
    assert radii.max() <= 112
    assert np.all(centres - 0.8 * radii > 0)
    assert np.all(centres + 0.8 * radii < 280)
    assert np.mean(np.hypot(*(centres - 140).T) > 35) >= 0.5


def test_tuft_coordinates_are_row_then_column(monkeypatch):
    """Without its tuft the same patch differs inside the tuft's circle and hardly elsewhere."""
    with_tuft = draw_patch(3, "train", 7, 2)
    monkeypatch.setattr(drawing.tissue, "glomerulus", lambda *_: None)
    monkeypatch.setattr(drawing, "_photograph", lambda density, *_: density)
    monkeypatch.setattr(drawing, "_dye", lambda canvas, *_: canvas)
    without = draw_patch(3, "train", 7, 2).image
    monkeypatch.undo()
    monkeypatch.setattr(drawing, "_photograph", lambda density, *_: density)
    monkeypatch.setattr(drawing, "_dye", lambda canvas, *_: canvas)
    changed = np.any(draw_patch(3, "train", 7, 2).image != without, axis=-1)
    row, column, radius = with_tuft.tuft
    distance = np.hypot(*(np.indices((280, 280)) - np.array([row, column])[:, None, None]))
    assert abs(row - column) > 20  # else a swap would go unnoticed
    assert changed[distance < 0.8 * radius].mean() > 0.8
    assert changed[distance > 1.5 * radius].mean() < 0.05


@pytest.mark.parametrize("pixels", ["demo_pixels", "more_pixels"])
@pytest.mark.parametrize(
    "features", ["colour_histogram", "joint_histogram", "thumbnail", "density"]
)
def test_colour_and_layout_alone_do_not_tell_the_classes(pixels, features, request):
    assert _auroc(request.getfixturevalue(pixels), globals()[f"_{features}"]) < 0.75


def test_negative_controls_do_not_tell_the_classes(demo, demo_pixels):
    (train, labels), (test, _) = demo_pixels
    facts = [ImageFacts(len(images)) for images in (train, test)]
    for part, images, split in zip(facts, (train, test), ("train", "test"), strict=True):
        for i, image in enumerate(images):
            part.add(i, Image.fromarray(image), demo[split].read(i), demo[split].ids[i])
    controls = fit_controls(facts[0].features(), labels, facts[1].features())
    assert list(controls) == [COLOURS, THUMBNAILS, FILES]
    for logits in controls.values():
        assert roc_auc_score(demo_pixels[1][1], logits[:, 0]) < 0.75


@pytest.mark.parametrize("pixels", ["demo_pixels", "more_pixels"])
def test_local_texture_tells_the_classes(pixels, request):
    assert _auroc(request.getfixturevalue(pixels), _texture) > 0.9


@pytest.mark.usefixtures("small_demo")
def test_an_interrupted_build_leaves_nothing_that_is_used_later(tmp_path, monkeypatch):
    from glomjax.data.synthetic import synthetic_dataset_builder as builder

    def interrupted(seed, split, index, patients):
        if split == "test":
            raise KeyboardInterrupt
        return draw_patch(seed, split, index, patients)

    with monkeypatch.context() as patch:
        patch.setattr(builder, "draw_patch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            synthetic.load(data_dir=tmp_path)
    assert not list(tmp_path.iterdir())
    # A killed process leaves its unfinished folder behind.
    (tmp_path / ".unfinished-killed" / "ready" / "glomjax_synthetic").mkdir(parents=True)
    assert len(synthetic.load(data_dir=tmp_path).test) == 4


@pytest.mark.usefixtures("small_demo")
def test_another_seed_has_its_own_cache_and_other_pixels(tmp_path):
    first, second = (synthetic.load(seed=seed, data_dir=tmp_path) for seed in (0, 1))
    assert first.train.read(0) != second.train.read(0)
    assert first.train.read(0) == synthetic.load(data_dir=tmp_path).train.read(0)


def test_unknown_sizes_and_unwritable_caches_say_the_way_out(tmp_path):
    with pytest.raises(UserError, match="'huge'; choose one of demo, large"):
        synthetic.load("huge", data_dir=tmp_path)
    with pytest.raises(UserError, match="data set is -1"):
        synthetic.load(seed=-1, data_dir=tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="GLOMJAX_CACHE"):
        synthetic.load(data_dir=tmp_path / "file" / "cache")


def test_building_and_reading_print_nothing_and_never_import_tensorflow(tmp_path):
    script = f"""
import logging, pathlib, sys
from glomjax.data import synthetic
logging.basicConfig(level=logging.WARNING)
assert "tensorflow_datasets" not in sys.modules, "TFDS must be imported by load() alone"
synthetic.SIZES["demo"] = {SMALL!r}
for _ in range(2):
    synthetic.load(seed=7, data_dir=pathlib.Path({str(tmp_path)!r})).train.read(0)
assert "tensorflow_datasets" in sys.modules
assert "tensorflow" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("GLOMJAX_CACHE", raising=False)
    assert cache_dir("weights") == tmp_path / "xdg" / "glomjax" / "weights"
    monkeypatch.setenv("GLOMJAX_CACHE", str(tmp_path / "own"))
    assert cache_dir("weights") == tmp_path / "own" / "weights"


def _auroc(pixels, features) -> float:
    (train, train_labels), (test, test_labels) = pixels
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000))
    model.fit(np.stack([features(image) for image in train]), train_labels)
    scores = model.decision_function(np.stack([features(image) for image in test]))
    return roc_auc_score(test_labels, scores)


def _colour_histogram(image):
    return np.concatenate([np.bincount(image[..., c].ravel() // 32, minlength=8) for c in range(3)])


def _joint_histogram(image):
    return np.bincount((image // 64).reshape(-1, 3) @ [16, 4, 1], minlength=64)


def _thumbnail(image):
    return np.asarray(Image.fromarray(image).resize((8, 8), Image.Resampling.BOX)).ravel()


def _density(image):
    return -np.log((image.astype(np.float32) + 1) / 256).mean((0, 1))


def _texture(image):
    """Mean and deviation of rectified differences of Gaussians at two resolutions."""
    grey = np.asarray(Image.fromarray(image).convert("L"), np.float32)
    grey = Image.fromarray((grey - grey.mean()) / grey.std())
    features = []
    for scale in (2, 4):
        smooth = [ndimage.gaussian_filter(grey.reduce(scale), s) for s in (0.7, 1, 1.6, 2.3, 3.2)]
        for fine, coarse in itertools.pairwise(smooth):
            for part in (np.maximum(fine - coarse, 0), np.maximum(coarse - fine, 0)):
                features += [part.mean(), part.std()]
    return np.array(features)
