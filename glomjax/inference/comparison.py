"""Trained networks compared on the same images, by the predictions that they left.

    print(compare(["runs/davit", "runs/googlenet"], "comparison").text)

Nothing is predicted anew: `glomjax.inference.saved_predictions` reads runs, evaluations,
cross-validations and tables, and `glomjax.evaluation.comparison` has the numbers.
"""

import dataclasses
import itertools
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

import glomjax
from glomjax.data.examples import join_clusters
from glomjax.data.identities import is_missing, normal_form
from glomjax.data.sources.columns import column_name
from glomjax.errors import UserError, argument, first_few, plural, quoted, shown
from glomjax.evaluation.comparison import compare_predictions
from glomjax.evaluation.intervals import FEW
from glomjax.files import jsonable, new_folder, write_file
from glomjax.inference.comparison_text import LETTERS, report_text
from glomjax.inference.saved_predictions import SavedPredictions, read_predictions

LEVEL = 0.95
_GROUPS = ("patient", "slide")


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
      patients: the column by which images count together; by default the one that split the data
        of the runs, else the patient's, else the slide's.

    Raises:
      UserError: whatever the user can put right: sources without predictions, predictions of
        different images or classes, labels or patients that contradict each other, an output folder
        with files in it.
    """
    # A string is a sequence of letters, and one source.
    named = [sources] if isinstance(sources, str) else sources
    names = [os.fspath(source) for source in named]
    if len(names) < 2 or len(names) > len(LETTERS):
        raise UserError(
            f"{len(names)} is the number of sources that are named; a comparison takes 2 to "
            f"{len(LETTERS)}, the reference first"
        )
    places = [os.path.realpath(os.path.expanduser(name)) for name in names]
    if twice := [name for i, name in enumerate(names) if places[i] in places[:i]]:
        raise UserError(f"{quoted(twice)} is named twice; name each source once")
    folder = None if out is None else new_folder(out)
    saved = [read_predictions(name) for name in names]
    order = _matched(saved)
    labels = _labels(saved, order)
    column, groups = _groups(saved, order, patients)
    first = saved[0]
    found = compare_predictions(
        labels,
        [part.logits[rows] for part, rows in zip(saved, order, strict=True)],
        first.classes,
        groups,
        thresholds=[part.threshold for part in saved],
        kind=column or "patient",
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
            "grouped_by": column or None,
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
    text = report_text(result)
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
    labels = _agreed(saved, order, "label", [part.columns.get("label") for part in saved])
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
    saved: Sequence[SavedPredictions], order: Sequence[np.ndarray], asked: str
) -> tuple[str, tuple[str, ...] | None]:
    """The column by which images count together, and what it says of each [N]; ("", None) where
    there is none.

    By default it is what split the data of the runs; patients, or slides where they stand in.
    """
    known = [part.settings["data.split_by"] for part in saved if "data.split_by" in part.settings]
    split_by = {*map(column_name, known)}
    asked = column_name(asked) if asked else ""
    for column in [asked] if asked else [*(split_by if len(split_by) == 1 else ()), *_GROUPS]:
        names = [_names_in(part, column) for part in saved]
        if (groups := _agreed(saved, order, column, names)) is None:
            continue
        if column not in _GROUPS and not asked:
            patients = _agreed(saved, order, "patient", [_names_in(p, "patient") for p in saved])
            groups = join_clusters(patients, groups)
        return column, groups
    if asked:
        raise UserError(
            f"no source has a column {asked!r} with names in it for "
            f"{argument('--patients')}; '{saved[0].source}' has {quoted(saved[0].columns)}"
        )
    return "", None


def _names_in(part: SavedPredictions, column: str) -> tuple[str, ...] | None:
    """The normal forms of the names in a column; None where it is empty or not there."""
    names = part.columns.get(column, ())
    empty = [name for name, cell in zip(part.ids, names, strict=False) if is_missing(cell)]
    if len(empty) == len(names):
        return None
    if empty:
        raise UserError(
            f"'{part.source}' has no {column} for {len(empty)} of {len(names)} images "
            f"({quoted(empty)}); fill the column in, or count by another one with "
            f"{argument('--patients', 'COLUMN')}"
        )
    return tuple(map(normal_form, names))


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
        notes.append(
            "No patient column: intervals and tests take images for independent, and images of one "
            "patient are not."
        )
    else:
        if column != "patient":
            notes.append(f"{plural(column).capitalize()} stand in for patients.")
        if (count := len(set(groups))) < FEW:
            notes.append(
                f"Indicative: {count} {plural(column)}. Below {FEW}, few differences show."
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
