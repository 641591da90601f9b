"""Labelled images that a script has in memory."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from glomjax.data.examples import SPLITS, DataSplits, Examples
from glomjax.data.identities import check_spellings, name_of
from glomjax.data.splits import check_group_overlap
from glomjax.errors import UserError

# (images uint8 [N, H, W, 3], labels int [N]), and one patient's name per image where it is known.
ArraySplits = Mapping[str, tuple[np.ndarray, np.ndarray] | tuple[np.ndarray, np.ndarray, Any]]
NO_PATIENTS = (
    "No patient column: patches of one patient may fall into several splits, so the estimate may "
    "be optimistic."
)


def read_arrays(
    arrays: ArraySplits, classes: Sequence[str] = (), *, exact_names: bool = False
) -> DataSplits:
    """The data set of a script's arrays, which have the splits that they are given in.

    Args:
      arrays: of each of train, validation and test (images uint8 [N, H, W, 3], labels int [N]), or
        with the name of each image's patient as a third: text, bytes or numbers.
      classes: their names; by default the numbers of the labels.
      exact_names: patients that are spelt alike are different ones.

    Raises:
      UserError: arrays of another form, a class without examples in a split, a patient without a
        name, in several spellings or in two splits.
    """
    if not isinstance(arrays, Mapping) or sorted(map(str, arrays)) != sorted(SPLITS):
        given = sorted(map(str, arrays)) if isinstance(arrays, Mapping) else type(arrays).__name__
        raise UserError(f"data has the splits {given}; it needs {', '.join(SPLITS)}")
    parts, pixels, number = {}, hashlib.sha256(), 2
    for split in SPLITS:
        part = arrays[split]
        if not isinstance(part, (tuple, list)) or len(part) not in (2, 3):
            raise UserError(
                f"data[{split!r}] is {type(part).__name__}; give a tuple (images, labels) or "
                "(images, labels, patients)"
            )
        try:
            images, labels = np.asarray(part[0]), np.asarray(part[1])
        except ValueError as error:  # of lists of different lengths
            raise UserError(
                f"data[{split!r}] has images or labels of different shapes; give one array uint8 "
                "[N, H, W, 3] and one of N labels"
            ) from error
        _check_images(images, len(labels) if labels.ndim else 0, split)
        _check_labels(labels, split)
        number = max(number, int(labels.max()) + 1)
        ids = tuple(f"{split}/{i}" for i in range(len(images)))
        patients = _patients(part[2], len(images), split) if len(part) == 3 else None
        parts[split] = Examples(ids, labels.astype(np.int32), images.__getitem__, patients)
        pixels.update(np.ascontiguousarray(images).tobytes())
    there = set().union(*(part.labels.tolist() for part in parts.values()))
    if not classes and number > max(2, len(there)):
        raise UserError(
            f"data has labels up to {number - 1}, but not all whole numbers from 0 to that: they "
            "are positions of classes; number these from 0, or name them in data.classes"
        )
    names = tuple(classes) or tuple(str(c) for c in range(number))
    if number > len(names):
        raise UserError(f"data has the label {number - 1}, but data.classes names {list(names)}")
    notes = [check_spellings(names, "class", "data.classes", exact=exact_names)]
    for split, examples in parts.items():
        if missing := sorted(set(range(len(names))) - set(examples.labels.tolist())):
            raise UserError(f"data[{split!r}] has no example of class {names[missing[0]]!r}")
    without = [split for split in SPLITS if parts[split].patients is None]
    if 0 < len(without) < 3:
        raise UserError(
            f"data[{without[0]!r}] has no patients, but other splits have: give them for all or "
            "for none"
        )
    told = {split: parts[split].patients or () for split in SPLITS}
    everyone = [name for split in SPLITS for name in told[split]]
    notes.append(check_spellings(everyone, "patient", "data", exact=exact_names))
    check_group_overlap(told)
    notes += [NO_PATIENTS] if without else []
    train, validation, test = (parts[split] for split in SPLITS)
    return DataSplits(
        train,
        validation,
        test,
        classes=names,
        notes=tuple(note for note in notes if note),
        content=pixels.hexdigest(),
    )


def _check_images(images: np.ndarray, labels: int, split: str) -> None:
    fits = images.dtype == np.uint8 and images.ndim == 4 and images.shape[-1] == 3
    if not fits or not 0 < len(images) == labels or 0 in images.shape:
        raise UserError(
            f"data[{split!r}] is {images.dtype} {images.shape} with {labels} labels; it must be "
            "uint8 [N, H, W, 3] with N labels, N at least 1"
        )


def _check_labels(labels: np.ndarray, split: str) -> None:
    """Whole numbers from 0 alone: what else could be meant leaves open which class is which."""
    whole = np.issubdtype(labels.dtype, np.integer)
    if labels.ndim == 1 and whole and labels.min() >= 0:
        return
    if labels.ndim == 2 and labels.shape[1] > 1:
        way = "labels.argmax(axis=1) makes them of one column a class"
    elif labels.ndim != 1:
        way = "labels.reshape(-1) makes them of one column"
    elif labels.dtype.kind in "OUS":
        way = "np.unique(labels, return_inverse=True)[1] makes them of names"
    elif whole:
        way = "(labels > 0).astype(int) makes them of -1 and 1"
    else:
        way = "labels.astype(int) makes them of truth values and whole floats"
    some = [repr(value) for value in labels.reshape(-1)[:3].tolist()]
    raise UserError(
        f"data[{split!r}] has labels of {labels.dtype} {list(labels.shape)} ({', '.join(some)}, "
        "...); they must be whole numbers from 0, one per image: the positions of their classes in "
        f"data.classes ({way})"
    )


def _patients(given: Any, count: int, split: str) -> tuple[str, ...]:
    # One by one, since an array of numbers and names would turn all of them into text.
    if isinstance(given, (set, frozenset, Mapping)):
        raise UserError(
            f"data[{split!r}] has patients as {type(given).__name__}, which has no order; give a "
            "list or an array with one for each image"
        )
    values = given.tolist() if hasattr(given, "tolist") else given
    is_one = isinstance(values, (str, bytes)) or not isinstance(values, Iterable)
    values = [values] if is_one else list(values)
    if len(values) != count:
        raise UserError(
            f"data[{split!r}] has {len(values)} patients for {count} images; give one for each"
        )
    if odd := [v for v in values if isinstance(v, Iterable) and not isinstance(v, (str, bytes))]:
        raise UserError(
            f"data[{split!r}] has the patient {odd[0]!r}; give a text or a number per image"
        )
    try:
        names = tuple(map(name_of, values))
    except UserError as error:
        raise UserError(f"data[{split!r}] has a patient that cannot be told: {error}") from error
    if "" in names:
        raise UserError(
            f"data[{split!r}] has the patient '{values[names.index('')]}'; name the patient of "
            "every image, or of none"
        )
    return names
