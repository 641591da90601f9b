"""One call applies a trained network, to whatever a person calls images."""

import concurrent.futures
import dataclasses
import os
import pathlib
import subprocess
import sys
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from small_runs import blots

import glomjax
from glomjax import load_classifier
from glomjax.data import synthetic
from glomjax.errors import UserError
from glomjax.inference.images import iterate_images
from glomjax.inference.network import Network
from glomjax.models import create_model
from glomjax.ops import native
from glomjax.ops.compilation import compile_now
from glomjax.pretrained import read_weights, write_weights

OLD = pathlib.Path(__file__).parents[1] / "data" / "old_run" / "finished"
KECAM = pathlib.Path(__file__).parents[1] / "data" / "davit_kecam" / "kecam_davit.h5"


@pytest.fixture(scope="module")
def classifier():
    return load_classifier(OLD)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (13, 40, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def expected(classifier, images) -> np.ndarray:
    return classifier.predict(images).logits


@pytest.fixture
def folder(tmp_path, images) -> pathlib.Path:
    """The images as files, named so that their order by name is their own."""
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i:02d}.png")
    return tmp_path


def test_what_is_predicted_is_named_and_adds_up(classifier, images):
    found = classifier.predict(images)
    assert found.ids == tuple(map(str, range(13)))
    assert (found.logits.shape, found.logits.dtype) == ((13, 1), np.float32)
    assert (found.probabilities.shape, found.probabilities.dtype) == ((13, 2), np.float64)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1)
    np.testing.assert_allclose(
        found.probabilities[:, 1], 1 / (1 + np.exp(-found.logits[:, 0].astype(np.float64)))
    )
    assert found.labels == tuple(classifier.classes[int(z > 0)] for z in found.logits[:, 0])
    assert (len(found), found.problems, found.classes) == (13, {}, ("0", "1"))


def test_every_kind_of_input_gives_the_same_numbers_in_the_same_order(
    classifier, images, expected, folder
):
    files = sorted(folder.glob("*.png"))
    (folder / "deep" / "a").mkdir(parents=True)
    table = folder / "deep" / "list.csv"
    table.write_text("path\n" + "".join(f"{file}\n" for file in reversed(files)))
    given = {
        "arrays": list(images),
        "an iterator": iter(images),
        "PIL": [Image.fromarray(image) for image in images],
        "paths": files,
        "texts": map(str, files),
        "a column of paths": np.array(files, object),
        "mixed": [files[0], images[1], Image.fromarray(images[2]), *files[3:]],
    }
    for name, source in given.items():
        assert classifier.predict(source).logits.tobytes() == expected.tobytes(), name
    with pytest.raises(UserError, match=r"13 image\(s\) outside .* with allow_outside=True"):
        classifier.predict(table)
    found = classifier.predict(str(table), allow_outside=True)
    assert found.logits[::-1].tobytes() == expected.tobytes()
    assert found.ids == tuple(str(file) for file in reversed(files))
    (folder / "deep" / "a").rmdir()
    table.unlink()
    found = classifier.predict(folder)
    assert found.logits.tobytes() == expected.tobytes()
    assert found.ids == tuple(file.name for file in files)
    assert classifier.predict(files[3]).logits.shape == (1, 1)
    assert classifier.predict(images[3]).ids == ("0",)


def test_a_folder_may_have_class_folders_and_a_manifest_or_neither(classifier, expected, folder):
    for i, file in enumerate(sorted(folder.glob("*.png"))):
        target = folder / f"class {i // 7}" / file.name
        target.parent.mkdir(exist_ok=True)
        file.rename(target)
    found = classifier.predict(folder)
    assert found.logits.tobytes() == expected.tobytes()
    assert found.ids[0] == "class 0/00.png"
    rows = [f"{name},class {name[6]},P{n}" for n, name in enumerate(found.ids)]
    manifest = folder / "manifest.csv"
    manifest.write_text("path,label,patient\n" + "\n".join(rows) + "\n")
    assert classifier.predict(folder).ids == found.ids
    assert classifier.predict(manifest).logits.tobytes() == expected.tobytes()
    manifest.write_text("path,label,patient\n" + "\n".join(rows[:-1]) + "\n")
    with pytest.raises(UserError, match="does not list 'class 1/12.png'"):
        classifier.predict(folder)


