"""How a result came about, as a page shows it: data, network, training, machine."""

import pathlib
from typing import Any

from markupsafe import Markup

from glomjax.report import figures
from glomjax.report.checklist_facts import column_counts, split_summaries
from glomjax.report.methods import network_title
from glomjax.report.result import CROSSVAL, EVALUATION, RUN, Result
from glomjax.report.tables import interval_text, number

_MOST_VALUES = 12  # of a column that has a table


def splits_table(result: Result) -> dict[str, Any] | None:
    rows = split_summaries(result.facts)
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


def column_tables(result: Result) -> list[dict[str, Any]]:
    """A table of images by value and split for each further column of the data."""
    return [
        {
            "name": column,
            "header": (column, *values[0][1]),
            "rows": [(value or "(empty)", *counts.values()) for value, counts in values],
        }
        for column, values in column_counts(result.facts, _MOST_VALUES)
    ]


def network_rows(result: Result) -> list[tuple[str, str]]:
    if result.kind == EVALUATION:
        rows = []
        for n, network in enumerate(result.metrics.get("networks", []), 1):
            rows.append((f"network {n}", network_title(network["architecture"])))
            rows.append((f"weights {n} (SHA-256)", network["sha256"]))
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


def learning_curves(result: Result) -> Any:
    if not result.history:
        return ""
    metrics = result.metrics
    return Markup(
        figures.learning_curves(
            result.history,
            best_epoch=metrics.get("best_epoch"),
            stopped=metrics.get("epochs"),
        )
    )


def folds_table(result: Result) -> dict[str, Any] | None:
    if result.kind != CROSSVAL:
        return None
    rows = []
    for fold in result.metrics["per_fold"]:
        shown = interval_text(fold.get("auroc_interval") or {})
        numbers = (f"{fold['loss']:.4f}", f"{fold['accuracy']:.3f}", number(fold["auroc"]), shown)
        rows.append((fold["folder"], fold["n"], fold["patients"], *numbers, fold["best_epoch"]))
    header = ("fold", "images", "patients", "loss", "accuracy", "AUROC", "95%", "best epoch")
    return {"header": header, "rows": rows}


def environment_rows(result: Result) -> list[tuple[str, str]]:
    """When, on what and for how long."""
    whole = result.environment
    # Of a cross-validation the machines of its folds, which are often one.
    machines = whole.get("environments") or ([whole] if whole else [])
    seconds = whole.get("total_seconds", whole.get("seconds"))
    rows = [("began", whole.get("started") or ""), ("took", _duration(seconds))]
    parts = [whole, *machines, *whole.get("resumed", [])]
    for title, name in (
        ("most memory of the process", "peak_memory_bytes"),
        ("most memory of a device", "peak_device_memory_bytes"),
    ):
        rows.append((title, _gib(max((part.get(name) or 0 for part in parts), default=0) or None)))
    for n, machine in enumerate(machines, 1):
        which = f", machine {n}" if len(machines) > 1 else ""
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
