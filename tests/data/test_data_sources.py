"""Folders and manifests become splits with patients apart; every mistake in them is named."""

import csv
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from glomjax.data.sources import NO_PATIENTS, SLIDES_ONLY, load_source
from glomjax.errors import UserError
from glomjax.preprocessing.decoding import decode_image

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
    data = load_source(flat)
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
    test = load_source(str(flat)).test
    for i, name in enumerate(test.ids):
        assert test.read(i) == (flat / name).read_bytes()
    assert decode_image(test.read(0), (4, 4), name=test.ids[0]).shape == (4, 4, 3)


def test_a_file_that_vanishes_is_named_when_it_is_read(flat):
    test = load_source(flat).test
    (flat / test.ids[0]).unlink()
    with pytest.raises(UserError, match=rf"{test.ids[0]}' cannot be read"):
        test.read(0)


def test_the_same_seed_gives_the_same_split_and_another_seed_another(flat):
    assert load_source(flat, seed=3).test.ids == load_source(flat, seed=3).test.ids
    assert load_source(flat, seed=3).test.ids != load_source(flat, seed=4).test.ids


def test_suffixes_in_any_case_nested_folders_and_unicode_names_are_found(tmp_path):
    names = [
        "a.PNG",
        "b.jpg",
        "c.JPEG",
        "d.tif",
        "e.TIFF",
        "nested/deeper/f.bmp",
        "g.webp",
        "ü 腎.png",
    ]
    put(tmp_path, *(f"{c}/{name}" for c in ("ja", "nein") for name in names))
    assert sorted(all_ids(load_source(tmp_path))) == sorted(
        f"{c}/{name}" for c in ("ja", "nein") for name in names
    )


def test_hidden_files_are_skipped_and_other_files_are_told(flat):
    put(flat, ".cache/a.png", "__MACOSX/glomerulus/b.png", "glomerulus/.c.png", "overview.png")
    (flat / "other" / "Thumbs.db").write_bytes(b"x")
    (flat / "README.md").write_text("x")
    assert load_source(flat).notes[0].startswith("1 image(s) outside the class folders")
    (flat / "overview.png").unlink()
    assert load_source(flat).notes == (NO_PATIENTS,)
    (flat / "other" / "notes.txt").write_text("x")
    (flat / "glomerulus" / "patch.svs").write_bytes(b"x")
    notes = load_source(flat).notes
    assert notes[0].startswith("2 file(s) among the patches are no images")
    assert "glomerulus/patch.svs" in notes[0]


def test_linked_class_folders_are_followed(flat, tmp_path):
    (tmp_path / "links").mkdir()
    for name in ("glomerulus", "other"):
        (tmp_path / "links" / name).symlink_to(flat / name)
    (flat / "other" / "loop").symlink_to(flat / "other")
    assert all_ids(load_source(tmp_path / "links")) == all_ids(load_source(flat))


@pytest.mark.parametrize("layout", ["folders", "column"])
@pytest.mark.parametrize(("other", "missing"), [("val", "test"), ("test", "validation")])
def test_a_missing_split_is_made_from_train_by_patient(tmp_path, layout, other, missing):
    names = [(s, c, i) for s in ("train", other) for c in ("a", "b") for i in range(8)]
    paths = [f"{s}/{c}/{i}.png" if layout == "folders" else f"{s}{c}{i}.png" for s, c, i in names]
    put(tmp_path, *paths)
    rows = [
        {"path": path, "label": c, "patient": f"{s} {i // 2}"}
        | ({} if layout == "folders" else {"split": s})
        for path, (s, c, i) in zip(paths, names, strict=True)
    ]
    write_manifest(tmp_path / "manifest.csv", rows)
    source = tmp_path if layout == "folders" else tmp_path / "manifest.csv"
    data = load_source(source, fractions=(0.6, 0.2, 0.2))
    kept = "validation" if other == "val" else other
    assert set(data[kept].ids) == {r["path"] for r in rows if r["patient"].startswith(other)}
    assert len(data[missing]) == 4  # of 16, a quarter of which is one patient
    assert not set(data[missing].patients) & set(data.train.patients)
    assert f"The source gives no {missing} split: its train split is divided." in data.notes
    with pytest.raises(UserError, match="data.folds is 4, but .* has splits of its own"):
        load_source(source, folds=4)


