"""The figures that are tables at heart: a confusion matrix, a metric of parts of the patches."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from glomjax.evaluation.plots import BLUE, GREY
from glomjax.evaluation.report import estimate_text
from glomjax.report.svg import LINE, clean, drawing, finished, headline, new_figure

_MOST_CLASSES = 10  # that have a row of their own
_MOST_ROWS = 60  # of a forest


def confusion(
    matrix: Sequence[Sequence[int]],
    classes: Sequence[str],
    estimates: Mapping[str, Mapping[str, Any]],
    threshold: float | None = None,
) -> str:
    """How many patches of each class (rows) were taken for which (columns), and which share of the
    row that is, with the metrics of these decisions.

    Args:
      matrix: int [C, C].
      classes: names [C]; of more than 10 the rarer ones are counted together.
      estimates: as in `test_metrics.json`.
      threshold: of two classes, the probability above which a patch was taken for positive.
    """
    counts, names = _merged(np.array(matrix), [clean(name, 16) for name in classes])
    two = len(classes) == 2
    shown = ("sensitivity", "specificity") if two else ("accuracy", "balanced_accuracy")
    heading = headline([(name.replace("_", " "), estimates.get(name)) for name in shown])
    if threshold is not None:
        heading += f"; threshold {threshold:.4g}"
    told = [f"{heading}." if heading else ""]
    few = len(names) < 5
    with drawing():
        from matplotlib.patches import Rectangle

        turned = len(names) * max(map(len, names)) > 42
        figure = new_figure(1.3 + 0.6 * turned + (0.55 if few else 0.36) * len(names))
        axes = figure.subplots()
        for i, row in enumerate(counts):
            for j, count in enumerate(row):
                share = count / row.sum() if row.sum() else math.nan
                # Light enough for black letters at any share.
                fill = tuple(1 - (0 if math.isnan(share) else share) * np.array((0.66, 0.29, 0.09)))
                axes.add_patch(
                    Rectangle((j, i), 1, 1, facecolor=fill, edgecolor="black", linewidth=0.5)
                )
                percent = "-" if math.isnan(share) else f"{100 * share:.{1 if few else 0}f}%"
                axes.text(
                    j + 0.5, i + 0.5, f"{count}\n{percent}", ha="center", va="center",
                    fontsize=9 if few else 7, weight="bold" if i == j else "normal",
                )  # fmt: skip
            parts = [f"{n} as {name}" for n, name in zip(row, names, strict=True)]
            told.append(f"Of {row.sum()} patches of {names[i]} were classified {', '.join(parts)}.")
        ticks = np.arange(len(names)) + 0.5
        axes.set_xticks(ticks, names)
        if turned:
            for label in axes.get_xticklabels():
                label.set(rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(ticks, [f"{n} ({row.sum()})" for n, row in zip(names, counts, strict=True)])
        axes.tick_params(length=0, labelsize=8)
        axes.set(
            xlim=(0, len(names)),
            ylim=(len(names), 0),
            xlabel="Classified as",
            ylabel="True class (n)",
        )
        axes.spines[:].set_visible(False)
        return finished(figure, "Confusion matrix", heading, told)


def forest(
    rows: Sequence[tuple[str, int, Mapping[str, Any] | None]],
    *,
    title: str,
    whole: Mapping[str, Any] | None = None,
) -> str:
    """A metric of parts of the patches with its intervals; a part without one is an open point.

    Args:
      rows: (name, how many patches, the metric as `estimates` has it) of each part, None where it
        is undefined. Of more than 60 the 60 with the lowest values are shown, which is said.
      title: the metric and what the parts are, such as "AUROC by stain".
      whole: the metric of all patches, a dotted line.
    """
    known = [(clean(name, 18), n, metric or {}) for name, n, metric in rows]
    given = [row for row in known if row[2].get("value") is not None]
    title = clean(title, 80)
    told = [f"{title}: " + "; ".join(f"{name} (n {n}) {_value(m)}" for name, n, m in known) + "."]
    heading = title
    if len(known) > _MOST_ROWS:
        shown = sorted(given, key=lambda row: row[2]["value"])[:_MOST_ROWS]
        heading += f"; the {len(shown)} lowest of {len(known)}"
    else:
        shown = known
    whole_value = None if whole is None else whole.get("value")
    if whole is not None and whole_value is not None:
        told.append(f"All patches: {_value(whole)}.")
        heading += f"; all patches (dotted line): {_value(whole)}"
    with drawing():
        lines = len(textwrap.wrap(heading, LINE))
        height = 0.68 + 0.15 * lines + 0.21 * max(len(shown), 1)
        figure = new_figure(height, None)  # columns of text lie beside the axes
        bottom = 0.34 / height
        axes = figure.add_axes((0.38, bottom, 0.25, 0.21 * (max(len(shown), 1) + 0.2) / height))
        across = axes.get_yaxis_transform()
        for x, text, side in ((-0.06, "n", "right"), (1.06, "value (95%)", "left")):
            axes.text(x, -1, text, transform=across, ha=side, va="center", fontsize=8)
        if whole_value is not None:
            axes.axvline(whole_value, color=GREY, linestyle=":", linewidth=1)
        for i, (name, n, metric) in enumerate(shown):
            value, low, high = (metric.get(key) for key in ("value", "low", "high"))
            if low is not None and high is not None:
                axes.plot([low, high], [i, i], color=BLUE, linewidth=1.4)
            if value is not None:
                face = BLUE if low is not None else "white"
                axes.plot([value], [i], color=BLUE, marker="s", markersize=4, markerfacecolor=face)
            for x, text, side in ((-1.5, name, "left"), (-0.06, f"{n}", "right")):
                axes.text(x, i, text, transform=across, ha=side, va="center", fontsize=8)
            axes.text(1.06, i, _value(metric), transform=across, va="center", fontsize=8)
        axes.set(
            xlim=_limits([*shown, ("", 0, whole or {})]),
            ylim=(max(len(shown), 1) - 0.4, -0.6),
            yticks=[],
        )
        axes.spines["left"].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.grid(axis="x", color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        return finished(figure, title, heading, told)


def _merged(counts: np.ndarray, names: list[str]) -> tuple[np.ndarray, list[str]]:
    """A confusion matrix and its names, in which the rarer of very many classes are one."""
    if len(names) <= _MOST_CLASSES:
        return counts, names
    common = np.sort(np.argsort(-counts.sum(axis=1), kind="stable")[: _MOST_CLASSES - 1])
    part = np.full(len(names), len(common))
    part[common] = np.arange(len(common))
    merged = np.zeros((len(common) + 1,) * 2, int)
    np.add.at(merged, (part[:, None], part[None, :]), counts)
    return merged, [*(names[c] for c in common), f"{len(names) - len(common)} others"]


def _limits(rows: Sequence[tuple[str, int, Mapping[str, Any]]]) -> tuple[float, float]:
    """Tenths between which all values and intervals lie."""
    ends = [row[2].get(key) for row in rows for key in ("value", "low", "high")]
    known = [end for end in ends if end is not None]
    if not known:
        return 0.0, 1.0
    low, high = math.floor(10 * min(known)) / 10, math.ceil(10 * max(known)) / 10
    return low - 0.02, max(high, low + 0.2) + 0.02


def _value(metric: Mapping[str, Any]) -> str:
    """As `estimate_text`, without the words that a row has no room for."""
    if metric.get("value") is None:
        return "undefined"
    return estimate_text(metric).removesuffix(" (no interval)")
