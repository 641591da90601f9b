"""Each planted problem is seen and named; a clean source stays quiet; the exit code says which."""

import contextlib
import csv
import dataclasses
import io
import itertools
import pathlib
import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score
from small_runs import write_patches

from glomjax.__main__ import main
from glomjax.data import checking
from glomjax.data.checking import association
from glomjax.data.checking.confounding import check_column
from glomjax.data.checking.contact_sheet import write_sheets
from glomjax.data.checking.measuring import STATISTICS, file_properties, image_statistics
from glomjax.data.preparation import prepare_data
from glomjax.data.sources import load_source
from glomjax.data.synthetic.drawing import draw_patch
from glomjax.errors import UserError
from glomjax.preprocessing.augmentation import PRESETS

SIZE = 64


@pytest.fixture(autouse=True)
def small_and_quick(request, monkeypatch):
    """Drawn images are measured with few permutations."""
    if "real_data" not in request.fixturenames:
        monkeypatch.setattr(association, "PERMUTATIONS", 400)


def check_data(source, *, image_size=(SIZE, SIZE), **options):
    """Drawn images are measured as they are."""
    return checking.check_data(source, image_size=image_size, **options)


def texture(seed: int, *, light: float = 1.0, grain: int = 4) -> Image.Image:
    """Blurred purple noise; its spots have about `grain` pixels, and no two are equally bright."""
    rng = np.random.default_rng(seed)
    n = SIZE // grain
    light *= rng.uniform(0.8, 1.0)
    grey = rng.uniform(0.3, 1.0, (n, n, 1))
    colour = light * 255 * grey ** np.array([0.8, 1.4, 0.7]) * 0.9
    return Image.fromarray(colour.astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)


