"""What a comparison says on the terminal, as a table for each of the compared."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from glomjax.errors import plural, printable, shown
from glomjax.evaluation.measures import LESS_IS_BETTER, MEASURES

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # by which the sources are called, the reference first


def report_text(result: Mapping[str, Any]) -> str:
    """The report of a comparison, given what `comparison.json` holds."""
    sources, comparisons = result["sources"], result["comparisons"]
    lines = [f"{LETTERS[i]}: {_described(source)}" for i, source in enumerate(sources)]
    kinds = plural(result["grouped_by"] or "")
    groups = f" of {result['groups']} {kinds}" if result["groups"] else ""
    counts = ", ".join(f"{count} {name}" for name, count in result["class_counts"].items())
    lines.append(f"{result['n']} images{groups} ({counts})")
    lines += [f"note: {note}" for note in result["notes"]]
    for i, part in enumerate(comparisons, 1):
        lines += ["", *_table(part, LETTERS[i], several=len(comparisons) > 1)]
    closing = [
        f"{', '.join(MEASURES[name][0] for name in LESS_IS_BETTER)}: less is better; a calibration "
        "slope is best at 1, an intercept at 0",
        "p: Student's, by the same jackknife as the interval; choose the measure before looking, "
        "for each is a test of its own",
    ]
    if len(comparisons) > 1:
        closing.append(
            f"p Holm: corrected for {len(comparisons)} comparisons to A, each measure by itself"
        )
    lines += ["", *closing, *_settings_lines(result["settings"], len(sources))]
    return "\n".join(map(printable, lines))


def _described(source: Mapping[str, Any]) -> str:
    # A run has one network, whose architecture and checksum are its own.
    networks = source.get("networks") or [source]
    facts = [source["kind"]]
    for network in networks:
        checksum = f"({network['sha256'][:12]})" if network.get("sha256") else ""
        facts.append(f"{network.get('architecture', '')} {checksum}".strip())
    facts += [f"{key} {source[key]}" for key in ("seed", "epochs") if key in source]
    if source["threshold"] != 0.5:
        facts.append(f"threshold {source['threshold']:g}")
    return f"{source['source']}: {', '.join(filter(None, facts))}"


def _table(part: Mapping[str, Any], letter: str, *, several: bool) -> list[str]:
    holm = f"{'p Holm':>8}" if several else ""
    title = f"{letter} minus A"
    lines = [
        f"{title:<24}{'A':>8}{letter:>8}{'difference':>12}   {'95% interval':<20}{'p':>6}{holm}"
    ]
    for name, numbers in part["differences"].items():
        values = f"{_number(numbers['reference']):>8}{_number(numbers['value']):>8}"
        difference = _number(numbers["difference"], "+.3f")
        spread = f"none: {numbers['note']}"
        if numbers["method"] != "none":
            interval = f"{numbers['low']:+.3f} to {numbers['high']:+.3f}"
            spread = f"{interval:<20}{_p(numbers['p']):>6}"
            spread += f"{_p(numbers['p_holm']):>8}" if several else ""
        lines.append(f"{MEASURES[name][0]:<24}{values}{difference:>12}   {spread}")
    test = part["mcnemar"]
    kind = "clustered (Durkalski)" if test["method"] == "clustered" else "exact"
    corrected = f", p Holm {_p(test['p_holm'])}" if several else ""
    note = f"; {test['note']}" if test["note"] else ""
    lines.append(
        f"McNemar, {kind}: right in A alone {test['first_only']}, in {letter} alone "
        f"{test['second_only']}, p {_p(test['p'])}{corrected}{note}"
    )
    return lines


def _settings_lines(settings: Mapping[str, Sequence[Any]], count: int) -> list[str]:
    if not settings:
        return []
    lines = ["", f"settings that differ ({', '.join(LETTERS[:count])}):"]
    return lines + [
        f"  {key}: {' | '.join('not known' if v is None else shown(v) for v in values)}"
        for key, values in settings.items()
    ]


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None or math.isnan(value) else format(value, form)


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"
