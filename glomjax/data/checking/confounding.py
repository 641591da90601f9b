"""What goes with the class besides the tissue: columns of the source, properties of the files, and
the looks of patients, slides and other groups."""

import numpy as np

from glomjax.data.checking import association
from glomjax.data.checking.association import auroc, group_sums, permuted, ranks
from glomjax.data.checking.measuring import STATISTICS, TESTED, Images
from glomjax.data.checking.report import ColumnCheck, Report, StatisticCheck, joined, small
from glomjax.errors import plural

# A check that warns of everything is worth nothing. These limits leave the synthetic data quiet,
# where stain says nothing about the class, and tissue with patients that have unequal shares of the
# classes; they point at what a reader of the tables would call an effect.
_SIGNIFICANT = 0.01
_DOUBTFUL = 0.05  # p-values that are corrected for the number of tests
_ASSOCIATED = 0.3  # Cramér's V
_ONE_CLASS = 0.2  # difference of the classes in their shares of patches from one-class groups
TELLING = 0.9  # V or AUROC that need no test: the classes (or splits) hardly overlap


def check_columns(report: Report, images: Images) -> None:
    """Compares the class with the columns of the source and with the properties of the files."""
    of_class = np.eye(len(report.classes))[images.labels]  # [M, C]
    one_class = []
    for name, cells in {**images.columns, **images.properties}.items():
        values, codes = np.unique(cells, return_inverse=True)
        if not 1 < len(values) < 0.9 * len(cells):  # nearly a name for each image
            continue
        if (described := described_class(cells, images.labels)) is not None:
            text = (
                f"The column '{name}' is filled for '{report.classes[described]}' alone: it is "
                "taken for a description of that class."
            )
            report.add("note", "confounding", text)
            continue
        check = check_column(name, codes, of_class, images.patients)
        report.columns.append(check)
        strong = check.cramers_v >= _ASSOCIATED and check.p_value < _SIGNIFICANT
        difference = np.ptp(check.one_class_patches / np.maximum(of_class.sum(axis=0), 1))
        if strong or check.cramers_v >= TELLING:
            counts = group_sums(codes, of_class, len(values))  # [V, C]
            expected = counts.sum(axis=1, keepdims=True) * of_class.mean(axis=0)
            most = np.argsort(-np.abs(counts - expected).sum(axis=1), kind="stable")[:3]
            listed = [
                f"{values[v] or '(empty)'} has "
                + joined([f"{n:.0f} {c}" for n, c in zip(counts[v], report.classes, strict=True)])
                for v in most
            ]
            unless = "" if name in images.properties else ", unless it only names the class"
            text = (
                f"The class goes with the {name} (Cramér's V {check.cramers_v:.2f}): "
                f"{'; '.join(listed)}. A model may learn it in place of the tissue{unless}."
            )
            report.add("warning", "confounding", text)
        elif difference >= _ONE_CLASS and check.one_class_p_value < _SIGNIFICANT:
            one_class.append((difference, check, codes))
    if one_class:
        # Patients, their slides and the fields of these say the same: one warning for all.
        one_class.sort(key=lambda entry: -entry[0])
        _, check, codes = one_class[0]
        text = _one_class_text(report, check, images, [c.name for _, c, _ in one_class[1:]])
        text += _one_class_looks(report, check, images, codes)
        report.add("warning", "confounding", text)


def described_class(cells: np.ndarray, labels: np.ndarray) -> int | None:
    """The class of the filled cells if all that lie outside of it are empty."""
    filled = np.unique(labels[cells != ""])
    return int(filled[0]) if len(filled) == 1 else None


def check_column(
    name: str, codes: np.ndarray, of_class: np.ndarray, patients: np.ndarray | None
) -> ColumnCheck:
    """Compares values with classes.

    Args:
      codes: the value of each image, int [M], all from 0.
      of_class: 1 for the class of each image, float [M, C].
      patients: are permuted as a whole where each has one value; str [M].
    """
    count, totals = int(codes.max()) + 1, of_class.sum(axis=0)
    units, unit_counts = codes, of_class  # [U], [U, C]
    if patients is not None:
        # Patches of a patient are no independent witnesses for a property of the patient.
        _, first, unit = np.unique(patients, return_index=True, return_inverse=True)
        if (codes == codes[first][unit]).all() and len(first) > count:
            units, unit_counts = codes[first], group_sums(unit, of_class, len(first))

    def one_class(table: np.ndarray) -> np.ndarray:  # [V, C] -> bool [V]
        return (table > 0).sum(axis=1) == 1

    def measures(units: np.ndarray) -> np.ndarray:
        table = group_sums(units, unit_counts, count)
        shares = table[one_class(table)].sum(axis=0) / np.maximum(totals, 1)
        return np.array([association.cramers_v(table), np.ptp(shares)])

    (v, _), (p_value, one_class_p_value) = permuted(measures, units)
    table = group_sums(units, unit_counts, count)
    return ColumnCheck(
        name=name,
        values=count,
        one_class_values=int(one_class(table).sum()),
        one_class_patches=tuple(int(n) for n in table[one_class(table)].sum(axis=0)),
        cramers_v=float(v),
        p_value=float(p_value),
        one_class_p_value=float(one_class_p_value),
    )


