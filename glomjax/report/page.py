"""The report of a result: one page, and the same facts as a model card and as tables.

    glomjax report runs/davit

It is made from the files in the folder of a run, of an evaluation or of a cross-validation alone.
"""

import json
import os
import pathlib
from typing import Any

from glomjax import __version__
from glomjax.errors import UserError, plural
from glomjax.evaluation.report import measure_title, patients_line
from glomjax.files import jsonable, write_file
from glomjax.report import FOLDER, METRICS, PAGE
from glomjax.report.checklists import CHECKLISTS
from glomjax.report.findings import (
    controls_table,
    doubtful_labels,
    drawn_metrics,
    figures_of,
    group_section,
    patches_shown,
    spread_text,
    within_lines,
)
from glomjax.report.groups import MAIN_METRICS, group_tables
from glomjax.report.methods import paragraph, settings_rows
from glomjax.report.patches import KeptPatches, kept_patches
from glomjax.report.provenance import (
    column_tables,
    environment_rows,
    folds_table,
    learning_curves,
    network_rows,
    splits_table,
)
from glomjax.report.rendering import rendered
from glomjax.report.result import CROSSVAL, EVALUATION, RUN, Result, must_know, read_result
from glomjax.report.tables import estimate_rows, latex_table, markdown_table

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
    try:
        result = read_result(folder)
        facts = _facts(result)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise UserError(
            f"the files in '{folder}' are not what a result has ({type(error).__name__}: {error}); "
            "restore them from a copy"
        ) from error
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
    assumptions = [text.format(kinds=plural(kind or "image")) for text in _ASSUMPTIONS]
    pooled = metrics["pooled_recalibrated"] if result.kind == CROSSVAL else {}
    told = must_know(result)
    drawn = drawn_metrics(result)
    kept = kept_patches([result.folder, *result.folds])
    return {
        "title": f"{kinds[result.kind]} {name}",
        "subtitle": _subtitle(result),
        "must_know": told,
        "main_numbers": [
            (title, value, "no interval" if interval == "none" else f"95% {interval}")
            for title, value, interval, _ in estimates
            if title in map(measure_title, MAIN_METRICS)
        ],
        "paragraph": paragraph(result),
        "splits": splits_table(result),
        "split_columns": column_tables(result),
        "notes": [note for note in metrics.get("notes", []) if note not in told],
        "network": network_rows(result),
        "curves": learning_curves(result),
        "folds": folds_table(result),
        "summary": result.summary,
        "settings": settings_rows(result.config),
        "estimates": estimates,
        "about": pooled.get("about", ""),
        "within": within_lines(result),
        "figures": figures_of(result, drawn),
        "tables": tables,
        "groups": [group_section(table, result, drawn) for table in tables],
        "spreads": [(table.column, spread_text(table)) for table in tables if table.spread],
        "between": (metrics.get("between_patients") or {}).get("about", ""),
        "controls": controls_table(metrics),
        **patches_shown(result, kept),
        "doubtful": doubtful_labels(result),
        "needed": patients_line(pooled["repeats"][0] if pooled else metrics)
        if result.finished
        else "",
        "assumptions": assumptions if kind or not result.finished else [*assumptions, _NO_PATIENTS],
        "environment": environment_rows(result),
        "checklists": _checklists(result, kept),
        "target": result.classes[1] if len(result.classes) == 2 else "one of its classes",
    }


def _subtitle(result: Result) -> str:
    started = result.environment.get("started") or ""
    when = f", {started[:10]}" if started else ""
    return f"glomjax {__version__}{when}"


def _checklists(result: Result, kept: KeptPatches) -> list[dict[str, Any]]:
    found = []
    facts = {**result.facts, "saliency": kept.about, "randomised": kept.randomised}
    for checklist in CHECKLISTS:
        answers = checklist.answers(facts)
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