class Source:
    """A folder of 12 patients, called Anna1, Anna2, ..., with four images each, and its manifest.

    Rows can be changed before `write`; `light`, `grain` and `suffix` of a row make its image.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.rows: list[dict[str, object]] = []
        for patient in range(12):
            for n in range(4):
                name = f"p{patient}_{n}"
                row = {
                    "name": name,
                    "label": ("other", "glomerulus")[n % 2],
                    "seed": len(self.rows),
                }
                row |= {"patient": f"Anna{patient + 1}", "number": patient, "n": n}
                row |= {"light": 1.0, "grain": 4, "suffix": "png"}
                row["split"] = "train" if patient < 8 else "validation" if patient < 10 else "test"
                self.rows.append(row)

    def write(self, *columns: str) -> pathlib.Path:
        """Writes images and the manifest, with `columns` besides the usual ones."""
        header = ["path", "label", "patient", "split", *columns]
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "manifest.csv", "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, header, extrasaction="ignore")
            writer.writeheader()
            for row in self.rows:
                path = self.path(row)
                path.parent.mkdir(exist_ok=True)
                texture(row["seed"], light=row["light"], grain=row["grain"]).save(path)
                writer.writerow(row | {"path": path.relative_to(self.folder).as_posix()})
        return self.folder

    def path(self, row) -> pathlib.Path:
        return self.folder / row["label"] / f"{row['name']}.{row['suffix']}"


@pytest.fixture
def source(tmp_path) -> Source:
    return Source(tmp_path / "patches")


def run(capsys, *argv) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of `check-data`."""
    arguments = [str(argument) for argument in argv]
    if not any(argument.startswith("--config.image_size") for argument in arguments):
        arguments.append(f"--config.image_size={SIZE},{SIZE}")
    code = main(["check-data", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def only_warning(report, topic: str) -> str:
    assert report.accepted
    assert [f.topic for f in report.findings if f.level == "warning"] == [topic]
    return report.of_level("warning", topic)[0]


# A clean source, and what is said of every source.


def test_a_clean_source_is_quiet_and_accepted(source, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for row in source.rows:
        row["patient"] = f"{row['patient']} [red]:ok:"  # is printed as it is
        row["stain"] = ("HE", "PAS")[row["number"] % 2]
        row["scanner"] = ("x", "y", "z")[row["number"] % 3]
    code, out, err = run(capsys, source.write("stain", "scanner"))
    assert (code, err) == (0, "")
    assert "Anna12 [red]:ok:" in out
    assert "WARNING" not in out
    assert "ERROR" not in out
    assert out.splitlines()[-1] == "Training accepts this source: 0 warning(s)."
    assert [path.name for path in tmp_path.iterdir()] == ["patches"]  # nothing is written


def test_counts_patients_and_properties_are_reported(source):
    source.rows[0]["suffix"] = "jpg"
    report = check_data(source.write())
    assert report.classes == ("other", "glomerulus")
    lines = {" ".join(line.split()) for line in report.text().splitlines()}
    assert "split images other glomerulus patients" in lines
    assert lines >= {"train 32 16 16 8", "validation 8 4 4 2", "test 8 4 4 2", "all 48 24 24 12"}
    assert lines >= {"image size 64 x 64 48", "file format PNG 47", "file format JPEG 1"}
    assert lines >= {"JPEG quality (empty) 47", "JPEG quality 75 1", "spacing unknown 48"}
    assert sum(line.startswith("Anna") for line in lines) == 12
    for text in ("OD red", "Cramér"):
        assert text in report.text()


def test_the_synthetic_data_are_quiet(tmp_path):
    # Stain belongs to the patient there, and every patient has as many images of both classes.
    (tmp_path / "patches").mkdir()
    rows = []
    for split, count, patients in (("train", 40, 5), ("validation", 12, 3), ("test", 12, 3)):
        for i in range(count):
            patch = draw_patch(0, split, i, patients)
            label = ("other", "glomerulus")[patch.label]
            path = tmp_path / "patches" / label / f"{split}{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.asarray(patch.image)).save(path)
            rows.append([path, label, patch.patient, split])
    with open(tmp_path / "list.csv", "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["path", "label", "patient", "split"], *rows])
    report = check_data(tmp_path / "list.csv")
    assert report.findings == []


# What training refuses.


def test_every_unreadable_image_is_named_with_its_reason(source, capsys):
    folder = source.write()
    empty, damaged = source.path(source.rows[0]), source.path(source.rows[41])
    empty.write_bytes(b"")
    damaged.write_bytes(damaged.read_bytes()[:200])
    code, out, _ = run(capsys, folder)
    assert code == 2
    assert "Image 'other/p0_0.png' is empty" in out
    assert "Image 'glomerulus/p10_1.png' cannot be decoded" in out
    assert "2 of 48 images cannot be read" in out
    assert "Stain by patient" in out
    assert out.splitlines()[-1] == "Training refuses this source: 1 error(s), 0 warning(s)."


def test_a_source_without_any_readable_image_is_reported(source):
    folder = source.write()
    for row in source.rows:
        source.path(row).write_bytes(b"")
    report = check_data(folder)
    assert report.text().count("is empty (0 bytes)") == 48
    assert "48 of 48 images cannot be read" in report.text()


def test_a_copy_in_another_split_is_an_error(source, capsys):
    train, test = source.rows[0], source.rows[44]
    test["seed"] = train["seed"]
    report = check_data(source.write())
    assert report.exact_duplicates == [("other/p0_0.png", "other/p11_0.png")]
    [text] = report.of_level("error", "duplicates")
    assert "'other/p0_0.png' (train) = 'other/p11_0.png' (test)" in text
    assert run(capsys, source.folder)[0] == 2


def test_copies_within_a_split_are_a_note_and_of_two_classes_a_warning(source):
    source.rows[2]["seed"] = source.rows[0]["seed"]
    assert "other/p0_2.png" in check_data(source.write()).of_level("note", "duplicates")[0]
    source.rows[2]["seed"] = 2
    source.rows[1]["seed"] = source.rows[0]["seed"]
    assert "of another class" in only_warning(check_data(source.write()), "duplicates")


def test_a_near_copy_in_another_split_is_a_warning(source):
    source.rows[44] |= {"seed": source.rows[0]["seed"], "light": 0.93}
    report = check_data(source.write())
    text = only_warning(report, "duplicates")
    assert "'other/p0_0.png' (train) ~ 'other/p11_0.png' (test)" in text
    assert [pair[:2] for pair in report.near_duplicates] == [("other/p0_0.png", "other/p11_0.png")]


def test_a_patient_in_two_splits_is_refused_and_the_rest_is_still_reported(source, capsys):
    source.rows[47]["patient"] = "Anna1"
    folder = source.write()
    source.path(source.rows[5]).write_bytes(b"")
    code, out, _ = run(capsys, folder)
    assert code == 2
    assert "1 patient(s) occur in more than one split: 'Anna1' (train, test)" in out
    assert "Image 'glomerulus/p1_1.png' is empty" in out
    assert "Stain by split" in out


def test_too_few_patients_for_splits_are_refused_and_the_rest_is_still_reported(source):
    for row in source.rows:
        row |= {"split": "", "patient": "Anna1"}
    report = check_data(source.write())
    assert "Only 1 patient(s)" in report.of_level("error", "source")[0]
    assert set(report.splits) == {"(no split)"}
    assert "(no split)" in report.text()


def test_mixed_spacings_are_refused_unless_images_are_resampled(source, capsys):
    for row in source.rows:
        row["mpp"] = 0.5 if row["number"] % 2 else 0.25
    folder = source.write("mpp")
    code, out, _ = run(capsys, folder)
    assert code == 2
    assert "ERROR: The images would be seen at different spacings, from 0.25 to 0.5 microns" in out
    assert "--config.target_mpp=0.2" in out
    code, out, _ = run(capsys, folder, "--config.target_mpp=0.25")
    assert code == 0
    assert "ERROR" not in out
    # Measured as resampled: those of 0.25 keep their detail, the others become twice as coarse.
    detail = STATISTICS.index(next(s for s in STATISTICS if s.name == "detail px"))
    images = check_data(folder, target_mpp=0.25).images
    fine = images.examples.mpp == 0.25
    assert images.statistics[~fine, detail].min() > 1.3 * images.statistics[fine, detail].max()


@pytest.mark.parametrize("target", ["-1", "0.001", "nan", "inf"])
def test_a_target_that_is_no_spacing_is_one_sentence(source, capsys, target):
    code, out, err = run(capsys, source.write(), f"--config.target_mpp={target}")
    assert (code, out) == (2, "")
    assert "target_mpp is" in err


def test_images_without_a_spacing_cannot_be_resampled(source):
    [text] = check_data(source.write(), target_mpp=0.5).of_level("error", "spacing")
    assert "'mpp' column" in text


def test_blank_images_are_no_copies(source):
    folder = source.write()
    for row in (source.rows[0], source.rows[47]):
        Image.new("RGB", (SIZE, SIZE), "white").save(source.path(row))
    report = check_data(folder)
    assert report.accepted
    assert report.exact_duplicates == []
    blank = ["2 image(s) are blank: one colour throughout."]
    assert report.of_level("note", "duplicates") == blank


def unchanged(source: Source) -> pathlib.Path:
    return source.write()


def copied(source: Source) -> pathlib.Path:
    source.rows[44]["seed"] = source.rows[0]["seed"]
    return source.write()


def copied_within(source: Source) -> pathlib.Path:
    source.rows[2]["seed"] = source.rows[0]["seed"]
    return source.write()


def blank(source: Source) -> pathlib.Path:
    folder = source.write()
    for row in (source.rows[0], source.rows[47]):
        Image.new("RGB", (SIZE, SIZE)).save(source.path(row))
    return folder


def empty(source: Source) -> pathlib.Path:
    folder = source.write()
    source.path(source.rows[0]).write_bytes(b"")
    return folder


def shared_patient(source: Source) -> pathlib.Path:
    source.rows[47]["patient"] = "Anna1"
    return source.write()


def spaced(source: Source, *mpp: float) -> pathlib.Path:
    for row, value in zip(source.rows, itertools.cycle(mpp)):
        row["mpp"] = value
    return source.write("mpp")


@pytest.mark.parametrize(
    ("write", "target_mpp", "refused"),
    [
        (unchanged, 0.0, False),
        (unchanged, 0.5, True),  # the spacing is not known
        (copied, 0.0, True),
        (copied_within, 0.0, False),
        (blank, 0.0, False),
        (empty, 0.0, True),
        (shared_patient, 0.0, True),
        (lambda source: spaced(source, 0.5, 0.51), 0.0, False),
        (lambda source: spaced(source, 0.5, 0.6), 0.0, True),
        (lambda source: spaced(source, 0.5, 0.6), 0.5, False),
    ],
)
def test_what_is_refused_is_what_training_refuses(source, write, target_mpp, refused):
    path = write(source)
    assert check_data(path, target_mpp=target_mpp).accepted != refused
    with pytest.raises(UserError) if refused else contextlib.nullcontext():
        prepare_data(load_source(path), (SIZE, SIZE), target_mpp=target_mpp)


@pytest.mark.parametrize("name", ["nowhere", "tfds:no_such_thing_at_all"])
def test_a_source_that_is_not_there_is_one_sentence(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, name)
    assert code == 2
    assert out.count("ERROR: ") == 1
    assert out.splitlines()[-1] == "Training refuses this source: 1 error(s), 0 warning(s)."


def test_classes_and_the_seed_of_the_split_are_those_of_training(source, capsys):
    for row in source.rows:
        row["split"] = ""
    folder = source.write()
    _, first, _ = run(capsys, folder, "--config.data.classes=glomerulus,other")
    assert "classes: negative 'glomerulus', positive 'other'" in first
    assert check_data(folder, seed=1).examples.ids != check_data(folder, seed=2).examples.ids
    code, out, _ = run(capsys, folder, "--config.data.classes=a,b")
    assert code == 2
    assert "['glomerulus', 'other']" in out


def test_folds_and_sites_of_the_split_are_those_of_training(source, capsys):
    for row in source.rows:
        row |= {"split": "", "site": f"s{row['number'] % 6}"}
    folder = source.write("site")
    tested = []
    for fold in range(3):
        options = {"folds": 3, "fold": fold, "split_by": "site"}
        tested.append(set(load_source(folder, **options).test.columns["site"]))
        arguments = [f"--config.data.{name}={value}" for name, value in options.items()]
        code, out, _ = run(capsys, folder, *arguments)
        assert code == 0
        assert re.search(r"^test +16 +8 +8 +4$", out, re.MULTILINE)
        report = check_data(folder, **options)
        assert set(report.examples.columns["site"][-16:]) == tested[-1]
    assert len(set.union(*tested)) == 6
    code, out, _ = run(capsys, folder, "--config.data.split_by=stain")
    assert code == 2
    assert "data.split_by is 'stain'" in out


def test_the_images_are_those_that_training_sees(source, capsys):
    # Two patches that differ in what a network of this size does not see are copies for it.
    folder = source.write()
    one, other = source.path(source.rows[0]), source.path(source.rows[-1])
    pixels = np.asarray(texture(5).resize((64, 64)).resize((640, 640), Image.Resampling.NEAREST))
    Image.fromarray(pixels).save(one)
    changed = pixels.copy()
    changed[0, 0] ^= 1
    Image.fromarray(changed).save(other)
    assert check_data(folder, image_size=(640, 640)).accepted
    with contextlib.nullcontext():
        prepare_data(load_source(folder), (640, 640))
    with pytest.raises(UserError, match="in more than one split"):
        prepare_data(load_source(folder), (64, 64))
    code, out, _ = run(capsys, folder, "--config.image_size=64,64", "--config.resize=pad")
    assert code == 2
    assert "seen by the network: 64 x 64, by pad" in out
    assert "in more than one split" in out


def test_what_training_leaves_out_and_standardises_is_tried(source, capsys):
    folder = source.write()
    source.path(source.rows[0]).write_bytes(b"")
    code, out, _ = run(capsys, folder, "--config.data.skip_unreadable=True")
    assert code == 0
    assert "WARNING: 1 of 48 images cannot be read and are left out." in out
    for row in source.rows:
        Image.new("RGB", (SIZE, SIZE), (row["n"], row["number"], 7)).save(source.path(row))
    code, out, _ = run(capsys, folder, "--config", "alexnet_mini")
    assert code == 2
    assert "ERROR: the training images cannot be standardised" in out


def test_stain_normalisation_over_several_stains_is_warned_of(source):
    for row in source.rows:
        row["stain"] = ("PAS", "HE")[row["n"] % 2]
    text = check_data(source.write("stain"), stain="reinhard").of_level("warning", "stain")
    assert any("have 2 stains by the column 'stain'" in t for t in text)


# Splits that look unlike the training images.


def test_a_dark_test_split_is_pointed_at(source):
    for row in source.rows:
        if row["split"] == "test":
            row["light"] = 0.5
    text = only_warning(check_data(source.write()), "stain")
    assert text.startswith("The test images look unlike the training images: they are darker")


def test_a_stain_that_training_lacks_is_pointed_at(source):
    for row in source.rows:
        row["stain"] = "PAS" if row["split"] == "test" else "HE"
    report = check_data(source.write("stain"))
    assert "No training image has the stain 'PAS' (test)." in report.of_level("warning", "stain")


def test_different_sizes_are_pointed_at(source):
    folder = source.write()
    image = source.path(source.rows[0])
    Image.open(image).resize((80, 80)).save(image)
    assert "2 sizes" in only_warning(check_data(folder), "spacing")


# Confounding.


def test_a_site_that_goes_with_the_class_is_pointed_at(source):
    # Within each patient, as where the glomeruli of some slides were scanned again.
    for row in source.rows:
        other = row["label"] == "other" and row["n"] != 0
        row["site"] = "north" if other or row["number"] == 0 else "south"
    report = check_data(source.write("site"))
    [column] = [c for c in report.columns if c.name == "site"]
    assert 0.3 < column.cramers_v < 0.9
    assert column.p_value < 0.01
    text = only_warning(report, "confounding")
    assert "The class goes with the site" in text


def test_a_site_per_class_is_pointed_at_however_few_patients_there_are(source):
    for row in source.rows:
        row["label"] = ("other", "glomerulus")[row["number"] % 2]
        row["site"] = ("north", "south")[row["number"] % 2]
    report = check_data(source.write("site"))
    texts = report.of_level("warning", "confounding")
    assert any("north has 24 other and 0 glomerulus" in text for text in texts)
    # By patients, of which the site has one each, this is rare but not as rare as by images.
    [column] = [c for c in report.columns if c.name == "site"]
    assert column.cramers_v == pytest.approx(1)


def test_patients_and_not_images_are_permuted(source):
    # Patients have very unequal shares of the class, and more of the rich ones are in one site.
    for row in source.rows:
        rich = row["number"] in (0, 2, 4, 6, 8, 1)
        row["label"] = "glomerulus" if row["n"] < (4 if rich else 1) else "other"
        row["site"] = ("north", "south")[row["number"] % 2]
    report = check_data(source.write("site"))
    [column] = [c for c in report.columns if c.name == "site"]
    sites = np.array([row["number"] % 2 for row in source.rows])
    labels = np.array([row["label"] == "glomerulus" for row in source.rows]).astype(int)
    by_image = check_column("site", sites, np.eye(2)[labels], None)
    assert column.cramers_v == by_image.cramers_v > 0.3
    assert by_image.p_value < 0.01 < column.p_value
    assert not any("site" in text for text in report.of_level("warning"))


def test_a_column_that_describes_a_class_is_a_note(source):
    for row in source.rows:
        row["subtype"] = ("sclerotic", "normal")[row["n"] // 2] if row["n"] % 2 else ""
    report = check_data(source.write("subtype"))
    assert report.of_level("warning") == []
    note = report.of_level("note", "confounding")[0]
    assert "'subtype' is filled for 'glomerulus' alone" in note
    assert "subtype" not in [column.name for column in report.columns]


def test_fields_of_one_class_are_pointed_at_and_how_they_can_be_seen(source):
    # Every patient has a dark field with one glomerulus, and one with the other three images.
    for row in source.rows:
        alone = row["n"] == 3
        row["field"] = f"{row['patient']}_{'close' if alone else 'far'}"
        row["light"] = 0.75 if alone else 1.0
    report = check_data(source.write("field"))
    [text] = [t for t in report.of_level("warning", "confounding") if "hold one class alone" in t]
    assert text.startswith("12 of 24 fields hold one class alone, and 12 of 24 'glomerulus' and 0 ")
    assert "there 'glomerulus' images are darker (AUROC 0.0" in text
    assert "than in other fields" in text


def test_as_many_fields_of_either_class_are_no_confounding(source):
    for row in source.rows:
        row["field"] = f"{row['patient']}_{row['n'] if row['n'] < 2 else 'both'}"
    report = check_data(source.write("field"))
    [column] = [c for c in report.columns if c.name == "field"]
    assert column.one_class_patches == (12, 12)
    assert report.of_level("warning") == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"suffix": "jpg"}, "The class goes with the file format"),
        ({"light": 0.55}, "'glomerulus' images are darker than the others"),
        ({"grain": 8}, "'glomerulus' images are coarser in detail (closer or blurred)"),
    ],
)
def test_what_was_done_to_one_class_is_pointed_at(source, change, said):
    for row in source.rows:
        if row["label"] == "glomerulus":
            row |= change
    assert any(said in t for t in check_data(source.write()).of_level("warning", "confounding"))


def test_colour_that_goes_with_the_share_of_a_class_is_no_tissue(source):
    # Patients with three glomeruli of four are darker, in both classes alike.
    for row in source.rows:
        rich = row["number"] % 2
        row["label"] = "glomerulus" if row["n"] < (3 if rich else 1) else "other"
        row["light"] = 0.75 if rich else 1.0
    report = check_data(source.write())
    [check] = [c for c in report.statistics if c.statistic.name == "brightness"]
    assert check.column == "patient"
    assert check.correlation < -0.8
    assert check.p_value < 0.05
    assert check.auroc < check.auroc_within - 0.1
    texts = report.of_level("warning", "confounding")
    assert any("patients with a larger share of 'glomerulus' are darker" in t for t in texts)


def test_tissue_that_looks_different_is_no_confounding(source):
    # Glomeruli are darker in every patient, and patients have unequal shares of them.
    for row in source.rows:
        row["label"] = "glomerulus" if row["n"] < (3 if row["number"] % 2 else 1) else "other"
        row["light"] = 0.95 if row["label"] == "glomerulus" else 1.0
    report = check_data(source.write())
    [check] = [c for c in report.statistics if c.statistic.name == "brightness"]
    assert 0.1 < check.auroc < 0.4
    assert check.p_value > 0.2
    assert report.of_level("warning") == []


def test_each_of_three_classes_is_compared_with_the_others(source):
    for row in source.rows:
        row["label"] = ("a", "b", "c", "c")[row["n"]]
        row["light"] = 0.5 if row["label"] == "b" else 1.0
    report = check_data(source.write())
    assert {check.positive for check in report.statistics} == {"a", "b", "c"}
    assert any("'b' images are darker" in t for t in report.of_level("warning", "confounding"))


# What cannot be told apart.


def test_a_stain_of_one_site_alone_is_pointed_at(source):
    for row in source.rows:
        row["site"] = ("north", "south", "east")[row["number"] % 3]
        row["stain"] = "PAS" if row["site"] == "east" else "HE"
    text = only_warning(check_data(source.write("site", "stain")), "nesting")
    assert "site 'east' = stain 'PAS'" in text


def test_a_stain_of_patients_of_one_beginning_is_pointed_at(source):
    for row in source.rows:
        row["patient"] = f"C{row['number'] % 3}-{row['number']}"
        row["stain"] = "PAS" if row["number"] % 3 == 2 else "HE"
    text = only_warning(check_data(source.write("stain")), "nesting")
    assert "The stain 'PAS' comes from 4 of 12 patients" in text
    assert "begin with 'C2'" in text


def test_a_stain_of_several_beginnings_is_not(source):
    for row in source.rows:
        row["patient"] = f"C{row['number'] % 3}-{row['number']}"
        row["stain"] = "PAS" if row["number"] % 4 == 2 else "HE"
    assert check_data(source.write("stain")).of_level("warning") == []


# The measures.


def test_statistics_of_plain_colours():
    values = dict(
        zip((s.name for s in STATISTICS), image_statistics(colour(255, 255, 255)), strict=True)
    )
    assert values["brightness"] == pytest.approx(255, abs=0.01)
    assert values["OD red"] == values["saturation"] == 0
    assert values["pale"] == values["red / blue"] == 1
    values = dict(
        zip((s.name for s in STATISTICS), image_statistics(colour(255, 51, 0)), strict=True)
    )
    assert values["OD green"] == pytest.approx(np.log10(5))
    assert values["OD blue"] == pytest.approx(np.log10(255))
    assert values["saturation"] == 1
    assert values["red / blue"] == 256
    assert values["pale"] == 0
    assert np.isfinite(image_statistics(colour(0, 0, 0))).all()


def colour(*rgb: int) -> np.ndarray:
    return np.broadcast_to(np.array(rgb, np.uint8), (20, 30, 3)).copy()


@pytest.mark.parametrize("wavelength", [10, 20, 40])
def test_detail_is_the_wavelength_of_a_wave(wavelength):
    wave = 128 + 100 * np.sin(2 * np.pi * np.arange(240) / wavelength)
    image = np.broadcast_to(np.rint(wave)[:, None, None], (240, 240, 3)).astype(np.uint8)
    detail = image_statistics(image)[[s.name for s in STATISTICS].index("detail px")]
    assert detail == pytest.approx(wavelength, rel=0.1)


@hypothesis.given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2).filter(
        lambda rows: len({row[0] for row in rows}) == 2
    )
)
def test_auroc_is_that_of_scikit_learn(rows):
    labels, values = map(np.array, zip(*rows, strict=True))
    area = association.auroc(labels, association.ranks(values))
    assert area == pytest.approx(roc_auc_score(labels, values))


