"""What every data source hands to the pipeline: a random-access table of labelled images."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from glomjax.errors import UserError, printable
from glomjax.files import csv_text

SPLITS = ("train", "validation", "test")
_TABLES = {"weight": "weights", "mpp": "mpp"}  # the column of a manifest: the attribute


@dataclasses.dataclass(frozen=True)
class Examples:
    """A random-access table of labelled images; nothing is decoded until `read` is called.

    Attributes:
      ids: one stable name per example (a path relative to the source, or `split/number`).
      labels: int32 [N], indices into the classes of the data set.
      read: gives example i as encoded bytes (PNG, JPEG, ...) or as a uint8 array [H, W, 3].
      patients: one name per example, or None where the source knows no patients.
      patient_column: the column of the source that names them: `slide` where slides stand in for
        patients.
      columns: what else the source gives, one text per example: `slide`, `site`, `stain`, ...
      weights: float32 [N], factors of the training loss, or None where all are 1.
      mpp: float64 [N], microns per pixel of each image as it is stored, or None where unknown.
    """

    ids: tuple[str, ...]
    labels: np.ndarray
    read: Callable[[int], bytes | np.ndarray]
    patients: tuple[str, ...] | None = None
    patient_column: str = "patient"
    columns: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    weights: np.ndarray | None = None
    mpp: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def real_patients(self) -> tuple[str, ...] | None:
        """The patients, None where they are not known or slides stand in for them."""
        return self.patients if self.patient_column == "patient" else None

    def clusters(self, split_by: str = "patient") -> tuple[tuple[str, ...] | None, str]:
        """(the cluster of each example, what it is called): the patients, or, where images were
        divided by a wider column, what that holds together; None where nothing is known.

        Args:
          split_by: the column by which images were divided, as `columns` calls it.
        """
        if split_by in ("patient", "slide") or split_by not in self.columns:
            return self.patients, self.patient_column
        return join_clusters(self.patients, self.columns[split_by]), split_by

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Examples":
        """The examples at `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Examples(
            ids=tuple(self.ids[i] for i in chosen),
            labels=self.labels[chosen],
            read=lambda i: self.read(int(chosen[i])),
            patients=None if self.patients is None else tuple(self.patients[i] for i in chosen),
            patient_column=self.patient_column,
            columns={name: tuple(cells[i] for i in chosen) for name, cells in self.columns.items()},
            weights=None if self.weights is None else self.weights[chosen],
            mpp=None if self.mpp is None else self.mpp[chosen],
        )


def join_clusters(patients: Sequence[str] | None, wider: Sequence[str]) -> tuple[str, ...]:
    """What a column wider than patients holds together, one name per example: its values, where a
    patient in two of them links these."""
    first: dict[str, str] = {}
    joined: dict[str, str] = {}

    def root(name: str) -> str:
        while joined.get(name, name) != name:
            name = joined[name]
        return name

    for patient, name in zip(patients or wider, wider, strict=True):
        joined[root(name)] = root(first.setdefault(patient, name))
    return tuple(map(root, wider))


@dataclasses.dataclass(frozen=True)
class DataSplits:
    """The three splits of a data set, its class names and what the user must be told about it.

    Attributes:
      train: the examples by which the weights change.
      validation: those by which a run chooses its epoch and its decision.
      test: those on which it is judged.
      classes: class names; for two classes (negative, positive).
      notes: one sentence each, printed at the start of a run and stored with its results.
      content: a hash of the pixels, once they have been read.
      permuted: whether the labels of train and validation are not their own; see `permute_labels`.
      drawn: whether all splits were made here, so that folds can take their place.
    """

    train: Examples
    validation: Examples
    test: Examples
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    content: str = ""
    permuted: bool = False
    drawn: bool = False

    def __getitem__(self, split: str) -> Examples:
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]

    def map(self, change: Callable[[Examples], Examples]) -> "DataSplits":
        """The same data set with each split changed."""
        train, validation, test = (change(self[split]) for split in SPLITS)
        return dataclasses.replace(self, train=train, validation=validation, test=test)

    def with_spacing(self, mpp: float) -> "DataSplits":
        """The same data set with one spacing for all images, in microns per pixel; 0 changes none.

        Raises:
          UserError: the source gives the spacing of each image itself.
        """
        if not mpp:
            return self
        if self.train.mpp is not None:
            raise UserError(
                f"data.mpp is {mpp}, but the data gives the spacing of each image itself; leave "
                "data.mpp at 0"
            )
        return self.map(
            lambda part: dataclasses.replace(part, mpp=np.full(len(part), mpp, np.float64))
        )

    def describe(self) -> list[str]:
        """Lines on the classes, which of them is positive, and the splits."""
        names = [printable(name) for name in self.classes]
        if len(self.classes) == 2:
            lines = [f"classes: negative {self.classes[0]!r}, positive {self.classes[1]!r}"]
        else:
            lines = [f"classes: {', '.join(names)}"]
        for split in SPLITS:
            part = self[split]
            counts = np.bincount(part.labels, minlength=len(self.classes))
            named = ", ".join(f"{n} {name}" for n, name in zip(counts, names, strict=True))
            patients = "" if part.patients is None else f" of {len(set(part.patients))} patients"
            lines.append(f"{split}: {len(part)} images{patients} ({named})")
        weights = self.train.weights
        if weights is not None:
            low, mean, high = weights.min(), weights.mean(), weights.max()
            lines.append(f"weights of training images: {low:g} to {high:g}, mean {mean:.4g}")
        return lines

    def to_csv(self) -> str:
        """Who is in which split, as a manifest: ids as paths, and all that the source gives."""
        columns = self.train.columns
        patients = self.train.real_patients is not None
        numbers = [n for n in ("weight", "mpp") if getattr(self.train, _TABLES[n]) is not None]
        # Nobody shall take permuted labels for those of the images.
        label = "permuted_label" if self.permuted else "label"
        rows = [["path", label, "split", *(["patient"] if patients else []), *columns, *numbers]]
        for split in SPLITS:
            part = self[split]
            for i, (name, number) in enumerate(zip(part.ids, part.labels, strict=True)):
                row = [name, self.classes[number], split]
                row += [part.patients[i]] if patients and part.patients else []
                row += [cells[i] for cells in part.columns.values()]
                row += [repr(float(getattr(part, _TABLES[n])[i])) for n in numbers]
                rows.append(row)
        return csv_text(rows)

    def digest(self) -> str:
        """What identifies the data of a run: the classes, and of each split's examples the ids,
        labels, patients and, where the source has them, weights and spacings."""
        parts = [
            [part.ids, part.labels.tolist(), part.patients]
            + [[n, a.tolist()] for n in ("weights", "mpp") if (a := getattr(part, n)) is not None]
            for part in (self.train, self.validation, self.test)
        ]
        text = json.dumps([self.classes, parts, self.content])
        return hashlib.sha256(text.encode()).hexdigest()
