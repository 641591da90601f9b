"""Labelled images that a script has in memory."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from glomjax.data.examples import SPLITS, DataSplits, Examples
from glomjax.data.splits import check_group_overlap
from glomjax.errors import UserError

# (images uint8 [N, H, W, 3], labels int [N]), and one patient's name per image where it is known.
ArraySplits = Mapping[str, tuple[np.ndarray, np.ndarray] | tuple[np.ndarray, np.ndarray, Any]]
NO_PATIENTS = (
    "No patient column: patches of one patient may fall into several splits, so the estimate may "
    "be optimistic."
)


def read_arrays(arrays: ArraySplits, classes: Sequence[str] = ()) -> DataSplits:
    """The data set of a script's arrays, which have the splits that they are given in.

    Args:
      arrays: of each of train, validation and test (images uint8 [N, H, W, 3], labels int [N]), or
        with the name of each image's patient as a third.
      classes: their names; by default the numbers of the labels.

    Raises:
      UserError: arrays of another form, a class without examples in a split, or a patient in two.
    """
    if sorted(arrays) != sorted(SPLITS):
        raise UserError(f"data has the splits {sorted(arrays)}; it needs {', '.join(SPLITS)}")
    parts, pixels, number = {}, hashlib.sha256(), 2
    for split in SPLITS:
        images, labels, *rest = (np.asarray(part) for part in arrays[split])
        if images.dtype != np.uint8 or images.ndim != 4 or not 0 < len(images) == len(labels):
            raise UserError(
                f"data[{split!r}] is {images.dtype} {images.shape} with {len(labels)} labels; it "
                "must be uint8 [N, H, W, 3] with N labels, N at least 1"
            )
        whole = labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer)
        if not whole or labels.min() < 0:
            raise UserError(
                f"data[{split!r}] has labels of {labels.dtype} {labels.shape} from {labels.min()}; "
                "they must be whole numbers from 0, one per image"
            )
        number = max(number, int(labels.max()) + 1)
        ids = tuple(f"{split}/{i}" for i in range(len(images)))
        if rest and (len(rest) > 1 or rest[0].shape != labels.shape):
            raise UserError(
                f"data[{split!r}] has patients of shape {rest[0].shape}; give (images, labels) or "
                "(images, labels, patients), with one patient per image"
            )
        patients = tuple(str(name) for name in rest[0]) if rest else None
        if patients and (unnamed := {"", "None", "nan", "<NA>"} & set(patients)):
            raise UserError(
                f"data[{split!r}] has the patient {unnamed.pop()!r}; name the patient of every "
                "image, or leave the patients out"
            )
        parts[split] = Examples(ids, labels.astype(np.int32), images.__getitem__, patients)
        pixels.update(np.ascontiguousarray(images).tobytes())
    names = tuple(classes) or tuple(str(c) for c in range(number))
    if number > len(names):
        raise UserError(f"data has the label {number - 1}, but data.classes names {list(names)}")
    for split, part in parts.items():
        if missing := sorted(set(range(len(names))) - set(part.labels.tolist())):
            raise UserError(f"data[{split!r}] has no example of class {names[missing[0]]!r}")
    without = [split for split in SPLITS if parts[split].patients is None]
    if 0 < len(without) < 3:
        raise UserError(
            f"data[{without[0]!r}] has no patients, but other splits have: give them for all or "
            "for none"
        )
    check_group_overlap({split: parts[split].patients or () for split in SPLITS})
    train, validation, test = (parts[split] for split in SPLITS)
    notes, content = (NO_PATIENTS,) if without else (), pixels.hexdigest()
    return DataSplits(train, validation, test, classes=names, notes=notes, content=content)
