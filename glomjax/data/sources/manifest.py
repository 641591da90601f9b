"""The manifest of labelled patches: a table as CSV or TSV, row by row.

`glomjax.data.sources` decides what its labels and patients mean for classes and splits.
"""

import codecs
import collections
import csv
import dataclasses
import io
import math
import os
import pathlib
import re
import unicodedata
from collections.abc import Mapping, Sequence

from glomjax.data.identities import cell, is_missing
from glomjax.data.sources.columns import (
    COLUMN_SYNONYMS,
    column_name,
    read_header,
    resembles_split,
    split_named,
)
from glomjax.errors import UserError, assignment, quoted

MANIFEST_SUFFIXES = (".csv", ".tsv")
MIN_MPP, MAX_MPP = 0.01, 100.0  # microns per pixel; beyond, it is another unit
LIMITS = {"weight": (0.0, math.inf), "mpp": (MIN_MPP, MAX_MPP)}
# A column with the label that a review has changed; without it, a label that contradicts the folder
# of the image is taken for a mistake.
LABEL_BEFORE = "label_before"


@dataclasses.dataclass(frozen=True)
class Patch:
    """One labelled image of a source; "" or None for what the source does not tell.

    Attributes:
      id: a path relative to the source, or any other stable name.
      label: the class name.
      split: "train", "validation" or "test".
      weight: a factor of its training loss, at least 0.
      mpp: microns per pixel of the image as it is stored.
      further: the other columns of the source.
    """

    id: str
    label: str
    split: str = ""
    patient: str = ""
    slide: str = ""
    site: str = ""
    weight: float | None = None
    mpp: float | None = None
    further: Mapping[str, str] = dataclasses.field(default_factory=dict)


def read_manifest(
    manifest: pathlib.Path,
    root: pathlib.Path,
    *,
    labelled: bool = True,
    allow_outside: bool = False,
    allowing: str = "",
) -> tuple[list[Patch], list[str]]:
    """The rows in their order, ids relative to `root` where the file lies below it; and notes.

    The first line names the columns, by `COLUMN_SYNONYMS`, in capital or small letters; commas,
    tabs or semicolons part the cells. Words for a missing value are empty cells, but for labels,
    which may be classes of that name. `root` is an absolute folder: relative paths in the manifest
    start there. Without `labelled` it may lack labels, which are "" then, and files, which whoever
    reads them reports.

    A table from somebody else may list any file of this machine, whose pixels would then be in a
    sheet or in weights. So images lie below `root` by their paths, whose links are followed.

    Args:
      allow_outside: images may lie anywhere, as the user says.
      allowing: how the user says so, by default in the configuration.

    Raises:
      UserError: the file is no such table, a row is wrong or listed twice, its image is missing or
        outside, or a column is filled in part.
    """
    required = ("path", "label") if labelled else ("path",)
    rows, notes = _rows(manifest, required)
    for line, row in rows:
        for column in required:
            if not row[column]:
                raise UserError(f"{manifest}, line {line}: the {column} is empty; fill it in.")
    if not allow_outside:
        _check_inside([row["path"] for _, row in rows], manifest, root, allowing)
    rows = [(line, {**row, "path": _normal_id(row["path"], root)}) for line, row in rows]

    missing = [row["path"] for _, row in rows if not os.path.isfile(root / row["path"])]
    spelt = _as_on_disk(missing, root)
    if labelled and (absent := [path for path in missing if path not in spelt]):
        raise UserError(
            f"{manifest} lists files that do not exist: {quoted(absent)}; restore them, or remove "
            "their rows."
        )
    rows = [(line, {**row, "path": spelt.get(row["path"], row["path"])}) for line, row in rows]
    repeats = [name for name, n in collections.Counter(r["path"] for _, r in rows).items() if n > 1]
    if repeats:
        raise UserError(f"{manifest} lists {quoted(repeats)} more than once: keep one row each.")

    for column in ("patient", "split", "weight", "mpp") if labelled else ("mpp",):
        _check_all_or_none(column, rows, manifest)
    if labelled and not any(row.get("patient") for _, row in rows):
        _check_all_or_none("slide", rows, manifest)

    labels = {row.get("label", "") for _, row in rows}
    class_folders = _class_folders([row["path"] for _, row in rows], labels) if labelled else {}
    if changed := sum(bool(row.get(LABEL_BEFORE)) for _, row in rows):
        notes.append(
            f"{manifest} has {changed} label(s) that were changed, by its column '{LABEL_BEFORE}'."
        )
    patches = []
    for line, row in rows:
        for folder in class_folders.get(row["path"], ()):
            if folder not in (row["label"], row.get(LABEL_BEFORE)):
                raise UserError(
                    f"{manifest}, line {line}: '{row['path']}' has the label '{row['label']}', but "
                    f"lies in the folder of class '{folder}': correct one of them, or, where the "
                    f"label was changed on purpose, write the one before into a column "
                    f"'{LABEL_BEFORE}'."
                )
        split = split_named(row.get("split", ""), abbreviated=True)
        if not split and row.get("split"):
            raise UserError(
                f"{manifest}, line {line}: the split is '{row['split']}'; write train, validation "
                f"(or val) or test."
            )
        patches.append(patch_of(row, row["path"], split, where=f"{manifest}, line {line}"))
    return patches, notes


