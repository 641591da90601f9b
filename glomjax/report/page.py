"""The report of a result: one page, and the same facts as a model card and as tables.

    glomjax report runs/davit

It is made from the files in the folder of a run, of an evaluation or of a cross-validation alone.
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from glomjax import __version__
from glomjax.errors import plural
from glomjax.evaluation.calibration import predicted_classes
from glomjax.evaluation.label_errors import rank_label_errors
from glomjax.evaluation.logits import probabilities
from glomjax.evaluation.report import patients_line
from glomjax.files import jsonable, write_file
from glomjax.report import FOLDER, METRICS, PAGE, checklists, curves, figure_tables, figures
from glomjax.report.groups import GroupTable, group_tables
from glomjax.report.methods import (
    network_title,
    paragraph,
    settings_rows,
    split_columns,
    split_rows,
)
from glomjax.report.patches import (
    ERRORS,
    UNCERTAIN,
    Patch,
    kept_patches,
    least_certain,
    worst_errors,
)
from glomjax.report.rendering import rendered
from glomjax.report.result import CROSSVAL, EVALUATION, RUN, Result, must_know, read_result
from glomjax.report.tables import (
    estimate_rows,
    latex_table,
    markdown_table,
    measure_title,
)

_DRAWN = 12  # values of a column of which each has a line in a figure
_MAIN = ("auroc", "accuracy", "sensitivity", "specificity")
_ASSUMPTIONS = (
    "The {kinds} are taken for a sample of those for whom the numbers are meant; of other "
    "hospitals, stains and scanners they say nothing.",
    "The network is taken as it is: how much another seed, another split or another choice of "
    "settings would change is in none of these intervals.",
    "Labels are taken for right.",
)
_NO_PATIENTS = (
    "No patients were known, so that every image counts as independent: the intervals are too "
    "narrow where several images are of one patient."
)


def make_report(folder: str | os.PathLike[str]) -> pathlib.Path:
    """Writes `report/` into a result's folder: `report.html`, `metrics.json`, `MODEL_CARD.md`,
    `results.md` and `results.tex`; of a run that still trains the page alone.

    Args:
      folder: of a run, of what `evaluate` wrote, or of a cross-validation.

    Returns:
      The page.

    Raises:
      UserError: the folder is none of these, a file in it is not what was written, or it cannot be
        written to.
    """
    path = pathlib.Path(folder).expanduser()
    for name, content in report_files(path).items():
        write_file(path / name, content)
    return path / FOLDER / PAGE


def report_files(folder: str | os.PathLike[str]) -> dict[str, bytes]:
    """{path below the folder: content} of what `make_report` writes, in this order."""
    result = read_result(folder)
    facts = _facts(result)
    page = rendered("report.html", **facts)
    if not result.finished:
        return {f"{FOLDER}/{PAGE}": page.encode()}
    content = {
        "kind": result.kind,
        "metrics": result.metrics,
        "must_know": facts["must_know"],
        "groups": {
            table.column: {
                group.name: {"n": group.n, "estimates": group.estimates} for group in table.groups
            }
            for table in facts["tables"]
        },
    }
    metrics = json.dumps(jsonable(content), indent=2, ensure_ascii=False, allow_nan=False)
    files = {
        "results.md": markdown_table(result),
        "results.tex": latex_table(result),
        "MODEL_CARD.md": rendered("model_card.md", **facts),
        PAGE: page,
        METRICS: f"{metrics}\n",  # last, since this file says that the rest is there
    }
    return {f"{FOLDER}/{name}": text.encode() for name, text in files.items()}


def has_report(folder: str | os.PathLike[str]) -> bool:
    """Whether the folder of a result has its pages."""
    return (pathlib.Path(folder) / FOLDER / METRICS).is_file()


def _facts(result: Result) -> dict[str, Any]:
    """What the templates show."""
    tables = group_tables(result)
    name = result.folder.resolve().name
    kinds = {RUN: "Run", EVALUATION: "Evaluation", CROSSVAL: "Cross-validation"}
    metrics = result.metrics
    kind = metrics.get("clustered_by")
    estimates = estimate_rows(result.estimates)
    by_title = {row[0]: row for row in estimates}
    assumptions = [text.format(kinds=plural(kind or "image")) for text in _ASSUMPTIONS]
    pooled = metrics["pooled_recalibrated"] if result.kind == CROSSVAL else {}
    told = must_know(result)
    return {
        "title": f"{kinds[result.kind]} {name}",
        "subtitle": _subtitle(result),
        "must_know": told,
        "main_numbers": [
            (title, by_title[title][1], _interval_text(by_title[title][2]))
            for title in map(measure_title, _MAIN)
            if title in by_title
        ],
        "paragraph": paragraph(result),
        "splits": _splits(result),
        "split_columns": [
            {
                "name": column,
                "header": (column, *(row["split"] for row in split_rows(result))),
                "rows": [(value or "(empty)", *counts) for value, counts in rows],
            }
            for column, rows in split_columns(result)
        ],
        "notes": [note for note in metrics.get("notes", []) if note not in told],
        "network": _network(result),
        "curves": _curves(result),
        "folds": _folds(result),
        "summary": result.summary,
        "settings": settings_rows(result.config),
        "estimates": estimates,
        "about": pooled.get("about", ""),
        "within": _within(result),
        "figures": _figures(result),
        "tables": tables,
        "groups": [_group_section(table, result) for table in tables],
        "spreads": [(table.column, _spread_text(table)) for table in tables if table.spread],
        "between": metrics.get("between_patients", {}).get("about", "")
        if result.kind == CROSSVAL and metrics.get("between_patients")
        else "",
        "controls": _controls(metrics),
        **_patches(result),
        "doubtful": _doubtful(result),
        "needed": patients_line(pooled["repeats"][0] if pooled else metrics)
        if result.finished
        else "",
        "assumptions": assumptions if kind or not result.finished else [*assumptions, _NO_PATIENTS],
        "environment": _environment(result),
        "checklists": _checklists(result),
        "target": result.classes[1] if len(result.classes) == 2 else "one of its classes",
    }


def _subtitle(result: Result) -> str:
    started = result.environment.get("started") or ""
    when = f", {started[:10]}" if started else ""
    return f"glomjax {__version__}{when}"


def _interval_text(interval: str) -> str:
    return "no interval" if interval == "none" else f"95% {interval}"


def _splits(result: Result) -> dict[str, Any] | None:
    rows = split_rows(result)
    if not rows:
        return None
    classes = sorted({name for row in rows for name in row["classes"]})
    return {
        "header": ("split", "images", "patients", *classes),
        "rows": [
            (
                row["split"],
                row["images"],
                "unknown" if row["patients"] is None else row["patients"],
                *(row["classes"].get(name, 0) for name in classes),
            )
            for row in rows
        ],
    }


def _network(result: Result) -> list[tuple[str, str]]:
    if result.kind == EVALUATION:
        rows = []
        for number, network in enumerate(result.metrics.get("networks", []), 1):
            rows.append((f"network {number}", network_title(network["architecture"])))
            rows.append((f"weights {number} (SHA-256)", network["sha256"]))
        return rows
    config = result.config
    if not config:
        return []
    source = config["pretrained"]["source"]
    trained = result.summary.strip().splitlines()[-1] if result.summary.strip() else ""
    rows = [
        ("architecture", network_title(config["model"]["name"])),
        ("input", "{} x {} pixels, RGB".format(*config["image_size"])),
        ("preprocessing", config["preprocessing"]),
        ("initial weights", "random values" if source == "none" else pathlib.Path(source).name),
        ("freezing", config["freeze"]["regime"]),
        ("what trained", trained),
        ("precision", config["precision"]),
    ]
    if result.kind == RUN and result.finished:
        metrics = result.metrics
        ended = f"{metrics['epochs']} epochs, of which epoch {metrics['best_epoch']} was best"
        rows.append(("training", ended))
    if result.predictions and (digest := result.predictions.about.get("sha256")):
        rows.append(("weights (SHA-256)", digest))
    return [(name, value) for name, value in rows if value]


def _curves(result: Result) -> Any:
    if not result.history:
        return ""
    metrics = result.metrics
    return _svg(
        figures.learning_curves(
            result.history,
            best_epoch=metrics.get("best_epoch"),
            stopped=metrics.get("epochs"),
            prior_entropy=None,
        )
    )


def _folds(result: Result) -> dict[str, Any] | None:
    if result.kind != CROSSVAL:
        return None
    rows = []
    for fold in result.metrics["per_fold"]:
        interval = fold.get("auroc_interval") or {}
        low, high = interval.get("low"), interval.get("high")
        shown = "none" if low is None or high is None else f"{low:.3f} to {high:.3f}"
        numbers = (f"{fold['loss']:.4f}", f"{fold['accuracy']:.3f}", _number(fold["auroc"]), shown)
        rows.append((fold["folder"], fold["n"], fold["patients"], *numbers, fold["best_epoch"]))
    header = ("fold", "images", "patients", "loss", "accuracy", "AUROC", "95%", "best epoch")
    return {"header": header, "rows": rows}


def _within(result: Result) -> list[str]:
    if result.kind != CROSSVAL:
        return []
    found = result.metrics["pooled_within_folds"]
    interval = found["interval"] or {}
    low, high = interval.get("low"), interval.get("high")
    ends = "" if low is None or high is None else f" (95% {low:.3f} to {high:.3f})"
    lines = [f"AUROC within folds: {_number(found['auroc'])}{ends}. {found['about']}"]
    if seeds := result.metrics["between_repeats"]:
        lines.append(
            f"Standard deviation between seeds: AUROC {_number(seeds['auroc'])}, accuracy "
            f"{_number(seeds['accuracy'])}. {seeds['about']}"
        )
    return lines


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _svg(text: str) -> Any:
    """A figure, whose own texts are escaped already."""
    return Markup(text)


def _group_section(table: GroupTable, result: Result) -> dict[str, Any]:
    shown = [name for name in _MAIN if any(name in group.estimates for group in table.groups)]
    kind = result.metrics.get("clustered_by")
    header: list[str] = [table.column, "images"]
    if two := len(result.classes) == 2:
        header.append(result.classes[1])
    if people := kind is not None and table.column != kind:
        header.append(plural(str(kind)))
    titles = {"auroc": "AUROC"}
    header += [titles.get(name, name) for name in shown]
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
        "spread": _spread_text(table),
        "summary": f"Table of {summary}",
        "figure": _forest(table, result) if len(rows) <= _DRAWN or table.column == kind else "",
    }


def _estimate(found: Mapping[str, Any] | None) -> str:
    if found is None or found["value"] is None:
        return "-"
    if found["low"] is None:
        return f"{found['value']:.3f}"
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _spread_text(table: GroupTable) -> str:
    titles = {"auroc": "AUROC"}
    parts = [
        f"{titles.get(name, name)} from {low:.3f} to {high:.3f}, median {middle:.3f}"
        for name, (low, middle, high) in table.spread.items()
    ]
    return f"{'; '.join(parts)}." if parts else ""


def _forest(table: GroupTable, result: Result) -> Any:
    rows = [
        (group.name or "(empty)", group.n, group.estimates.get("auroc")) for group in table.groups
    ]
    if not any(estimate and estimate["value"] is not None for _, _, estimate in rows):
        return ""
    title = f"AUROC by {table.column}"
    return _svg(figure_tables.forest(rows, title=title, whole=result.estimates.get("auroc")))


def _controls(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    found = metrics.get("controls")
    if not found:
        return None
    rows = []
    for name, control in found.items():
        difference = control["difference"]
        low, high = difference["low"], difference["high"]
        ends = "none" if low is None or high is None else f"{low:.3f} to {high:.3f}"
        rows.append((name, _number(control["auroc"]), _number(difference["value"]), ends))
    return {"how": metrics.get("controls_fitted", "fitted in the same folds"), "rows": rows}


def _patches(result: Result) -> dict[str, Any]:
    nothing: dict[str, Any] = {"errors": [], "uncertain": [], "no_patches": ""}
    nothing |= {"saliency_about": "", "randomisation": ""}
    if result.predictions is None:
        return nothing
    folds = sorted(result.folder.glob("repeat_*/fold_*")) if result.kind == CROSSVAL else []
    kept = kept_patches([result.folder, *folds])
    labels, logits = result.labels, result.predictions.logits
    threshold = result.predictions.threshold
    errors = worst_errors(labels, logits, threshold)
    uncertain = least_certain(labels, logits, threshold)
    if not kept.patches:
        missing = "The images were not kept with this result; its predictions.csv names them."
        return nothing | {"no_patches": missing if errors or uncertain else ""}
    chances = probabilities(logits)

    ids = result.predictions.ids

    def shown(rows: Sequence[int], most: int) -> list[dict[str, str]]:
        # Of a cross-validation, each fold has kept those of its own network.
        known = [i for i in rows if ids[i] in kept.patches][:most]
        return [_patch(result, i, kept.patches[ids[i]], chances) for i in known]

    return {
        "errors": shown(errors, ERRORS),
        "uncertain": shown(uncertain, UNCERTAIN),
        "no_patches": "",
        "saliency_about": kept.about,
        "randomisation": _svg(figures.randomisation(kept.randomised)) if kept.randomised else "",
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
        "alt": f"Patch {predictions.ids[i]}, labelled {label}",
    }


def _doubtful(result: Result) -> dict[str, Any] | None:
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
        for i in doubtful[:_DOUBTFUL]
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


_DOUBTFUL = 20


def _environment(result: Result) -> list[tuple[str, str]]:
    """When, on what and for how long."""
    whole = result.environment
    # Of a cross-validation the machines of its folds, which are often one.
    machines = whole.get("environments") or ([whole] if whole else [])
    rows = [("began", whole.get("started") or ""), ("took", _duration(whole.get("total_seconds")))]
    rows += [
        (title, _gib(whole.get(name) or machines[0].get(name)))
        for title, name in (
            ("most memory of the process", "peak_memory_bytes"),
            ("most memory of a device", "peak_device_memory_bytes"),
        )
        if machines
    ]
    for number, machine in enumerate(machines, 1):
        which = f", machine {number}" if len(machines) > 1 else ""
        packages = machine.get("packages", {})
        git = machine.get("git") or {}
        commit = git.get("commit") or ""
        rows += [
            (f"processor{which}", machine.get("processor") or ""),
            (f"cores{which}", str(machine.get("cores") or "")),
            (f"memory{which}", _gib(machine.get("memory_bytes"))),
            (f"devices{which}", ", ".join(machine.get("devices", []))),
            (f"native kernels{which}", machine.get("native_kernels", "").partition(": ")[2]),
            (f"system{which}", machine.get("platform", "")),
            (f"Python{which}", machine.get("python", "")),
            (f"packages{which}", ", ".join(f"{name} {packages[name]}" for name in packages)),
            (
                f"commit{which}",
                f"{commit}{', with changes' if git.get('uncommitted_changes') else ''}",
            ),
            (f"command{which}", " ".join(machine.get("command", []))),
        ]
    if later := whole.get("resumed"):
        rows.append(("went on", f"{len(later)} times; environment.json has each part"))
    return [(name, text) for name, text in rows if text]


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min {rest} s" if hours else f"{minutes} min {rest} s"


def _gib(count: int | None) -> str:
    return "" if count is None else f"{count / 2**30:.2f} GiB"


def _checklists(result: Result) -> list[dict[str, Any]]:
    found = []
    for checklist in checklists.CHECKLISTS:
        answers = checklist.answers(result.facts)
        found.append(
            {
                "id": checklist.id,
                "name": checklist.name,
                "about": checklist.about,
                "filled": sum(bool(answer.text) for answer in answers),
                "rows": [
                    (answer.number, answer.section, answer.topic, answer.text or "open")
                    for answer in answers
                ],
            }
        )
    return found


def _figures(result: Result) -> list[Any]:
    """What was judged, each with the interval of its metric."""
    predictions = result.predictions
    if predictions is None:
        return []
    pooled = result.kind == CROSSVAL
    metrics = result.metrics["pooled_recalibrated"]["repeats"][0] if pooled else result.metrics
    metrics = {**metrics, "estimates": result.estimates, "threshold": predictions.threshold}
    labels, logits, classes = result.labels, predictions.logits, predictions.classes
    threshold = predictions.threshold if len(classes) == 2 else None
    chances = probabilities(logits)  # [N, C]
    decided = predicted_classes(logits, predictions.threshold)
    found = curves.curves_of(labels, logits, metrics)
    two = len(classes) == 2
    macro = result.estimates
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
    return [_svg(text) for text in drawn]


def _confusion(labels: np.ndarray, decided: np.ndarray, classes: int) -> list[list[int]]:
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, decided), 1)
    return counts.tolist()