def test_what_cannot_be_read_keeps_its_row_and_its_reason(classifier, expected, folder):
    (folder / "03.png").write_bytes(b"")
    (folder / "05.png").write_bytes((folder / "05.png").read_bytes()[:99])
    files = [*sorted(folder.glob("*.png")), folder / "gone.png"]
    found = classifier.predict(files)
    bad = [3, 5, 13]
    assert set(found.problems) == {str(files[i]) for i in bad}
    assert "is empty" in found.problems[str(files[3])]
    assert "cannot be read" in found.problems[str(files[13])]
    assert np.isnan(found.logits[bad]).all()
    assert np.isnan(found.probabilities[bad]).all()
    assert [found.labels[i] for i in bad] == ["", "", ""]
    good = [i for i in range(13) if i not in bad]
    assert found.logits[good].tobytes() == expected[good].tobytes()
    with pytest.raises(UserError, match=r"03.png' is empty"):
        classifier.features(files)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), r"an array of float32 \[2, 8, 8, 3\]; give uint8"),
        (np.zeros((8, 8), np.uint8), r"an array of uint8 \[8, 8\]"),
        ([np.zeros((8, 8, 3)), "x.png"], r"image 0 is an array of float64 \[8, 8, 3\]"),
        ([None], "image 0 is of type NoneType; give paths"),
        (7, "images are of type int; give a path"),
        ("nowhere", "'nowhere' does not exist"),
        ("", "the path of the images is empty"),
        ({"a.png": 1}, "images are of type dict"),
        (b"\x89PNG", "images are of type bytes"),
    ],
)
def test_what_is_no_image_is_one_sentence(classifier, images, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        classifier.predict(images)


def test_an_empty_folder_says_so_and_an_empty_list_is_one(classifier, tmp_path):
    with pytest.raises(UserError, match="holds no image"):
        classifier.predict(tmp_path)
    found = classifier.predict([])
    assert (found.logits.shape, found.probabilities.shape, found.ids) == ((0, 1), (0, 2), ())


def test_one_program_whatever_the_number_of_images(images, monkeypatch):
    compiled = []
    monkeypatch.setattr(
        "glomjax.inference.network.compile_now",
        lambda *arguments: compiled.append(compile_now(*arguments)) or compiled[-1],
    )
    fresh = load_classifier(OLD)
    for count in (1, 7, 8, 9, 13):
        fresh.predict(images[:count])
    assert len(compiled) == 1


def test_memory_does_not_grow_with_the_number_of_images(classifier, images):
    def endless():
        for n in range(1600):
            yield images[n % 13]

    tracemalloc.start()
    try:
        peaks = []
        for n, part in enumerate(classifier.iterate(endless())):
            assert len(part) == 8
            if n in (20, 199):
                peaks.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    # 1,432 images of 3,840 bytes lie between the two.
    assert peaks[1] - peaks[0] < 1e6


def test_images_are_read_as_they_are_needed(classifier, images):
    asked = []

    def counted():
        for n in range(200):
            asked.append(n)
            yield images[n % 13]

    first = next(iter(classifier.iterate(counted())))
    assert len(first) == 8
    assert len(asked) < 60


def test_an_iterator_may_fill_one_buffer_again_and_close_its_files(
    classifier, expected, images, folder
):
    def buffered():
        buffer = np.empty_like(images[0])
        for image in images:
            buffer[:] = image
            yield buffer

    def opened():
        for file in sorted(folder.glob("*.png")):
            with Image.open(file) as image:
                yield image

    with Image.open(next(iter(sorted(folder.glob("*.png"))))) as image:
        several = classifier.predict([image] * 13).logits
    assert several.tobytes() == np.repeat(expected[:1], 13, axis=0).tobytes()
    for source in (buffered(), opened()):
        found = classifier.predict(source)
        assert not found.problems
        assert found.logits.tobytes() == expected.tobytes()


@pytest.mark.parametrize("mpp", [0, -0.5, 250.0, float("nan"), "0.5", True])
def test_a_spacing_that_no_image_has_is_refused(classifier, images, mpp):
    with pytest.raises(UserError, match=r"mpp is .*; it is in microns per pixel, 0.01 to 100"):
        classifier.predict(images, mpp=mpp)


def test_kernels_that_cannot_be_used_are_said(tmp_path, images, expected, caplog):
    params, info = read_weights(OLD)
    spec = dataclasses.replace(info.spec, native="auto")
    write_weights(tmp_path / "auto.safetensors", params, spec)
    with native.setting("off"):
        load_classifier(tmp_path / "auto.safetensors")
    assert "native kernels: off" in caplog.text
    caplog.clear()
    found = load_classifier(OLD).predict(images)  # whose run was without them
    assert caplog.text == ""
    assert found.logits.tobytes() == expected.tobytes()


def test_a_pipe_and_an_image_without_pixels_are_problems(classifier, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    found = classifier.predict(tmp_path)
    assert "is no file" in found.problems["pipe.png"]
    found = classifier.predict([Image.new("RGB", (0, 0))])
    assert "has no pixels" in found.problems["0"]


def test_arrays_of_other_libraries_are_arrays(classifier, images, expected):
    assert classifier.predict(jnp.asarray(images)).logits.tobytes() == expected.tobytes()
    assert classifier.predict([jnp.asarray(images[0])]).logits.tobytes() == expected[:1].tobytes()


def test_threads_may_share_a_classifier(images, expected):
    shared = load_classifier(OLD)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: shared.predict(images).logits, range(8)))
    assert all(logits.tobytes() == expected.tobytes() for logits in found)


