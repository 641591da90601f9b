"""What would make a result worthless, as `check-data` finds it before any training."""

import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from glomjax.data.preparation import prepare_data
from glomjax.data.sources import load_source
from reliability.situations import (
    COUNT,
    PATIENTS,
    Answer,
    Case,
    Cells,
    check,
    class_folders,
    command,
    patient,
    picture,
    said,
    split,
    table,
)

HEADING = "What check-data finds"
SIZE = (64, 64)
TEST = 10  # an image of the last patient, who is tested


def found(
    part: str,
    columns: dict[str, Cells] | None = None,
    change: Callable[[pathlib.Path], None] = lambda folder: None,
    **options: Any,
):
    """A finding with these words on a table with given splits, of which images were changed."""

    def answer(folder: pathlib.Path) -> Answer:
        file = table(folder, {"split": split, **(columns or {})}, size=SIZE)
        change(folder)
        return check(file, part, **options)

    return answer


def image(folder: pathlib.Path, number: int) -> pathlib.Path:
    return folder / f"img/{number:02d}.png"


def copy(source: int, target: int) -> Callable[[pathlib.Path], None]:
    return lambda folder: shutil.copy(image(folder, source), image(folder, target))


def near_copy(folder: pathlib.Path) -> None:
    """Of a picture with details, a paler one."""
    grid = np.random.default_rng(0).integers(30, 200, (16, 16), np.uint8)
    details = Image.fromarray(grid).resize(SIZE, Image.Resampling.BICUBIC).convert("RGB")
    details.save(image(folder, 0))
    details.point(lambda value: 0.95 * value + 10).save(image(folder, TEST))


