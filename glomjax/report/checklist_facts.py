"""Where the facts of a result are, for whoever makes sentences of them; any may be missing."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from glomjax.data.examples import SPLITS
from glomjax.data.identities import is_missing
from glomjax.errors import excerpt, plural

Facts = Mapping[str, Any]
MOST_VALUES = 10  # of a column that are listed
# Of a table of splits, which say nothing further of an image.
_OWN_COLUMNS = ("path", "label", "label_before", "split", "patient")


def get(facts: Facts, *path: str) -> Any:
    """What lies at a path, `config` below `effective`; None where something on it is missing."""
    found: Any = {**facts, "config": config_of(facts)}
    for name in path:
        if not isinstance(found, Mapping):
            return None
        found = found.get(name)
    return found


def config_of(facts: Facts) -> Mapping[str, Any]:
    """The settings that took effect."""
    config = facts.get("config") or {}
    return config.get("effective") or config


def environment_of(facts: Facts) -> Mapping[str, Any]:
    """On what something ran; of a cross-validation the first of the environments of its folds."""
    found = facts.get("environment") or {}
    return next(iter(found.get("environments") or ()), found)


def judged(facts: Facts) -> Mapping[str, Any]:
    """What holds counts and metrics of the patches that were judged: of a cross-validation its
    first repeat."""
    metrics = facts.get("metrics") or {}
    repeats = (metrics.get("pooled_recalibrated") or {}).get("repeats")
    return repeats[0] if repeats else metrics


def estimates_of(facts: Facts) -> Mapping[str, Mapping[str, Any]]:
    """{metric: its value and interval}; of a cross-validation the pooled ones."""
    metrics = facts.get("metrics") or {}
    pooled = metrics.get("pooled_recalibrated") or {}
    return facts.get("estimates") or metrics.get("estimates") or pooled.get("estimates") or {}


def split_rows(facts: Facts) -> Sequence[Mapping[str, str]]:
    """Of the table of splits."""
    return facts.get("splits") or ()


def split_counts(facts: Facts) -> dict[str, int]:
    """{split: patches}, of those that there are."""
    counts = collections.Counter(row.get("split") or "" for row in split_rows(facts))
    return {split: counts[split] for split in SPLITS if counts[split]}


def split_summaries(facts: Facts) -> list[dict[str, Any]]:
    """Of each split that there is: `split`, `images`, `patients` (None where they are not all
    known), `classes` {name: images}."""
    found = []
    for split in split_counts(facts):
        part = [row for row in split_rows(facts) if row.get("split") == split]
        patients = {row.get("patient") or "" for row in part}
        found.append(
            {
                "split": split,
                "images": len(part),
                "patients": None if any(map(is_missing, patients)) else len(patients),
                "classes": dict(collections.Counter(row.get("label") or "" for row in part)),
            }
        )
    return found


def column_counts(facts: Facts, most: int) -> list[tuple[str, list[tuple[str, dict[str, int]]]]]:
    """[(column, [(value, {split: images of it})])] of what else the data say of the images of the
    splits, such as stains and sites; columns with more than `most` values are left out."""
    rows, splits = split_rows(facts), list(split_counts(facts))
    found = []
    for column in rows[0] if rows else ():
        values = sorted({row.get(column) or "" for row in rows})
        if column in _OWN_COLUMNS or not 2 <= len(values) <= most:
            continue
        counts = collections.Counter((row.get(column) or "", row.get("split")) for row in rows)
        found.append(
            (
                column,
                [(value, {split: counts[value, split] for split in splits}) for value in values],
            )
        )
    return found


def later_training(config: Mapping[str, Any]) -> str:
    """What is added to how a run begins where more of the network trains later; "" where not."""
    later = config["freeze"].get("unfreeze")
    return f" at first, and more later (epoch:regime {', '.join(later)})" if later else ""


def classes_of(facts: Facts) -> str:
    """The names of the classes, as a choice."""
    names = get(facts, "metrics", "classes") or sorted(
        {r.get("label") or "" for r in split_rows(facts)}
    )
    return " or ".join(excerpt(name, 40) for name in names if name)


def counted(facts: Facts) -> str:
    """How many patches of how many patients, of the splits or else of what was judged; "" where
    that is not known."""
    if rows := split_rows(facts):
        return patches_of(rows)
    n, kind = judged(facts).get("n"), get(facts, "metrics", "clustered_by")
    clusters = get(facts, "metrics", "clusters") or get(facts, "metrics", "patients")
    if not n:
        return ""
    return f"{n} patches" + (f" of {clusters} {plural(kind)}" if kind and clusters else "")


def patches_of(rows: Sequence[Mapping[str, str]]) -> str:
    """How many patches of how many patients, where these are known."""
    patients = {row.get("patient") or "" for row in rows}
    return size_text(len(rows), None if any(map(is_missing, patients)) else len(patients))


def size_text(images: int, patients: int | None) -> str:
    """So many patches of so many patients, where these are known."""
    return f"{images} patches" + ("" if patients is None else f" of {patients} patients")


def seen(facts: Facts) -> str:
    """Whether an evaluation's networks had seen its patches; its notes say what could not be
    compared."""
    metrics = facts.get("metrics") or {}
    if "seen_in_training" not in metrics:
        return ""
    if metrics["seen_in_training"]:
        return "Part of these patches, or their patients, were seen in training or validation."
    return "As far as could be compared, the networks have not seen these patches or patients."


def listed(names: Sequence[str]) -> str:
    """Names as a sentence lists them."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
