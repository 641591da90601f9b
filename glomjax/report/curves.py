"""ROC and precision-recall curves, of two classes or of each of several against the rest."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from glomjax.evaluation.calibration import predicted_classes
from glomjax.evaluation.logits import log_odds_of
from glomjax.evaluation.plots import BLUE, COLOURS, GREY
from glomjax.evaluation.report import estimate_text
from glomjax.report.svg import (
    LINE,
    clean,
    drawing,
    finished,
    headline,
    left_out,
    new_figure,
    unit_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CURVES = 10  # of one class against the rest; of more classes their average alone
_MOST_POINTS = 400  # of a curve, which none can tell from all of them
_LINES = ("-", "--", "-.", (0, (1, 1)), (0, (6, 1, 1, 1, 1, 1)))


@dataclasses.dataclass(frozen=True)
class Curve:
    """What is ranked: one class against the rest.

    Attributes:
      name: of the class.
      positive: bool [N], whether a patch is of it.
      scores: float [N], such as log-odds; patches without a finite one are left out, which is said.
      metrics: {"auroc": ..., "average_precision": ...}, as `estimates` has them.
      decided: bool [N], whether a patch was taken for it, which marks a point; None marks none.
    """

    name: str
    positive: np.ndarray
    scores: np.ndarray
    metrics: Mapping[str, Mapping[str, Any]]
    decided: np.ndarray | None = None


def curves_of(labels: np.ndarray, logits: np.ndarray, metrics: Mapping[str, Any]) -> list[Curve]:
    """Of two classes the curve of the positive one, of more one for each.

    Args:
      labels: int [N], indices of `metrics["classes"]`.
      logits: float [N, K], as for `probabilities`.
      metrics: as in `test_metrics.json`.
    """
    z = np.asarray(logits, np.float64)
    scores, classes = log_odds_of(z), metrics["classes"]
    decided = predicted_classes(z, metrics.get("threshold") or 0.5)
    if len(classes) == 2:
        return [Curve(classes[1], labels == 1, scores[:, 1], metrics["estimates"], decided == 1)]
    estimates = metrics["estimates_by_class"]
    return [
        Curve(name, labels == c, scores[:, c], estimates[name]) for c, name in enumerate(classes)
    ]


def roc(curves: Sequence[Curve], macro: Mapping[str, Any] | None = None) -> str:
    """Receiver operating characteristic: sensitivity against 1 - specificity.

    Args:
      curves: one for each class, of two classes that of the positive one alone. Of more than
        `MOST_CURVES` their average at equal 1 - specificity is drawn in their place.
      macro: the AUROC of all classes together, as `estimates` has it; of several curves.
    """
    return _ranking(
        curves,
        macro,
        measure="auroc",
        name="AUROC",
        title="ROC curve",
        labels=("1 - specificity", "Sensitivity"),
        points=_roc_points,
    )


def precision_recall(curves: Sequence[Curve], macro: Mapping[str, Any] | None = None) -> str:
    """Precision (PPV) against recall (sensitivity), whose steps the average precision is the area
    below, with the share of the class as a line: the precision of chance.

    Args:
      curves, macro: as for `roc`; of the average precision.
    """
    return _ranking(
        curves,
        macro,
        measure="average_precision",
        name="average precision",
        title="Precision-recall curve",
        labels=("Recall (sensitivity)", "Precision (PPV)"),
        points=_precision_points,
    )


def _ranking(
    curves: Sequence[Curve],
    macro: Mapping[str, Any] | None,
    *,
    measure: str,
    name: str,
    title: str,
    labels: tuple[str, str],
    points: Any,
) -> str:
    """`roc` and `precision_recall`."""
    many, steps = len(curves) > MOST_CURVES, points is _precision_points
    first = curves[0].metrics.get(measure) if len(curves) == 1 else macro
    heading = headline([(name if len(curves) == 1 else f"macro-averaged {name}", first)])
    if many:
        heading += f"; the average of {len(curves)} classes, each against the rest"
    finite = np.isfinite(np.stack([curve.scores for curve in curves])).all(axis=0)
    lines, told = [], [f"{title}: {labels[1]} against {labels[0]}.", heading + "."]
    for curve in curves:
        positive, scores = np.asarray(curve.positive, bool)[finite], curve.scores[finite]
        shown = clean(curve.name)
        metric = curve.metrics.get(measure)
        text = f"{shown}: {estimate_text(metric)}" if metric else shown
        told.append(f"{text}, {positive.sum()} of {len(positive)} patches.")
        xy = points(positive, scores)
        if xy is None:
            told.append(f"{shown} has no curve, since its patches or the others are missing.")
            continue
        lines.append((shown if len(curves) == 1 else text, xy, float(positive.mean()), curve))
    with drawing():
        listed = 0 if many else len(lines)
        figure = new_figure(4.1 + 0.17 * (listed + len(heading) // LINE))
        axes = figure.subplots()
        if not steps:
            axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1, label="chance")
        if many and lines:
            axes.plot(*_average([xy for _, xy, *_ in lines], steps), color=BLUE, label="average")
            if steps:
                share = float(np.mean([share for *_, share, _ in lines]))
                axes.axhline(share, color=GREY, linewidth=1, linestyle=":", label="chance")
        for i, (text, (x, y), share, curve) in enumerate([] if many else lines):
            colour = COLOURS[i % len(COLOURS)]
            kept = _thinned(x, y)
            style: dict[str, Any] = {"drawstyle": "steps-pre"} if steps else {}
            axes.plot(
                x[kept], y[kept], color=colour, label=text, linewidth=1.6,
                linestyle=_LINES[i % len(_LINES)], **style,
            )  # fmt: skip
            if steps:
                # Of several classes at the right edge alone, where lines do not hide curves.
                one = len(curves) == 1
                axes.plot(
                    [0 if one else 0.94, 1], [share, share], color=colour, linestyle=":",
                    linewidth=1 if one else 1.5,
                    label=f"chance: {share:.3f} of patches" if one else None,
                )  # fmt: skip
            if curve.decided is not None:
                positive = np.asarray(curve.positive, bool)[finite]
                _mark_decision(axes, positive, curve.decided[finite], steps)
        if steps and len(curves) > 1 and lines and not many:
            axes.plot(
                [], [], color=GREY, linestyle=":", linewidth=1.5, label="chance, at the right"
            )
        if not lines:
            axes.text(0.5, 0.6, "undefined: one class is missing", ha="center")
        unit_axes(axes, *labels)
        axes.set_aspect("equal")
        if lines or not steps:
            figure.legend(loc="outside lower left", fontsize=8)
        return finished(figure, title, heading, told, left_out(finite))


def _roc_points(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """(1 - specificity, sensitivity) at every threshold; None where a class is missing."""
    if positive.all() or not positive.any():
        return None
    true, false = _counts_above(positive, scores)
    return np.append(0, false) / false[-1], np.append(0, true) / true[-1]


def _precision_points(
    positive: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """(recall, precision) where the recall rises; None without patches of the class."""
    if not positive.any():
        return None
    true, false = _counts_above(positive, scores)
    rises = np.diff(true, prepend=0) > 0
    recall, precision = true[rises] / true[-1], (true / (true + false))[rises]
    return np.append(0, recall), np.append(precision[:1], precision)


def _counts_above(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int [T] twice: how many of the class and of the rest have at least each score, from the
    highest on."""
    levels, which = np.unique(-scores, return_inverse=True)
    return tuple(  # type: ignore[return-value]
        np.bincount(which[part], minlength=len(levels)).cumsum() for part in (positive, ~positive)
    )