def test_cramers_v_is_corrected_for_chance():
    rng = np.random.default_rng(0)
    assert association.cramers_v(np.array([[30, 0], [0, 20]])) == pytest.approx(1)
    groups, labels = np.arange(400) // 8, rng.integers(2, size=400)
    table = np.zeros((50, 2))
    np.add.at(table, (groups, labels), 1)
    assert association.cramers_v(table) < 0.15  # uncorrected 0.35


def test_unusual_images_are_warned_of_and_profiles_listed(source):
    folder = source.write()
    paths = [source.path(row) for row in source.rows]
    for path in paths[:3]:
        mask = Image.open(path).convert("L").point(lambda value: 255 * (value > 100))
        mask.save(path)
    cut = np.array(Image.open(paths[4]))
    cut[40:] = 0
    Image.fromarray(cut).save(paths[4])
    for path in paths[6:20]:
        Image.open(path).save(path, icc_profile=b"of a scanner" * 20)
    report = check_data(folder)
    assert report.accepted
    (flat,) = report.of_level("warning", "flat rows")
    assert "1 image(s)" in flat
    assert f"'{paths[4].relative_to(folder).as_posix()}' (24 rows)" in flat
    (few,) = report.of_level("warning", "few colours")
    assert few.startswith("3 image(s) have two to four colours alone")
    (profiles,) = report.of_level("note", "colour profile")
    assert "14 image(s) have a colour profile other than sRGB ('unknown' in 14)" in profiles
    lines = {" ".join(line.split()) for line in report.text().splitlines()}
    assert lines >= {"colour profile none or sRGB 34", "colour profile unknown 14"}


