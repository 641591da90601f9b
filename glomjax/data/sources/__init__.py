"""The data set that a source names: its classes, its patients and its splits."""

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from glomjax.data import synthetic
from glomjax.data.classes import class_names
from glomjax.data.examples import SPLITS, DataSplits, Examples
from glomjax.data.sources.arrays import NO_PATIENTS, ArraySplits, read_arrays
from glomjax.data.sources.columns import column_name
from glomjax.data.sources.folder import read_folder
from glomjax.data.sources.grouping import (
    SLIDES_ONLY,
    check_names,
    check_splits,
    divided_columns_notes,
    few_patients_notes,
    group_names,
    grouping_columns,
    numbered_note,
    patient_column,
    shared_slides_note,
)
from glomjax.data.sources.manifest import Patch
from glomjax.data.sources.own_split import adopt_split
from glomjax.data.splits import make_splits
from glomjax.errors import UserError

_LARGE_WEIGHT = 10  # that all images have; factors of a loss are about 1


def load_source(
    source: str | os.PathLike[str] | ArraySplits,
    *,
    classes: Sequence[str] = (),
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    folds: int = 0,
    fold: int = 0,
    split_by: str = "patient",
    seed: int = 0,
    synthetic_size: str = "demo",
    mpp: float = 0.0,
    exact_names: bool = False,
    allow_outside: bool = False,
    kept: Mapping[str, str] | None = None,
) -> DataSplits:
    """Lists the labelled images of a source and divides them; no image is opened yet.

    Splits that the source gives (folders, the `split` column or another one of their names, the
    splits of a TFDS data set) are kept; if there is no validation or no test split, it is made from
    the train split. Otherwise splits are made by patient, or by slide where there are no patients,
    or by file where there are neither; patients that share a slide stay together. Examples are
    sorted by id.

    Args:
      source: "synthetic", "tfds:NAME", the path of a folder or a manifest, or arrays as
        `read_arrays` takes them.
      classes: (negative, positive); by default as in `class_names`.
      fractions, folds, fold, seed: of splits that are made here, as in `make_splits`.
      split_by: "patient", or the name of a column whose values stay together as well, such as
        "site" or "field".
      synthetic_size: of the synthetic data.
      mpp: microns per pixel of all images, for a source that does not give it; 0: unknown.
      exact_names: patients, slides, sites and classes that are spelt alike are different ones.
      allow_outside: a manifest may list images that lie outside its folder.
      kept: {id: split} of an earlier division of this source: where images are divided here, it
        takes the place of a new division.

    Raises:
      UserError: the source, its classes or its splits are not as described; a name is there in
        several spellings; or a patient, a slide or a value of `split_by` is in two of the given
        splits.
    """
    if not isinstance(source, (str, os.PathLike)):
        check_own_splits("the data given", folds, split_by)
        return read_arrays(source, classes, exact_names=exact_names).with_spacing(mpp)
    if not os.fspath(source):
        raise UserError("data.source is empty; name a folder, a manifest, tfds:NAME or synthetic")
    source = os.fspath(source)
    if source == "synthetic":
        if tuple(classes) not in ((), synthetic.CLASSES):
            raise UserError(
                f"data.classes is {list(classes)}, but the synthetic data has "
                f"{list(synthetic.CLASSES)}"
            )
        check_own_splits("the synthetic data", folds, split_by)
        return synthetic.load(synthetic_size).with_spacing(mpp)
    patches, read, notes = read_source(source, adopts=not kept, allow_outside=allow_outside)
    names, class_notes = class_names({p.label for p in patches}, classes, source, exact=exact_names)
    labels = np.array([names.index(patch.label) for patch in patches], np.int32)
    grouping = grouping_columns(patches, column_name(split_by), source)
    notes += [*class_notes, *check_names(patches, grouping, f"'{source}'", exact=exact_names)]

    persons = patient_column(patches)
    if persons is None:
        notes.append(NO_PATIENTS)
    elif persons == "slide":
        notes.append(SLIDES_ONLY)
    given = {s: np.flatnonzero([patch.split == s for patch in patches]) for s in SPLITS}
    if any(map(len, given.values())):
        check_own_splits(f"'{source}'", folds)
    absent = [split for split in SPLITS if not len(given[split])]
    if len(given["train"]) and absent:
        named = " and no ".join(absent)
        notes.append(f"The source gives no {named} split: its train split is divided.")
    shared = shared_slides_note(patches)
    all_drawn = len(absent) == len(SPLITS)
    drawn = all_drawn or (len(given["train"]) > 0 and bool(absent))
    try:
        splits = given
        if drawn:
            left = np.flatnonzero([patch.split in ("", "train") for patch in patches])
            groups = group_names(patches, grouping)
            parts = [split for split in SPLITS if split in ("train", *absent)]
            if kept:
                made = _kept_splits([patches[i].id for i in left], [groups[i] for i in left], kept)
            else:
                made = make_splits(
                    labels[left],
                    [groups[i] for i in left],
                    fractions,
                    seed,
                    parts=parts,
                    folds=folds,
                    fold=fold,
                    kind=grouping[-1] if len(grouping) > 2 else persons or "file",
                    classes=names,
                )
            splits = given | {split: left[made[split]] for split in parts}
        check_splits(splits, patches, grouping)
        _check_classes_in_splits(splits, labels, names, source)
    except UserError as error:
        of = "By the splits.csv of the run in this folder: " if kept else ""
        raise UserError(" ".join([f"{of}{error}", *shared])) from error
    notes += shared
    notes += divided_columns_notes(splits, patches, grouping)
    if persons:
        notes += numbered_note(patches, persons)
        notes += few_patients_notes(splits, patches, persons, drawn=all_drawn and not folds)

    table = examples_of(patches, read, names)
    train, validation, test = (table.subset(splits[split]) for split in SPLITS)
    if train.weights is not None and not train.weights.any():
        raise UserError(f"All training images of '{source}' have weight 0: give some a weight.")
    if train.weights is not None and train.weights.min() >= _LARGE_WEIGHT:
        notes.append(
            f"The column 'weight' has {train.weights.min():g} to {train.weights.max():g} and "
            "multiplies the loss of each image: if it is a body's weight, call it otherwise."
        )
    divided = DataSplits(
        train, validation, test, classes=names, notes=tuple(notes), drawn=all_drawn
    )
    return divided.with_spacing(mpp)