def test_progress_shows_how_far_it_is(classifier, images, capsys):
    classifier.predict(images, progress=True)
    captured = capsys.readouterr()
    assert "13/13 images" in captured.err
    assert captured.out == ""
    classifier.predict(images)
    assert capsys.readouterr().err == ""


def test_features_are_what_the_head_sees(classifier, images, expected):
    features = classifier.features(images)
    assert features.shape == (13, 16)
    params, _ = read_weights(OLD)
    logits = features @ params["head/kernel"] + params["head/bias"]
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_an_ensemble_gives_the_mean_of_the_probabilities(images, tmp_path):
    params, info = read_weights(OLD)
    other = {path: value * np.float32(1.5) for path, value in params.items()}
    write_weights(tmp_path / "other.safetensors", other, info.spec)
    members = [OLD, tmp_path / "other.safetensors"]
    each = [load_classifier(member).predict(images).probabilities for member in members]
    found = load_classifier(members).predict([*images, "gone.png"])
    mean = np.mean(each, axis=0)
    np.testing.assert_allclose(found.probabilities[:13], mean)
    np.testing.assert_allclose(found.logits[:13, 0], np.log(mean[:, 1] / mean[:, 0]), rtol=1e-5)
    assert np.isnan(found.logits[13]).all()
    assert np.abs(each[0] - each[1]).max() > 1e-2
    # Where every probability rounds to 0 or 1 the log-odds still rank.
    scaled = {path: value * np.float32(1e4) for path, value in params.items() if "head" in path}
    for n in (1, 2):
        more = {path: value * np.float32(n) for path, value in scaled.items()}
        write_weights(tmp_path / f"{n}.safetensors", params | more, info.spec)
    sure = load_classifier([tmp_path / f"{n}.safetensors" for n in (1, 2)]).predict(images)
    assert np.abs(sure.logits).min() > 100
    assert np.isfinite(sure.logits).all()
    features = load_classifier(members).features(images)
    assert features.shape == (13, 32)


def test_symmetries_may_be_asked_for(images, expected):
    found = load_classifier(OLD, symmetries=True).predict(images[:, :32])
    plain = load_classifier(OLD)
    views = [
        np.ascontiguousarray(np.rot90(flipped, turns, axes=(1, 2)))
        for flipped in (images[:, :32], images[:, :32, ::-1])
        for turns in range(4)
    ]
    mean = np.mean([plain.predict(view).logits for view in views], axis=0)
    np.testing.assert_allclose(found.logits, mean, atol=1e-5)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (str(KECAM), "holds weights without a classifier of named classes; name a run"),
        ("nowhere", "'nowhere' does not exist: it is neither a file or folder nor a published id"),
        ([], "no trained network is named"),
        (None, "the trained network is None; give a path"),
        ([3], r"the trained network is \[3\]; give a path"),
    ],
)
def test_what_is_no_trained_network_is_one_sentence(source, message):
    with pytest.raises(UserError, match=message):
        load_classifier(source)


