"""Folders of patches, with what systems, programs and people leave in them."""

import os
import pathlib

from reliability.situations import Answer, Case, class_folders, command, load, put

HEADING = "Folders"


def with_files(*names: str, note: str = "", of: str = ""):
    """Class folders with further files: images by their suffix, else a few bytes."""

    def answer(folder: pathlib.Path) -> Answer:
        class_folders(folder)
        for number, name in enumerate(names):
            if name.endswith((".png", ".jpg", ".PNG", ".JPG", ".Tiff", ".jfif", ".bmp", ".webp")):
                put(folder / name, 50 + number)
            else:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(b"x")
        return load(folder / of, note=note)

    return answer


def patients_on_top(folder: pathlib.Path) -> Answer:
    for patient in range(8000, 8006):
        class_folders(folder / str(patient), ("0", "1"), count=2)
    return load(folder)


def patients_below(folder: pathlib.Path) -> Answer:
    for patient in range(6):
        for c, name in enumerate(("other", "glomerulus")):
            for i in range(2):
                put(folder / name / f"P{patient}" / f"{i}.png", 100 * patient + 10 * c + i)
    return load(folder, note="repeats over images")


def splits_below(folder: pathlib.Path) -> Answer:
    for name in ("other", "glomerulus"):
        class_folders(folder / name, ("train", "test"), count=2)
    return load(folder)


def empty_class(folder: pathlib.Path) -> Answer:
    class_folders(folder)
    (folder / "tubule").mkdir()
    return load(folder)


def link(folder: pathlib.Path) -> Answer:
    class_folders(folder / "set")
    os.symlink(folder / "set", folder / "set" / "other" / "back", target_is_directory=True)
    return load(folder / "set")


def no_utf8(folder: pathlib.Path) -> Answer:
    class_folders(folder)
    with open(os.fsencode(folder / "other") + b"/\xfc.png", "wb") as file:
        file.write(b"x")
    return load(folder)


def images_alone(folder: pathlib.Path) -> Answer:
    for i in range(4):
        put(folder / f"{i}.png", i)
    return load(folder)


def split_and_manifest(folder: pathlib.Path) -> Answer:
    names = []
    for part in ("train", "test"):
        class_folders(folder / part, count=4)
        names += [
            (f"{part}/{c}/{i:02d}.png", c, "train")
            for c in ("other", "glomerulus")
            for i in range(4)
        ]
    lines = "".join(",".join(row) + "\n" for row in names)
    (folder / "manifest.csv").write_text("path,label,split\n" + lines)
    return load(folder)


CASES = [
    Case("a source that does not exist", lambda folder: load(folder / "patches")),
    Case("an empty source", lambda folder: load("")),
    Case(
        "a source with ~ for the home folder",
        lambda folder: class_folders(folder / "patches") and load("~/patches"),
    ),
    Case("an image as a source", lambda folder: load(put(folder / "0.png"))),
    Case("a folder of images without class folders", images_alone),
    Case("an empty folder", lambda folder: load(folder)),
    Case("a class folder without images", empty_class),
    Case("one class folder", lambda folder: load(class_folders(folder, ["glomerulus"]))),
    Case("folders of patients with a folder per class in each", patients_on_top),
    Case("class folders with a folder per patient in each", patients_below),
    Case("folders of splits within the class folders", splits_below),
    Case("folders of splits with a manifest that contradicts them", split_and_manifest),
    Case("a folder that has a link to itself", link),
    Case("a file name that is not UTF-8", no_utf8),
    Case(
        "images called .PNG, .Tiff, .jfif, .bmp and .webp",
        with_files(
            "other/a.PNG", "other/b.Tiff", "glomerulus/c.jfif", "glomerulus/d.bmp", "other/e.webp"
        ),
    ),
    Case(
        "thumbnails of a network drive (@eaDir), a bin (#recycle) and hidden files",
        with_files(
            "other/@eaDir/00.png/SYNOPHOTO_THUMB_SM.jpg",
            "#recycle/a.png",
            "other/._00.png",
            "__MACOSX/other/00.png",
            "other/Thumbs.db",
            ".DS_Store",
        ),
    ),
    Case(
        "stand-ins of a cloud drive for images that are not on the disk",
        with_files("other/.p000.png.icloud", "glomerulus/.p001.png.icloud", note="in a cloud"),
    ),
    Case(
        "masks called x-labelled.png beside the images",
        with_files("other/00-labelled.png", "glomerulus/00_mask.png", note="look like masks"),
    ),
    Case(
        "a folder masks beside the class folders",
        with_files("masks/00.png", "masks/01.png", note="look like masks"),
    ),
    Case("images beside the class folders", with_files("overview.png", note="outside")),
    Case("other files among the patches", with_files("other/notes.doc", note="no images")),
    Case("slides among the patches", with_files("other/a.svs", "other/b.ndpi", note="no images")),
    Case(
        "a table beside the folders under another name", with_files("labels.csv", note="not read")
    ),
    Case("a table beside the folders as .csv.txt", with_files("manifest.csv.txt", note="not read")),
    Case(
        "a table beside the folders as .xlsx, .ods and .parquet",
        with_files("manifest.xlsx", "patients.ods", "labels.parquet", note="not read"),
    ),
    Case(
        "a folder of patches as an option of check-data that is not there",
        lambda folder: command("check-data", folder / "patches", part="ERROR"),
    ),
]
