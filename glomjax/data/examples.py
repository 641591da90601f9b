"""What every data source hands to the pipeline: a random-access table of labelled images."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence

import numpy as np

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Examples:
    """A random-access table of labelled images; nothing is decoded until `read` is called.

    Attributes:
      ids: one stable name per example (a path relative to the source, or `split/number`).
      labels: int32 [N], indices into the classes of the data set.
      read: gives example i as encoded bytes (PNG, JPEG, ...) or as a uint8 array [H, W, 3].
      patients: one name per example, or None where the source knows no patients.
    """

    ids: tuple[str, ...]
    labels: np.ndarray
    read: Callable[[int], bytes | np.ndarray]
    patients: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Examples":
        """The examples at `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Examples(
            ids=tuple(self.ids[i] for i in chosen),
            labels=self.labels[chosen],
            read=lambda i: self.read(int(chosen[i])),
            patients=None if self.patients is None else tuple(self.patients[i] for i in chosen),
        )


@dataclasses.dataclass(frozen=True)
class DataSplits:
    """The three splits of a data set, its class names and what the user must be told about it.

    Attributes:
      train, validation, test: the examples of each split.
      classes: class names; for two classes (negative, positive).
      notes: one sentence each, printed at the start of a run and stored with its results.
      content: a hash of the pixels, where the ids do not name files that say what they are.
    """

    train: Examples
    validation: Examples
    test: Examples
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    content: str = ""

    def __getitem__(self, split: str) -> Examples:
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]

    def digest(self) -> str:
        """What identifies the data of a run: classes and each split's ids, labels and patients."""
        parts = [
            [part.ids, part.labels.tolist(), part.patients]
            for part in (self.train, self.validation, self.test)
        ]
        text = json.dumps([self.classes, parts, self.content])
        return hashlib.sha256(text.encode()).hexdigest()
