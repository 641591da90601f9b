"""The results of a cross-validation as a text for people."""

import math
from collections.abc import Mapping
from typing import Any

from glomjax.data.permuted_labels import PERMUTED_LABELS
from glomjax.errors import argument, plural, printable
from glomjax.evaluation.controls import controls_line
from glomjax.evaluation.report import estimates_lines, patients_line

# Of which metrics the spread between seeds is shown.
_SEEDS = ("auroc", "accuracy", "loss")


def describe(result: Mapping[str, Any]) -> str:
    """The text of the report, given what `metrics.json` holds."""
    kind = result["clustered_by"]
    of = "" if kind is None else f" of {result['clusters']} {plural(kind)}"
    times = "" if result["repeats"] == 1 else f", {result['repeats']} times"
    lines = [f"cross-validation: {result['n']} images{of} in {result['folds']} folds{times}"]
    if message := result["control_message"]:
        lines.insert(0, message)
    if result["permuted_labels"]:
        lines.insert(0, PERMUTED_LABELS)
    lines += [f"note: {note}" for note in result["notes"]]
    lines.append("Each fold, as its network gives it:")
    for fold in result["per_fold"]:
        people = plural("slide" if kind == "slide" else "patient")
        patients = "" if fold["patients"] is None else f"  {people} {fold['patients']}"
        lines.append(
            f"  {fold['folder']}: n {fold['n']}{patients}  loss {_number(fold['loss'], 4)}  "
            f"accuracy {_number(fold['accuracy'])}  AUROC {_number(fold['auroc'])}  "
            f"best epoch {fold['best_epoch']}"
        )
    whole, within = result["pooled_recalibrated"], result["pooled_within_folds"]
    lines.append("Pooled after recalibration:")
    first = whole["repeats"][0]
    table = estimates_lines({**first, "estimates": whole["estimates"]})
    lines += [f"  {line}" for line in table]
    if line := patients_line(first):
        lines.append(f"  {line}")
    lines.append(f"  {whole['about']}")
    lines.append("Pooled by rank within folds:")
    lines.append(f"  AUROC {_number(within['auroc'])}{_spread(within['interval'])}")
    lines.append(f"  {within['about']}")
    how = "in the same folds" if result["controls"] else "the runs of the folds have none"
    lines.append(f"  {controls_line(result['controls'], how)}")
    if patients := result["between_patients"]:
        lines.append(f"Between {plural('patient' if kind is None else kind)}:")
        for name, shown in (("accuracy", "accuracy"), ("auroc", "AUROC within")):
            lines.append(f"  {shown}: {_between(patients[name], plural(kind or 'patient'))}")
        lines.append(f"  {patients['about']}")
    lines.append("Between seeds:")
    if seeds := result["between_repeats"]:
        numbers = [f"{'AUROC' if n == 'auroc' else n} {_number(seeds[n])}" for n in _SEEDS]
        lines += [f"  standard deviation of {', '.join(numbers)}", f"  {seeds['about']}"]
    else:
        lines.append(f"  not known from one repeat; {argument('--repeats', 3)} tells it")
    if result["threshold"] is not None:
        lines.append(
            f"threshold of the ensemble, by the rule {result['threshold_rule']} on these "
            f"predictions: probability {result['threshold']:.3f} after recalibration; sensitivity "
            "and specificity above are at 0.5, for at a threshold that these predictions have "
            "chosen they would flatter"
        )
    return "\n".join(map(printable, lines))


def _number(value: float | None, digits: int = 3) -> str:
    return "undefined" if value is None else f"{value:.{digits}f}"


def _spread(interval: Mapping[str, Any] | None) -> str:
    """An interval behind its number; nothing where a metric has none at all."""
    if interval is None:
        return ""
    if interval["low"] is None or math.isnan(interval["low"]):
        return f" (no interval: {interval['note']})"
    note = f"; {interval['note']}" if interval["note"] else ""
    return f" (95% {interval['low']:.3f} to {interval['high']:.3f}, {interval['method']}{note})"


def _between(found: Mapping[str, Any], kind: str) -> str:
    if not found["patients"]:
        return f"no {kind} have all classes"
    low, high = found["quartiles"]
    worst = ", ".join(
        f"{one['patient']} {one['value']:.3f} (n {one['n']})" for one in found["worst"]
    )
    return (
        f"median {found['median']:.3f}, middle half {low:.3f} to {high:.3f} of "
        f"{found['patients']} {kind}; lowest: {worst}"
    )