def test_the_bits_of_16_bit_images_can_be_given(source, tmp_path):
    folder = source.write()
    for path in folder.glob("*/*.png"):
        grey = np.asarray(Image.open(path).convert("L"), np.uint16)
        Image.fromarray(grey * 16).save(path)
    (error,) = check_data(folder).of_level("error")
    assert "48 of 48 images cannot be read" in error
    report = check_data(folder, bits=12)
    assert report.accepted
    lines = {" ".join(line.split()) for line in report.text().splitlines()}
    assert "pixel mode I;16, 16 bits 48" in lines
    (sheet,) = write_sheets(tmp_path, report.images, report.classes)
    with Image.open(sheet) as image:
        tile = np.asarray(image.convert("L"))[40:140, 20:150]
    assert tile.std() > 5  # of the first patch, which is not black
    assert 60 < tile.mean() < 220


@pytest.mark.parametrize("quality", [30, 50, 75, 92])
def test_the_quality_of_a_jpeg_is_read_from_its_tables(quality):
    stream = io.BytesIO()
    texture(0).save(stream, "JPEG", quality=quality)
    found = file_properties(stream.getvalue())
    assert (found["file format"], found["pixel mode"]) == ("JPEG", "RGB")
    assert int(found["JPEG quality"]) == pytest.approx(quality, abs=1)


