"""What a run starts from is what the user thinks it is, or the run does not start."""

import numpy as np
import pytest
from PIL import Image

from glomjax import checkpoints
from glomjax.data import synthetic
from glomjax.data.examples import SPLITS, DataSplits, Examples
from glomjax.data.pipeline import Batches
from glomjax.data.preparation import prepare_data
from glomjax.data.sources import load_source
from glomjax.errors import UserError
from glomjax.preprocessing import stain_normalization
from glomjax.preprocessing.decoding import fit_image
from glomjax.training import default_config, setup, train_and_evaluate
from glomjax.training.config import RunConfig
from glomjax.training.config_checks import read_config
from glomjax.training.progress import Terminal
from glomjax.training.run_folder import RunFolder
from glomjax.training.setup import load_splits
from glomjax.training.sharding import Placement


def load_data(config, arrays=None):
    return load_splits(read_config(config).data, arrays)


def arrays(change=lambda splits: None):
    rng = np.random.default_rng(0)
    splits = {
        split: [rng.integers(0, 255, (4, 32, 32, 3), np.uint8), np.array([0, 1, 0, 1])]
        for split in ("train", "validation", "test")
    }
    change(splits)
    return {split: tuple(pair) for split, pair in splits.items()}


def splits(ids=("a", "b"), patients=("P", "Q"), labels=(0, 1), classes=("no", "yes")):
    part = Examples(ids, np.array(labels, np.int32), lambda i: b"", patients)
    return DataSplits(part, part, part, classes)


def test_the_digest_of_data_follows_whatever_decides_who_is_in_which_split():
    digests = [
        data.digest()
        for data in (
            splits(),
            splits(ids=("a", "c")),
            splits(patients=("P", "P")),
            splits(labels=(1, 0)),
            splits(classes=("yes", "no")),
        )
    ]
    assert splits().digest() == digests[0]
    assert len(set(digests)) == 5


def test_the_digest_of_arrays_follows_their_pixels():
    def brighten(splits):
        splits["test"][0][0, 0, 0, 0] ^= 1

    config = default_config()
    assert load_data(config, arrays()).digest() == load_data(config, arrays()).digest()
    assert load_data(config, arrays()).digest() != load_data(config, arrays(brighten)).digest()


def test_a_run_says_first_that_its_cosine_has_no_time_to_fall(tmp_path, capsys):
    config = default_config()
    config.schedule = "cosine"
    config.freeze.regime = "scratch"
    config.data.source = str(tmp_path / "missing")
    with pytest.raises(UserError, match="missing"):
        train_and_evaluate(config, tmp_path / "run")
    assert "*** The schedule cosine falls over all of num_epochs, 1000," in capsys.readouterr().out


def test_a_run_does_not_go_on_with_other_data(tmp_path):
    run, config = RunFolder(tmp_path / "run"), RunConfig()
    run.claim(config)
    run.write_config(config, config, data="one")
    run.check_data("other", "patches")  # nothing has been trained yet
    checkpoints.save(run.last, {"params/x": np.zeros(1)}, {})
    run.check_data("one", "patches")
    with pytest.raises(UserError, match=r"read now from 'patches', and the run read 'synthetic'"):
        run.check_data("other", "patches")
    with pytest.raises(UserError, match="as they are read now, are not those of the run"):
        run.check_data("other", "synthetic")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("image_size", (32, 32), "too small for alexnet_mini"),
        ("learning_rate_rules", (("stem/.*", 0.1), (".*", 1.0)), "'stem/.*' matches no parameter"),
        ("freeze.unfreeze", ("5:partial",), "network 'alexnet_mini' has no published cut"),
        ("demo.batch_size", 4, "accumulation_steps is 8; it must be at most batch_size, 4"),
    ],
)
def test_what_the_network_has_to_say_is_said_before_the_data_is_listed(
    tmp_path, monkeypatch, key, value, message
):
    monkeypatch.setattr(setup, "load_splits", lambda *_: pytest.fail("the data was listed"))
    config = default_config()
    config.model.name, config.freeze.regime = "alexnet_mini", "scratch"
    config.accumulation_steps = 8
    if not key.startswith("demo."):
        config.data.source = "patches"
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=message):
        train_and_evaluate(config, tmp_path / "run")


