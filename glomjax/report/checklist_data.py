"""What a result says of its data to the items of reporting guidelines.

Each function takes the facts as `Checklist.answers` has them and gives sentences: "" where these
show nothing; where they lack part of what a sentence needs, it raises LookupError.
"""

import collections
import pathlib

from glomjax.data.identities import is_missing
from glomjax.data.sources.columns import column_name
from glomjax.errors import excerpt, plural
from glomjax.evaluation.report import patients_line
from glomjax.report.checklist_facts import (
    MOST_VALUES,
    Facts,
    classes_of,
    column_counts,
    config_of,
    counted,
    get,
    judged,
    listed,
    seen,
    size_text,
    split_counts,
    split_rows,
    split_summaries,
)


def source(facts: Facts) -> str:
    """What was read, and how much of it."""
    where = get(facts, "config", "data", "source") or get(facts, "metrics", "data")
    if not where:
        return ""
    # The folders above it are nobody's business.
    name = pathlib.PurePath(str(where)).name or str(where)
    text = f"The data source is '{excerpt(name)}'"
    if where == "synthetic":
        size = config_of(facts)["data"]["synthetic_size"]
        text = f"The data are synthetic images that come with the software ('{size}')"
    return f"{text}; {size}." if (size := counted(facts)) else f"{text}."


def preprocessing(facts: Facts) -> str:
    """From a stored image to what the network sees."""
    config = config_of(facts)
    if not (size := config.get("image_size")):
        return ""
    how = {"stretch": "stretched", "pad": "padded with white", "crop": "cropped"}
    resize = how.get(config.get("resize", ""), "brought")
    parts = [f"Images were {resize} to {size[0]} x {size[1]} pixels"]
    if mpp := config.get("target_mpp"):
        parts.append(f"resampled to {mpp:g} microns per pixel")
    stain = config.get("stain_normalization", "none")
    if stain != "none":
        parts.append(f"normalised in stain to the training images' median ({stain})")
    name = config.get("preprocessing") or ""
    pixels = {
        "standardize": "standardised per channel by mean and deviation of the training images",
        "imagenet": "standardised per channel by mean and deviation of ImageNet",
    }.get(name, f"preprocessed by '{name}'" if name else "")
    parts += [pixels] if pixels else []
    return f"{listed(parts)}."


def missing(facts: Facts) -> str:
    """What became of images that could not be read."""
    unreadable = get(facts, "metrics", "unreadable")
    if unreadable:
        return f"{unreadable} images that could not be read were left out."
    skips = get(facts, "config", "data", "skip_unreadable")
    if judged(facts).get("n") and (unreadable == 0 or skips is False):
        return "All images could be read; none was left out for that."
    return "Images that cannot be read are left out, and the notes say how many." if skips else ""


def acquisition(facts: Facts) -> str:
    """What columns of the data say of how images were taken."""
    texts = []
    for column in ("stain", "scanner", "mpp", "magnification", "site"):
        values = sorted({row.get(column) or "" for row in split_rows(facts)} - {""})
        if values:
            names = ", ".join(excerpt(value, 40) for value in values[:MOST_VALUES])
            more = len(values) - MOST_VALUES
            texts.append(f"{column}: {names}" + (f" and {more} more" if more > 0 else ""))
    return f"The data name these ({'; '.join(texts)})." if texts else ""


def partitions(facts: Facts) -> str:
    """Which patches train, validate and test, and how that was settled."""
    data, metrics = get(facts, "config", "data") or {}, facts.get("metrics") or {}
    if facts.get("kind") == "crossval" and metrics.get("folds"):
        repeats = metrics.get("repeats", 1)
        times = f", {repeats} times" if repeats > 1 else ""
        seed = f" by the seed {data['split_seed']}" if "split_seed" in data else ""
        return (
            f"{metrics['folds']} folds{times}{seed}, each once the test split; each network has a "
            "validation split of its own within the rest."
        )
    if facts.get("kind") != "run" or not (counts := split_counts(facts)):
        return ""
    whole = sum(counts.values())
    shares = [f"{split} {n} ({100 * n / whole:.0f}%)" for split, n in counts.items()]
    seed = f", divided with the seed {data['split_seed']}" if "split_seed" in data else ""
    given = " where the data give no splits themselves" if seed else ""
    return f"Patches: {', '.join(shares)}{seed}{given}."


def disjoint(facts: Facts) -> str:
    """Whether a patient is in two splits, counted in the table of splits; of an evaluation, whether
    its patches were seen before."""
    by = column_name(get(facts, "config", "data", "split_by") or "patient")
    if facts.get("kind") == "crossval":
        kind = get(facts, "metrics", "clustered_by")
        return f"All patches of a {kind} are in the same fold of a repeat." if kind else ""
    if facts.get("kind") == "evaluation":
        return seen(facts)
    rows = split_rows(facts)
    if not rows:
        return ""
    # Slides stand in for patients who are not known.
    known = [c for c in ("patient", "slide") if all(not is_missing(r.get(c) or "") for r in rows)]
    column = by if by in rows[0] and by != "patient" else next(iter(known), "patient")
    found: dict[str, set[str]] = collections.defaultdict(set)
    for row in rows:
        found[row.get(column) or ""].add(row.get("split") or "")
    if any(is_missing(name) for name in found):
        return f"Splits are disjoint by image; the {column} is not known of every patch."
    if shared := [name for name, splits in found.items() if len(splits) > 1]:
        return f"{len(shared)} of {len(found)} {plural(column)} are in more than one split."
    return f"No {column} of {len(found)} is in two splits."


def precision(facts: Facts) -> str:
    """What so many patients can tell, and what more of them would."""
    line = patients_line(judged(facts)) if judged(facts).get("patients_needed") else ""
    return f"{line}." if line else ""


def included(facts: Facts) -> str:
    """Patches, patients and classes of each split, or of what was judged."""
    if not split_rows(facts):
        size, prior = counted(facts), judged(facts).get("class_prior") or {}
        shares = [f"{100 * p:.1f}% {excerpt(name, 40)}" for name, p in prior.items()]
        return f"{': '.join(filter(None, [size, ', '.join(shares)]))}." if size else ""
    parts = []
    for part in split_summaries(facts):
        classes = sorted(part["classes"].items())
        of = ", ".join(f"{n} {excerpt(name, 40)}" for name, n in classes)
        parts.append(f"{part['split']}: {size_text(part['images'], part['patients'])} ({of})")
    return f"{'; '.join(parts)}."


def characteristics(facts: Facts) -> str:
    """What else the data say of the patches of each split."""
    texts = []
    for column, values in column_counts(facts, MOST_VALUES):
        parts = []
        for value, counts in values:
            of = ", ".join(f"{n} {split}" for split, n in counts.items() if n)
            parts.append(f"{excerpt(value, 40) or '(empty)'} {of}")
        texts.append(f"{column}: {'; '.join(parts)}")
    return f"Patches by column. {'. '.join(texts)}." if texts else ""


def outcome(facts: Facts) -> str:
    """What is predicted."""
    classes = classes_of(facts)
    positive = judged(facts).get("positive_class")
    which = f", of which {excerpt(positive, 40)} is positive" if positive else ""
    return f"The class of a patch, {classes}{which}, as the data label it." if classes else ""


def differences(facts: Facts) -> str:
    """How the patches that were judged differ from those of the training."""
    unlike, n = get(facts, "metrics", "unlike_training"), get(facts, "metrics", "n")
    if facts.get("kind") != "evaluation" or unlike is None or not n:
        return ""
    return f"{unlike} of {n} patches do not resemble those of the training. {seen(facts)}".strip()
