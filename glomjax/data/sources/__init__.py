"""The data set that a source names: its classes, its patients and its splits."""

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from glomjax.data import synthetic
from glomjax.data.examples import SPLITS, DataSplits, Examples
from glomjax.data.sources.arrays import NO_PATIENTS, ArraySplits, read_arrays
from glomjax.data.sources.folder import read_folder
from glomjax.data.sources.manifest import Patch
from glomjax.data.splits import check_group_overlap, make_splits
from glomjax.errors import UserError

POSITIVE_CLASS = "glomerulus"
SPLIT_BY = ("patient", "site")
SLIDES_ONLY = (
    "No patient column: slides stand in for patients, so slides of one patient may fall into "
    "several splits."
)


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
    kept: Mapping[str, str] | None = None,
) -> DataSplits:
    """Lists the labelled images of a source and divides them; no image is opened yet.

    Splits that the source gives (folders, the `split` column, the splits of a TFDS data set) are
    kept; if there is no validation or no test split, it is made from the train split. Otherwise
    splits are made by patient, or by slide where there are no patients, or by file where there are
    neither; patients that share a slide stay together. Examples are sorted by id.

    Args:
      source: "synthetic", "tfds:NAME", the path of a folder or a manifest, or arrays as
        `read_arrays` takes them.
      classes: (negative, positive); by default the sorted names, except that `glomerulus` is the
        positive one of two.
      fractions, folds, fold, seed: of splits that are made here, as in `make_splits`.
      split_by: "patient", or "site" to keep whole sites together.
      synthetic_size: of the synthetic data.
      mpp: microns per pixel of all images, for a source that does not give it; 0: unknown.
      kept: {id: split} of an earlier division of this source: where images are divided here, it
        takes the place of a new division.

    Raises:
      UserError: the source, its classes or its splits are not as described; a patient, a slide or,
        with `split_by="site"`, a site is in two of the given splits.
    """
    if isinstance(source, Mapping):
        check_own_splits("the data given", folds, split_by)
        return read_arrays(source, classes).with_spacing(mpp)
    if not os.fspath(source):
        raise UserError("data.source is empty; name a folder, a manifest, tfds:NAME or synthetic")
    if split_by not in SPLIT_BY:
        raise UserError(f"data.split_by is {split_by!r}; choose one of {', '.join(SPLIT_BY)}")
    source = os.fspath(source)
    if source == "synthetic":
        if tuple(classes) not in ((), synthetic.CLASSES):
            raise UserError(
                f"data.classes is {list(classes)}, but the synthetic data has "
                f"{list(synthetic.CLASSES)}"
            )
        check_own_splits("the synthetic data", folds, split_by)
        return synthetic.load(synthetic_size).with_spacing(mpp)
    read: Callable[[str], bytes | np.ndarray]
    if source.startswith("tfds:"):
        from glomjax.data.sources.tfds import read_tfds  # loads TFDS, which takes seconds

        patches, read, notes = read_tfds(source.removeprefix("tfds:"))
    else:
        patches, read, notes = read_folder(pathlib.Path(source))
    patches = sorted(patches, key=lambda patch: patch.id)
    names = _class_names({patch.label for patch in patches}, classes, source)
    labels = np.array([names.index(patch.label) for patch in patches], np.int32)

    patient_column = _find_patient_column(patches)
    if patient_column is None:
        notes.append(NO_PATIENTS)
    elif patient_column == "slide":
        notes.append(SLIDES_ONLY)
    if split_by == "site" and not all(patch.site for patch in patches):
        raise UserError(
            f"data.split_by is 'site', but '{source}' does not give the site of every image: fill "
            f"in a 'site' column, or split by patient."
        )
    grouping = ("patient", "slide", "site") if split_by == "site" else ("patient", "slide")
    given = {s: np.flatnonzero([patch.split == s for patch in patches]) for s in SPLITS}
    if any(map(len, given.values())):
        check_own_splits(f"'{source}'", folds)
    absent = [split for split in SPLITS if not len(given[split])]
    if len(given["train"]) and absent:
        named = " and no ".join(absent)
        notes.append(f"The source gives no {named} split: its train split is divided.")
    shared = _shared_slides(patches)
    try:
        splits = given
        if len(absent) == len(SPLITS) or (len(given["train"]) and absent):
            left = np.flatnonzero([patch.split in ("", "train") for patch in patches])
            groups = _groups(patches, grouping)
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
                    kind="site" if split_by == "site" else patient_column or "file",
                    classes=names,
                )
            splits = given | {split: left[made[split]] for split in parts}
        _check_splits(splits, patches, grouping)
    except UserError as error:
        of = "By the splits.csv of the run that goes on here: " if kept else ""
        raise UserError(" ".join([f"{of}{error}", *shared])) from error
    notes += shared
    _check_classes_in_splits(splits, labels, names, source)

    table = Examples(
        ids=tuple(patch.id for patch in patches),
        labels=labels,
        read=lambda i: read(patches[i].id),
        patients=None
        if patient_column is None
        else tuple(getattr(p, patient_column) for p in patches),
        columns=further_columns(patches),
        weights=_numbers(patches, "weight", np.float32),
        mpp=_numbers(patches, "mpp", np.float64),
    )
    train, validation, test = (table.subset(splits[split]) for split in SPLITS)
    if train.weights is not None and not train.weights.any():
        raise UserError(f"All training images of '{source}' have weight 0: give some a weight.")
    divided = DataSplits(train, validation, test, classes=names, notes=tuple(notes))
    return divided.with_spacing(mpp)


