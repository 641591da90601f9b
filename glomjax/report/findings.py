"""What came out, as a page shows it: metrics, figures, parts of the images, controls, patches."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from glomjax.errors import plural
from glomjax.evaluation.calibration import predicted_classes
from glomjax.evaluation.label_errors import rank_label_errors
from glomjax.evaluation.logits import probabilities
from glomjax.evaluation.metrics import metrics_of_network
from glomjax.evaluation.report import measure_title
from glomjax.report import curves, figure_tables, figures
from glomjax.report.groups import MAIN_METRICS, GroupTable
from glomjax.report.patches import (
    ERRORS,
    UNCERTAIN,
    KeptPatches,
    Patch,
    least_certain,
    worst_errors,
)
from glomjax.report.result import CROSSVAL, Result
from glomjax.report.tables import interval_text, number

_MOST_IN_FIGURE = 12  # values of a column, each with a line
_MOST_DOUBTFUL = 20  # labels that are listed
_OF_FOLDS = (
    "Each fold has kept those that its own network had most wrong or was least certain of, and "
    "others are not shown. How saliency depends on the weights was looked at in the first fold."
)


def drawn_metrics(result: Result) -> dict[str, Any]:
    """The metrics of the predictions that figures show, as in `test_metrics.json`: those of the
    result, but of a cross-validation with several repeats, whose results are means over these,
    those of the mean of the logits that an image has in them."""
    predictions = result.predictions
    if predictions is None:
        return {}
    if result.kind != CROSSVAL:
        metrics = result.metrics
    elif result.metrics["repeats"] == 1:
        metrics = result.metrics["pooled_recalibrated"]["repeats"][0]
    else:
        metrics = metrics_of_network(
            result.labels,
            predictions.logits,
            predictions.classes,
            result.clusters,
            threshold=predictions.threshold,
            kind=result.metrics["clustered_by"] or "patient",
        )
    return {**metrics, "threshold": predictions.threshold}


def figures_of(result: Result, metrics: Mapping[str, Any]) -> list[Any]:
    """What was judged, each with the interval of its metric.

    Args:
      metrics: as `drawn_metrics` gives them.
    """
    predictions = result.predictions
    if predictions is None:
        return []
    labels, logits, classes = result.labels, predictions.logits, predictions.classes
    threshold = predictions.threshold if len(classes) == 2 else None
    chances = probabilities(logits)  # [N, C]
    decided = predicted_classes(logits, predictions.threshold)
    found = curves.curves_of(labels, logits, metrics)
    two = len(classes) == 2
    macro = metrics["estimates"]
    drawn = [
        curves.roc(found, None if two else macro["auroc"]),
        curves.precision_recall(found, None if two else macro["average_precision"]),
        figure_tables.confusion(
            _confusion(labels, decided, len(classes)), classes, macro, threshold
        ),
        figures.probability_histogram(labels, chances, decided, classes, threshold),
        figures.reliability(
            labels == 1 if two else chances.argmax(axis=1) == labels,
            chances[:, 1] if two else chances.max(axis=1),
            macro,
            outcome=classes[1] if two else "the most probable class",
            groups=result.clusters,
            kind=result.metrics.get("clustered_by") or "patient",
        ),
    ]
    return [Markup(text) for text in drawn]


def _confusion(labels: np.ndarray, decided: np.ndarray, classes: int) -> list[list[int]]:
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, decided), 1)
    return counts.tolist()


def within_lines(result: Result) -> list[str]:
    if result.kind != CROSSVAL:
        return []
    found = result.metrics["pooled_within_folds"]
    interval = interval_text(found["interval"] or {})
    ends = "" if interval == "none" else f" (95% {interval})"
    lines = [f"AUROC within folds: {number(found['auroc'])}{ends}. {found['about']}"]
    if seeds := result.metrics["between_repeats"]:
        lines.append(
            f"Standard deviation between seeds: AUROC {number(seeds['auroc'])}, accuracy "
            f"{number(seeds['accuracy'])}. {seeds['about']}"
        )
    if (repeats := result.metrics["repeats"]) > 1:
        lines.append(
            f"The table has the mean of the {repeats} repeats. Figures, and all that follows on "
            f"parts of the images, patches and labels, are of the mean of the {repeats} "
            "recalibrated logits of each image: of an ensemble, whose numbers are other ones."
        )
    return lines


def group_section(table: GroupTable, result: Result, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """A column's table and figure; `metrics` as `drawn_metrics` gives them."""
    shown = [
        name for name in MAIN_METRICS if any(name in group.estimates for group in table.groups)
    ]
    kind = result.metrics.get("clustered_by")
    header: list[str] = [table.column, "images"]
    if two := len(result.classes) == 2:
        header.append(result.classes[1])
    if people := kind is not None and table.column != kind:
        header.append(plural(str(kind)))
    header += [measure_title(name) for name in shown]
    rows = []
    for group in table.groups:
        cells: list[Any] = [group.name or "(empty)", group.n]
        cells += [group.positives] if two else []
        cells += [group.clusters] if people else []
        cells += [_estimate(group.estimates.get(name)) for name in shown]
        rows.append(cells)
    left = table.values - len(rows)
    summary = f"the {len(rows)} least accurate of {table.values}" if left else f"all {len(rows)}"
    return {
        "column": table.column,
        "header": header,
        "rows": rows,
        "spread": spread_text(table),
        "summary": f"Table of {summary}",
        "figure": _forest(table, metrics)
        if len(rows) <= _MOST_IN_FIGURE or table.column == kind
        else "",
    }