# Sheets.


def test_sheets_are_drawn_and_drawn_again(source, capsys, tmp_path):
    folder, out = source.write(), tmp_path / "sheets"
    source.path(source.rows[0]).write_bytes(b"")  # unreadable images are left out
    for options in ([], ["--augment", "histology"]):
        code, text, _ = run(capsys, folder, "--out", out, *options)
        assert code == 2
        assert f"sheet: {out / 'contact_sheet.png'}" in text
    assert f"sheet: {out / 'augmented.png'}" in text
    files = ["augmented.png", "check.txt", "contact_sheet.png"]
    assert sorted(path.name for path in out.iterdir()) == files
    written = (out / "check.txt").read_text(encoding="utf-8")
    assert written == f"glomjax check-data\n\n{text}"
    sheets = [out / "contact_sheet.png", out / "augmented.png"]
    contact, augmented = (np.asarray(Image.open(path)) for path in sheets)
    assert contact.shape[1] == augmented.shape[1]
    assert contact.shape[0] > 1.4 * augmented.shape[0]  # six rows (class, split) and four
    # The first picture of a row is the original, the others differ from it.
    first, second = augmented[30:180, 20:160], augmented[30:180, 188:328]
    assert np.abs(first.astype(int) - second).mean() > 5


def test_names_with_line_breaks_stay_on_their_line(source, tmp_path):
    report = check_data(source.write())
    classes = ("oth\ner", "glomerulus\u2029")
    patients = tuple(f"P\r\n{i % 12}\x1b[2J" for i in range(len(report.images.examples)))
    examples = dataclasses.replace(report.images.examples, patients=patients)
    images = dataclasses.replace(report.images, examples=examples)
    report = dataclasses.replace(report, classes=classes, examples=examples, images=images)
    report.add("note", "source", "'a\nb' is odd")
    (tmp_path / "sheets").mkdir()
    (sheet,) = write_sheets(tmp_path / "sheets", images, classes)
    assert Image.open(sheet).height > 500
    lines = report.text().splitlines()
    assert r"classes: negative 'oth\ner', positive 'glomerulus\u2029'" in lines
    assert r"NOTE: 'a\nb' is odd" in lines
    assert sum(line.startswith(r"P\r\n") for line in lines) == 12
    assert "\x1b" not in report.text()