@pytest.mark.parametrize("symmetries", ["yes", 2, []])
def test_symmetries_are_asked_for_by_a_truth_value(symmetries):
    with pytest.raises(UserError, match="symmetries is .*; it is True or False"):
        load_classifier(OLD, symmetries=symmetries)


@pytest.mark.parametrize("batch", [0, 2.5, "4", True])
def test_a_batch_has_at_least_one_image(batch):
    with pytest.raises(UserError, match=f"device_batch is {batch!r}; it is a whole number"):
        load_classifier(OLD, device_batch=batch)


def test_loading_computes_no_initial_values(monkeypatch):
    def drawn(*_):
        pytest.fail("an initial value was drawn")

    monkeypatch.setattr("glomjax.models.initializers._uniform_chunk", drawn)
    with pytest.raises(pytest.fail.Exception):
        create_model("alexnet_mini", image_size=(40, 40), rngs=nnx.Rngs(0))
    load_classifier(OLD)


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, glomjax; print({'jax', 'numpy', 'flax', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    assert "load_classifier" in dir(glomjax)


def test_images_have_a_count_where_it_is_known(images, folder):
    for source, count in ((images, 13), (list(images), 13), (folder, 13), (iter(images), None)):
        assert iterate_images(source).count == count


def test_a_batch_that_memory_has_no_room_for_is_made_smaller_and_it_is_said(
    images, expected, monkeypatch, caplog
):
    shared = load_classifier(OLD)
    (network,) = shared._networks
    needed = [network.prepare(batch, "network") for batch in (4, 8)]
    assert needed[0] < needed[1]
    monkeypatch.setattr("glomjax.inference.classifier.free_bytes", lambda: needed[0])
    found = shared.predict(images)
    np.testing.assert_allclose(found.logits, expected, atol=1e-5)
    assert "a batch of 8 images does not fit into memory; batches of 4 are predicted" in caplog.text
    shared.predict(images)
    assert caplog.text.count("does not fit") == 1
    monkeypatch.setattr("glomjax.inference.classifier.free_bytes", lambda: 0)
    with pytest.raises(UserError, match=r"no memory to predict one image of 32 x 32 \(0 MiB are"):
        load_classifier(OLD).predict(images)


def test_a_device_that_is_full_gives_smaller_batches(images, expected, monkeypatch, caplog):
    """As GPUs do, which say so when a program runs."""
    prepare = Network.prepare

    def full(self, batch, part):
        if batch > 2:
            raise MemoryError
        return prepare(self, batch, part)

    monkeypatch.setattr(Network, "prepare", full)
    found = load_classifier(OLD).predict(images)
    np.testing.assert_allclose(found.logits, expected, atol=1e-5)
    assert "batches of 2 are predicted" in caplog.text


def test_images_that_do_not_resemble_the_training_are_warned_of(small_run):
    found = load_classifier(small_run[1])
    blank = np.full((40, 40, 3), 240, np.uint8)
    with pytest.warns(UserWarning, match="1 of 3 images do not resemble .*: 1 blank; how good"):
        predictions = found.predict([np.asarray(blots(n)) for n in (900, 901)] + [blank])
    assert predictions.unlike == {"2": ("blank",)}
    parts = list(found.iterate([blank] * 9))  # which leaves it to the caller
    assert [len(part.unlike) for part in parts] == [8, 1]


def test_the_embedded_data_are_images_too(small_run, tmp_path, monkeypatch):
    monkeypatch.setenv("GLOMJAX_CACHE", str(tmp_path))
    sizes = {"train": (8, 2), "validation": (4, 1), "test": (4, 1)}
    monkeypatch.setitem(synthetic.SIZES, "demo", sizes)
    stream = iterate_images("synthetic")
    assert stream.count == 16
    assert set(stream.columns) == {"label", "split", "patient"}
    (first, *_) = stream.images
    assert first.columns["label"] in ("other", "glomerulus")
    assert first.open(load_classifier(small_run[1]).spec.preprocessing).size == (280, 280)