def test_a_train_split_alone_is_divided_and_another_alone_is_refused(flat, rows):
    write_manifest(flat / "manifest.csv", [row | {"split": "train"} for row in rows])
    data = load_source(flat)
    note = "The source gives no validation and no test split: its train split is divided."
    assert note in data.notes
    write_manifest(flat / "manifest.csv", rows)
    assert data.test.ids == load_source(flat).test.ids
    for alone in ("validation", "test"):
        write_manifest(flat / "manifest.csv", [row | {"split": alone} for row in rows])
        with pytest.raises(UserError, match="The train split of .* has no image of class"):
            load_source(flat)


@pytest.mark.parametrize(
    "folders", [SPLITS, ("Train", "VAL", "Test"), ("training", "valid", "testing")]
)
def test_split_folders_are_kept_as_they_are(tmp_path, folders):
    put(tmp_path, *(f"{s}/{c}/{i}.png" for s in folders for c in ("a", "b") for i in range(2)))
    data = load_source(tmp_path)
    for split, folder in zip(SPLITS, folders, strict=True):
        expected = tuple(f"{folder}/{c}/{i}.png" for c in "ab" for i in range(2))
        assert data[split].ids == expected
        assert data[split].labels.tolist() == [0, 0, 1, 1]
    assert data.notes[1:] == (NO_PATIENTS,)


@pytest.mark.parametrize(
    "folders",
    [("train",), ("val", "test"), ("train", "val", "test", "a"), ("train", "val", "validation")],
)
def test_incomplete_or_mixed_split_folders_are_refused(tmp_path, folders):
    put(tmp_path, *(f"{s}/{c}/1.png" for s in folders for c in ("a", "b")))
    with pytest.raises(UserError, match="at least train and one more"):
        load_source(tmp_path)


def test_a_given_split_without_a_class_is_refused(tmp_path):
    put(tmp_path, *(f"{s}/{c}/1.png" for s in SPLITS for c in ("a", "b")))
    (tmp_path / "test" / "b" / "1.png").unlink()
    with pytest.raises(UserError, match=r"test split of .* no image of class 'b'"):
        load_source(tmp_path)


# Classes.


def test_glomerulus_is_positive_whatever_its_case_and_place_in_the_alphabet(tmp_path):
    for other in ("background", "tubule"):
        put(tmp_path / other, *(f"{c}/{i}.png" for c in (other, "Glomerulus") for i in range(3)))
        assert load_source(tmp_path / other).classes == (other, "Glomerulus")


def test_other_names_are_sorted_and_three_classes_stay_sorted(tmp_path):
    put(tmp_path / "two", *(f"{c}/{i}.png" for c in ("b", "a") for i in range(3)))
    assert load_source(tmp_path / "two").classes == ("a", "b")
    put(tmp_path / "three", *(f"{c}/{i}.png" for c in ("glomerulus", "z", "a") for i in range(3)))
    assert load_source(tmp_path / "three").classes == ("a", "glomerulus", "z")


def test_given_classes_set_the_order_and_must_match(flat):
    data = load_source(flat, classes=("glomerulus", "other"))
    assert data.classes == ("glomerulus", "other")
    assert data.test.ids[0].startswith("glomerulus/")
    assert data.test.labels[0] == 0
    for wrong in (("other", "glom"), ("other",), ("other", "glomerulus", "glomerulus")):
        with pytest.raises(UserError, match=r"data\.classes is .*\['glomerulus', 'other'\]"):
            load_source(flat, classes=wrong)


def test_one_class_is_refused(tmp_path):
    put(tmp_path, "a/1.png", "a/2.png")
    with pytest.raises(UserError, match=r"class \['a'\] alone"):
        load_source(tmp_path)