def test_a_picture_that_is_not_ours_is_kept(source, capsys, tmp_path):
    folder = source.write()
    texture(0).save(tmp_path / "contact_sheet.png")
    before = (tmp_path / "contact_sheet.png").read_bytes()
    code, out, err = run(capsys, folder, "--out", tmp_path)
    assert (code, out) == (2, "")
    assert "was not written by check-data" in err
    assert (tmp_path / "contact_sheet.png").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--augment", "histology"), "give --out FOLDER"),
        (("--out", "sheets", "--augment", "wild"), f"choose one of {', '.join(PRESETS)}"),
        (("--out", "patches/sheets"), "lies in the source"),
        (("--out", "patches/manifest.csv/sheets"), "lies in the source"),
        (("--out", "file/sheets"), "cannot be made"),
    ],
)
def test_a_wrong_place_for_the_sheets_is_refused(
    source, capsys, options, said, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    code, out, err = run(capsys, source.write(), *options)
    assert (code, out) == (2, "")
    assert said in err
    assert not (tmp_path / "sheets").exists()


# The traps in real tissue.


def test_the_stain_of_one_institution_is_pointed_at(real_data):
    report = check_data(real_data / "kidney_slides", image_size=(280, 280))
    text = only_warning(report, "nesting")
    assert "The stain 'PAS' comes from 4 of 13 patients" in text
    assert "begin with 'I_4_S'" in text


def test_fields_that_hold_glomeruli_alone_are_pointed_at(real_data):
    report = check_data(real_data / "biopsy_stains", image_size=(280, 280))
    text = report.of_level("warning", "confounding")[0]
    assert text.startswith("31 of 63 fields hold one class alone")
    assert "40 of 94 'glomerulus' and 0 of 88 'other' images" in text
    assert "'glomerulus' images are redder" in text


def test_a_set_without_traps_is_quiet(real_data):
    assert check_data(real_data / "aidpath", image_size=(280, 280)).of_level("warning") == []


def test_a_cross_validation_is_recommended_where_patients_are_few(tmp_path):
    source = write_patches(tmp_path / "patches")

    def recommended(**options) -> list[str]:
        notes = check_data(source, **options).of_level("note")
        return [note for note in notes if "says little of others" in note]

    assert recommended() == [
        "There are 12 patients, and a result on the few of a test split says little of others; "
        "cross_validate(folds=5) tests each patient once."
    ]
    assert recommended(folds=3) == []  # it is one already
    manifest = source / "manifest.csv"
    head, *rows = manifest.read_text().splitlines()
    splits = [("train", "validation", "test")[i // 4 % 3] for i in range(len(rows))]
    table = [f"{row},{split}" for row, split in zip(rows, splits, strict=True)]
    manifest.write_text("\n".join([f"{head},split", *table]) + "\n")
    assert recommended() == []  # and would be refused
