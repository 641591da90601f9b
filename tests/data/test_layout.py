"""What names of files and folders say: no class is a patient, no patch a mask or a thumbnail."""

import pathlib

import pytest
from PIL import Image

from glomjax.data.sources import NO_PATIENTS, load_source
from glomjax.data.sources.layout import is_hidden, is_table, masks, split_folders
from glomjax.errors import UserError

CLASSES = ("glomerulus", "other")
ENDS = ("", "-labelled")


def put(folder: pathlib.Path, *names: str) -> None:
    for i, name in enumerate(names):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (i % 256, 0, 0)).save(file)


@pytest.fixture
def flat(tmp_path):
    put(tmp_path, *(f"{c}/{i:02d}.png" for c in CLASSES for i in range(8)))
    return tmp_path


def count(data):
    return sum(len(data[split]) for split in ("train", "validation", "test"))


@pytest.mark.parametrize(
    ("patients", "classes"),
    [
        ([f"{8000 + i}" for i in range(6)], ("0", "1")),
        (["A", "B"], CLASSES),  # their names tell
        (["P1", "P2"], ("cortex", "medulla")),
        (["A", "B", "C"], ("neg", "pos", "unsure")),
        (["A", "B", "C", "D"], ("cortex", "medulla")),
    ],
)
def test_folders_of_patients_with_classes_in_them_are_refused(tmp_path, patients, classes):
    put(tmp_path, *(f"{p}/{c}/{i}.png" for p in patients for c in classes for i in range(2)))
    with pytest.raises(UserError, match=r"those look like the classes, and the upper ones like"):
        load_source(tmp_path)


@pytest.mark.parametrize(
    ("classes", "inner"), [(("a", "b", "c"), ("centre1", "centre2")), (("0", "1"), ("P1", "P2"))]
)
def test_folders_of_centres_or_patients_within_classes_are_taken(tmp_path, classes, inner):
    put(tmp_path, *(f"{c}/{p}/{i}.png" for c in classes for p in inner for i in range(3)))
    assert load_source(tmp_path).classes == classes


def test_folders_of_patients_within_splits_are_refused_too(tmp_path):
    parts = {"train": "ABC", "val": "DE", "test": "FG"}
    put(tmp_path, *(f"{s}/{p}/{c}/0.png" for s, ps in parts.items() for p in ps for c in CLASSES))
    with pytest.raises(UserError, match="'A', 'B', 'C', 'D', 'E', 'F', 'G' with 'glomerulus', 'ot"):
        load_source(tmp_path)


def test_folders_of_patients_within_classes_can_be_kept_whole(tmp_path):
    put(tmp_path, *(f"{c}/P{p}/{i}.png" for c in CLASSES for p in range(8) for i in range(3)))
    data = load_source(tmp_path)
    assert (
        "The column 'folder' repeats over images (8 values, up to 6 images each)" in data.notes[1]
    )
    assert "config.data.split_by = 'folder' keeps them so" in data.notes[1]
    whole = load_source(tmp_path, split_by="folder")
    assert whole.notes == (NO_PATIENTS,)
    found = [set(whole[s].columns["folder"]) for s in ("train", "validation", "test")]
    assert sum(map(len, found)) == len(set.union(*found)) == 8


def test_folders_within_classes_are_told_of_any_size(tmp_path):
    put(tmp_path, *(f"{c}/P{p}/{i}.png" for c in CLASSES for p in range(6) for i in range(30)))
    assert "The column 'folder' repeats over images (6 values" in load_source(tmp_path).notes[1]


def test_splits_within_classes_are_refused(tmp_path):
    put(tmp_path, *(f"{c}/{s}/{i}.png" for c in CLASSES for s in ("train", "test") for i in "abc"))
    with pytest.raises(UserError, match="has the splits 'test', 'train' within its classes"):
        load_source(tmp_path)


def test_what_systems_keep_beside_files_is_no_patch(flat):
    put(
        flat,
        "glomerulus/@eaDir/00.png/SYNOPHOTO_THUMB_SM.jpg",
        "#recycle/gone.png",
        "$RECYCLE.BIN/gone.png",
        "lost+found/x.png",
        "other/.@__thumb/00.png",
        "other/~$x.png",
    )
    data = load_source(flat)
    assert count(data) == 16
    assert data.classes == ("other", "glomerulus")
    assert data.notes == (NO_PATIENTS,)


def test_masks_and_thumbnails_are_left_out_and_told_unless_a_manifest_lists_them(flat):
    put(flat, *(f"{c}/{i:02d}-labelled.png" for c in CLASSES for i in range(8)))
    put(flat, "masks/00.png", "other/thumbs/00.jpg")
    data = load_source(flat)
    assert count(data) == 16
    assert data.notes[0].startswith("18 image(s) look like masks or thumbnails of others by their")
    listed = [f"{c}/{i:02d}{end}.png" for c in CLASSES for i in range(8) for end in ENDS]
    lines = ["path,label", *(f"{name},{name.split('/')[0]}" for name in listed)]
    (flat / "manifest.csv").write_text("\n".join(lines))
    assert count(load_source(flat)) == 32


def test_only_names_beside_an_image_of_the_rest_of_the_name_are_masks():
    names = ["a/x.jpg", "a/x_mask.png", "a/y_mask.png", "b/x-seg.png", "a/x.mask.png", "a/x 2.png"]
    found = {"a/x_mask.png", "a/x.mask.png"}
    found |= {"a/mask_x.png", "a/x_mask_1.png", "a/x_heatmap.png", "a/glom_masks/z.png"}
    assert masks([*names, *found]) == found


