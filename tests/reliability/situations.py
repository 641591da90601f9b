"""A situation that a user can bring about, and what the product answers to it."""

import contextlib
import dataclasses
import io
import pathlib
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from glomjax.cli.main import main
from glomjax.data.checking import association, check_data
from glomjax.data.examples import SPLITS, DataSplits
from glomjax.data.sources import load_source
from glomjax.errors import UserError

COUNT = 24  # images of a table, half of each class
CLASSES = ("other", "glomerulus")
PATIENTS = ("Anna", "Berta", "Carla", "Dora", "Emma", "Frieda")  # with images of both classes
Cells = Callable[[int], object]  # of a column, for each image


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a user is told.

    Attributes:
      kind: "refused" (nothing is done), "told" (it goes on) or "read" (with what came of it); "raw"
        for an exception that is no sentence, which no row may have.
      text: the sentence, or what was read.
    """

    kind: str
    text: str


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of the document: `answer` makes the situation from nothing in an empty folder."""

    situation: str
    answer: Callable[[pathlib.Path], Answer]

    def run(self, folder: pathlib.Path) -> Answer:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                answer = self.answer(folder)
            except UserError as error:
                answer = Answer("refused", str(error))
            except Exception as error:
                answer = Answer("raw", f"{type(error).__name__}: {error}")
        text = answer.text.replace(str(folder), "FOLDER")
        # Encoders of other versions write files of other lengths.
        text = re.sub(r"\bbyte \d+\b", "byte N", text)
        return Answer(answer.kind, re.sub(r"\d+ bytes not", "N bytes not", text))


def said(*notes: str, part: str) -> Answer:
    """The note that has these words."""
    found = [note for note in notes if part in note]
    return Answer("told", found[0]) if found else Answer("raw", f"no note has {part!r}: {notes}")


def load(source: Any, *, note: str = "", **options: Any) -> Answer:
    """What `load_source` says to a source: the note with these words, or what it has read."""
    data = load_source(source, **options)
    return said(*data.notes, part=note) if note else described(data)


def described(data: DataSplits) -> Answer:
    """The images, classes and patients of a data set that was read."""
    count = sum(len(data[split]) for split in SPLITS)
    text = f"{count} images of the classes {', '.join(map(repr, data.classes))}"
    if data.train.patients is not None:
        of = [set(data[split].patients or ()) for split in SPLITS]
        everyone = set().union(*of)
        assert sum(map(len, of)) == len(everyone), "a patient is in two splits"
        text += f" and {len(everyone)} patients"
    return Answer("read", text)


def check(source: Any, part: str, **options: Any) -> Answer:
    """What `check_data` finds in a source: the finding with these words."""
    with mock.patch.object(association, "PERMUTATIONS", 400):  # no p-value is in a sentence
        report = check_data(source, **options)
    for finding in report.findings:
        if part in finding.text:
            return Answer("refused" if finding.level == "error" else "told", finding.text)
    return Answer("raw", f"no finding has {part!r}: {[f.text for f in report.findings]}")


def command(*arguments: object, part: str = "") -> Answer:
    """What a command line says: its error, or the line of its output with these words."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    if code == 2 and err.getvalue().startswith("error: "):
        return Answer("refused", err.getvalue().removeprefix("error: ").removesuffix("\n"))
    lines = [line for line in out.getvalue().splitlines() if part and part in line]
    if lines:
        return Answer("refused" if code == 2 else "told", lines[0])
    return Answer("raw", f"exit code {code}: {err.getvalue()}{out.getvalue()[:200]}")


def picture(number: int, size: tuple[int, int] = (8, 8)) -> np.ndarray:
    """uint8 [*size, 3]: another one for each number, and resembling no other."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))


def put(file: pathlib.Path, number: int = 0, size: tuple[int, int] = (8, 8)) -> pathlib.Path:
    """Writes a picture in the format of its suffix."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(number, size)).save(file)
    return file


def patient(i: int) -> str:
    """Of image i of a table."""
    return PATIENTS[i % (COUNT // 2) // 2]


def split(i: int) -> str:
    """Of image i of a table, by its patient."""
    return ("train", "train", "train", "train", "validation", "test")[i % (COUNT // 2) // 2]


def spelt(*names: object) -> Cells:
    """The first patient of a table under several names, in turn."""
    return lambda i: names[i % len(names)] if patient(i) == PATIENTS[0] else patient(i)


def rows(
    folder: pathlib.Path,
    columns: Mapping[str, Cells] | None = None,
    *,
    size: tuple[int, int] = (8, 8),
    **more: Cells,
) -> list[list[str]]:
    """The lines of a table of `COUNT` images, the header first; the images are written.

    Args:
      columns, more: {name: the cells}; in place of those for path, label and patient, too, and ""
        leaves a column out.
    """
    cells: dict[str, Any] = {
        "path": lambda i: f"img/{i:02d}.png",
        "label": lambda i: CLASSES[i // (COUNT // 2)],
        "patient": patient,
    }
    cells |= {**(columns or {}), **more}
    cells = {name: column for name, column in cells.items() if column}
    for i in range(COUNT):
        put(folder / f"img/{i:02d}.png", i, size)
    return [[*cells], *([str(column(i)) for column in cells.values()] for i in range(COUNT))]


def text_of(lines: Sequence[Sequence[str]], separator: str = ",", end: str = "\n") -> str:
    return "".join(separator.join(line) + end for line in lines)


def table(
    folder: pathlib.Path, columns: Mapping[str, Cells] | None = None, **more: Any
) -> pathlib.Path:
    """A folder with the images of `rows` and a `table.csv` of them, whose path it gives."""
    file = folder / "table.csv"
    file.write_text(text_of(rows(folder, columns, **more)), encoding="utf-8")
    return file


def class_folders(
    folder: pathlib.Path,
    classes: Sequence[str] = CLASSES,
    *,
    count: int = 8,
    size: tuple[int, int] = (8, 8),
) -> pathlib.Path:
    """A folder of so many images for each of the classes, which it gives."""
    for c, name in enumerate(classes):
        for i in range(count):
            put(folder / name / f"{i:02d}.png", 100 * c + i, size)
    return folder


def shown(text: str) -> str:
    """A text on one line."""
    return re.sub(r"\s*\n\s*", " ", text)