def read_source(
    source: str, *, adopts: bool = True, allow_outside: bool = False, allowing: str = ""
) -> tuple[list[Patch], Callable[[str], bytes | np.ndarray], list[str]]:
    """What a folder, a manifest, a TFDS data set or "synthetic" (the small embedded data) lists,
    sorted by id and not divided yet; a function that gives the image of an id; and notes. With
    `adopts`, columns of other names may tell the split; `allow_outside` and `allowing` are those of
    `read_manifest`."""
    read: Callable[[str], bytes | np.ndarray]
    if not source:
        raise UserError("the data is an empty path; name a folder, a manifest or tfds:NAME")
    if source == "synthetic":
        return _patches_of(synthetic.load())
    if source.startswith("tfds:"):
        from glomjax.data.sources.tfds import read_tfds  # loads TFDS, which takes seconds

        patches, read, notes = read_tfds(source.removeprefix("tfds:"))
    else:
        patches, read, notes = read_folder(
            pathlib.Path(source), allow_outside=allow_outside, allowing=allowing
        )
    patches = sorted(patches, key=lambda patch: patch.id)
    patches, more = adopt_split(patches, f"'{source}'") if adopts else (patches, [])
    return patches, read, [*notes, *more]


def examples_of(
    patches: Sequence[Patch], read: Callable[[str], bytes | np.ndarray], classes: Sequence[str]
) -> Examples:
    """All patches that a source lists as one table, whose labels are indices of `classes`."""
    persons = patient_column(patches)
    return Examples(
        ids=tuple(patch.id for patch in patches),
        labels=np.array([classes.index(patch.label) for patch in patches], np.int32),
        read=lambda i: read(patches[i].id),
        patients=None if persons is None else tuple(getattr(p, persons) for p in patches),
        patient_column=persons or "patient",
        columns=further_columns(patches),
        weights=_numbers(patches, "weight", np.float32),
        mpp=_numbers(patches, "mpp", np.float64),
    )


def check_own_splits(source: str, folds: int, split_by: str = "patient") -> None:
    """Raises UserError where other splits are asked for than those that a source has."""
    if folds or split_by != "patient":
        asked = f"data.folds is {folds}" if folds else f"data.split_by is {split_by!r}"
        raise UserError(
            f"{asked}, but {source} has splits of its own, which are kept; do not ask for others, "
            "or bring the data without them."
        )


def _patches_of(
    splits: DataSplits,
) -> tuple[list[Patch], Callable[[str], bytes | np.ndarray], list[str]]:
    """As `read_source` gives them, of data that is divided."""
    patches, places = [], {}
    for split in SPLITS:
        part = splits[split]
        for i, name in enumerate(part.ids):
            patient = "" if part.patients is None else part.patients[i]
            patches.append(Patch(name, splits.classes[part.labels[i]], split, patient))
            places[name] = part, i

    def read(name: str) -> bytes | np.ndarray:
        part, i = places[name]
        return part.read(i)

    return sorted(patches, key=lambda patch: patch.id), read, list(splits.notes)


def _kept_splits(
    ids: Sequence[str], groups: Sequence[str], kept: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """The splits of an earlier division, as indices. An image that it left out, since it could not
    be read, goes where its patient is, so that it leaks nothing if it has come back."""
    if not any(name in kept for name in ids):
        raise UserError(
            f"none of these images, such as '{ids[0]}', is listed there: they are other data, or "
            "their files have other names."
        )
    of_group = {group: kept[i] for i, group in zip(ids, groups, strict=True) if i in kept}
    named = [
        kept.get(i, of_group.get(group, "train")) for i, group in zip(ids, groups, strict=True)
    ]
    return {split: np.flatnonzero([name == split for name in named]) for split in SPLITS}


def _check_classes_in_splits(
    splits: dict[str, np.ndarray], labels: np.ndarray, names: Sequence[str], source: str
) -> None:
    for split, rows in splits.items():
        for c, name in enumerate(names):
            if not (labels[rows] == c).any():
                raise UserError(
                    f"The {split} split of '{source}' has no image of class '{name}', so it cannot "
                    f"be learnt from or judged: add some."
                )


def further_columns(patches: Sequence[Patch]) -> dict[str, tuple[str, ...]]:
    """What a source gives of its patches besides label, split, patient and numbers."""
    columns = {name: tuple(getattr(p, name) for p in patches) for name in ("slide", "site")}
    for name in patches[0].further:
        columns[name] = tuple(patch.further.get(name, "") for patch in patches)
    return {name: cells for name, cells in columns.items() if any(cells)}


def _numbers(patches: Sequence[Patch], name: str, dtype: type) -> np.ndarray | None:
    values = [getattr(patch, name) for patch in patches]
    return None if any(value is None for value in values) else np.array(values, dtype)