def test_images_that_are_in_a_cloud_alone_are_counted(flat):
    for i in range(4):
        (flat / "other" / f"{i:02d}.png").rename(flat / "other" / f".{i:02d}.png.icloud")
    data = load_source(flat)
    assert data.notes[0].startswith("4 image(s) are in a cloud and not on this disk")
    assert "'other/.00.png.icloud': download them first" in data.notes[0]


@pytest.mark.parametrize(
    "name",
    [
        *("manifest.csv.txt", "manifest.txt", "labels.xls", "x.ods", "x.numbers", "x.parquet"),
        *("labels.csv.gz", "manifest.csv.bak", "manifest", "labels.yaml"),
        *("Patients.XLSX", "manifest (1).csv", "metadata.json"),
    ],
)
def test_tables_that_are_no_manifest_are_told_whatever_their_format(flat, name):
    (flat / name).write_text("x")
    assert load_source(flat).notes[0].startswith(f"'{name}' is not read")


def test_other_files_are_no_tables():
    assert not any(map(is_table, ["README.txt", "LICENSE", "settings.json", "glomerulus/a.png"]))
    assert all(map(is_hidden, ["Thumbs.db", "desktop.ini", ".DS_Store", "~$manifest.xlsx"]))


@pytest.mark.parametrize(
    "names", [("Training set", "Validation Set", "Test-Set"), ("train_data", "val_data")]
)
def test_folders_of_splits_may_have_a_word_behind(names):
    found = split_folders(names, pathlib.Path("x"))
    assert list(found.values()) == ["train", "validation", "test"][: len(names)]


# Classes.


@pytest.mark.parametrize(
    ("classes", "positive"),
    [
        (("Glomeruli", "Tubules"), "Glomeruli"),
        (("Glomerulus", "Interstitium"), "Glomerulus"),
        (("glomérule", "tubule"), "glomérule"),
        (("Glomérulos", "otros"), "Glomérulos"),
        (("glomeruli", "tubuli"), "glomeruli"),
        (("사구체", "기타"), "사구체"),
        (("1_glom", "2_other"), "1_glom"),
        (("glomerulus", "non_glomerulus"), "glomerulus"),
    ],
)
def test_the_class_that_begins_like_glomerulus_is_the_positive_one(tmp_path, classes, positive):
    put(tmp_path, *(f"{c}/{i}.png" for c in classes for i in range(4)))
    data = load_source(tmp_path)
    assert data.classes[1] == positive
    assert data.notes == (NO_PATIENTS,)


def test_of_two_that_both_begin_so_the_user_says_which_is_positive(tmp_path):
    classes = ("glomerulus_healthy", "glomerulus_sclerosed")
    put(tmp_path, *(f"{c}/{i}.png" for c in classes for i in range(4)))
    with pytest.raises(UserError, match="either could be the positive one: name both"):
        load_source(tmp_path)
    assert load_source(tmp_path, classes=classes[::-1]).classes == classes[::-1]


def test_of_other_names_it_is_said_which_is_positive_and_how_that_changes(tmp_path):
    put(tmp_path, *(f"{c}/{i}.png" for c in ("cortex", "medulla") for i in range(4)))
    note = load_source(tmp_path).notes[0]
    assert note.startswith("The positive class is 'medulla', the last one by the alphabet; ")
    assert "config.data.classes = ('medulla', 'cortex') makes it 'cortex'" in note
    assert load_source(tmp_path, classes=("medulla", "cortex")).notes == (NO_PATIENTS,)


@pytest.mark.parametrize(
    ("classes", "positive"),
    [
        (("with_glomerulus", "without_glomerulus"), "with_glomerulus"),
        (("has_glom", "no_glom"), "has_glom"),
        (("sclerosed glomerulus", "tubule"), "sclerosed glomerulus"),
    ],
)
def test_a_glomerulus_elsewhere_in_the_name_is_positive_unless_it_is_denied(
    tmp_path, classes, positive
):
    put(tmp_path, *(f"{c}/{i}.png" for c in classes for i in range(4)))
    data = load_source(tmp_path)
    assert data.classes[1] == positive
    assert data.notes[0].startswith(f"The positive class is '{positive}', by the glomerulus in")


@pytest.mark.parametrize("word", ["none", "NA", "unknown", "-"])
def test_a_class_that_is_called_like_a_missing_value_must_be_named(tmp_path, word):
    put(tmp_path, *(f"{c}/{i}.png" for c in (word, "glomerulus") for i in range(4)))
    with pytest.raises(UserError, match=f"has the label '{word}', a word for a missing value"):
        load_source(tmp_path)
    assert load_source(tmp_path, classes=(word, "glomerulus")).classes == (word, "glomerulus")


def test_class_folders_that_differ_in_a_blank_are_one_class_in_two_spellings(tmp_path):
    put(tmp_path, *(f"{c}/{i}.png" for c in ("other", "other ", "glomerulus") for i in range(4)))
    with pytest.raises(UserError, match="1 class in several spellings: 'other' = 'other '"):
        load_source(tmp_path)
    data = load_source(tmp_path, exact_names=True)
    assert len(data.classes) == 3
    assert data.notes[0].startswith("As data.exact_names asks, these are different classes")