def test_a_batch_holds_no_more_than_there_are_images(tmp_path):
    config = default_config()
    config.update({"image_size": (32, 32), "batch_size": 65536, "preprocessing": "standardize"})
    config.model.options.update({"depths": (1,), "embed_dims": (8,), "num_heads": (1,)})
    config.freeze.regime = "scratch"
    run, requested = RunFolder(tmp_path / "run"), read_config(config)
    run.claim(requested)
    found = setup.prepare_run(requested, run, Placement(), Terminal(prints=False), arrays())
    assert {batches.rows for batches in found.phases.batches.values()} == {4}


def test_arrays_need_each_class_in_each_split():
    def one_class(splits):
        splits["validation"][1][:] = 0

    with pytest.raises(UserError, match=r"'validation'.* no example of class '1'"):
        load_data(default_config(), arrays(one_class))


def test_arrays_may_name_their_patients():
    def named(splits):
        for split, part in splits.items():
            part.append(np.array([f"{split} {i // 2}" for i in range(4)]))

    data = load_data(default_config(), arrays(named))
    assert data.test.patients == ("test 0", "test 0", "test 1", "test 1")
    assert data.notes == ()
    assert data.digest() != load_data(default_config(), arrays()).digest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: [part.append(["P", "P", "Q", "Q"]) for part in s.values()],
            "2 patient.s. occur",
        ),
        (lambda s: s["test"].append(["P", "P", "Q"]), r"'test'. has 3 patients for 4 images"),
        (lambda s: s["test"].append(["P", "P", "Q", "Q"]), "'train'. has no patients, but"),
    ],
)
def test_patients_of_arrays_are_told_of_all_images_and_stay_apart(change, message):
    with pytest.raises(UserError, match=message):
        load_data(default_config(), arrays(change))


def test_labels_have_one_axis():
    def column(splits):
        splits["test"][1] = splits["test"][1][:, None]

    with pytest.raises(UserError, match=r"labels of int64 \[4, 1\] .*labels.reshape\(-1\)"):
        load_data(default_config(), arrays(column))


@pytest.mark.parametrize(
    ("labels", "way"),
    [
        (
            ["a", "b", "a", "b"],
            r"of <U1 \[4\] \('a', 'b', 'a', .*np.unique\(labels, return_inverse",
        ),
        ([False, True, False, True], r"of bool \[4\].*labels.astype\(int\)"),
        ([0.0, 1.0, 0.0, 1.0], r"of float64 \[4\].*labels.astype\(int\)"),
        ([-1, 1, -1, 1], r"of int64 \[4\].*\(labels > 0\).astype\(int\)"),
        (np.eye(2, dtype=int)[[0, 1, 0, 1]], r"of int64 \[4, 2\].*labels.argmax\(axis=1\)"),
    ],
)
def test_labels_of_another_kind_are_refused_with_what_makes_numbers_of_them(labels, way):
    def change(splits):
        splits["test"][1] = np.array(labels)

    with pytest.raises(UserError, match=r"data\['test'\] has labels " + way):
        load_data(default_config(), arrays(change))


def test_patients_and_images_without_an_order_or_a_shape_are_refused():
    def unordered(splits):
        splits["test"].append({"A", "B", "C", "D"})

    def ragged(splits):
        splits["test"][0] = [np.zeros((4, 4, 3), np.uint8), np.zeros((5, 4, 3), np.uint8)] * 2

    with pytest.raises(UserError, match="patients as set, which has no order"):
        load_data(default_config(), arrays(unordered))
    with pytest.raises(UserError, match="images or labels of different shapes"):
        load_data(default_config(), arrays(ragged))


def test_labels_that_leave_out_numbers_are_refused():
    def change(splits):
        for split in splits.values():
            split[1] = np.where(np.array(split[1]) > 0, 10**9, 1)

    with pytest.raises(UserError, match="labels up to 1000000000, but not all whole numbers"):
        load_data(default_config(), arrays(change))


def test_the_classes_of_the_synthetic_data_cannot_be_renamed_or_swapped():
    config = default_config()
    config.data.classes = tuple(reversed(synthetic.CLASSES))
    with pytest.raises(UserError, match=r"data.classes is \['glomerulus', 'other'\]"):
        load_data(config)


