"""What splits and groups of patients cannot tell: looks and values that training lacks, and two
properties that occur in the same images alone."""

import collections
import itertools
import math
import re

import numpy as np

from glomjax.data.checking.association import auroc, ranks
from glomjax.data.checking.confounding import TELLING, described_class
from glomjax.data.checking.measuring import STATISTICS, TESTED, Images
from glomjax.data.checking.report import Report, in_order, joined
from glomjax.errors import first_few

_BY_CHANCE = 0.01


def check_splits(report: Report, images: Images) -> None:
    """Warns of splits that look unlike the training images, or have values that these lack."""
    training = images.splits == "train"
    if not training.any():
        return
    for split in in_order(images.splits)[1:]:
        mine = images.splits == split
        values = images.statistics[:, TESTED]
        areas = auroc(mine[mine | training], ranks(values[mine | training]))
        here, there = values[mine].mean(axis=0), values[training].mean(axis=0)
        parts = [
            f"{STATISTICS[s].word(areas[n] > 0.5)} ({STATISTICS[s].text(here[n])}, train "
            f"{STATISTICS[s].text(there[n])})"
            for n, s in enumerate(TESTED)
            if max(areas[n], 1 - areas[n]) >= TELLING
        ]
        if parts:
            text = f"The {split} images look unlike the training images: they are {joined(parts)}."
            report.add("warning", "stain", text)
    for name, cells in _coarse_columns(images).items():
        missing = [
            f"'{value}' ({joined(in_order(images.splits[cells == value]))})"
            for value in np.setdiff1d(cells, cells[training]).tolist()
        ]
        if missing:
            text = f"No training image has the {name} {joined(missing)}."
            report.add("warning", "stain", text)


def check_nesting(report: Report, images: Images) -> None:
    """Warns of values of two columns that occur in the same images alone."""
    columns = _coarse_columns(images)
    for first, second in itertools.combinations(sorted(columns), 2):
        if same := _same_images(columns[first], columns[second]):
            listed = first_few([f"{first} '{a}' = {second} '{b}'" for a, b in same])
            text = (
                f"The {first} and the {second} of images cannot be told apart: {listed}. What one "
                "of them does to a result may be the doing of the other."
            )
            report.add("warning", "nesting", text)
    if "site" not in columns and images.patients is not None:
        for name in sorted(columns):
            _check_names(report, name, columns[name], images.patients)


def _coarse_columns(images: Images) -> dict[str, np.ndarray]:
    """The columns that tell groups of patients, such as sites and stains."""
    coarse = {}
    for name, cells in images.columns.items():
        values, codes = np.unique(cells, return_inverse=True)
        if len(values) < 2 or described_class(cells, images.labels) is not None:
            continue
        if images.patients is None:
            enough = len(cells) / len(values) >= 20
        else:
            pairs = set(zip(codes.tolist(), images.patients.tolist(), strict=True))
            enough = bool(np.median(np.bincount([code for code, _ in pairs])) >= 2)
        if enough:
            coarse[name] = cells
    return coarse


def _same_images(first: np.ndarray, second: np.ndarray) -> list[tuple[str, str]]:
    """The pairs of values that occur in exactly the same images."""
    pairs = collections.Counter(zip(first.tolist(), second.tolist(), strict=True))
    ones, twos = collections.Counter(first.tolist()), collections.Counter(second.tolist())
    return [(a, b) for (a, b), n in sorted(pairs.items()) if n == ones[a] == twos[b]]


def _check_names(report: Report, column: str, cells: np.ndarray, patients: np.ndarray) -> None:
    """Warns of values that come from just the patients whose names begin alike: names such as
    I_4_S_1 and TCGA-02-0001 say where a patient comes from."""
    starts = np.array([re.sub(r"[\W_]*\d+\D*$", "", name) for name in patients.tolist()])
    everyone, first = np.unique(patients, return_index=True)
    named = collections.Counter(starts[first].tolist())  # patients of each beginning
    if not 2 <= len(named) <= len(everyone) / 2:
        return
    held = {value: len(np.unique(patients[cells == value])) for value in np.unique(cells).tolist()}
    for value, start in _same_images(cells, starts):
        n = held[value]
        # How often a value of so many patients falls on a group of names by chance.
        tries = list(held.values()).count(n) * list(named.values()).count(n)
        if start and tries / math.comb(len(everyone), n) <= _BY_CHANCE:
            text = (
                f"The {column} '{value}' comes from {n} of {len(everyone)} patients, and these are "
                f"the ones whose names begin with '{start}' (one institution?): what the {column} "
                "does to a result cannot be told from what their origin does."
            )
            report.add("warning", "nesting", text)