def _one_class_text(report: Report, check: ColumnCheck, images: Images, others: list[str]) -> str:
    totals = np.bincount(images.labels, minlength=len(report.classes)).tolist()
    held = list(zip(check.one_class_patches, totals, report.classes, strict=True))
    held.sort(key=lambda row: -row[0] / max(row[1], 1))
    parts = [f"{n} of {total} '{name}'" for n, total, name in held]
    same = f" (much the same holds for {joined([plural(o) for o in others])})" if others else ""
    return (
        f"{check.one_class_values} of {check.values} {plural(check.name)} hold one class alone"
        f"{same}, and {joined(parts)} images come from them. Whatever sets such a {check.name} "
        "apart, be it a closer magnification, its light or its stain, gives the class away without "
        "the tissue."
    )


def _one_class_looks(report: Report, check: ColumnCheck, images: Images, codes: np.ndarray) -> str:
    """A sentence if images of one class look different in groups that hold this class alone."""
    most = int(np.argmax(check.one_class_patches))
    mine = images.labels == most
    names, groups = np.unique(codes[mine], return_inverse=True)
    alone = ~np.isin(names, codes[~mine])  # [G]
    if alone.all():
        return ""
    ranked = ranks(images.statistics[mine][:, TESTED])  # [N, K]
    areas, p_values = permuted(lambda alone: auroc(alone[groups], ranked) - 0.5, alone)
    parts = [
        f"{STATISTICS[s].word(area > 0)} (AUROC {0.5 + area:.2f}, p {small(p_value)})"
        for s, area, p_value in zip(TESTED, areas, p_values * len(TESTED), strict=True)
        if p_value < _DOUBTFUL
    ]
    if not parts:
        return ""
    return (
        f" It can be seen: there '{report.classes[most]}' images are {joined(parts)} than in other "
        f"{plural(check.name)}."
    )


def check_statistics(report: Report, images: Images) -> None:
    """Compares the pixels of each class with those of the others, of two classes the second."""
    present = np.unique(images.labels).tolist()
    if len(present) < 2:
        return
    positives = present[1:] if len(present) == 2 else present
    values = images.statistics[:, TESTED]
    groupings = {}
    for name, cells in images.columns.items():
        names, codes = np.unique(cells, return_inverse=True)
        if 4 < len(names) < len(codes):
            groupings[name] = codes
    within = next(iter(groupings), "")
    for positive in positives:
        is_positive = images.labels == positive
        between = {
            name: pair
            for name, codes in groupings.items()
            if (pair := association.between_groups(is_positive, images.labels, values, codes))
        }
        tests = len(between) * len(TESTED) * len(positives)
        areas = auroc(is_positive, ranks(values))
        areas_within = (
            association.auroc_within(is_positive, values, groupings[within]) if within else areas
        )
        for n, s in enumerate(TESTED):
            column = min(between, key=lambda name: between[name][1][n], default="")
            correlation, p_value = (pair[n] for pair in between[column]) if column else (0, 1)
            check = StatisticCheck(
                statistic=STATISTICS[s],
                positive=report.classes[positive],
                means=(float(values[~is_positive, n].mean()), float(values[is_positive, n].mean())),
                auroc=float(areas[n]),
                within=within,
                auroc_within=float(areas_within[n]),
                column=column,
                correlation=float(correlation),
                p_value=min(1.0, float(p_value) * max(tests, 1)),
            )
            report.statistics.append(check)
            if text := _statistic_text(check):
                report.add("warning", "confounding", text)


def _statistic_text(check: StatisticCheck) -> str:
    statistic, (others, own) = check.statistic, check.means
    if max(check.auroc, 1 - check.auroc) >= TELLING:
        return (
            f"'{check.positive}' images are {statistic.word(check.auroc > 0.5)} than the others "
            f"({statistic.name} {statistic.text(own)} and {statistic.text(others)}, AUROC "
            f"{check.auroc:.2f}): one number tells the classes apart. Make sure that it comes from "
            "the tissue, and not from how the images of each class were made."
        )
    if check.p_value < _DOUBTFUL:
        return (
            f"Images from {plural(check.column)} with a larger share of '{check.positive}' are "
            f"{statistic.word(check.correlation > 0)} ({statistic.name}), also when images of one "
            f"class are compared (correlation {check.correlation:+.2f}, p {check.p_value:.2g}): "
            f"what tells the {plural(check.column)} apart, such as stain, light or magnification, "
            "hints at the class."
        )
    return ""
