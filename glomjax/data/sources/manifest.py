"""The manifest of labelled patches: a table as CSV or TSV, row by row.

`glomjax.data.sources` decides what its labels and patients mean for classes and splits.
"""

import collections
import csv
import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping, Sequence

from glomjax.errors import UserError, quoted

MANIFEST_SUFFIXES = (".csv", ".tsv")
# What a split may be called, in a manifest or as a folder, and which one it is.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
# What a column may be called, in small letters and with underscores. Where a header has the first
# of these names, columns with the other ones are no more than further columns.
COLUMN_SYNONYMS = {
    "path": (
        "path",
        "file",
        "filename",
        "file_name",
        "filepath",
        "file_path",
        "image",
        "image_path",
    ),
    "label": ("label", "class", "class_name", "target", "category"),
    "patient": ("patient", "patient_id", "case", "case_id", "subject", "subject_id"),
    "slide": ("slide", "slide_id", "wsi", "wsi_id"),
    "site": ("site", "site_id", "institution", "center", "centre", "hospital"),
    "split": ("split", "subset", "set", "partition"),
    "weight": ("weight", "sample_weight"),
    "mpp": ("mpp", "microns_per_pixel", "um_per_pixel", "pixel_size", "spacing"),
}
MIN_MPP, MAX_MPP = 0.01, 100.0  # microns per pixel; beyond, it is another unit
LIMITS = {"weight": (0.0, math.inf), "mpp": (MIN_MPP, MAX_MPP)}
HEADER = "path,label[,patient][,slide][,site][,split][,weight][,mpp]"


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
    manifest: pathlib.Path, root: pathlib.Path, *, labelled: bool = True
) -> list[Patch]:
    """The rows in their order, ids relative to `root` where the file lies below it.

    The first line names the columns, by `COLUMN_SYNONYMS`, in capital or small letters; commas,
    tabs or semicolons part the cells. `root` is an absolute folder: relative paths in the manifest
    start there. Without `labelled` it may lack labels, which are "" then, and files, which whoever
    reads them reports.

    Raises:
      UserError: the file is no such table, a row is wrong or listed twice, its image is missing,
        or a column is filled in part.
    """
    required = ("path", "label") if labelled else ("path",)
    rows = _rows(manifest, required)
    for line, row in rows:
        for column in required:
            if not row[column]:
                raise UserError(f"{manifest}, line {line}: the {column} is empty; fill it in.")
    rows = [(line, {**row, "path": _normal_id(row["path"], root)}) for line, row in rows]

    repeats = [name for name, n in collections.Counter(r["path"] for _, r in rows).items() if n > 1]
    if repeats:
        raise UserError(f"{manifest} lists {quoted(repeats)} more than once: keep one row each.")
    missing = [row["path"] for _, row in rows if not os.path.isfile(root / row["path"])]
    if missing and labelled:
        raise UserError(f"{manifest} lists files that do not exist: {quoted(missing)}.")

    for column in ("patient", "split", "weight", "mpp"):
        _check_all_or_none(column, rows, manifest)
    if not any(row.get("patient") for _, row in rows):
        _check_all_or_none("slide", rows, manifest)

    labels = {row.get("label", "") for _, row in rows}
    class_folders = _class_folders([row["path"] for _, row in rows], labels) if labelled else {}
    patches = []
    for line, row in rows:
        for folder in class_folders.get(row["path"], ()):
            if folder != row["label"]:
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
            patch_of(
                row,
                row["path"],
                SPLIT_NAMES.get(split.lower(), ""),
                where=f"{manifest}, line {line}",
            )
        )
    return patches


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


def _rows(manifest: pathlib.Path, required: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """(line number, {column: cell}) of every row that is not blank, all stripped."""
    try:
        # utf-8-sig: spreadsheet programs put a byte order mark in front.
        with open(manifest, encoding="utf-8-sig", newline="") as file:
            # Spreadsheets export semicolons where the decimal point is a comma.
            first = file.readline()
            file.seek(0)
            # Strict, or a stray quote would swallow the rows up to the next one.
            reader = csv.reader(file, delimiter=max(",\t;", key=first.count), strict=True)
            names = [cell.strip() for cell in next(reader, [])]
            lines = [(reader.line_num, [c.strip() for c in cells]) for cells in reader]
    except OSError as error:
        raise UserError(f"'{manifest}' cannot be read ({error.strerror}).") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"'{manifest}' is no CSV or TSV file in UTF-8 ({error}): save it as one."
        ) from error
    lines = [(line, cells) for line, cells in lines if any(cells)]
    # A column without any cell tells nothing, whatever it is called.
    empty = [
        n for n in range(len(names)) if lines and not any(c[n : n + 1] != [""] for _, c in lines)
    ]
    filled = ["" if n in empty else name for n, name in enumerate(names)]
    header = _columns(filled, manifest, required)
    if not lines:
        raise UserError(f"{manifest} lists no image: add one row per image.")
    for line, cells in lines:
        if len(cells) != len(header):
            raise UserError(
                f"{manifest}, line {line}: {len(cells)} cells, but the header has {len(header)}; "
                f"put cells that hold the separator in double quotes."
            )
    return [(line, dict(zip(header, cells, strict=True))) for line, cells in lines]


def _columns(header: Sequence[str], manifest: pathlib.Path, required: Sequence[str]) -> list[str]:
    """The header with our names in place of their synonyms."""
    found = [column_name(cell) for cell in header]
    for column, names in COLUMN_SYNONYMS.items():
        meant = [name for name in found if name in names]
        if column in meant:
            meant = [name for name in meant if name == column]
        if len(meant) > 1:
            raise UserError(
                f"{manifest} has {len(meant)} columns for the {column} ({', '.join(meant)}): keep "
                f"one."
            )
        if not meant and column in required:
            raise UserError(
                f"{manifest} has no column '{column}' but {found}: its first line must be {HEADER}."
            )
        found = [column if name in meant else name for name in found]
    return found


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


def column_name(text: str) -> str:
    """How `COLUMN_SYNONYMS` spells a column."""
    return text.strip().lower().replace(" ", "_").replace("-", "_")


def _parsed_number(text: str, column: str, where: str) -> float | None:
    """A weight or a spacing as it is written, None if it is not known.

    Raises:
      UserError: it is no number, or one that no image can have.
    """
    if text.lower() in ("", "unknown"):
        return None
    try:
        value = float(text.replace(",", "."))
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
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _check_all_or_none(
    column: str, rows: Sequence[tuple[int, dict[str, str]]], manifest: pathlib.Path
) -> None:
    unknown = ("", "unknown") if column in ("weight", "mpp") else ("",)
    empty = [(n, row["path"]) for n, row in rows if row.get(column, "").lower() in unknown]
    if empty and len(empty) < len(rows):
        line, name = empty[0]
        raise UserError(
            f"{manifest}: the {column} is empty in {len(empty)} of {len(rows)} rows, the first is "
            f"line {line} ('{name}'): fill the column in every row or in none."
        )