def check_own_splits(source: str, folds: int, split_by: str = "patient") -> None:
    """Raises UserError where other splits are asked for than those that a source has."""
    if folds or split_by != "patient":
        asked = f"data.folds is {folds}" if folds else f"data.split_by is {split_by!r}"
        raise UserError(f"{asked}, but {source} has splits of its own, which are kept.")


def _class_names(found: set[str], classes: Sequence[str], source: str) -> tuple[str, ...]:
    names = sorted(found)
    if classes and sorted(classes) != names:
        raise UserError(
            f"data.classes is {list(classes)}, but '{source}' has {names}: give just these, the "
            f"positive one last."
        )
    if len({name.casefold() for name in names}) < len(names):
        raise UserError(f"'{source}' has classes that differ in case alone: {names}; rename one.")
    if len(names) < 2:
        raise UserError(f"'{source}' has the class {names} alone: at least two are needed.")
    return tuple(classes or ordered_classes(found))


def ordered_classes(found: set[str]) -> list[str]:
    """Sorted names, except that `glomerulus` is the last, the positive one, of two."""
    names = sorted(found)
    if len(names) == 2:
        names.sort(key=lambda name: name.lower() == POSITIVE_CLASS)  # stable
    return names


def _find_patient_column(patches: Sequence[Patch]) -> str | None:
    """Which column names the patients: slides stand in where there is no better."""
    for column in ("patient", "slide"):
        if all(getattr(patch, column) for patch in patches):
            return column
    return None


def _check_splits(
    splits: Mapping[str, np.ndarray], patches: Sequence[Patch], grouping: Sequence[str]
) -> None:
    """Raises UserError where two splits share one of the grouping columns."""
    for kind in grouping:
        told = {s: [getattr(patches[i], kind) for i in rows] for s, rows in splits.items()}
        check_group_overlap({s: [name for name in told[s] if name] for s in told}, kind)


def _kept_splits(
    ids: Sequence[str], groups: Sequence[str], kept: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """The splits of an earlier division, as indices. An image that it left out, since it could not
    be read, goes where its patient is, so that it leaks nothing if it has come back."""
    of_group = {group: kept[i] for i, group in zip(ids, groups, strict=True) if i in kept}
    named = [
        kept.get(i, of_group.get(group, "train")) for i, group in zip(ids, groups, strict=True)
    ]
    return {split: np.flatnonzero([name == split for name in named]) for split in SPLITS}


def _shared_slides(patches: Sequence[Patch]) -> list[str]:
    """A note where patients share slides, perhaps by numbers that each patient has anew."""
    patients: dict[str, set[str]] = {}
    for patch in patches:
        if patch.slide and patch.patient:
            patients.setdefault(patch.slide, set()).add(patch.patient)
    shared = [slide for slide in sorted(patients) if len(patients[slide]) > 1]
    if not shared:
        return []
    return [
        f"{len(shared)} slide(s) hold several patients, for example '{shared[0]}' "
        f"{len(patients[shared[0]])}, who stay together: if these are different slides, put the "
        f"patient in front of their names."
    ]


def _groups(patches: Sequence[Patch], grouping: Sequence[str]) -> list[str]:
    """The group of each patch: those that share a name in one of the grouping columns, or are
    linked by others that do, stay together. A group has the name of one of its patients, slides or
    sites, or the id of a patch that has none of them."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(member: tuple[str, str]) -> tuple[str, str]:
        while parent.setdefault(member, member) != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member

    rows = [[(kind, n) for kind in grouping if (n := getattr(patch, kind))] for patch in patches]
    for row in rows:
        for member in row[1:]:
            first, second = sorted((root(row[0]), root(member)))
            parent[second] = first
    return [root(row[0])[1] if row else p.id for row, p in zip(rows, patches, strict=True)]


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