def _as_on_disk(paths: Sequence[str], root: pathlib.Path) -> dict[str, str]:
    """{path: the same path as the disk spells it} of those that only Unicode's forms tell apart: a
    table from one system lists files of another."""
    listed: dict[pathlib.Path, dict[str, str]] = {}  # of each folder {normal form: name}

    def spelt(path: pathlib.PurePath) -> pathlib.Path | None:
        if path == path.parent:  # a root, or nothing
            return root / path
        folder = spelt(path.parent)
        if folder is None or (folder / path.name).exists():
            return folder and folder / path.name
        if folder not in listed:
            names = os.listdir(folder) if folder.is_dir() else []
            listed[folder] = {unicodedata.normalize("NFC", name): name for name in names}
        name = listed[folder].get(unicodedata.normalize("NFC", path.name))
        return None if name is None else folder / name

    found = {path: file for path in paths if (file := spelt(pathlib.PurePath(path)))}
    return {path: _normal_id(str(file), root) for path, file in found.items()}


def _class_folders(paths: Sequence[str], labels: set[str]) -> dict[str, list[str]]:
    """For each path its folders at the levels where every folder has the name of a class: a few
    patients that are numbered like classes are none."""
    found: dict[str, list[str]] = {path: [] for path in paths}
    if any(os.path.isabs(path) for path in paths):
        levels = [-2]  # far above, a folder may have the name of a class by chance
    else:
        levels = list(range(min(path.count("/") for path in paths)))
    for level in levels:
        names = {path: path.split("/")[level] for path in paths if "/" in path}
        if len(names) == len(paths) and set(names.values()) <= labels:
            for path, name in names.items():
                found[path].append(name)
    return found


def _rows(
    manifest: pathlib.Path, required: Sequence[str]
) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    """(line number, {column: cell}) of every row that is not blank, with missing values as "" but
    for labels; and notes on the columns."""
    try:
        encoded = manifest.read_bytes()
        # Spreadsheet programs put a byte order mark in front, and one of them writes UTF-16.
        is_utf_16 = encoded.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = encoded.decode("utf-16" if is_utf_16 else "utf-8-sig")
        if "\0" in text:
            raise csv.Error("it holds NUL characters")
        # Some spreadsheets write in a line of its own what parts the cells.
        told = re.match(r'"?sep=([,;\t])"?[,;\t]*(\r\n|\r|\n)', text, re.IGNORECASE)
        text, skipped = (text[told.end() :], 1) if told else (text, 0)
        delimiter = told[1] if told else _delimiter(text)
        # Strict, or a stray quote would swallow the rows up to the next one.
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        names = [name.strip() for name in next(reader, [])]
        lines = [(reader.line_num + skipped, [c.strip() for c in cells]) for cells in reader]
    except OSError as error:
        raise UserError(f"'{manifest}' cannot be read ({error.strerror}).") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"'{manifest}' is no CSV or TSV file in UTF-8 ({error}): save it as one."
        ) from error
    lines = [(line, cells) for line, cells in lines if any(cells)]
    # A column without any value tells nothing, whatever it is called.
    filled = [
        name
        if not lines or any(not is_missing(cell) for _, c in lines for cell in c[n : n + 1])
        else ""
        for n, name in enumerate(names)
    ]
    header, notes = read_header(filled, str(manifest), required)
    if "split" in header and column_name(filled[header.index("split")]) != "split":
        at = header.index("split")
        if not any(resembles_split(cell) for _, c in lines for cell in c[at : at + 1]):
            header[at] = column_name(filled[at])  # a set or a partition of something else
    if not lines:
        raise UserError(f"{manifest} lists no image: add one row per image.")
    rows = []
    for line, cells in lines:
        if len(cells) != len(header):
            raise UserError(
                f"{manifest}, line {line}: {len(cells)} cells, but the header has {len(header)}; "
                f"put cells that hold the separator in double quotes."
            )
        # What to make of a label such as `none` is for whoever knows the names of the classes.
        rows.append(
            (
                line,
                {
                    name: text if name == "label" else cell(text)
                    for name, text in zip(header, cells, strict=True)
                },
            )
        )
    return rows, notes


