"""What must stay together when images are divided: patients, slides, sites, and what looks so."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from glomjax.data.identities import (
    check_spellings,
    in_several_spellings,
    normal_form,
    spelt_alike,
)
from glomjax.data.sources.manifest import Patch
from glomjax.data.splits import check_group_overlap
from glomjax.errors import (
    UserError,
    assignment,
    cross_validation,
    plural,
    quoted,
    shown,
)

NAMED = ("patient", "slide", "site")
SLIDES_ONLY = (
    "No patient column: slides stand in for patients, so slides of one patient may fall into "
    "several splits."
)
# A column with at least so many values, of at most so many images (or slides) each on average,
# looks like what belongs together (fields, blocks), and not like a property (stain, subtype).
_LEAST_VALUES, _MOST_MEMBERS = 5, 20
# By these names it is so with fewer values, and with any number of members.
_TOGETHER = re.compile(
    "field|fov|region|roi|block|section|biopsy|core|specimen|sample|scan|animal|mouse|kidney|folder"
    "|patient|case"
)
_MOST_VALUES = 1000  # of a column that is looked through for spellings; others number images
_FEW_PATIENTS = 2
_FOLDS = 5
_FEW = {
    "validation": "few to decide when training stops and which weights are kept",
    "test": "too few to tell how far the result holds for others",
}


def value_of(patch: Patch, column: str) -> str:
    """The cell of any column of a patch."""
    return getattr(patch, column) if column in NAMED else patch.further.get(column, "")


def patient_column(patches: Sequence[Patch]) -> str | None:
    """Which column names the patients: slides stand in where there is no better."""
    for column in ("patient", "slide"):
        if all(getattr(patch, column) for patch in patches):
            return column
    return None


def grouping_columns(patches: Sequence[Patch], split_by: str, source: str) -> tuple[str, ...]:
    """The columns whose values no two splits share.

    Raises:
      UserError: `split_by` is no column, or not filled for every image.
    """
    if split_by == "patient":
        return "patient", "slide"
    if not all(value_of(patch, split_by) for patch in patches):
        there = [*NAMED, *patches[0].further]
        known = [name for name in there if all(value_of(patch, name) for patch in patches)]
        has = f"columns for every image are {quoted(known)}" if known else "no column tells it all"
        column = shown(split_by)
        raise UserError(
            f"data.split_by is {column}, but '{source}' does not give the {column} of every image "
            f"({has}): fill in a column {column}, or split by another one."
        )
    return "patient", "slide", *([split_by] if split_by != "slide" else [])


def check_names(
    patches: Sequence[Patch],
    grouping: Sequence[str],
    where: str,
    *,
    exact: bool,
    keeping: str = "",
) -> list[str]:
    """Notes on names that are spelt alike; further columns are not refused for it.

    Raises:
      UserError: a patient, a slide, a site or a group by which images are divided is there in two
        spellings, unless they are `exact`.
    """
    notes = []
    for column in dict.fromkeys([*NAMED, *grouping]):
        names = [value_of(patch, column) for patch in patches]
        notes.append(check_spellings(names, column, where, exact=exact, keeping=keeping))
    for column in patches[0].further:
        values = {value_of(patch, column) for patch in patches}
        if column in grouping or len(values) > _MOST_VALUES:
            continue
        if alike := spelt_alike(values, column):
            notes.append(f"{where} has {in_several_spellings(alike, column)}.")
    return [note for note in notes if note]


def check_splits(
    splits: Mapping[str, np.ndarray], patches: Sequence[Patch], grouping: Sequence[str]
) -> None:
    """Raises UserError where two splits share one of the grouping columns."""
    for column in grouping:
        told = {s: [value_of(patches[i], column) for i in rows] for s, rows in splits.items()}
        check_group_overlap({s: [name for name in told[s] if name] for s in told}, column)


def group_names(patches: Sequence[Patch], grouping: Sequence[str]) -> list[str]:
    """The group of each patch: those that share a name in one of the grouping columns, or are
    linked by others that do, stay together. A group has the name of one of its patients, slides or
    sites, or the id of a patch that has none of them."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(member: tuple[str, str]) -> tuple[str, str]:
        while parent.setdefault(member, member) != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member

    rows = [[(kind, n) for kind in grouping if (n := value_of(patch, kind))] for patch in patches]
    for row in rows:
        for member in row[1:]:
            first, second = sorted((root(row[0]), root(member)))
            parent[second] = first
    return [root(row[0])[1] if row else p.id for row, p in zip(rows, patches, strict=True)]


def shared_slides_note(patches: Sequence[Patch]) -> list[str]:
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


def divided_columns_notes(
    splits: Mapping[str, np.ndarray], patches: Sequence[Patch], grouping: Sequence[str]
) -> list[str]:
    """Notes on columns that look like what belongs together and lie in several splits. Where
    patients are known they say what belongs together, and there is none."""
    if any(patch.patient for patch in patches):
        return []
    units = group_names(patches, grouping)
    split_of = {int(i): split for split, rows in splits.items() for i in rows}
    notes = []
    for column in patches[0].further:
        cells = [value_of(patch, column) for patch in patches]
        if column in grouping or any(map(_is_fraction, cells)):
            continue
        form = {cell: normal_form(cell) if cell else "" for cell in set(cells)}
        cells = [form[cell] for cell in cells]
        members = Counter(value for value, _ in {*zip(cells, units, strict=True)} if value)
        where: dict[str, set[str]] = {}
        for i, value in enumerate(cells):
            if value:
                where.setdefault(value, set()).add(split_of[i])
        divided = sum(len(parts) > 1 for parts in where.values())
        named = _TOGETHER.search(column) is not None
        many = sum(members.values()) > _MOST_MEMBERS * len(members)
        least = 2 if named and not many else _LEAST_VALUES
        if len(members) < least or (many and not named) or not divided:
            continue
        images = Counter(value for value in cells if value)
        notes.append(
            f"The column '{column}' repeats over images ({len(images)} values, up to "
            f"{max(images.values())} images each), and {divided} of its values lie in several "
            f"splits: if images of one {column} belong together, "
            f"{assignment('data.split_by', column)} keeps them so."
        )
    return notes


def few_patients_notes(
    splits: Mapping[str, np.ndarray], patches: Sequence[Patch], column: str, *, drawn: bool
) -> list[str]:
    """Notes on what a validation or a test split of one or two patients means.

    Args:
      column: of the patients.
      drawn: whether the splits were drawn here, so that folds can take their place.
    """
    notes = []
    for split, meaning in _FEW.items():
        names = {value_of(patches[i], column) for i in splits[split]}
        if len(names) <= _FEW_PATIENTS:
            kind = column if len(names) == 1 else plural(column)
            folds = ""
            if drawn and len({value_of(patch, column) for patch in patches}) >= _FOLDS:
                folds = f"; {cross_validation(_FOLDS)} tests each {column} once"
            notes.append(f"The {split} split has {len(names)} {kind}, {meaning}{folds}.")
    return notes


def numbered_note(patches: Sequence[Patch], column: str) -> list[str]:
    """A note where each image has a patient of its own, as if the column numbered images."""
    if len({value_of(patch, column) for patch in patches}) < len(patches):
        return []
    return [
        f"Each of the {len(patches)} images has a {column} of its own: if the column numbers "
        "images, patches of one patient may fall into several splits."
    ]


def _is_fraction(text: str) -> bool:
    """Whether a cell is a measured number, which belongs to its image alone."""
    try:
        return not float(text.replace(",", ".")).is_integer()
    except (ValueError, OverflowError):
        return False