def dark_test(folder: pathlib.Path) -> None:
    for i in range(COUNT):
        if split(i) == "test":
            Image.fromarray(picture(i, SIZE) // 4).save(image(folder, i))


def dark_class(folder: pathlib.Path) -> None:
    for i in range(COUNT // 2):
        Image.fromarray(picture(i, SIZE) // 3).save(image(folder, i))


def with_out(*more: str, prepare: Callable[[pathlib.Path], None] = lambda folder: None):
    """check-data with a folder for its sheets."""

    def answer(folder: pathlib.Path) -> Answer:
        class_folders(folder / "patches", count=4)
        prepare(folder)
        return command("check-data", folder / "patches", *more, part="sheet:")

    return answer


def foreign_sheet(folder: pathlib.Path) -> None:
    (folder / "out").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "out" / "contact_sheet.png")


def a_file(folder: pathlib.Path) -> None:
    (folder / "out").write_text("x")


def line_break(folder: pathlib.Path) -> Answer:
    file = table(folder, patient=lambda i: f'"{patient(i)}\nMiller"')
    return command("check-data", file, "--out", folder / "out", part="sheet:")


def by_format(i: int) -> str:
    return f"img/{i:02d}.{'png' if i < COUNT // 2 else 'jpg'}"


def as_jpeg(folder: pathlib.Path) -> None:
    for i in range(COUNT // 2, COUNT):
        Image.open(image(folder, i)).save(image(folder, i).with_suffix(".jpg"))


def formats(folder: pathlib.Path) -> Answer:
    file = table(folder, {"split": split}, size=SIZE)
    as_jpeg(folder)
    text = file.read_text()
    for i in range(COUNT // 2, COUNT):
        text = text.replace(f"{i:02d}.png", f"{i:02d}.jpg")
    file.write_text(text)
    return check(file, "goes with")


def site_of(i: int) -> str:
    return "Basel" if patient(i) in PATIENTS[:2] else "Bern"


def prepared(
    part: str,
    columns: dict[str, Cells] | None = None,
    change: Callable[[pathlib.Path], None] = lambda folder: None,
    **options: Any,
):
    """What training says of a table once all of its images have been read."""

    def answer(folder: pathlib.Path) -> Answer:
        file = table(folder, {"split": split, **(columns or {})}, size=SIZE)
        change(folder)
        data = prepare_data(load_source(file), (32, 32), **options)
        return said(*data.splits.notes, part=part)

    return answer


def damaged(*numbers: int) -> Callable[[pathlib.Path], None]:
    def change(folder: pathlib.Path) -> None:
        for number in numbers:
            image(folder, number).write_bytes(b"")

    return change


def white(folder: pathlib.Path) -> None:
    for i in range(COUNT):
        grey = np.full((*SIZE, 3), 240, np.uint8)
        grey[:8, :8] += np.uint8(i % 12)
        Image.fromarray(grey + np.uint8(i // 12)).save(image(folder, i))


def without_red(folder: pathlib.Path) -> None:
    for i in range(COUNT):
        pixels = picture(i, SIZE).copy()
        pixels[..., 0] = 200
        Image.fromarray(pixels).save(image(folder, i))


CASES = [
    Case(
        "a copy of a training image in the test split",
        found("more than one split", change=copy(0, TEST)),
    ),
    Case("a copy of an image in the same split", found("within a split", change=copy(0, 1))),
    Case("a copy of an image with another class", found("another class", change=copy(0, 12))),
    Case(
        "a training image in the test split, a little paler",
        found("nearly the same", change=near_copy),
    ),
    Case(
        "a patient in two of the given splits, in check-data",
        found("occur in more", {"split": lambda i: "test" if i == 0 else split(i)}),
    ),
    Case(
        "a stain for each class",
        found("goes with the stain", {"stain": lambda i: ("HE", "PAS")[i // 12]}),
    ),
    Case("PNG for one class and JPEG for the other", formats),
    Case(
        "a column that is filled for one class alone",
        found(
            "description of that class",
            {"diagnosis": lambda i: "FSGS" if i % 2 else "MCD"}
            | {"lesion": lambda i: ("", f"L{i % 3}")[i // 12]},
        ),
    ),
    Case(
        "test images that are darker than those for training",
        found("look unlike", change=dark_test),
    ),
    Case("images of one class that are darker", found("than the others", change=dark_class)),
    Case(
        "a stain in the test split that training lacks",
        found("No training image", {"stain": lambda i: "PAS" if split(i) == "test" else "HE"}),
    ),
    Case(
        "a stain that one site alone has",
        found(
            "site", {"site": site_of, "stain": lambda i: {"Basel": "HE", "Bern": "PAS"}[site_of(i)]}
        ),
    ),
    Case(
        "images of two spacings",
        found("different spacings", {"mpp": lambda i: ("0.25", "0.5")[i % 2]}),
    ),
    Case(
        "images that are resampled to a spacing at which they are too small",
        found("white border", {"mpp": lambda i: ("0.25", "0.5")[i % 2]}, target_mpp=0.5),
    ),
    Case(
        "images to be resampled whose spacing is not known", found("does not tell", target_mpp=0.5)
    ),
    Case("images to be resampled to 0.001 microns per pixel", found("", target_mpp=0.001)),
    Case(
        "overlapping patches, by their coordinates, in two splits",
        found(
            "overlap",
            {
                "patient": lambda i: "",
                "slide": lambda i: "",
                "field": lambda i: "F1",
                "x": lambda i: str(32 * i),
                "y": lambda i: "0",
            },
        ),
    ),
    Case("an augmented sheet without a folder for it", with_out("--augment", "histology")),
    Case(
        "an augmented sheet of a preset that does not exist",
        with_out("--out", "out", "--augment", "strong"),
    ),
    Case("sheets in the folder of the patches", with_out("--out", "patches/out")),
    Case(
        "sheets in a folder that has another picture of that name",
        with_out("--out", "out", prepare=foreign_sheet),
    ),
    Case("a file in place of the folder for sheets", with_out("--out", "out", prepare=a_file)),
    Case("sheets in a new folder", with_out("--out", "out")),
    Case("a line break within the names of patients, with sheets", line_break),
    Case(
        "an image that cannot be read, at the start of a training",
        prepared("", change=damaged(3)),
    ),
    Case(
        "an image that cannot be read and may be left out",
        prepared("left out", change=damaged(3), skip_unreadable=True),
    ),
    Case(
        "a class of which no test image can be read",
        prepared("", change=damaged(10, 11), skip_unreadable=True),
    ),
    Case(
        "images without stained tissue, whose stain is to be normalised",
        prepared("", change=white, stain="macenko"),
    ),
    Case(
        "images of two stains that are to be normalised, by a column",
        prepared(
            "stains by the column", {"stain": lambda i: ("HE", "PAS")[i % 2]}, stain="macenko"
        ),
    ),
    Case(
        "images whose red is the same in every pixel, which are to be standardised",
        prepared("", change=without_red, standardize=True),
    ),
    Case("images to be resampled without a spacing, in training", prepared("", target_mpp=0.5)),
]
