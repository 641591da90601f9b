"""Where the facts of a result are, for whoever makes sentences of them; any may be missing."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from glomjax.data.examples import SPLITS
from glomjax.data.identities import is_missing
from glomjax.errors import excerpt, plural

Facts = Mapping[str, Any]
MOST_VALUES = 10  # of a column that are listed


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
    people = "" if any(map(is_missing, patients)) else f" of {len(patients)} patients"
    return f"{len(rows)} patches{people}"


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
