"""Folders and manifests become splits with patients apart; every mistake in them is named."""

import csv
import pathlib

import numpy as np
import pytest
from PIL import Image

from glomjax.data.decoding import decode_image
from glomjax.data.folder import NO_PATIENTS, SLIDES_ONLY, load_folder
from glomjax.errors import UserError

SPLITS = ("train", "validation", "test")


def put(folder: pathlib.Path, *names: str) -> None:
    """Writes a tiny image of the format of its suffix for each name."""
    for i, name in enumerate(names):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (i % 256, 0, 0)).save(file)


def write_manifest(file: pathlib.Path, rows: list[dict[str, str]]) -> None:
    with open(file, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def flat(tmp_path):
    """20 images of `glomerulus` and 20 of `other`."""
    folder = tmp_path / "patches"
    put(folder, *(f"{c}/{c}{i:02d}.png" for c in ("glomerulus", "other") for i in range(20)))
    return folder


@pytest.fixture
def rows(flat):
    """A manifest for `flat` with 10 patients of 4 patches each, not yet written."""
    return [
        {"path": f"{c}/{c}{i:02d}.png", "label": c, "patient": f"P{i // 2}"}
        for c in ("glomerulus", "other")
        for i in range(20)
    ]


def all_ids(data):
    return [name for split in SPLITS for name in data[split].ids]


# Layouts without a manifest.


def test_class_folders_are_split_by_file_with_a_note(flat):
    data = load_folder(flat)
    assert data.classes == ("other", "glomerulus")
    assert [len(data[split]) for split in SPLITS] == [28, 6, 6]
    assert len(set(all_ids(data))) == 40
    assert data.notes == (NO_PATIENTS,)
    for split in SPLITS:
        examples = data[split]
        assert examples.labels.dtype == np.int32
        assert examples.patients is None
        assert list(examples.ids) == sorted(examples.ids)
        for name, label in zip(examples.ids, examples.labels, strict=True):
            assert name.startswith(data.classes[label] + "/")


def test_read_gives_the_bytes_of_the_file_with_that_id(flat):
    test = load_folder(str(flat)).test
    for i, name in enumerate(test.ids):
        assert test.read(i) == (flat / name).read_bytes()
    assert decode_image(test.read(0), (4, 4), name=test.ids[0]).shape == (4, 4, 3)


def test_a_file_that_vanishes_is_named_when_it_is_read(flat):
    test = load_folder(flat).test
    (flat / test.ids[0]).unlink()
    with pytest.raises(UserError, match=rf"{test.ids[0]}' cannot be read"):
        test.read(0)


def test_the_same_seed_gives_the_same_split_and_another_seed_another(flat):
    assert load_folder(flat, seed=3).test.ids == load_folder(flat, seed=3).test.ids
    assert load_folder(flat, seed=3).test.ids != load_folder(flat, seed=4).test.ids


def test_suffixes_in_any_case_nested_folders_and_unicode_names_are_found(tmp_path):
    names = ["a.PNG", "b.jpg", "c.JPEG", "d.tif", "e.TIFF", "nested/deeper/f.bmp", "ü 腎.png"]
    put(tmp_path, *(f"{c}/{name}" for c in ("ja", "nein") for name in names))
    assert sorted(all_ids(load_folder(tmp_path))) == sorted(
        f"{c}/{name}" for c in ("ja", "nein") for name in names
    )


def test_hidden_files_are_skipped_and_other_files_are_told(flat):
    put(flat, ".cache/a.png", "__MACOSX/glomerulus/b.png", "glomerulus/.c.png", "overview.png")
    (flat / "other" / "Thumbs.db").write_bytes(b"x")
    (flat / "README.md").write_text("x")
    assert load_folder(flat).notes[0].startswith("1 image(s) outside the class folders")
    (flat / "overview.png").unlink()
    assert load_folder(flat).notes == (NO_PATIENTS,)
    (flat / "other" / "notes.txt").write_text("x")
    (flat / "glomerulus" / "patch.webp").write_bytes(b"x")
    notes = load_folder(flat).notes
    assert notes[0].startswith("2 file(s) among the patches are no images")
    assert "glomerulus/patch.webp" in notes[0]


def test_linked_class_folders_are_followed(flat, tmp_path):
    (tmp_path / "links").mkdir()
    for name in ("glomerulus", "other"):
        (tmp_path / "links" / name).symlink_to(flat / name)
    (flat / "other" / "loop").symlink_to(flat / "other")
    assert all_ids(load_folder(tmp_path / "links")) == all_ids(load_folder(flat))


@pytest.mark.parametrize("folders", [SPLITS, ("Train", "VAL", "Test")])
def test_split_folders_are_kept_as_they_are(tmp_path, folders):
    put(tmp_path, *(f"{s}/{c}/{i}.png" for s in folders for c in ("a", "b") for i in range(2)))
    data = load_folder(tmp_path)
    for split, folder in zip(SPLITS, folders, strict=True):
        expected = tuple(f"{folder}/{c}/{i}.png" for c in "ab" for i in range(2))
        assert data[split].ids == expected
        assert data[split].labels.tolist() == [0, 0, 1, 1]
    assert data.notes == (NO_PATIENTS,)


@pytest.mark.parametrize(
    "folders", [("train", "test"), ("train", "val", "test", "a"), ("train", "val", "validation")]
)
def test_incomplete_or_mixed_split_folders_are_refused(tmp_path, folders):
    put(tmp_path, *(f"{s}/{c}/1.png" for s in folders for c in ("a", "b")))
    with pytest.raises(UserError, match="all three and nothing else"):
        load_folder(tmp_path)


def test_a_given_split_without_a_class_is_refused(tmp_path):
    put(tmp_path, *(f"{s}/{c}/1.png" for s in SPLITS for c in ("a", "b")))
    (tmp_path / "test" / "b" / "1.png").unlink()
    with pytest.raises(UserError, match=r"test split of .* no image of class 'b'"):
        load_folder(tmp_path)


# Classes.


def test_glomerulus_is_positive_whatever_its_case_and_place_in_the_alphabet(tmp_path):
    for other in ("background", "tubule"):
        put(tmp_path / other, *(f"{c}/{i}.png" for c in (other, "Glomerulus") for i in range(3)))
        assert load_folder(tmp_path / other).classes == (other, "Glomerulus")


def test_other_names_are_sorted_and_three_classes_stay_sorted(tmp_path):
    put(tmp_path / "two", *(f"{c}/{i}.png" for c in ("b", "a") for i in range(3)))
    assert load_folder(tmp_path / "two").classes == ("a", "b")
    put(tmp_path / "three", *(f"{c}/{i}.png" for c in ("glomerulus", "z", "a") for i in range(3)))
    assert load_folder(tmp_path / "three").classes == ("a", "glomerulus", "z")


def test_given_classes_set_the_order_and_must_match(flat):
    data = load_folder(flat, classes=("glomerulus", "other"))
    assert data.classes == ("glomerulus", "other")
    assert data.test.ids[0].startswith("glomerulus/")
    assert data.test.labels[0] == 0
    for wrong in (("other", "glom"), ("other",), ("other", "glomerulus", "glomerulus")):
        with pytest.raises(UserError, match=r"data\.classes is .*\['glomerulus', 'other'\]"):
            load_folder(flat, classes=wrong)


def test_one_class_is_refused(tmp_path):
    put(tmp_path, "a/1.png", "a/2.png")
    with pytest.raises(UserError, match=r"class \['a'\] alone"):
        load_folder(tmp_path)


def test_a_class_folder_without_images_is_refused(flat):
    (flat / "sclerotic").mkdir()
    with pytest.raises(UserError, match="sclerotic' has no image"):
        load_folder(flat)


def test_missing_empty_and_wrong_sources_are_named(tmp_path):
    with pytest.raises(UserError, match="nowhere' does not exist"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no image in class folders"):
        load_folder(tmp_path)
    put(tmp_path, "a.png")
    with pytest.raises(UserError, match="no image in class folders"):
        load_folder(tmp_path)
    with pytest.raises(UserError, match=r"a\.png' is not a folder"):
        load_folder(tmp_path / "a.png")


def test_too_few_files_for_three_splits_are_refused(tmp_path):
    put(tmp_path, "a/1.png", "a/2.png", "a/3.png", "b/1.png", "b/2.png")
    with pytest.raises(UserError, match=r"Only 2 file\(s\) have patches of class 'b'.*at least 3"):
        load_folder(tmp_path)


# Manifests.


def test_a_manifest_keeps_patients_apart(flat, rows):
    write_manifest(flat / "manifest.csv", rows)
    patient = {row["path"]: row["patient"] for row in rows}
    for seed in range(3):
        data = load_folder(flat, seed=seed)
        assert data.notes == ()
        assert len(set(all_ids(data))) == 40
        seen = [set(data[split].patients) for split in SPLITS]
        assert sum(len(names) for names in seen) == 10
        for split in SPLITS:
            assert list(data[split].patients) == [patient[name] for name in data[split].ids]
            assert set(data[split].labels) == {0, 1}


def test_the_manifest_itself_can_be_the_source_and_the_order_of_its_rows_is_irrelevant(flat, rows):
    write_manifest(flat / "manifest.csv", rows)
    from_folder = load_folder(flat)
    write_manifest(flat / "shuffled.CSV", rows[::-3] + rows[-2::-3] + rows[-3::-3])
    assert all_ids(load_folder(flat / "shuffled.CSV")) == all_ids(from_folder)


def test_a_manifest_elsewhere_may_use_absolute_paths_and_list_a_part(flat, rows, tmp_path):
    part = [{**row, "path": str(flat / row["path"])} for row in rows if row["patient"] != "P9"]
    (tmp_path / "glomerulus" / "lists").mkdir(parents=True)
    write_manifest(tmp_path / "glomerulus" / "lists" / "m.csv", part)
    data = load_folder(tmp_path / "glomerulus" / "lists" / "m.csv")
    assert sorted(all_ids(data)) == sorted(row["path"] for row in part)
    assert data.test.read(0) == pathlib.Path(data.test.ids[0]).read_bytes()


def test_headers_in_any_case_spaces_extra_columns_and_blank_lines_are_read(flat, rows):
    lines = ["\ufeff Path , LABEL,mpp,Patient "]
    lines += [f" {r['path'].replace('/', chr(92))} ,{r['label']}, 0.5,{r['patient']}" for r in rows]
    (flat / "Manifest.CSV").write_text("\r\n".join(lines) + "\r\n,,,\r\n\r\n", encoding="utf-8")
    data = load_folder(flat)
    assert sorted(all_ids(data)) == sorted(row["path"] for row in rows)
    assert len(set(data.train.patients)) > 1


def test_an_empty_patient_column_falls_back_to_slides_then_to_files_with_notes(flat, rows):
    slides = [{**row, "patient": " ", "slide": row["patient"]} for row in rows]
    write_manifest(flat / "manifest.csv", slides)
    data = load_folder(flat)
    assert data.notes == (SLIDES_ONLY,)
    assert sum(len(set(data[split].patients)) for split in SPLITS) == 10
    write_manifest(flat / "manifest.csv", [{**row, "slide": ""} for row in slides])
    data = load_folder(flat)
    assert data.notes == (NO_PATIENTS,)
    assert data.test.patients is None


@pytest.mark.parametrize("column", ["patient", "slide", "split"])
def test_a_partly_filled_column_is_refused_with_the_first_gap(flat, rows, column):
    rows = [{"path": r["path"], "label": r["label"], column: "train"} for r in rows]
    rows[4][column] = rows[7][column] = ""
    write_manifest(flat / "manifest.csv", rows)
    with pytest.raises(UserError, match=rf"{column} is empty in 2 of 40 rows.*line 6 .*glom.*04"):
        load_folder(flat)


def test_the_split_column_gives_the_splits(flat, rows):
    names = dict(enumerate(["train"] * 6 + ["Val", "validation", "test", "TEST"]))
    rows = [{**row, "split": names[int(row["patient"][1:])]} for row in rows]
    write_manifest(flat / "manifest.csv", rows)
    data = load_folder(flat, seed=5)
    assert set(data.validation.patients) == {"P6", "P7"}
    assert set(data.test.patients) == {"P8", "P9"}
    assert len(data.train) == 24


@pytest.mark.parametrize("column", ["patient", "slide"])
def test_a_patient_or_slide_in_two_given_splits_is_refused_by_name(flat, rows, column):
    names = dict(enumerate(["train"] * 6 + ["validation"] * 2 + ["test"] * 2))
    rows = [
        {
            "path": row["path"],
            "label": row["label"],
            column: row["patient"],
            "split": names[int(row["patient"][1:])],
        }
        for row in rows
    ]
    rows[0]["split"] = "test"
    write_manifest(flat / "manifest.csv", rows)
    with pytest.raises(UserError, match=rf"1 {column}\(s\).*'P0' \(train, test\)"):
        load_folder(flat)


def test_split_folders_with_a_manifest_are_checked_for_shared_patients(tmp_path):
    names = [f"{s}/{c}/{i}.png" for s in SPLITS for c in ("a", "b") for i in range(2)]
    put(tmp_path, *names)
    rows = [
        {"path": name, "label": name.split("/")[1], "patient": name.split("/")[0], "split": ""}
        for name in names
    ]
    write_manifest(tmp_path / "manifest.csv", rows)
    data = load_folder(tmp_path)
    assert data.notes == ()
    assert set(data.test.patients) == {"test"}
    write_manifest(tmp_path / "manifest.csv", [{**rows[0], "split": "test"}, *rows[1:]])
    with pytest.raises(UserError, match="split"):
        load_folder(tmp_path)
    write_manifest(tmp_path / "manifest.csv", [{**rows[0], "patient": "test"}, *rows[1:]])
    with pytest.raises(UserError, match=r"'test' \(train, test\)"):
        load_folder(tmp_path)
    full = [{**row, "split": row["path"].split("/")[0]} for row in rows]
    write_manifest(tmp_path / "manifest.csv", [{**full[0], "split": "test"}, *full[1:]])
    with pytest.raises(UserError, match="lies in the folder of split 'train'"):
        load_folder(tmp_path)


def test_an_unknown_split_is_named(flat, rows):
    write_manifest(flat / "manifest.csv", [{**row, "split": "holdout"} for row in rows])
    with pytest.raises(UserError, match="line 2: the split is 'holdout'"):
        load_folder(flat)


def test_listed_files_that_are_missing_and_images_that_are_not_listed_are_counted(flat, rows):
    write_manifest(flat / "manifest.csv", rows[7:])
    with pytest.raises(UserError, match=r"does not list .*glomerulus04.* and 2 more \(7 in all\)"):
        load_folder(flat)
    write_manifest(flat / "manifest.csv", [*rows, {**rows[0], "path": "glomerulus/gone.png"}])
    with pytest.raises(UserError, match=r"do not exist: 'glomerulus/gone\.png'"):
        load_folder(flat)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": " "}, "line 2: the label is empty"),
        ({"path": ""}, "line 2: the path is empty"),
        ({"path": "other/../other/other19.png"}, r"lists 'other/other19\.png' more than once"),
        ({"label": "other"}, "label 'other', but lies in the folder of class 'glomerulus'"),
    ],
)
@pytest.mark.parametrize("given", ["folder", "manifest"])
def test_a_wrong_row_is_named(flat, rows, change, message, given):
    write_manifest(flat / "manifest.csv", [{**rows[0], **change}, *rows[1:]])
    with pytest.raises(UserError, match=message):
        load_folder(flat if given == "folder" else flat / "manifest.csv")


