"""Labelled patches from a folder, with or without a manifest, or from a CSV manifest alone."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from glomjax.data.examples import SPLITS, DataSplits, Examples
from glomjax.data.manifest import SPLIT_NAMES, Patch, read_manifest, some_names
from glomjax.data.splits import check_group_overlap, make_splits
from glomjax.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
POSITIVE_CLASS = "glomerulus"
NO_PATIENTS = (
    "No patient column: patches of one patient may fall into several splits, so the estimate may "
    "be optimistic."
)
SLIDES_ONLY = (
    "No patient column: slides stand in for patients, so slides of one patient may fall into "
    "several splits."
)


def load_folder(
    path: str | os.PathLike[str],
    *,
    classes: Sequence[str] = (),
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
) -> DataSplits:
    """Reads `class/*.png`, `split/class/*.png` or a CSV manifest; no image is opened yet.

    A folder holds one folder per class, or the folders train, validation (or val) and test with
    one folder per class in each; images may lie deeper. Its `manifest.csv`, where there is one,
    gives the labels and must list exactly the images. `path` may also be a CSV file itself, with
    image paths that are absolute or relative to its folder. A manifest has the columns
    `path,label[,patient][,slide][,split]`; other columns are not used.

    Given splits (folders or the `split` column) are kept; otherwise they are made by patient, or
    by slide where there are no patients, or by file where there are neither. Slides that stand in
    for patients are also found in `Examples.patients`. Ids are paths relative to the source, and
    examples are sorted by id.

    Args:
      path: the folder or the CSV file.
      classes: (negative, positive); by default the sorted names, except that `glomerulus` is the
        positive one of two.
      fractions: shares of train, validation and test where the splits are made here.
      seed: of the splits that are made here.

    Raises:
      UserError: the folder, the manifest, the classes or the splits are not as described.
    """
    source = pathlib.Path(os.path.abspath(os.path.expanduser(path)))
    patches, notes = _read_source(source)
    names = _class_names({patch.label for patch in patches}, classes, source)
    patches = sorted(patches, key=lambda patch: patch.id)

    kind, groups = _groups(patches)
    if kind == "file":
        notes.append(NO_PATIENTS)
    elif kind == "slide":
        notes.append(SLIDES_ONLY)

    labels = np.array([names.index(patch.label) for patch in patches], np.int32)
    if patches[0].split:
        splits = {
            split: np.flatnonzero([patch.split == split for patch in patches]) for split in SPLITS
        }
        check_group_overlap({s: [groups[i] for i in splits[s]] for s in SPLITS}, kind)
        _check_classes_in_splits(splits, labels, names, source)
    else:
        splits = make_splits(labels, groups, fractions, seed, kind=kind, classes=names)

    # An absolute id replaces the root.
    root = source if source.is_dir() else source.parent
    table = Examples(
        ids=tuple(patch.id for patch in patches),
        labels=labels,
        read=lambda i: _read_bytes(root / patches[i].id),
        patients=None if kind == "file" else tuple(groups),
    )
    train, validation, test = (table.subset(splits[split]) for split in SPLITS)
    return DataSplits(train, validation, test, classes=names, notes=tuple(notes))


def _read_source(source: pathlib.Path) -> tuple[list[Patch], list[str]]:
    if not os.path.exists(source):
        raise UserError(f"'{source}' does not exist: give a folder of patches or a CSV manifest.")
    if not source.is_dir():
        if source.suffix.lower() != ".csv":
            raise UserError(f"'{source}' is not a folder: give a folder of patches or a .csv file.")
        return read_manifest(source, source.parent), []

    images: list[str] = []
    others: list[str] = []
    for file in _files_below(source, set()):
        name = file.relative_to(source).as_posix()
        (images if file.suffix.lower() in IMAGE_SUFFIXES else others).append(name)
    folders = sorted(f.name for f in source.iterdir() if f.is_dir() and not _is_hidden(f.name))
    split_folders = _split_folders(folders, source)
    depth = 2 if split_folders else 1  # of the class folder
    inside = {name for name in images if name.count("/") >= depth}

    manifest = next((source / name for name in others if name.lower() == "manifest.csv"), None)
    if manifest is not None:
        patches = read_manifest(manifest, source)
        unlisted = sorted(inside - {patch.id for patch in patches})
        if unlisted:
            raise UserError(
                f"{manifest} does not list {some_names(unlisted)}: add rows for them or move them "
                f"away."
            )
        patches = [_placed(patch, inside, split_folders, manifest) for patch in patches]
    else:
        patches = [
            Patch(name, name.split("/")[depth - 1], split_folders.get(name.split("/")[0], ""))
            for name in inside
        ]
        if not patches:
            raise UserError(
                f"'{source}' has no image in class folders: put patches "
                f"({', '.join(IMAGE_SUFFIXES)}) into one folder per class."
            )
        empty = sorted(set(folders) - {name.split("/")[0] for name in inside})
        if empty:
            raise UserError(f"Folder '{source / empty[0]}' has no image: fill it or remove it.")

    listed = {patch.id for patch in patches}
    notes = []
    foreign = [name for name in others if name.count("/") >= depth and name not in listed]
    if foreign:
        notes.append(
            f"{len(foreign)} file(s) among the patches are no images and are left out, for "
            f"example '{min(foreign)}'."
        )
    outside = [name for name in images if name.count("/") < depth and name not in listed]
    if outside:
        notes.append(
            f"{len(outside)} image(s) outside the class folders are left out, for example "
            f"'{min(outside)}'."
        )
    return patches, notes


def _files_below(folder: pathlib.Path, seen: set[str]) -> Iterator[pathlib.Path]:
    """Every file that is not hidden; links to folders are followed, each folder once."""
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"Folder '{folder}' cannot be listed ({error.strerror}).") from error
    for entry in entries:
        if _is_hidden(entry.name):
            continue
        if entry.is_dir():
            yield from _files_below(entry, seen)
        else:
            yield entry


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX" or name.lower() == "thumbs.db"


def _split_folders(folders: Sequence[str], source: pathlib.Path) -> dict[str, str]:
    """{folder: split} where the folders are splits, {} where they are classes."""
    found = {name: SPLIT_NAMES[name.lower()] for name in folders if name.lower() in SPLIT_NAMES}
    if found and (len(found) != len(folders) or sorted(found.values()) != sorted(SPLITS)):
        raise UserError(
            f"'{source}' has the folders {', '.join(folders)}: give either train, validation (or "
            f"val) and test, all three and nothing else, or one folder per class."
        )
    return found


def _placed(
    patch: Patch, inside: set[str], split_folders: dict[str, str], manifest: pathlib.Path
) -> Patch:
    """The patch with the split of its folder; its folders must agree with the manifest."""
    folders = patch.id.split("/")[:-1]
    if patch.id in inside:
        class_folder = folders[1 if split_folders else 0]
        if class_folder != patch.label:
            raise UserError(
                f"{manifest}: '{patch.id}' has the label '{patch.label}', but lies in the class "
                f"folder '{class_folder}': correct one of them, or give the manifest itself as the "
                f"source if its folders are not classes."
            )
    if not split_folders:
        return patch
    split = split_folders.get(folders[0] if folders else "", patch.split)
    if not split or patch.split not in ("", split):
        raise UserError(
            f"{manifest}: '{patch.id}' has the split '{patch.split}', but lies in "
            f"{'the folder of split ' + repr(split) if split else 'no split folder'}: make them "
            f"agree."
        )
    return dataclasses.replace(patch, split=split)


def _class_names(found: set[str], classes: Sequence[str], source: pathlib.Path) -> tuple[str, ...]:
    names = sorted(found)
    if classes and sorted(classes) != names:
        raise UserError(f"data.classes is {list(classes)}, but '{source}' has {names}.")
    if len(names) < 2:
        raise UserError(f"'{source}' has the class {names} alone: at least two are needed.")
    if classes:
        return tuple(classes)
    if len(names) == 2:
        names.sort(key=lambda name: name.lower() == POSITIVE_CLASS)  # stable
    return tuple(names)


def _groups(patches: Sequence[Patch]) -> tuple[str, list[str]]:
    """What must stay together: by patient, else by slide, else each file by itself."""
    if all(patch.patient for patch in patches):
        return "patient", [patch.patient for patch in patches]
    if all(patch.slide for patch in patches):
        return "slide", [patch.slide for patch in patches]
    return "file", [patch.id for patch in patches]


def _check_classes_in_splits(
    splits: dict[str, np.ndarray], labels: np.ndarray, names: Sequence[str], source: pathlib.Path
) -> None:
    for split in SPLITS:
        for c, name in enumerate(names):
            if not (labels[splits[split]] == c).any():
                raise UserError(
                    f"The {split} split of '{source}' has no image of class '{name}', so it cannot "
                    f"be learnt from or judged: add some."
                )


def _read_bytes(file: pathlib.Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"Image '{file}' cannot be read ({error.strerror}).") from error