def _delimiter(text: str) -> str:
    """What parts the cells: of comma, tab and semicolon the one by which the first line names the
    most columns that we know, and then the most."""
    known = {name for names in COLUMN_SYNONYMS.values() for name in names}

    def rank(delimiter: str) -> tuple[int, int]:
        header = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
        return len(known & {column_name(name) for name in header}), len(header)

    # Spreadsheets export semicolons where the decimal point is a comma.
    return max(",\t;", key=rank)


def patch_of(row: Mapping[str, str], name: str, split: str, *, where: str) -> Patch:
    """A row {column: cell} as the patch of this id and split; `where` it stands is for messages.

    Raises:
      UserError: a weight or a spacing is no number, or one that no image can have.
    """
    return Patch(
        id=name,
        label=row.get("label", ""),
        split=split,
        patient=row.get("patient", ""),
        slide=row.get("slide", ""),
        site=row.get("site", ""),
        weight=_parsed_number(row.get("weight", ""), "weight", where),
        mpp=_parsed_number(row.get("mpp", ""), "mpp", where),
        further={c: cell for c, cell in row.items() if c and c not in COLUMN_SYNONYMS},
    )


def _parsed_number(text: str, column: str, where: str) -> float | None:
    """A weight or a spacing as it is written, None if it is not known.

    Raises:
      UserError: it is no number, or one that no image can have.
    """
    if not text:
        return None
    try:
        # 1,000 may be a thousand or one.
        value = (
            math.nan if re.fullmatch(r"\d{1,3}(,\d{3})+", text) else float(text.replace(",", "."))
        )
    except ValueError:
        value = math.nan
    least, most = LIMITS[column]
    if not least <= value <= most or math.isinf(value):
        limits = f"at least {least:g}" if math.isinf(most) else f"{least:g} to {most:g}"
        raise UserError(
            f"{where}: the {column} is '{text}'; write a number of {limits}, or leave it out for "
            f"all images."
        )
    return value


def _normal_id(text: str, root: pathlib.Path) -> str:
    """One spelling per file: posix separators, relative to the root where it lies below it."""
    path = pathlib.Path(os.path.normpath(text.replace("\\", "/")))
    whole = pathlib.Path(os.path.normpath(root / path))  # a path may lead out and back again
    return (whole.relative_to(root) if whole.is_relative_to(root) else path).as_posix()


def _check_inside(
    paths: Sequence[str], manifest: pathlib.Path, root: pathlib.Path, allowing: str
) -> None:
    """Raises UserError for paths that lead out of the root, before any of them is looked up."""
    outside = [
        path
        for path in paths
        if os.path.isabs(name := _normal_id(path, root)) or name.split("/")[0] == ".."
    ]
    if outside:
        raise UserError(
            f"{manifest} lists {len(outside)} image(s) outside its folder, the first is "
            f"{quoted(outside[:1])}; keep images in the folder of their manifest, or, where these "
            f"are meant, allow it with {allowing or assignment('data.allow_outside', True)}."
        )


def _check_all_or_none(
    column: str, rows: Sequence[tuple[int, dict[str, str]]], manifest: pathlib.Path
) -> None:
    empty = [(n, row["path"]) for n, row in rows if not row.get(column)]
    if empty and len(empty) < len(rows):
        line, name = empty[0]
        raise UserError(
            f"{manifest}: the {column} is empty in {len(empty)} of {len(rows)} rows, the first is "
            f"line {line} ('{name}'): fill the column in every row or in none; words such as NA "
            f"count as empty."
        )
