"""Trained networks compared on the same images, by the predictions that they left.

    print(compare(["runs/davit", "runs/googlenet"], "comparison").text)

Nothing is predicted anew: `glomjax.inference.saved_predictions` reads runs, evaluations,
cross-validations and tables, and `glomjax.evaluation.comparison` has the numbers.
"""

import dataclasses
import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import glomjax
from glomjax.errors import UserError, argument, first_few, plural, printable, quoted, shown
from glomjax.evaluation.comparison import FEW_PATIENTS, compare_predictions
from glomjax.evaluation.measures import LESS_IS_BETTER, MEASURES
from glomjax.files import jsonable, new_folder, write_file
from glomjax.inference.saved_predictions import SavedPredictions, read_predictions

LEVEL = 0.95
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What came of it.

    Attributes:
      result: as in `comparison.json`.
      text: the report, as in `comparison.txt`.
    """

    result: dict[str, Any]
    text: str


def compare(
    sources: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    patients: str = "",
) -> Comparison:
    """Compares each of the further predictions to the first ones.

    Args:
      sources: finished runs, folders that `evaluate` wrote, cross-validations, or tables of
        predictions, of the same images; the first is the reference. Labels and patients may be
        missing in some of them.
      out: a folder for `comparison.json` and `comparison.txt`, new or empty; None writes nothing.
      patients: a column by which images count together, in place of the patient's.

    Raises:
      UserError: whatever the user can put right: sources without predictions, predictions of
        different images or classes, labels or patients that contradict each other, an output folder
        with files in it.
    """
    names = [os.fspath(source) for source in sources]
    if len(names) < 2 or len(names) > len(_LETTERS):
        raise UserError(
            f"{len(names)} is the number of sources that are named; a comparison takes 2 to "
            f"{len(_LETTERS)}, the reference first"
        )
    places = [os.path.realpath(os.path.expanduser(name)) for name in names]
    if twice := [name for i, name in enumerate(names) if places[i] in places[:i]]:
        raise UserError(f"{quoted(twice)} is named twice; name each source once")
    folder = None if out is None else new_folder(out)
    column = patients or "patient"
    saved = [read_predictions(name, column) for name in names]
    order = _matched(saved)
    labels = _labels(saved, order)
    groups = _groups(saved, order, column)
    first = saved[0]
    if patients and groups is None:
        raise UserError(
            f"no source has a column {patients!r} with names in it for "
            f"{argument('--patients')}; '{first.source}' has {quoted(first.columns)}"
        )
    found = compare_predictions(
        labels,
        [part.logits[rows] for part, rows in zip(saved, order, strict=True)],
        first.classes,
        groups,
        thresholds=[part.threshold for part in saved],
        level=LEVEL,
    )
    settings = _differing(saved)
    counts = np.bincount(labels, minlength=len(first.classes)).tolist()
    result = jsonable(
        {
            "reference": names[0],
            "level": LEVEL,
            "n": len(labels),
            "classes": first.classes,
            "class_counts": dict(zip(first.classes, counts, strict=True)),
            "grouped_by": None if groups is None else column,
            "groups": None if groups is None else len(set(groups)),
            "sources": [
                {"source": part.source, "threshold": part.threshold, **part.about} for part in saved
            ],
            "comparisons": [
                {"source": part.source, **numbers}
                for part, numbers in zip(saved[1:], found, strict=True)
            ],
            "settings": settings,
            "notes": _notes(saved, groups, column),
            "glomjax_version": glomjax.__version__,
        }
    )
    text = _report(result)
    if folder is not None:
        write_file(folder / "comparison.txt", f"{text}\n".encode())
        whole = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False)
        write_file(folder / "comparison.json", f"{whole}\n".encode())
    return Comparison(result, text)


def _matched(saved: Sequence[SavedPredictions]) -> list[np.ndarray]:
    """The rows of each source in the order of the first one's images."""
    first, order = saved[0], []
    for part in saved:
        if part.classes != first.classes:
            raise UserError(
                f"'{first.source}' has the classes {quoted(first.classes)} and '{part.source}' "
                f"{quoted(part.classes)}; compare networks of the same classes in the same order"
            )
        places = {name: i for i, name in enumerate(part.ids)}
        lacking = [name for name in first.ids if name not in places]
        known = set(first.ids)
        further = [name for name in part.ids if name not in known]
        if lacking or further:
            sides = [
                f"{len(odd)} of {len(of.ids)} images of '{of.source}' are not in "
                f"'{to.source}' ({quoted(odd)})"
                for odd, of, to in ((lacking, first, part), (further, part, first))
                if odd
            ]
            raise UserError(
                f"{' and '.join(sides)}; compare predictions of the same images, such as those of "
                "glomjax evaluate of each network on one source"
            )
        order.append(np.array([places[name] for name in first.ids]))
    return order


def _labels(saved: Sequence[SavedPredictions], order: Sequence[np.ndarray]) -> np.ndarray:
    """Class indices [N], in which all sources that have labels agree."""
    classes = saved[0].classes
    labels = _agreed(saved, order, "label", [part.labels for part in saved])
    if labels is None:
        raise UserError(
            "none of the sources has a column 'label'; predict images whose manifest has labels, "
            "or use glomjax evaluate"
        )
    if unknown := sorted(set(labels) - set(classes)):
        raise UserError(
            f"the label {quoted(unknown)} is none of the classes {quoted(classes)} of the "
            "networks; write labels as the networks do"
        )
    return np.array([classes.index(name) for name in labels])


