"""Labels that say nothing: a run on them shows what a network reaches without learning tissue."""

import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np

from glomjax.data.examples import DataSplits
from glomjax.errors import assignment

PERMUTED_LABELS = (
    "The network was trained on permuted labels: this is what a control reaches that can learn "
    "nothing of the tissue, and no result."
)


def permute_labels(splits: DataSplits, seed: int) -> DataSplits:
    """The same data set with the labels of train and validation permuted and a note that says so;
    the test keeps its own, by which a network that has learnt nothing has an AUROC near 0.5.

    What it reaches beyond that comes from what patients look like, whose shares of the classes stay
    as they are where patients have several.

    Args:
      seed: of the permutation, which depends on nothing else besides the examples.
    """
    changed = total = 0
    parts = {}
    for split in ("train", "validation"):
        part = splits[split]
        labels = permute_within(part.labels, part.patients, zlib.crc32(f"{seed}/{split}".encode()))
        changed, total = changed + int((labels != part.labels).sum()), total + len(labels)
        parts[split] = dataclasses.replace(part, labels=labels)
    note = (
        f"The labels of the training and validation images are permuted within patients, as "
        f"{assignment('data.permute_labels', True)} says ({changed} of {total} have another one): "
        "the network is a control that can learn nothing of the tissue, and its AUROC on the test, "
        "which keeps its own labels, should be near 0.5."
    )
    return dataclasses.replace(
        splits,
        train=parts["train"],
        validation=parts["validation"],
        notes=(*splits.notes, note),
        permuted=True,
    )


def permute_within(labels: np.ndarray, patients: Sequence[str] | None, seed: int) -> np.ndarray:
    """Labels [N] of which each patient's images have swapped theirs; patients with one class have
    swapped theirs with one another, as wholes. Without patients all images swap theirs."""
    rng = np.random.default_rng(seed)
    if patients is None:
        return rng.permutation(labels)
    names, patient = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    permuted = labels.copy()
    whole: list[np.ndarray] = []  # the images of each patient with one class
    for number in range(len(names)):
        rows = np.flatnonzero(patient == number)
        if len(set(labels[rows].tolist())) == 1:
            whole.append(rows)
        else:
            permuted[rows] = rng.permutation(labels[rows])
    theirs = rng.permutation([labels[rows[0]] for rows in whole])
    for rows, label in zip(whole, theirs, strict=True):
        permuted[rows] = label
    return permuted
