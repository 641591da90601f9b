"""The CSV manifest of labelled patches: `path,label[,patient][,slide][,split]`, row by row.

`glomjax.data.folder` decides what its labels and patients mean for classes and splits.
"""

import collections
import csv
import dataclasses
import os
import pathlib
from collections.abc import Sequence

from glomjax.errors import UserError

# What a split may be called, in a manifest or as a folder, and which one it is.
SPLIT_NAMES = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}


@dataclasses.dataclass(frozen=True)
class Patch:
    """One row: the id, and "" for what the source does not tell."""

    id: str
    label: str
    split: str = ""
    patient: str = ""
    slide: str = ""


def read_manifest(manifest: pathlib.Path, root: pathlib.Path) -> list[Patch]:
    """The rows in their order, ids relative to `root` where the file lies below it.

    `root` is an absolute folder: relative paths in the manifest start there.

    Raises:
      UserError: the file is no such CSV, a row is wrong or listed twice, its image is missing, or a
        column is filled in part.
    """
    rows = _rows(manifest)
    for line, row in rows:
        for column in ("path", "label"):
            if not row[column]:
                raise UserError(f"{manifest}, line {line}: the {column} is empty; fill it in.")
    rows = [(line, {**row, "path": _normal_id(row["path"], root)}) for line, row in rows]

    repeats = [name for name, n in collections.Counter(r["path"] for _, r in rows).items() if n > 1]
    if repeats:
        raise UserError(
            f"{manifest} lists {some_names(repeats)} more than once: keep one row each."
        )
    missing = [row["path"] for _, row in rows if not os.path.isfile(root / row["path"])]
    if missing:
        raise UserError(f"{manifest} lists files that do not exist: {some_names(missing)}.")

    for column in ("patient", "split"):
        _check_all_or_none(column, rows, manifest)
    if not any(row.get("patient") for _, row in rows):
        _check_all_or_none("slide", rows, manifest)

    labels = {row["label"] for _, row in rows}
    patches = []
    for line, row in rows:
        folders = row["path"].split("/")[:-1]
        # Far above an absolute path a folder may have the name of a class by chance.
        for folder in folders[-1:] if os.path.isabs(row["path"]) else folders:
            if folder in labels and folder != row["label"]:
                raise UserError(
                    f"{manifest}, line {line}: '{row['path']}' has the label '{row['label']}', but "
                    f"lies in the folder of class '{folder}': correct one of them."
                )
        split = row.get("split", "")
        if split and split.lower() not in SPLIT_NAMES:
            raise UserError(
                f"{manifest}, line {line}: the split is '{split}'; write train, validation (or "
                f"val) or test."
            )
        patches.append(
            Patch(
                id=row["path"],
                label=row["label"],
                split=SPLIT_NAMES.get(split.lower(), ""),
                patient=row.get("patient", ""),
                slide=row.get("slide", ""),
            )
        )
    return patches


def some_names(names: Sequence[str]) -> str:
    """At most five of the names in quotes, and how many more there are: for messages."""
    rest = f" and {len(names) - 5} more ({len(names)} in all)" if len(names) > 5 else ""
    return ", ".join(f"'{name}'" for name in names[:5]) + rest


def _rows(manifest: pathlib.Path) -> list[tuple[int, dict[str, str]]]:
    """(line number, {column: cell}) of every row that is not blank, all stripped."""
    try:
        # utf-8-sig: spreadsheet programs put a byte order mark in front.
        with open(manifest, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = [cell.strip().lower() for cell in next(reader, [])]
            lines = [(reader.line_num, [c.strip() for c in cells]) for cells in reader]
    except OSError as error:
        raise UserError(f"'{manifest}' cannot be read ({error.strerror}).") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"'{manifest}' is no CSV file in UTF-8 ({error}): save it as one."
        ) from error
    for column in ("path", "label"):
        if column not in header:
            raise UserError(
                f"{manifest} has no column '{column}' but {header}: its first line must be "
                f"path,label[,patient][,slide][,split], separated by commas."
            )
    for column in ("path", "label", "patient", "slide", "split"):
        if header.count(column) > 1:
            raise UserError(f"{manifest} has {header.count(column)} columns '{column}': keep one.")
    lines = [(line, cells) for line, cells in lines if any(cells)]
    if not lines:
        raise UserError(f"{manifest} lists no image: add one row per image.")
    for line, cells in lines:
        if len(cells) != len(header):
            raise UserError(
                f"{manifest}, line {line}: {len(cells)} cells, but the header has {len(header)}; "
                f"put cells that hold a comma in double quotes."
            )
    return [(line, dict(zip(header, cells, strict=True))) for line, cells in lines]


def _normal_id(text: str, root: pathlib.Path) -> str:
    """One spelling per file: posix separators, relative to the root where it lies below it."""
    path = pathlib.Path(os.path.normpath(text.replace("\\", "/")))
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _check_all_or_none(
    column: str, rows: Sequence[tuple[int, dict[str, str]]], manifest: pathlib.Path
) -> None:
    empty = [(line, row["path"]) for line, row in rows if not row.get(column)]
    if empty and len(empty) < len(rows):
        line, name = empty[0]
        raise UserError(
            f"{manifest}: the {column} is empty in {len(empty)} of {len(rows)} rows, the first is "
            f"line {line} ('{name}'): fill the column in every row or in none."
        )
