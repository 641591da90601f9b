"""Trained networks judged on labelled images that they come across elsewhere.

    print(evaluate(load_classifier("runs/davit"), "other_hospital", "evaluation").text)

The numbers are those of a run's own test. Beforehand it is asked what no metric tells: whether the
networks have seen these patients or images, whether their classes are these, and whether the images
are at the spacing that they know.
"""

import collections
import dataclasses
import json
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import glomjax
from glomjax.data.examples import Examples
from glomjax.environment import ENVIRONMENT, Usage, describe_environment
from glomjax.errors import UserError, argument, plural, printable
from glomjax.evaluation.controls import (
    compare_with_controls,
    control_message,
    controls_line,
    fit_controls_in_folds,
)
from glomjax.evaluation.looks import DIGEST, images_digest, looks_beside, looks_line
from glomjax.evaluation.metrics import check_prevalence, metrics_of_network
from glomjax.evaluation.report import (
    estimates_lines,
    patients_line,
    summary_line,
    write_report,
)
from glomjax.files import new_folder, write_file
from glomjax.inference.classifier import Classifier
from glomjax.inference.images import stream_examples
from glomjax.inference.labelled import LabelledData, read_labelled
from glomjax.inference.leaks import Seen, doubts, find_seen, records_of
from glomjax.inference.prediction_table import UNLIKE
from glomjax.inference.resemblance import false_alarms, summary, without_rule
from glomjax.pretrained.spec import TrainingRecord
from glomjax.report import REPORTS
from glomjax.report.page import make_report
from glomjax.report.patches import worst_patches

