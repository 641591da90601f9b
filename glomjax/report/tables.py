"""The main numbers as tables to paste into a manuscript: Markdown and LaTeX."""

from collections.abc import Mapping, Sequence
from typing import Any

from glomjax.errors import plural
from glomjax.evaluation.measures import MEASURES
from glomjax.evaluation.report import measure_title
from glomjax.report.result import Result

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
_MARKDOWN = "\\`*_{}[]<>|#&~"


def estimate_rows(estimates: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    """(metric, value, 95% interval, note) of each, with three decimals."""
    rows = []
    order = list(MEASURES)
    for name, found in sorted(
        estimates.items(), key=lambda item: order.index(item[0].partition("_at_")[0])
    ):
        value = number(found["value"])
        interval = interval_text(found) if found["value"] is not None else "none"
        rows.append((measure_title(name), value, interval, found.get("note", "")))
    return rows


def number(value: float | None) -> str:
    """With three decimals; None is undefined."""
    return "undefined" if value is None else f"{value:.3f}"


def interval_text(found: Mapping[str, Any]) -> str:
    """The bounds of what has `low` and `high`, with three decimals; "none" without them."""
    low, high = found.get("low"), found.get("high")
    return "none" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def markdown_table(result: Result) -> str:
    """Every metric with its interval, as a table in Markdown."""
    lines = [
        f"{_caption(result, plain_markdown)}",
        "",
        "| metric | value | 95% interval |",
        "|---|---|---|",
    ]
    for name, value, interval, _ in estimate_rows(result.estimates):
        lines.append(f"| {plain_markdown(name)} | {value} | {interval} |")
    return "\n".join(lines) + "\n"


def latex_table(result: Result) -> str:
    """The same as a LaTeX table that needs no package."""
    lines = [
        r"\begin{table}",
        rf"\caption{{{_caption(result, _escaped)}}}",
        r"\begin{tabular}{lll}",
        r"\hline",
        r"Metric & Value & 95\% interval \\",
        r"\hline",
    ]
    for name, value, interval, _ in estimate_rows(result.estimates):
        lines.append(rf"{_escaped(name)} & {value} & {interval} \\")
    lines += [r"\hline", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _caption(result: Result, escape: Any) -> str:
    metrics = result.metrics
    kind = metrics.get("clustered_by")
    count = len(set(result.clusters or ()))
    people = f" of {count} {kind if count == 1 else plural(str(kind))}" if count else ""
    counted = "images taken as independent" if kind is None else f"intervals by {kind}"
    classes: Sequence[str] = result.classes
    positive = f", positive class {escape(classes[1])}" if len(classes) == 2 else ""
    return f"{metrics['n']} images{people}{positive}; {counted}."


def plain_markdown(text: str) -> str:
    """A text that Markdown shows as it is, on one line."""
    return "".join(f"\\{c}" if c in _MARKDOWN else c for c in " ".join(text.split()))


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in " ".join(text.split()))