def _groups(
    saved: Sequence[SavedPredictions], order: Sequence[np.ndarray], column: str
) -> tuple[str, ...] | None:
    return _agreed(saved, order, column, [part.groups for part in saved])


def _agreed(
    saved: Sequence[SavedPredictions],
    order: Sequence[np.ndarray],
    what: str,
    cells: Sequence[tuple[str, ...] | None],
) -> tuple[str, ...] | None:
    """What the sources say of each image, in the first one's order; None where none does."""
    said = [
        (part, [own[i] for i in rows])
        for part, own, rows in zip(saved, cells, order, strict=True)
        if own is not None
    ]
    if not said:
        return None
    first, agreed = said[0]
    for part, others in said[1:]:
        if odd := [
            i for i, pair in enumerate(zip(agreed, others, strict=True)) if len({*pair}) > 1
        ]:
            listed = (f"'{saved[0].ids[i]}' {shown(agreed[i])} and {shown(others[i])}" for i in odd)
            raise UserError(
                f"'{first.source}' and '{part.source}' give {len(odd)} of {len(agreed)} images "
                f"another {what}: {first_few(listed)}; compare predictions of the same data"
            )
    return tuple(agreed)


def _differing(saved: Sequence[SavedPredictions]) -> dict[str, list[Any]]:
    """{field: its value in each source} of what differs between the configurations; null where one
    has no such field or no configuration is known."""
    known = [part.settings for part in saved if part.settings]
    keys = sorted({key for settings in known for key in settings if not key.startswith("demo.")})
    return {
        key: [part.settings.get(key) for part in saved]
        for key in keys
        if any(settings.get(key) != known[0].get(key) for settings in known)
    }


def _notes(
    saved: Sequence[SavedPredictions], groups: Sequence[str] | None, column: str
) -> list[str]:
    notes = [note for part in saved for note in part.notes]
    if groups is None:
        slides = all("slide" in part.columns for part in saved)
        way = f"; {argument('--patients', 'slide')} counts slides" if slides else ""
        notes.append(
            "No patient column: intervals and tests take images for independent, and images of one "
            f"patient are not{way}."
        )
    else:
        if column != "patient":
            notes.append(f"Images are grouped by the column '{column}', not by patient.")
        if (count := len(set(groups))) < FEW_PATIENTS:
            notes.append(
                f"Indicative: {count} {plural(column)}. Below {FEW_PATIENTS}, few differences show."
            )
    runs = [part for part in saved if part.about["kind"] == "run"]
    seeds = [part.about.get("seed") for part in runs]
    if len(runs) > 1:
        if len({*map(str, seeds)}) > 1:
            notes.append(
                f"The runs have different seeds ({', '.join(map(str, seeds))}), and what they "
                "differ in by chance alone is part of each difference."
            )
        else:
            notes.append(
                "Each run is one training: intervals count patients, not what another seed would "
                "give."
            )
    for one, two in itertools.combinations([part for part in runs if part.trained_on[0]], 2):
        (kind, mine), (other, theirs) = one.trained_on, two.trained_on
        if kind == other and mine != theirs:
            notes.append(
                f"They were trained on different {kind}s: {len(mine - theirs)} of {len(mine)} of "
                f"'{one.source}' are not those of '{two.source}', and {len(theirs - mine)} of "
                f"{len(theirs)} the other way round, so that a difference may be that of the data."
            )
    for one, two in itertools.combinations(saved, 2):
        if _weights(one) and _weights(one) == _weights(two):
            notes.append(f"'{one.source}' and '{two.source}' are of the same weights.")
    return notes


def _weights(part: SavedPredictions) -> list[str]:
    """The checksums of the networks, empty where they are not known."""
    if "sha256" in part.about:
        return [part.about["sha256"]]
    return [network.get("sha256", "") for network in part.about.get("networks", ())]


def _report(result: Mapping[str, Any]) -> str:
    sources, comparisons = result["sources"], result["comparisons"]
    lines = [f"{_LETTERS[i]}: {_described(source)}" for i, source in enumerate(sources)]
    kinds = plural(result["grouped_by"] or "")
    groups = f" of {result['groups']} {kinds}" if result["groups"] else ""
    counts = ", ".join(f"{count} {name}" for name, count in result["class_counts"].items())
    lines.append(f"{result['n']} images{groups} ({counts})")
    lines += [f"note: {note}" for note in result["notes"]]
    for i, part in enumerate(comparisons, 1):
        lines += ["", *_table(part, _LETTERS[i], several=len(comparisons) > 1)]
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
    facts = [source["kind"]]
    facts += [str(source[key]) for key in ("architecture",) if key in source]
    networks = source.get("networks", [source] if "sha256" in source else [])
    facts += [f"{n.get('architecture', '')} ({str(n.get('sha256'))[:12]})" for n in networks]
    if "sha256" in source:
        del facts[1:-1]
    facts += [f"{key} {source[key]}" for key in ("seed", "epochs") if key in source]
    if source["threshold"] != 0.5:
        facts.append(f"threshold {source['threshold']:g}")
    return f"{source['source']}: {', '.join(facts)}"


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
    lines = ["", f"settings that differ ({', '.join(_LETTERS[:count])}):"]
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