def test_class_folders_and_labels_must_agree_as_names_too(flat, rows):
    changed = [{**r, "label": r["label"].replace("glomerulus", "glom")} for r in rows]
    write_manifest(flat / "manifest.csv", changed)
    with pytest.raises(UserError, match="label 'glom', but lies in the class folder 'glomerulus'"):
        load_folder(flat)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'path'"),
        ("file,label\n", "no column 'path' but"),
        ("path;label\n", "separated by commas"),
        ("path,label,Label\nx,y,z\n", "2 columns 'label'"),
        ("path,label\n", "lists no image"),
        ("path,label\nother/other01.png,a,b\n", "line 2: 3 cells, but the header has 2"),
        (b"path,label\n\xff\xfe,x\n", "no CSV file in UTF-8"),
    ],
)
def test_a_broken_manifest_is_explained(flat, text, message):
    (flat / "manifest.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        load_folder(flat)


def test_too_few_patients_are_refused_with_the_number_that_is_needed(flat, rows):
    for row in rows:
        row["patient"] = "P1" if row["patient"] < "P5" else "P2"
    write_manifest(flat / "manifest.csv", rows)
    with pytest.raises(UserError, match=r"Only 2 patient\(s\).*at least 3 patients"):
        load_folder(flat)


# Real patches.


@pytest.mark.parametrize("name", ["kidney_slides", "biopsy_stains"])
def test_real_patients_stay_apart_in_balanced_splits(real_data, name):
    data = load_folder(real_data / name)
    assert data.classes == ("other", "glomerulus")
    assert data.notes == ()
    overall = np.concatenate([data[split].labels for split in SPLITS]).mean()
    names = [set(data[split].patients) for split in SPLITS]
    assert len(set.union(*names)) == sum(len(n) for n in names)
    for split in SPLITS:
        assert abs(data[split].labels.mean() - overall) < 0.15


def test_real_patches_without_patients_get_the_note(real_data):
    data = load_folder(real_data / "aidpath")
    assert data.notes == (NO_PATIENTS,)
    assert sum(len(data[split]) for split in SPLITS) == 43
    pixels = decode_image(data.test.read(0), (280, 280), name=data.test.ids[0])
    assert pixels.shape == (280, 280, 3)