REPORT = "report.txt"
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What came of it.

    Attributes:
      metrics: as in `test_metrics.json`.
      text: the report, whose first line says what nobody may overlook.
      looks: a line on how often these images were judged, as far as the folders beside tell.
    """

    metrics: dict[str, Any]
    text: str
    looks: str


def evaluate(
    classifier: Classifier,
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    split: str = "",
    rename: Sequence[tuple[str, str]] = (),
    allow_seen: bool = False,
    skip_unreadable: bool = False,
    exact_names: bool = False,
    allow_outside: bool = False,
    mpp: float | None = None,
    prevalence: float | None = None,
    report: str = "full",
    progress: bool = False,
) -> Evaluation:
    """Predicts labelled images and writes `test_metrics.json`, `predictions.csv`, `report.txt` and
    `environment.json`, and the pages in `report`.

    Args:
      classifier: one network or an ensemble.
      source: a folder, a manifest, `tfds:NAME` or `synthetic`, as in training.
      out: a folder for the files, new or empty.
      split: of the source that is judged; "" for all of it.
      rename: pairs of a class of the data and the network's class that it is.
      allow_seen: judge also on what the networks were trained or validated on, and say so.
      skip_unreadable: leave out images that cannot be read, and say so.
      exact_names, allow_outside: as in `load_source`.
      mpp: microns per pixel of all images, where the source does not give it.
      prevalence: of two classes, the share of positives where the network is to be used, for which
        PPV and NPV are also given.
      report: "full", "plain" without the saliency of patches, or "none" without pages.
      progress: show rate and time left on standard error.

    Raises:
      UserError: whatever the user can put right: an output folder with files in it, unknown
        classes, images that cannot be read, what the networks have seen, a spacing that is not
        theirs.
    """
    usage = Usage()
    check_prevalence(prevalence, classifier.classes)
    if report not in REPORTS:
        raise UserError(f"{argument('--report')} is {report!r}; it is {' or '.join(REPORTS)}")
    folder = new_folder(out)
    data = read_labelled(
        classifier.specs,
        source,
        split=split,
        rename=rename,
        skip_unreadable=skip_unreadable,
        exact_names=exact_names,
        allow_outside=allow_outside,
        mpp=mpp,
    )
    examples, notes = data.examples, list(data.notes)
    records = records_of(classifier.specs)
    seen = find_seen(records, examples, data.hashes)
    if seen and not allow_seen:
        rest = f" (such as its test split, {argument('--split', 'test')})" if data.divided else ""
        raise UserError(
            f"the network {seen.verb} part of this data: {seen.describe()}; judge it on "
            f"others{rest}, or, if it is meant so, give {argument('--allow-seen', True)}, which "
            "the report then says"
        )
    notes += doubts(records or [TrainingRecord(initial_weights="unpublished")], examples)

    parts = list(classifier.iterate(stream_examples(examples), progress=progress))
    if problems := [why for part in parts for why in part.problems.values()]:
        raise UserError(
            f"{len(problems)} images could be read at first and cannot be now, so that nothing is "
            f"written; {problems[0]}"
        )
    unlike = {name: why for part in parts for name, why in part.unlike.items()}
    if text := summary(collections.Counter(unlike.values()), len(examples)):
        alarms = false_alarms(classifier.specs)
        notes.append(f"{text}{f'; {alarms}' if alarms else ''}.")
    if text := without_rule(classifier.specs):
        notes.append(f"{text[0].upper()}{text[1:]}.")
    logits = np.concatenate([part.logits for part in parts])
    metrics = metrics_of_network(
        examples.labels,
        logits,
        classifier.classes,
        groups=examples.patients,
        threshold=classifier.threshold,
        prevalence=prevalence,
        kind=examples.patient_column,
    )
    metrics["clustered_by"] = None if examples.patients is None else examples.patient_column
    if len(classifier.classes) == 2:
        metrics |= {
            "threshold": classifier.threshold,
            "threshold_rule": classifier.threshold_rule,
        }
    metrics["prevalence"] = prevalence
    if prevalence is not None:
        notes.append(f"PPV and NPV 'at prevalence' are for a share of positives of {prevalence:g}.")
    metrics |= _about(classifier, data, seen, notes) | {"unlike_training": len(unlike)}
    metrics |= _controls(data, logits, classifier.classes)
    text = _report(classifier, metrics, seen)
    columns = dict(examples.columns)
    if examples.mpp is not None:
        columns["mpp"] = tuple(map(repr, examples.mpp.tolist()))
    columns[UNLIKE] = tuple("; ".join(unlike.get(name, ())) for name in examples.ids)
    write_file(folder / REPORT, f"{text}\n".encode())
    environment = describe_environment(classifier.specs[0].precision) | usage.to_dict()
    write_file(folder / ENVIRONMENT, f"{json.dumps(environment, indent=2)}\n".encode())
    write_report(
        folder,
        metrics=metrics,
        ids=examples.ids,
        labels=examples.labels,
        logits=logits,
        classes=classifier.classes,
        patients=examples.real_patients,
        columns=columns,
        threshold=classifier.threshold,
    )
    if report != "none":
        try:
            _write_pages(folder, classifier, examples, logits, saliency=report == "full")
        except UserError as error:  # the results are there, whatever becomes of the pages
            _LOG.warning("the report is not complete: %s", error)
    # Beside the results, which are the same in every folder.
    return Evaluation(metrics, text, looks_line(1, looks_beside(folder, metrics[DIGEST])))


def _write_pages(
    folder: pathlib.Path,
    classifier: Classifier,
    examples: Examples,
    logits: np.ndarray,
    *,
    saliency: bool,
) -> None:
    kept = worst_patches(
        examples,
        logits,
        classifier.threshold,
        classifier if saliency else None,
        decode=classifier.spec.preprocessing.open,
    )
    for name, content in kept.items():
        write_file(folder / name, content)
    make_report(folder)


def _about(
    classifier: Classifier, data: LabelledData, seen: Seen, notes: Sequence[str]
) -> dict[str, Any]:
    """What the metrics are of."""
    return {
        "data": data.source,
        "split": data.split,
        "patients": None if (names := data.examples.patients) is None else len(set(names)),
        "unreadable": data.unreadable,
        "networks": [
            {
                "architecture": spec.architecture,
                "sha256": checksum,
                "test_time_augmentation": spec.symmetries,
                "device_batch": spec.device_batch,
                "temperature": spec.temperature,
                "threshold": spec.threshold,
            }
            for spec, checksum in zip(classifier.specs, classifier.checksums, strict=True)
        ],
        "seen_in_training": seen.to_dict() if seen else None,
        "notes": list(notes),
        "glomjax_version": glomjax.__version__,
    }


def _controls(data: LabelledData, logits: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """What negative controls reach on these images, and which they are."""
    examples = data.examples
    patients, kind = examples.patients, examples.patient_column
    fitted, how = fit_controls_in_folds(
        data.facts.features(), examples.labels, patients, len(classes), kind=kind
    )
    compared = compare_with_controls(examples.labels, logits, fitted, classes, patients, kind=kind)
    return {
        "controls": compared,
        "controls_fitted": how,
        "control_message": control_message(compared),
        DIGEST: images_digest(data.hashes),
    }


def _report(classifier: Classifier, metrics: Mapping[str, Any], seen: Seen) -> str:
    lines = []
    if seen:
        lines.append(
            f"THE NETWORK {seen.verb.upper()} PART OF THIS DATA, and then this is no estimate for "
            f"others: {seen.describe()}."
        )
    if message := metrics["control_message"]:
        lines.append(message)
    networks = ", ".join(
        f"{network['architecture']} ({network['sha256'][:12]})" for network in metrics["networks"]
    )
    kind = "network" if len(classifier.specs) == 1 else "ensemble"
    patients = ""
    if metrics["patients"] is not None:
        patients = f" of {metrics['patients']} {plural(metrics['clustered_by'])}"
    counts = [
        f"{sum(row)} {name}"
        for name, row in zip(metrics["classes"], metrics["confusion_matrix"], strict=True)
    ]
    part = "" if metrics["split"] == "all" else f", split {metrics['split']}"
    lines += [
        f"{kind}: {networks}",
        f"data: '{metrics['data']}'{part}: {metrics['n']} images{patients} ({', '.join(counts)})",
        *(f"note: {note}" for note in metrics["notes"]),
    ]
    if reason := metrics["collapsed_reason"]:
        lines.append(f"note: {reason}")
    lines.append(summary_line(metrics, "result"))
    lines.append(controls_line(metrics["controls"], metrics["controls_fitted"]))
    if line := patients_line(metrics):
        lines.append(line)
    lines += ["", *estimates_lines(metrics)]
    if "sensitivity" in metrics:
        lines.append(f"({classifier.positive_from})")
    return "\n".join(map(printable, lines))
