"""What is in a data source, and what would make a result on it worthless, before any training.

    report = check_data("patches")
    print(report.text())

Every image is read (`measuring`). What is kept of it is a few numbers: its size and format,
two hashes that find copies, and statistics of its colour and texture. From them follow

- errors, for which training refuses the source (`refusals`): images that cannot be read, copies of
  one image in two splits, patients in two splits, mixed spacings, a manifest that is not as
  described;
- warnings: things besides the tissue that tell the classes apart (`confounding`), splits that look
  unlike the training images, two properties that cannot be told apart (`nesting`);
- notes.
"""

import dataclasses
import functools
import itertools
import os
from typing import Any

import numpy as np

from glomjax.data import sources
from glomjax.data.checking.confounding import check_columns, check_statistics
from glomjax.data.checking.measuring import measure
from glomjax.data.checking.nesting import check_nesting, check_splits
from glomjax.data.checking.refusals import (
    check_anomalies,
    check_copies,
    check_overlaps,
    check_spacing,
    check_unreadable,
)
from glomjax.data.checking.report import NO_SPLIT, Finding, Report
from glomjax.data.classes import is_glomerulus
from glomjax.data.examples import SPLITS, DataSplits, Examples
from glomjax.data.preparation import prepare_data
from glomjax.data.stains import several_stains_note
from glomjax.errors import UserError, cross_validation, plural
from glomjax.preprocessing.preprocessing import IMAGENET

__all__ = ["Finding", "Report", "check_data"]

_ENOUGH_PATIENTS = 30  # of which a test split of the usual size has four or five
_FOLDS = 5

_Table = tuple[tuple[str, ...], Examples, tuple[str, ...]]  # classes; examples, split of each


def check_data(
    source: str | os.PathLike[str],
    *,
    image_size: tuple[int, int] = (280, 280),
    resize: str = "stretch",
    target_mpp: float = 0.0,
    bits: int = 0,
    stain: str = "none",
    standardize: bool = False,
    skip_unreadable: bool = False,
    **options: Any,
) -> Report:
    """Reads every image of a source and reports what is in it.

    Args:
      source: as in `load_source`.
      image_size, resize, target_mpp, bits, stain, standardize, skip_unreadable: how training would
        read the images, as in `prepare_data`.
      options: further arguments of `load_source`, such as `classes`.

    Returns:
      The report, whose verdict is that of training with the same arguments. Where `load_source`
      refuses the source, that is its first error, and what can be said about the images
      nevertheless is in it.
    """
    report = Report(os.fspath(source))
    loaded = None
    try:
        loaded = sources.load_source(source, **options)
        for note in loaded.notes:
            report.add("note", "source", note)
        report.classes, report.examples, report.splits = _joined(loaded)
        by_patient = options.get("split_by", "patient") == "patient"
        if loaded.drawn and by_patient and not options.get("folds"):
            _recommend_folds(report)
    except UserError as error:
        report.add("error", "source", str(error))
        try:
            report.classes, report.examples, report.splits = _listed(
                report.source, allow_outside=options.get("allow_outside", False)
            )
        except UserError:
            return report
    preprocessing = dataclasses.replace(
        IMAGENET, resize=resize, target_mpp=target_mpp or None, bits=bits
    )
    images = measure(report.examples, report.splits, image_size, preprocessing)
    check_unreadable(report, images, skipped=skip_unreadable)
    if len(images.examples):
        report.images = images
        check_anomalies(report, images)
        if loaded is not None:
            check_spacing(report, images, target_mpp)
            check_overlaps(report, images)
        for check in (check_copies, check_splits, check_columns, check_statistics, check_nesting):
            check(report, images)
    if (
        loaded is not None
        and report.accepted
        and (stain != "none" or standardize or skip_unreadable)
    ):
        # Whether all images together give what these need, training says itself.
        try:
            prepared = prepare_data(
                loaded,
                image_size,
                resize=resize,
                target_mpp=target_mpp,
                bits=bits,
                stain=stain,
                standardize=standardize,
                skip_unreadable=skip_unreadable,
            )
            if stain != "none":
                statistics = prepared.survey.stains
                if text := several_stains_note(prepared.splits.train, stain, statistics):
                    report.add("warning", "stain", text)
        except UserError as error:
            report.add("error", "images", str(error))
    order = ("error", "warning", "note")
    report.findings.sort(key=lambda finding: order.index(finding.level))  # stable
    return report


def _recommend_folds(report: Report) -> None:
    """A note where a test split would have few patients."""
    assert report.examples is not None
    patients, labels = report.examples.patients, report.examples.labels
    if patients is None or (count := len(set(patients))) >= _ENOUGH_PATIENTS:
        return
    # Each fold needs a patient of each class.
    least = min(
        len({p for p, y in zip(patients, labels, strict=True) if y == c}) for c in {*labels}
    )
    kind = report.examples.patient_column
    report.add(
        "note",
        "source",
        f"There are {count} {plural(kind)}, and a result on the few of a test split says little of "
        f"others; {cross_validation(min(_FOLDS, least))} tests each {kind} once.",
    )


def _joined(splits: DataSplits) -> _Table:
    """All splits as one table."""
    parts = [splits[split] for split in SPLITS]
    reads = [functools.partial(part.read, i) for part in parts for i in range(len(part))]

    def chained(cells: Any) -> tuple[str, ...]:
        return tuple(itertools.chain.from_iterable(cells))

    examples = Examples(
        ids=chained(part.ids for part in parts),
        labels=np.concatenate([part.labels for part in parts]),
        read=lambda i: reads[i](),
        patients=None if parts[0].patients is None else chained(part.patients for part in parts),
        patient_column=parts[0].patient_column,
        columns={name: chained(part.columns[name] for part in parts) for name in parts[0].columns},
        mpp=None if parts[0].mpp is None else np.concatenate([part.mpp for part in parts]),
    )
    split_of = chained([split] * len(part) for split, part in zip(SPLITS, parts, strict=True))
    return splits.classes, examples, split_of


def _listed(source: str, *, allow_outside: bool) -> _Table:
    """What a source lists, whether it can be divided or not."""
    patches, read, _ = sources.read_source(source, allow_outside=allow_outside)
    classes = sorted({patch.label for patch in patches}, key=lambda n: (is_glomerulus(n), n))
    examples = sources.examples_of(patches, read, classes)
    return tuple(classes), examples, tuple(patch.split or NO_SPLIT for patch in patches)