@pytest.mark.parametrize(("key", "value"), [("folds", 3), ("split_by", "site")])
@pytest.mark.parametrize("given", [None, arrays()], ids=["synthetic", "arrays"])
def test_data_with_splits_of_its_own_is_not_divided_again(given, key, value):
    config = default_config()
    config.data[key] = value
    with pytest.raises(UserError, match=f"data.{key} is {value!r}, but .* has splits of its own"):
        load_data(config, given)


def test_a_banner_prints_brackets_as_they_are(capsys):
    terminal = Terminal()
    terminal._console._force_terminal = True
    terminal.banner("left out: '[/old]/x.txt'")
    assert "[/old]/x.txt" in capsys.readouterr().out


# What the steps get.


@pytest.fixture
def spaced_patches(tmp_path):
    """36 patches of 48 x 40 and 96 x 80 pixels at 0.5 and 0.25 microns, with weights."""
    rng = np.random.default_rng(0)
    lines = ["path,label,patient,split,weight,mpp"]
    for i in range(36):
        scale = 1 + i % 2
        blobs = Image.fromarray(rng.integers(60, 250, (6, 5, 3), dtype=np.uint8))
        blobs.resize((40 * scale, 48 * scale), Image.Resampling.BICUBIC).save(
            tmp_path / f"{i:02d}.png"
        )
        split = SPLITS[i // 12]
        lines.append(f"{i:02d}.png,{'ab'[i // 2 % 2]},P{i // 4},{split},{i / 8},{0.5 / scale}")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.mark.parametrize("cache_gib", [0.0, 1.0])
def test_every_image_is_resampled_normalised_and_weighted_as_is_said(spaced_patches, cache_gib):
    splits = load_source(spaced_patches / "list.csv")
    prepared = prepare_data(
        splits,
        (32, 36),
        target_mpp=0.625,
        stain="reinhard",
        standardize=True,
        cache_bytes=int(cache_gib * 2**30),
    )
    fitted, own = {}, {}
    for i in range(36):
        with Image.open(spaced_patches / f"{i:02d}.png") as image:
            own[f"{i:02d}.png"] = fit_image(image, (32, 36), scale=(0.5, 0.25)[i % 2] / 0.625)
    train = [own[name] for name in splits.train.ids]
    statistics = [stain_normalization.image_statistics("reinhard", image) for image in train]
    normalizer = stain_normalization.fit("reinhard", np.stack(statistics))
    assert prepared.preprocessing.stain == normalizer
    for split in SPLITS:
        examples = prepared.splits[split]
        assert examples.weights.tolist() == [int(name[:2]) / 8 for name in examples.ids]
        for batch in Batches(prepared.images[split], 5).epoch(seed=1):
            for image, index, mask in zip(
                batch["image"], batch["index"], batch["mask"], strict=True
            ):
                if mask:
                    name = examples.ids[index]
                    fitted[name] = image
                    assert np.array_equal(image, normalizer(own[name])), name
    assert fitted.keys() == own.keys()
    seen = np.asarray(prepared.preprocessing(np.stack([fitted[name] for name in splits.train.ids])))
    np.testing.assert_allclose(seen.mean(axis=(0, 1, 2)), 0, atol=1e-3)
    np.testing.assert_allclose(seen.std(axis=(0, 1, 2)), 1, atol=1e-3)
    # 36 columns of 40 at 0.5 are 32 at 0.625: two white columns on each side.
    *_, note = prepared.splits.notes
    assert "36 x" not in note
    assert "32 x 36 and get a white border (18 of 18 of class 'a', 18 of 18 of class 'b')" in note


def test_the_digest_follows_the_pixels_once_they_are_read(spaced_patches):
    def digest():
        splits = load_source(spaced_patches / "list.csv")
        return prepare_data(splits, (32, 36), target_mpp=0.5).splits.digest()

    before = digest()
    assert digest() == before
    with Image.open(spaced_patches / "03.png") as image:
        image.point(lambda value: 255 - value).save(spaced_patches / "03.png")
    assert digest() != before


@pytest.mark.parametrize("name", ["", None, float("nan")])
def test_a_patient_of_arrays_without_a_name_is_refused(name):
    def unnamed(splits):
        for split, part in splits.items():
            part.append(np.array([f"{split} 0", f"{split} 1", f"{split} 2", name], object))

    with pytest.raises(UserError, match="has the patient '.*'; name the patient of every image"):
        load_data(default_config(), arrays(unnamed))