def _estimate(found: Mapping[str, Any] | None) -> str:
    if found is None or found["value"] is None:
        return "-"
    if found["low"] is None:
        return f"{found['value']:.3f}"
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def spread_text(table: GroupTable) -> str:
    parts = [
        f"{measure_title(name)} from {low:.3f} to {high:.3f}, median {middle:.3f}"
        for name, (low, middle, high) in table.spread.items()
    ]
    return f"{'; '.join(parts)}." if parts else ""


def _forest(table: GroupTable, metrics: Mapping[str, Any]) -> Any:
    rows = [
        (group.name or "(empty)", group.n, group.estimates.get("auroc")) for group in table.groups
    ]
    if not any(estimate and estimate["value"] is not None for _, _, estimate in rows):
        return ""
    title = f"AUROC by {table.column}"
    return Markup(figure_tables.forest(rows, title=title, whole=metrics["estimates"].get("auroc")))


def controls_table(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    found = metrics.get("controls")
    if not found:
        return None
    rows = []
    for name, control in found.items():
        difference = control["difference"]
        numbers = (number(control["auroc"]), number(difference["value"]))
        rows.append((name, *numbers, interval_text(difference)))
    return {"how": metrics.get("controls_fitted", "fitted in the same folds"), "rows": rows}


def patches_shown(result: Result, kept: KeptPatches) -> dict[str, Any]:
    nothing: dict[str, Any] = {"errors": [], "uncertain": [], "patches_note": ""}
    nothing |= {"saliency_about": "", "randomisation": ""}
    if result.predictions is None:
        return nothing
    labels, logits = result.labels, result.predictions.logits
    threshold = result.predictions.threshold
    errors = worst_errors(labels, logits, threshold)
    uncertain = least_certain(logits, threshold)
    if not kept.patches:
        missing = "The images were not kept with this result; its table of predictions names them."
        return nothing | {"patches_note": missing if errors or uncertain else ""}
    chances = probabilities(logits)
    ids = result.predictions.ids

    def shown(rows: Sequence[int], most: int) -> list[dict[str, str]]:
        known = [i for i in rows if ids[i] in kept.patches][:most]
        return [_patch(result, i, kept.patches[ids[i]], chances) for i in known]

    return {
        "errors": shown(errors, ERRORS),
        "uncertain": shown(uncertain, UNCERTAIN),
        "patches_note": _OF_FOLDS if result.kind == CROSSVAL else "",
        "saliency_about": kept.about,
        "randomisation": Markup(figures.randomisation(kept.randomised)) if kept.randomised else "",
    }


def _patch(result: Result, i: int, patch: Patch, chances: np.ndarray) -> dict[str, str]:
    predictions = result.predictions
    assert predictions is not None
    two = len(result.classes) == 2
    target = 1 if two else int(chances[i].argmax())
    clusters = result.clusters
    label = result.classes[result.labels[i]]
    return {
        "id": predictions.ids[i],
        "patient": f"{result.metrics['clustered_by']} {clusters[i]}" if clusters else "",
        "label": label,
        "target": result.classes[target],
        "probability": f"{chances[i, target]:.3f}",
        "image": patch.image,
        "saliency": patch.saliency,
        "explained": patch.explained or result.classes[target],
        "alt": f"Patch {predictions.ids[i]}, labelled {label}",
    }


def doubtful_labels(result: Result) -> dict[str, Any] | None:
    """The labels that the predictions contradict most."""
    predictions = result.predictions
    if predictions is None or len(set(result.labels.tolist())) < len(result.classes):
        return None
    found = rank_label_errors(result.labels, predictions.logits)
    doubtful = [i for i in found.order if found.counted_as[i] != result.labels[i]]
    rows = [
        (
            predictions.ids[i],
            clusters[i] if (clusters := result.clusters) else "unknown",
            result.classes[result.labels[i]],
            result.classes[found.counted_as[i]],
            f"{found.self_confidence[i]:.3f}",
        )
        for i in doubtful[:_MOST_DOUBTFUL]
    ]
    kind = result.metrics.get("clustered_by") or "patient"
    return {
        "about": (
            f"Confident learning (Northcutt et al. 2021) counts {len(doubtful)} of "
            f"{len(result.labels)} images in another class than their label's: either the label or "
            "the network is wrong. The images, to look at and to correct: glomjax review."
        ),
        "header": ("image", kind, "label", "counted as", "probability of the label"),
        "rows": rows,
    }