def _thinned(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Indices of at most `_MOST_POINTS` points, from which no other is far; the first and the last
    one are among them."""
    far = 0.0
    while True:
        kept = [0]
        for i in range(1, len(x) - 1):
            if max(abs(x[i] - x[kept[-1]]), abs(y[i] - y[kept[-1]])) > far:
                kept.append(i)
        if len(kept) < _MOST_POINTS:
            return np.array([*kept, len(x) - 1])
        far = max(1.5 * far, 0.5 / _MOST_POINTS)


def _average(curves: list[tuple[np.ndarray, np.ndarray]], steps: bool) -> tuple[Any, Any]:
    """The mean height of all curves, at equal distances."""
    grid = np.linspace(0, 1, 201)
    heights = [
        y[np.minimum(np.searchsorted(x, grid), len(x) - 1)] if steps else np.interp(grid, x, y)
        for x, y in curves
    ]
    return grid, np.mean(heights, axis=0)


def _mark_decision(axes: "Axes", positive: np.ndarray, decided: np.ndarray, steps: bool) -> None:
    """The point of the decisions that were taken."""
    sensitivity = decided[positive].mean()
    if not steps:
        point = (decided[~positive].mean(), sensitivity)
    elif decided.any():
        point = (sensitivity, positive[decided].mean())
    else:
        return
    axes.plot(
        [point[0]], [point[1]], marker="D", markersize=6, color="black", linestyle="",
        label="at the threshold", zorder=5,
    )  # fmt: skip