def test_a_class_folder_without_images_is_refused(flat):
    (flat / "sclerotic").mkdir()
    with pytest.raises(UserError, match="sclerotic' has no image"):
        load_source(flat)


def test_missing_empty_and_wrong_sources_are_named(tmp_path):
    with pytest.raises(UserError, match="nowhere' does not exist"):
        load_source(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no image in class folders"):
        load_source(tmp_path)
    put(tmp_path, "a.png")
    with pytest.raises(UserError, match="no image in class folders"):
        load_source(tmp_path)
    with pytest.raises(UserError, match=r"a\.png' is not a folder"):
        load_source(tmp_path / "a.png")


def test_too_few_files_for_three_splits_are_refused(tmp_path):
    put(tmp_path, "a/1.png", "a/2.png", "a/3.png", "b/1.png", "b/2.png")
    with pytest.raises(UserError, match=r"Only 2 file\(s\) have patches of class 'b'.*at least 3"):
        load_source(tmp_path)


# Manifests.


def test_a_manifest_keeps_patients_apart(flat, rows):
    write_manifest(flat / "manifest.csv", rows)
    patient = {row["path"]: row["patient"] for row in rows}
    for seed in range(3):
        data = load_source(flat, seed=seed)
        assert NO_PATIENTS not in data.notes
        assert len(set(all_ids(data))) == 40
        seen = [set(data[split].patients) for split in SPLITS]
        assert sum(len(names) for names in seen) == 10
        for split in SPLITS:
            assert list(data[split].patients) == [patient[name] for name in data[split].ids]
            assert set(data[split].labels) == {0, 1}


def test_the_manifest_itself_can_be_the_source_and_the_order_of_its_rows_is_irrelevant(flat, rows):
    write_manifest(flat / "manifest.csv", rows)
    from_folder = load_source(flat)
    write_manifest(flat / "shuffled.CSV", rows[::-3] + rows[-2::-3] + rows[-3::-3])
    assert all_ids(load_source(flat / "shuffled.CSV")) == all_ids(from_folder)


def test_a_manifest_elsewhere_may_list_a_part_by_absolute_paths_if_it_is_allowed(
    flat, rows, tmp_path
):
    part = [{**row, "path": str(flat / row["path"])} for row in rows if row["patient"] != "P9"]
    (tmp_path / "glomerulus" / "lists").mkdir(parents=True)
    write_manifest(tmp_path / "glomerulus" / "lists" / "m.csv", part)
    with pytest.raises(UserError, match=r"m\.csv lists 36 image\(s\) outside its folder"):
        load_source(tmp_path / "glomerulus" / "lists" / "m.csv")
    data = load_source(tmp_path / "glomerulus" / "lists" / "m.csv", allow_outside=True)
    assert sorted(all_ids(data)) == sorted(row["path"] for row in part)
    assert data.test.read(0) == pathlib.Path(data.test.ids[0]).read_bytes()


@pytest.mark.parametrize("kind", ["a manifest alone", "in a folder of patches"])
@pytest.mark.parametrize("form", ["absolute", "..", "inside and out again", "backslashes"])
@pytest.mark.parametrize("there", [True, False], ids=["there", "not there"])
def test_images_outside_the_folder_of_their_manifest_are_refused(
    flat, rows, tmp_path, kind, form, there
):
    """Also where there is no such file: nothing outside is looked up."""
    secret = tmp_path / "secret.png"
    if there:
        secret.write_bytes((flat / rows[0]["path"]).read_bytes())
    path = {
        "absolute": str(secret),
        "..": "../secret.png",
        "inside and out again": "other/../../secret.png",
        "backslashes": "..\\secret.png",
    }[form]
    outside = {**rows[0], "path": path, "label": "glomerulus"}
    manifest = flat / ("manifest.csv" if kind == "in a folder of patches" else "table.csv")
    write_manifest(manifest, [*rows, outside])
    source = flat if kind == "in a folder of patches" else manifest
    with pytest.raises(UserError) as refused:
        load_source(source)
    assert str(refused.value) == (
        f"{manifest} lists 1 image(s) outside its folder, the first is '{path}'; keep images in "
        "the folder of their manifest, or, where these are meant, allow it with "
        "config.data.allow_outside = True."
    )
    if there:
        data = load_source(source, allow_outside=True)
        assert sum(map(len, (data[split] for split in SPLITS))) == len(rows) + 1


def test_paths_and_links_that_lie_inside_are_followed(flat, rows, tmp_path):
    (flat / "other").rename(tmp_path / "disk")
    (flat / "other").symlink_to(tmp_path / "disk")
    (flat / rows[0]["path"]).rename(tmp_path / "one.png")
    (flat / rows[0]["path"]).symlink_to(tmp_path / "one.png")
    forms = ["other/../{}", "../patches/{}", f"{flat}/{{}}", f"{flat}/other/../{{}}", "{}"]
    part = [{**r, "path": forms[i % 5].format(r["path"])} for i, r in enumerate(rows)]
    write_manifest(flat / "manifest.csv", part)
    assert sorted(all_ids(load_source(flat))) == sorted(row["path"] for row in rows)


def test_headers_in_any_case_spaces_extra_columns_and_blank_lines_are_read(flat, rows):
    lines = ["\ufeff Path , LABEL,mpp,Patient "]
    lines += [f" {r['path'].replace('/', chr(92))} ,{r['label']}, 0.5,{r['patient']}" for r in rows]
    (flat / "Manifest.CSV").write_text("\r\n".join(lines) + "\r\n,,,\r\n\r\n", encoding="utf-8")
    data = load_source(flat)
    assert sorted(all_ids(data)) == sorted(row["path"] for row in rows)
    assert len(set(data.train.patients)) > 1


def test_an_empty_patient_column_falls_back_to_slides_then_to_files_with_notes(flat, rows):
    slides = [{**row, "patient": " ", "slide": row["patient"]} for row in rows]
    write_manifest(flat / "manifest.csv", slides)
    data = load_source(flat)
    assert data.notes[0] == SLIDES_ONLY
    assert sum(len(set(data[split].patients)) for split in SPLITS) == 10
    write_manifest(flat / "manifest.csv", [{**row, "slide": ""} for row in slides])
    data = load_source(flat)
    assert data.notes == (NO_PATIENTS,)
    assert data.test.patients is None


@pytest.mark.parametrize("column", ["patient", "slide", "split"])
def test_a_partly_filled_column_is_refused_with_the_first_gap(flat, rows, column):
    rows = [{"path": r["path"], "label": r["label"], column: "train"} for r in rows]
    rows[4][column] = rows[7][column] = ""
    write_manifest(flat / "manifest.csv", rows)
    with pytest.raises(UserError, match=rf"{column} is empty in 2 of 40 rows.*line 6 .*glom.*04"):
        load_source(flat)


def test_the_split_column_gives_the_splits(flat, rows):
    names = dict(enumerate(["train"] * 6 + ["Val", "validation", "test", "TEST"]))
    rows = [{**row, "split": names[int(row["patient"][1:])]} for row in rows]
    write_manifest(flat / "manifest.csv", rows)
    data = load_source(flat, seed=5)
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
        load_source(flat)


def test_split_folders_with_a_manifest_are_checked_for_shared_patients(tmp_path):
    names = [f"{s}/{c}/{i}.png" for s in SPLITS for c in ("a", "b") for i in range(2)]
    put(tmp_path, *names)
    rows = [
        {"path": name, "label": name.split("/")[1], "patient": name.split("/")[0], "split": ""}
        for name in names
    ]
    write_manifest(tmp_path / "manifest.csv", rows)
    data = load_source(tmp_path)
    assert NO_PATIENTS not in data.notes
    assert set(data.test.patients) == {"test"}
    write_manifest(tmp_path / "manifest.csv", [{**rows[0], "split": "test"}, *rows[1:]])
    with pytest.raises(UserError, match="split"):
        load_source(tmp_path)
    write_manifest(tmp_path / "manifest.csv", [{**rows[0], "patient": "test"}, *rows[1:]])
    with pytest.raises(UserError, match=r"'test' \(train, test\)"):
        load_source(tmp_path)
    full = [{**row, "split": row["path"].split("/")[0]} for row in rows]
    write_manifest(tmp_path / "manifest.csv", [{**full[0], "split": "test"}, *full[1:]])
    with pytest.raises(UserError, match="lies in the folder of split 'train'"):
        load_source(tmp_path)


def test_an_unknown_split_is_named(flat, rows):
    write_manifest(flat / "manifest.csv", [{**row, "split": "holdout"} for row in rows])
    with pytest.raises(UserError, match="line 2: the split is 'holdout'"):
        load_source(flat)


def test_listed_files_that_are_missing_and_images_that_are_not_listed_are_counted(flat, rows):
    write_manifest(flat / "manifest.csv", rows[12:])
    with pytest.raises(UserError, match=r"does not list .*glomerulus04.* and 2 more"):
        load_source(flat)
    write_manifest(flat / "manifest.csv", [*rows, {**rows[0], "path": "glomerulus/gone.png"}])
    with pytest.raises(UserError, match=r"do not exist: 'glomerulus/gone\.png'"):
        load_source(flat)


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
        load_source(flat if given == "folder" else flat / "manifest.csv")


def test_class_folders_and_labels_must_agree_as_names_too(flat, rows):
    changed = [{**r, "label": r["label"].replace("glomerulus", "glom")} for r in rows]
    write_manifest(flat / "manifest.csv", changed)
    with pytest.raises(UserError, match="label 'glom', but lies in the class folder 'glomerulus'"):
        load_source(flat)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'path'"),
        ("a,label\n", "no column 'path' but"),
        ("path,Diagnosis\n", r"no column 'label' but \['path', 'diagnosis'\]"),
        ("path,label,Label\nx,y,z\n", r"2 columns for the label \(label, label\)"),
        ("path,label\n", "lists no image"),
        ("path,label\nother/other01.png,a,b\n", "line 2: 3 cells, but the header has 2"),
        (b"path,label\n\xff\xfe,x\n", "no CSV or TSV file in UTF-8"),
    ],
)
def test_a_broken_manifest_is_explained(flat, text, message):
    (flat / "manifest.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        load_source(flat)


def test_too_few_patients_are_refused_with_the_number_that_is_needed(flat, rows):
    for row in rows:
        row["patient"] = "P1" if row["patient"] < "P5" else "P2"
    write_manifest(flat / "manifest.csv", rows)
    with pytest.raises(UserError, match=r"Only 2 patient\(s\).*at least 3 patients"):
        load_source(flat)


# Real patches.


@pytest.mark.parametrize("name", ["kidney_slides", "biopsy_stains"])
def test_real_patients_stay_apart_in_balanced_splits(real_data, name):
    data = load_source(real_data / name)
    assert data.classes == ("other", "glomerulus")
    assert NO_PATIENTS not in data.notes
    overall = np.concatenate([data[split].labels for split in SPLITS]).mean()
    names = [set(data[split].patients) for split in SPLITS]
    assert len(set.union(*names)) == sum(len(n) for n in names)
    for split in SPLITS:
        assert abs(data[split].labels.mean() - overall) < 0.15


def test_real_patches_without_patients_get_the_note(real_data):
    data = load_source(real_data / "aidpath")
    assert data.notes[0] == NO_PATIENTS
    assert "The column 'field' repeats over images (16 values" in data.notes[1]
    whole = load_source(real_data / "aidpath", split_by="field")
    assert whole.notes == (NO_PATIENTS,)
    fields = [set(whole[split].columns["field"]) for split in SPLITS]
    assert len(set.union(*fields)) == sum(map(len, fields)) == 16
    assert sum(len(data[split]) for split in SPLITS) == 43
    pixels = decode_image(data.test.read(0), (280, 280), name=data.test.ids[0])
    assert pixels.shape == (280, 280, 3)


# Further columns, separators and header names.


def replace_columns(rows, **columns):
    """The rows with more columns, each given as a function of the row's number."""
    return [{**row, **{c: f(i) for c, f in columns.items()}} for i, row in enumerate(rows)]


def test_weights_spacings_and_further_columns_follow_their_images(flat, rows):
    rows = replace_columns(
        rows,
        weight=lambda i: str(i / 4),
        mpp=lambda i: "0,25" if i % 2 else "0.5",  # a decimal comma, as spreadsheets write it
        stain=lambda i: f"stain {i % 3}",
        slide=lambda i: f"slide {i // 2}",
    )
    write_manifest(flat / "manifest.csv", rows)
    data = load_source(flat)
    number = {row["path"]: i for i, row in enumerate(rows)}
    for split in SPLITS:
        part = data[split]
        order = [number[name] for name in part.ids]
        assert part.weights.dtype == np.float32
        assert part.weights.tolist() == [i / 4 for i in order]
        assert part.mpp.tolist() == [0.25 if i % 2 else 0.5 for i in order]
        assert part.columns == {
            "slide": tuple(f"slide {i // 2}" for i in order),
            "stain": tuple(f"stain {i % 3}" for i in order),
        }


@pytest.mark.parametrize("separator", ["\t", ";", ","])
@pytest.mark.parametrize("header", ["File Name;CLASS;Case-ID", "image;target;subject_id"])
def test_separators_and_header_synonyms_are_understood(flat, rows, separator, header, tmp_path):
    lines = [header, *(";".join(row.values()) for row in rows)]
    manifest = tmp_path / "patches" / "list.tsv"
    manifest.write_text("\n".join(lines).replace(";", separator) + "\n", encoding="utf-8-sig")
    write_manifest(flat / "manifest.csv", rows)
    expected, data = load_source(flat), load_source(manifest)
    assert data.digest() == expected.digest()
    assert data.train.patients is not None


def test_a_column_with_its_own_name_comes_before_a_synonym(flat, rows):
    write_manifest(flat / "manifest.csv", replace_columns(rows, case=lambda i: f"case {i}"))
    data = load_source(flat)
    assert set(data.train.columns) == {"case"}
    assert {name[0] for name in data.train.patients} == {"P"}
    without = [{c: v for c, v in row.items() if c != "patient"} for row in rows]
    both = replace_columns(without, case_id=lambda i: "x", case=lambda i: "y")
    write_manifest(flat / "manifest.csv", both)
    with pytest.raises(UserError, match=r"2 columns for the patient \(case_id, case\): keep one"):
        load_source(flat)


def test_an_empty_column_does_not_hide_a_filled_synonym(flat, rows):
    without = [{c: v for c, v in row.items() if c != "patient"} for row in rows]
    filled = replace_columns(without, patient=lambda i: "", case_id=lambda i: rows[i]["patient"])
    write_manifest(flat / "manifest.csv", filled)
    assert NO_PATIENTS not in load_source(flat).notes


def test_a_weight_is_known_of_all_images_or_of_none(flat, rows):
    some = replace_columns(rows, weight=lambda i: "unknown" if i == 2 else "2")
    write_manifest(flat / "manifest.csv", some)
    with pytest.raises(UserError, match=r"the weight is empty in 1 of 40 rows"):
        load_source(flat)
    write_manifest(flat / "manifest.csv", replace_columns(rows, weight=lambda i: "0"))
    with pytest.raises(UserError, match="All training images of .* have weight 0"):
        load_source(flat)


@pytest.mark.parametrize("quotes", ['"P4', '"P4,"P5'])
def test_a_stray_quote_does_not_swallow_rows(flat, rows, quotes):
    lines = ["path,label,patient", *(",".join(row.values()) for row in rows)]
    for line, quote in zip((4, 9), quotes.split(","), strict=False):
        lines[line] = lines[line].rsplit(",", 1)[0] + "," + quote
    (flat / "manifest.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match="is no CSV or TSV file"):
        load_source(flat)


@pytest.mark.parametrize(
    ("column", "cell"),
    [("weight", "-1"), ("weight", "1,000"), ("weight", "heavy"), ("mpp", "0"), ("mpp", "inf")],
)
def test_numbers_that_are_none_are_named(flat, rows, column, cell):
    rows = replace_columns(rows, **{column: lambda i: cell if i == 3 else "1"})
    write_manifest(flat / "manifest.csv", rows)
    with pytest.raises(UserError, match=f"line 5: the {column} is '{cell}'; write a number"):
        load_source(flat)


def test_a_spacing_is_known_of_all_images_or_of_none(flat, rows):
    write_manifest(flat / "manifest.csv", replace_columns(rows, mpp=lambda i: "unknown"))
    assert load_source(flat).train.mpp is None
    some = replace_columns(rows, mpp=lambda i: "unknown" if i == 2 else "0.5")
    write_manifest(flat / "manifest.csv", some)
    with pytest.raises(UserError, match=r"the mpp is empty in 1 of 40 rows, the first is line 4"):
        load_source(flat)


def test_the_splits_as_a_manifest_give_the_same_splits_again(flat, rows):
    rows = replace_columns(
        rows,
        slide=lambda i: f"slide {i // 2}",
        site=lambda i: f"site {i % 20 // 7}",
        weight=lambda i: str(0.1 * i),
        mpp=lambda i: "0.2521",
    )
    write_manifest(flat / "manifest.csv", rows)
    data = load_source(flat, seed=5)
    (flat / "manifest.csv").write_text(data.to_csv(), encoding="utf-8")
    again = load_source(flat, seed=6)
    assert again.digest() == data.digest()
    assert again.test.columns == data.test.columns


def test_slides_that_stand_in_for_patients_stay_slides_in_the_manifest_of_the_splits(flat, rows):
    rows = [{"path": r["path"], "label": r["label"], "slide": r["patient"]} for r in rows]
    write_manifest(flat / "manifest.csv", rows)
    data = load_source(flat)
    assert data.to_csv().splitlines()[0] == "path,label,split,slide"
    (flat / "manifest.csv").write_text(data.to_csv(), encoding="utf-8")
    assert load_source(flat).notes[0] == SLIDES_ONLY


# Who stays together.


def test_whole_sites_are_held_out(flat, rows):
    rows = replace_columns(rows, site=lambda i: f"site {i % 20 // 4}")
    write_manifest(flat / "manifest.csv", rows)
    data = load_source(flat, split_by="site")
    sites = [set(data[split].columns["site"]) for split in SPLITS]
    assert sum(map(len, sites)) == len(set.union(*sites)) == 5
    by_patient = load_source(flat)
    assert set(by_patient.train.columns["site"]) & set(by_patient.test.columns["site"])


def test_a_patient_of_two_sites_joins_them(flat, rows):
    # Patients 0 to 9 with two patches of each class; the sites are {0, 1, 2}, {3, 4}, ...
    rows = replace_columns(rows, site=lambda i: f"site {i % 20 // 4}")
    for row in rows:
        if row["patient"] == "P2":
            row["patient"] = "P0"
    write_manifest(flat / "manifest.csv", rows)
    for seed in range(5):
        data = load_source(flat, split_by="site", seed=seed)
        where = {site: split for split in SPLITS for site in data[split].columns["site"]}
        assert where["site 0"] == where["site 1"]


def test_patients_on_one_slide_stay_together(flat, rows):
    rows = replace_columns(rows, slide=lambda i: f"slide {min(i % 20 // 2, 8)}")  # P8 and P9 share
    write_manifest(flat / "manifest.csv", rows)
    for seed in range(5):
        data = load_source(flat, seed=seed)
        where = {p: split for split in SPLITS for p in data[split].patients}
        assert where["P8"] == where["P9"]
        assert len(set(where.values())) == 3


def test_a_slide_or_a_held_out_site_in_two_given_splits_is_listed(flat, rows):
    rows = replace_columns(
        rows,
        slide=lambda i: f"slide {i}",
        site=lambda i: f"site {i % 20 // 2 % 2}",
        split=lambda i: SPLITS[i % 20 // 2 % 3],
    )
    write_manifest(flat / "manifest.csv", rows)
    load_source(flat)
    with pytest.raises(UserError, match=r"2 site\(s\) occur in more than one split: 'site 0' \("):
        load_source(flat, split_by="site")
    rows[2]["slide"] = "slide 0"
    write_manifest(flat / "manifest.csv", rows)
    with pytest.raises(UserError, match=r"1 slide\(s\) .* 'slide 0' \(train, validation\)"):
        load_source(flat)


def test_sites_must_be_told_and_be_enough(flat, rows):
    write_manifest(flat / "manifest.csv", rows)
    with pytest.raises(UserError, match="does not give the 'site' of every image"):
        load_source(flat, split_by="site")
    write_manifest(flat / "manifest.csv", replace_columns(rows, site=lambda i: f"s{i % 2}"))
    with pytest.raises(UserError, match=r"Only 1 site\(s\) have patches"):
        load_source(flat, split_by="site")  # patients join the two
    with pytest.raises(UserError, match=r"split_by is 'slide', but .* are 'patient', 'site'"):
        load_source(flat, split_by="slide")


def test_each_patient_is_tested_in_one_fold(flat, rows):
    write_manifest(flat / "manifest.csv", rows)
    tested = [set(load_source(flat, folds=3, fold=n).test.patients) for n in range(3)]
    assert sum(map(len, tested)) == len(set.union(*tested)) == 10


# Odd files.


def test_classes_that_differ_in_case_alone_are_refused(tmp_path):
    put(tmp_path, *(f"{c}/{i}.png" for c in ("Other", "other", "glomerulus") for i in range(4)))
    with pytest.raises(UserError, match="1 class in several spellings: 'Other' = 'other'"):
        load_source(tmp_path)


def test_patients_that_are_numbered_like_classes_are_no_classes(tmp_path):
    names = [(patient, c, i) for patient in range(6) for c in (0, 1) for i in range(2)]
    put(tmp_path, *(f"{patient}/{c}{i}.png" for patient, c, i in names))
    rows = [
        {"path": f"{patient}/{c}{i}.png", "label": f"{c}", "patient": f"{patient}"}
        for patient, c, i in names
    ]
    write_manifest(tmp_path / "list.csv", rows)
    assert len(load_source(tmp_path / "list.csv").classes) == 2


def test_patients_that_share_slide_names_are_told(flat, rows):
    rows = replace_columns(rows, slide=lambda i: "HE" if i % 20 < 6 else f"slide {i % 20 // 2}")
    write_manifest(flat / "manifest.csv", rows)
    assert (
        load_source(flat)
        .notes[0]
        .startswith("1 slide(s) hold several patients, for example 'HE' 3, who stay together")
    )
    write_manifest(flat / "manifest.csv", replace_columns(rows, slide=lambda i: "HE"))
    with pytest.raises(UserError, match=r"Only 1 patient\(s\).*for example 'HE' 10, who stay"):
        load_source(flat)


def test_tables_that_are_no_manifest_are_told(flat):
    (flat / "metadata.csv").write_text("file,patient\n")
    assert load_source(flat).notes == (
        "'metadata.csv' is not read: patients and other columns are taken from a manifest.csv "
        "alone.",
        NO_PATIENTS,
    )


def test_names_that_are_not_utf_8_are_refused(flat):
    with open(os.fsencode(flat / "other") + b"/0\xfc.png", "wb"):
        pass
    with pytest.raises(UserError, match=r"The file name b'0.xfc.png' .* is not UTF-8: rename it"):
        load_source(flat)


def test_broken_links_and_folders_named_like_images(flat):
    (flat / "other" / "gone.png").symlink_to(flat / "nowhere.png")
    (flat / "other" / "folder.png").mkdir()
    put(flat / "other" / "folder.png", "inside.png")
    data = load_source(flat)
    assert {"other/gone.png", "other/folder.png/inside.png"} <= set(all_ids(data))
    part, i = next(
        (data[s], data[s].ids.index("other/gone.png"))
        for s in SPLITS
        if "other/gone.png" in data[s].ids
    )
    with pytest.raises(UserError, match=r"gone\.png' cannot be read \(No such file"):
        part.read(i)
