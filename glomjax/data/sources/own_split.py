"""The split that a source brings with it, whatever its column is called."""

import dataclasses
from collections.abc import Sequence

from glomjax.data.sources.columns import resembles_split, split_named, tells_fold, tells_split
from glomjax.data.sources.manifest import Patch
from glomjax.errors import UserError, first_few, quoted

_MOST_SPLITS = 6  # with external and held-out ones


def adopt_split(patches: Sequence[Patch], where: str) -> tuple[list[Patch], list[str]]:
    """The patches with the split that a further column of theirs tells, and notes on it.

    A column whose cells are all names of splits is the table's own split. Drawing another one
    would put its test patients into the training split.

    Args:
      where: the source, for messages.

    Raises:
      UserError: such a column is filled in part, contradicts another one or the folders; or its
        name says that it tells splits, and its values are no names of splits.
    """
    patches, given = list(patches), any(patch.split for patch in patches)
    told: dict[str, list[str]] = {}
    notes = []
    for name in sorted({name for patch in patches for name in patch.further}):
        cells = [patch.further.get(name, "") for patch in patches]
        filled = {text for text in cells if text}
        named = {text: split_named(text, abbreviated=True) for text in filled}
        # A column with one word, such as `valid`, says something else.
        parts = set(named.values())
        if "" not in parts and "train" in parts and len(parts) > 1:
            if "" in cells:
                raise UserError(
                    f"{where} has the column '{name}', which names splits, but is empty in "
                    f"{cells.count('')} of {len(cells)} rows: fill it in every row, or remove it."
                )
            told[name] = [named[text] for text in cells]
        elif filled and not given and (tells_split(name, filled) or _looks_like_split(filled)):
            raise UserError(
                f"{where} has the column '{name}' with {quoted(sorted(filled))}, which are not "
                "all names of splits: write train, validation and test into it, or remove it."
            )
        elif filled and not given and tells_fold(name):
            notes.append(
                f"The column '{name}' ({first_few(sorted(filled))}) is not read: the splits are "
                "drawn here; a 'split' column would give them."
            )
    if not told:
        return patches, notes
    splits = {"split": [patch.split for patch in patches]} if given else {}
    first, *others = [*splits, *told]
    every = splits | told
    for name in others:
        if differing := sum(a != b for a, b in zip(every[first], every[name], strict=True)):
            raise UserError(
                f"{where} has two splits that differ in {differing} of {len(patches)} rows, "
                f"'{first}' and '{name}': remove one of these columns."
            )
    if others:
        notes.append(f"{quoted([first, *others])} tell the same split.")
    if not given:
        notes.append(f"The column '{first}' is taken for the split.")
    pairs = zip(patches, every[first], strict=True)
    return [dataclasses.replace(patch, split=split) for patch, split in pairs], notes


def _looks_like_split(values: set[str]) -> bool:
    """Whether values that are not all names of splits look as if they parted the data: one is a
    name of train, or all are words by which people part data."""
    if len(values) > _MOST_SPLITS:
        return False
    return any(split_named(text) == "train" for text in values) or (
        len(values) > 1 and all(map(resembles_split, values))
    )
