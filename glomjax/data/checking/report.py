"""What a check has found, as sentences and tables."""

import collections
import dataclasses
import pathlib
import shutil
from collections.abc import Iterable, Sequence

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from glomjax.data.checking.measuring import STATISTICS, TESTED, Images, Statistic
from glomjax.data.examples import SPLITS, Examples
from glomjax.errors import plural, printable

NO_SPLIT = "(no split)"
_VALUES_LISTED = 10
_PATIENTS_LISTED = 30


@dataclasses.dataclass(frozen=True)
class Finding:
    """What the user is told."""

    level: str  # "error" (training refuses the source), "warning" or "note"
    topic: str  # "source", "unreadable", "duplicates", "stain", "confounding", "nesting", "spacing"
    text: str


@dataclasses.dataclass(frozen=True)
class ColumnCheck:
    """How far a column of the source, or a property of the files, goes with the class."""

    name: str
    values: int
    one_class_values: int  # that occur with one class alone
    one_class_patches: tuple[int, ...]  # for each class its patches with such values
    cramers_v: float  # association from 0 to 1
    p_value: float  # of V, by permutation
    one_class_p_value: float  # of the difference between the classes in `one_class_patches`


@dataclasses.dataclass(frozen=True)
class StatisticCheck:
    """How far a statistic of the pixels goes with a class, and whether the tissue may be why.

    The correlation is, over groups of images, between the share of the class and the mean rank
    among patches of one class. The tissue is the same, so a difference comes from elsewhere.
    """

    statistic: Statistic
    positive: str  # the class that is compared with the others
    means: tuple[float, float]  # of the other classes and of this one
    auroc: float  # of the statistic for this class
    within: str  # the column of patients, or else of other groups; "" if there is none
    auroc_within: float  # over pairs of images of one such group, NaN if there are none
    column: str  # whose correlation is the least likely; "" if shares of the class vary in none
    correlation: float
    p_value: float  # by permutation of the groups, corrected for the number of tests


@dataclasses.dataclass
class Report:
    """What `check_data` has found; where the source cannot be listed, the findings alone."""

    source: str
    classes: tuple[str, ...] = ()  # for two classes (negative, positive)
    examples: Examples | None = None
    splits: tuple[str, ...] = ()  # of each example
    images: Images | None = None  # those that can be read
    findings: list[Finding] = dataclasses.field(default_factory=list)  # errors first, then warnings
    exact_duplicates: list[tuple[str, ...]] = dataclasses.field(default_factory=list)  # ids
    # (id, id, bits that differ), in different splits, the nearest first
    near_duplicates: list[tuple[str, str, int]] = dataclasses.field(default_factory=list)
    columns: list[ColumnCheck] = dataclasses.field(default_factory=list)
    statistics: list[StatisticCheck] = dataclasses.field(default_factory=list)
    sheets: list[pathlib.Path] = dataclasses.field(default_factory=list)

    @property
    def accepted(self) -> bool:
        """Whether training would take the source."""
        return not self.of_level("error")

    def add(self, level: str, topic: str, text: str) -> None:
        self.findings.append(Finding(level, topic, printable(text)))

    def of_level(self, level: str, topic: str = "") -> list[str]:
        """The texts of the findings of one level, and of one topic where it is given."""
        return [f.text for f in self.findings if f.level == level and topic in ("", f.topic)]

    def text(self) -> str:
        """All of it; the last line says whether training would start."""
        blocks = [f"source: {printable(self.source)}"]
        if self.images is not None:
            blocks[0] += f"\nseen by the network: {self.images.seen_as}"
        names = [printable(name) for name in self.classes]
        if len(names) == 2:
            blocks[0] += f"\nclasses: negative '{names[0]}', positive '{names[1]}'"
        elif names:
            blocks[0] += f"\nclasses: {', '.join(names)}"
        if self.examples is not None:
            blocks.append(_split_table(self.examples, self.splits, self.classes))
        if self.images is not None:
            blocks += [_property_table(self.images), *_stain_tables(self.images)]
        if self.columns:
            blocks.append(_column_table(self.columns, self.classes))
        if self.statistics:
            blocks.append(_statistic_table(self.statistics))
        for level in ("note", "warning", "error"):
            if texts := self.of_level(level):
                blocks.append("\n".join(f"{level.upper()}: {text}" for text in texts))
        if self.sheets:
            blocks.append("\n".join(f"sheet: {path}" for path in self.sheets))
        errors, warnings = len(self.of_level("error")), len(self.of_level("warning"))
        refused = f"refuses this source: {errors} error(s)," if errors else "accepts this source:"
        return "\n\n".join([*blocks, f"Training {refused} {warnings} warning(s)."])


def joined(parts: Sequence[str]) -> str:
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0]


def small(value: float) -> str:
    """A p-value."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def in_order(splits: Iterable[str]) -> list[str]:
    there = set(splits)
    return [split for split in (*SPLITS, NO_SPLIT) if split in there]


def _table(
    title: str,
    header: Sequence[str],
    rows: Iterable[Sequence[object]],
    left: int = 1,
    legend: Sequence[str] = (),
) -> str:
    """Plain text; the first `left` columns are text, the others are numbers; `legend` says what
    columns mean."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for n, heading in enumerate(header):
        name = printable(heading)
        table.add_column(name, justify="left" if n < left else "right", no_wrap=n < left)
    for row in rows:
        table.add_row(*map(printable, row))
    width = max(shutil.get_terminal_size((120, 24)).columns, 100)
    # In a notebook Rich would also show an empty output for each table, were it not told otherwise.
    console = Console(
        width=width, color_system=None, markup=False, emoji=False, force_jupyter=False
    )
    with console.capture() as captured:
        console.print(table)
    lines = [line.rstrip() for line in captured.get().rstrip().splitlines()]
    return "\n".join([title, "", *lines, *([""] if legend else []), *legend])


def _split_table(examples: Examples, splits: Sequence[str], classes: Sequence[str]) -> str:
    """Those that cannot be read are counted, too."""
    rows = []
    for split in [*in_order(splits), "all"]:
        mine = [i for i, name in enumerate(splits) if split in (name, "all")]
        counts = np.bincount(examples.labels[mine], minlength=len(classes))
        patients = [len({examples.patients[i] for i in mine})] if examples.patients else []
        rows.append([split, len(mine), *counts, *patients])
    header = ["split", "images", *classes, *(["patients"] if examples.patients else [])]
    return _table("Splits", header, rows)


def _property_table(images: Images) -> str:
    rows = [
        (name, value or "(empty)", n)
        for name, cells in images.properties.items()
        for value, n in collections.Counter(cells.tolist()).most_common(_VALUES_LISTED)
    ]
    return _table("Files", ["property", "value", "images"], rows, left=2)


def _stain_tables(images: Images) -> list[str]:
    """Of the splits, and of the patients whose stain lies farthest from the median, in units of the
    middle half."""
    headings = [statistic.name for statistic in STATISTICS]

    def texts(means: np.ndarray) -> list[str]:
        return [statistic.text(mean) for statistic, mean in zip(STATISTICS, means, strict=True)]

    def means(groups: np.ndarray, names: Iterable[str]) -> np.ndarray:
        return np.stack([images.statistics[groups == name].mean(axis=0) for name in names])

    splits = in_order(images.splits)
    by_split = means(images.splits, splits)
    rows = [[split, *texts(mean)] for split, mean in zip(splits, by_split, strict=True)]
    legend = [f"  {statistic.name}: {statistic.meaning}" for statistic in STATISTICS]
    tables = [_table("Stain by split (means)", ["split", *headings], rows, legend=legend)]
    if images.patients is None:
        return tables
    names, first, counts = np.unique(images.patients, return_index=True, return_counts=True)
    of_patient = means(images.patients, names)
    low, middle, high = np.percentile(of_patient, (25, 50, 75), axis=0)
    apart = np.abs(of_patient - middle) / np.maximum(high - low, 1e-9)
    order = apart[:, TESTED].max(axis=1).argsort(kind="stable")[::-1][:_PATIENTS_LISTED]
    rows = [
        [names[p], images.splits[first[p]], str(counts[p]), *texts(of_patient[p])] for p in order
    ]
    title = "Stain by patient (means), the most unusual first"
    title += f"; {len(order)} of {len(names)}" if len(order) < len(names) else ""
    return [*tables, _table(title, ["patient", "split", "images", *headings], rows, left=2)]


def _column_table(checks: Sequence[ColumnCheck], classes: Sequence[str]) -> str:
    header = ["property", "values", "with one class", *(f"their {c}" for c in classes)]
    rows = [
        [
            *(check.name, check.values, check.one_class_values, *check.one_class_patches),
            *(f"{check.cramers_v:.2f}", small(check.p_value), small(check.one_class_p_value)),
        ]
        for check in checks
    ]
    title = "Does the class go with anything besides the tissue?"
    legend = [
        "  values: how many there are; with one class: how many of them occur with one class alone",
        f"  their {classes[0]}, ...: images of a class that have such a value",
        "  V: Cramér's V of property and class, 0 not at all, 1 entirely",
        "  p of V, p of one class: how often chance does as much, patients kept whole",
    ]
    return _table(title, [*header, "V", "p of V", "p of one class"], rows, legend=legend)


def _statistic_table(checks: Sequence[StatisticCheck]) -> str:
    within, grouped = checks[0].within, any(check.column for check in checks)
    header = ["statistic", "class", "others' mean", "its mean", "AUROC"]
    header += [f"within {plural(within)}"] if within else []
    header += ["between", "correlation", "p"] if grouped else []
    rows = []
    for check in checks:
        row = [check.statistic.name, check.positive, *map(check.statistic.text, check.means)]
        row.append(f"{check.auroc:.2f}")
        if within:
            row.append("" if np.isnan(check.auroc_within) else f"{check.auroc_within:.2f}")
        if grouped:
            row += [check.column, f"{check.correlation:+.2f}", small(check.p_value)]
        rows.append(row)
    legend = ["  AUROC: of the statistic for the class; 0.5 no difference, 0 or 1 entirely"]
    if within:
        legend.append(f"  within {plural(within)}: the same over pairs of images of one {within}")
    if grouped:
        legend += [
            "  between, correlation: over the values of this column, of the share of the class",
            "  with the statistic among images of one class, which have the same tissue",
            "  p: how often chance does as much, corrected for the number of tests",
        ]
    return _table("Pixels of the classes", header, rows, left=2, legend=legend)
