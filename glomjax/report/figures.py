"""The figures of a report but its curves and tables (see `curves` and `figure_tables`), each an
`<svg>` element with a description for who does not see it.

Metrics and their intervals are given, as `test_metrics.json` has them, and shown as they are: no
figure computes one of its own. Whoever sees no colours tells curves by their lines, and bars by
their hatching.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from glomjax.evaluation.intervals import INDEPENDENT, patient_numbers
from glomjax.evaluation.plots import BLUE, COLOURS, GREY, history_figure
from glomjax.evaluation.sample import Sample
from glomjax.report.svg import (
    WIDTH,
    clean,
    drawing,
    finished,
    headline,
    inline_svg,
    left_out,
    new_figure,
    unit_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BINS = 10  # of a reliability diagram, and the fewest patches of each
_MOST_CLASSES = 10  # that have a panel of their own


def learning_curves(
    history: Sequence[Mapping[str, Any]],
    *,
    best_epoch: int | None = None,
    stopped: int | None = None,
    prior_entropy: float | None = None,
) -> str:
    """Loss, accuracy with AUROC, and learning rate against the epoch: see `history_figure`."""
    with drawing():
        figure = history_figure(
            history,
            best_epoch=best_epoch,
            stopped=stopped,
            prior_entropy=prior_entropy,
            width=WIDTH,
            stacked=True,
        )
        last = history[-1]
        parts = [f"Loss, accuracy and learning rate of {len(history)} epochs."]
        if best_epoch is not None:
            parts.append(f"The best epoch is {best_epoch}.")
        if stopped is not None:
            parts.append(f"Training stopped after epoch {stopped}.")
        shown = [
            f"{name.replace('val_', 'validation ').replace('_', ' ')} {value:.4g}"
            for name in ("loss", "val_loss", "accuracy", "val_accuracy", "val_auroc")
            if (value := last.get(name)) is not None
        ]
        if shown:
            parts.append(f"At the last epoch: {', '.join(shown)}.")
        return inline_svg(figure, "Learning curves", " ".join(parts))


def reliability(
    positive: np.ndarray,
    probabilities: np.ndarray,
    estimates: Mapping[str, Mapping[str, Any]],
    *,
    outcome: str,
    groups: Sequence[str] | None = None,
    kind: str = "patient",
) -> str:
    """How often what has a probability is so: in bins of equally many patches the share that is,
    with Wilson's interval, which counts patients where they are known; below, how many patches
    have which probability.

    Args:
      positive: bool [N], whether it is so: a patch of the positive class; of more than two classes,
        a patch whose most probable class is its own.
      probabilities: float [N], of that.
      estimates: as in `test_metrics.json`; calibration slope, intercept and ECE are shown.
      outcome: what it is called, such as "glomerulus", or "the most probable class".
      groups: one patient per patch [N], or None where they are not known.
      kind: what a group is.
    """
    outcome = clean(outcome)
    finite = np.isfinite(probabilities)
    order = np.flatnonzero(finite)[np.argsort(probabilities[finite], kind="stable")]
    sample = Sample(
        positive=np.asarray(positive, bool),
        log_odds=np.asarray(probabilities, np.float64),
        decided=np.asarray(positive, bool),
        patient=None if groups is None else patient_numbers(groups, len(positive)),
        fewest=0,
        level=0.95,
        kind=kind,
    )
    heading = headline(
        [
            ("calibration slope", estimates.get("calibration_slope")),
            ("intercept", estimates.get("calibration_intercept")),
            ("ECE", estimates.get("ece")),
        ]
    )
    told = [heading]
    with drawing():
        figure = new_figure(4.6)
        axes, strip = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1, label="perfect")
        bins = _equal_bins(np.asarray(probabilities)[order])
        for part in bins:
            chosen = np.zeros(len(finite), bool)
            chosen[order[part]] = True
            x, y = float(probabilities[chosen].mean()), float(positive[chosen].mean())
            interval = sample.share(chosen, sample.positive)
            spread = ""
            if interval.is_known:
                axes.plot([x, x], [interval.low, interval.high], color=BLUE, linewidth=1.2)
                spread = f" ({interval.low:.2f} to {interval.high:.2f})"
            axes.plot([x], [y], color=BLUE, marker="o", markersize=5, linestyle="")
            told.append(
                f"{chosen.sum()} patches with a mean probability of {x:.2f} have an observed share "
                f"of {y:.2f}{spread}."
            )
        if bins:
            sizes = sorted({len(range(*part.indices(len(order)))) for part in bins})
            number = f"{sizes[0]}" + (f" to {sizes[-1]}" if len(sizes) > 1 else "")
            how = INDEPENDENT if groups is None else f"95%, by {kind}"
            point = f"n = {number} patches each; {how}"
            axes.plot([], [], color=BLUE, marker="o", markersize=5, linewidth=1.2, label=point)
        unit_axes(axes, "", "Observed share")
        strip.hist(probabilities[order], bins=np.linspace(0, 1, 21), color=GREY)
        strip.set(xlabel=f"Probability of {outcome}", ylabel="Patches")
        _whole_numbers(strip)
        figure.legend(loc="outside lower left", fontsize=8)
        return finished(
            figure, f"Reliability diagram of {outcome}", heading, told, left_out(finite)
        )


def probability_histogram(
    labels: np.ndarray,
    probabilities: np.ndarray,
    decided: np.ndarray,
    classes: Sequence[str],
    threshold: float | None = None,
) -> str:
    """How many patches of each class have which probability: of two classes that of the positive
    one, with the threshold marked; of more, that of the patch's own class. Patches that were taken
    for another class are hatched.

    Args:
      labels, decided: int [N], the true classes and those that the patches were taken for.
      probabilities: float [N, C].
      classes: names [C]; of more than `_MOST_CLASSES` all are shown together.
      threshold: of two classes, the probability above which a patch is positive.
    """
    labels, decided = np.asarray(labels), np.asarray(decided)
    two = len(classes) == 2
    p = probabilities[:, 1] if two else probabilities[np.arange(len(labels)), labels]
    finite = np.isfinite(p)
    parts = [(clean(name), labels == c) for c, name in enumerate(classes)]
    if len(classes) > _MOST_CLASSES:
        parts = [(f"all {len(classes)} classes", np.ones(len(labels), bool))]
    what = f"Probability of {clean(classes[1])}" if two else "Probability of the patch's own class"
    heading = "" if threshold is None else f"Threshold: {threshold:.4g}"
    told = [f"{what}: how many patches have which.", heading and f"{heading}."]
    with drawing():
        figure = new_figure(0.8 + 1.15 * len(parts))
        panels = figure.subplots(len(parts), 1, sharex=True, squeeze=False).ravel()
        for c, (axes, (name, members)) in enumerate(zip(panels, parts, strict=True)):
            right = decided == labels
            kept = [p[members & finite & side] for side in (right, ~right)]
            colour = COLOURS[c % 2]
            bars = axes.hist(kept, bins=np.linspace(0, 1, 21), stacked=True, histtype="stepfilled")[
                2
            ]
            for bar, solid in zip(bars, (True, False), strict=True):
                for polygon in bar:
                    polygon.set(edgecolor=colour, linewidth=0.7, hatch="" if solid else "//////")
                    polygon.set_facecolor(colour if solid else "none")
            axes.set_title(
                f"{name}: n = {sum(map(len, kept))}, of these {len(kept[1])} misclassified",
                loc="left",
                fontsize=8,
            )
            told.append(
                f"{name}: {sum(map(len, kept))} patches, of which {len(kept[1])} were "
                f"misclassified; median probability {_median(np.concatenate(kept))}."
            )
            if threshold is not None:
                axes.axvline(threshold, color="black", linestyle="--", linewidth=1)
            axes.set_ylabel("Patches")
            _whole_numbers(axes)
        panels[-1].set(xlabel=what, xlim=(0, 1))
        note = "solid: classified correctly; hatched: misclassified"
        if threshold is not None:
            note += f"; dashed line: threshold {threshold:.4g}"
        return finished(figure, "Histogram of probabilities", note, told, left_out(finite))


def randomisation(correlations: Mapping[str, float]) -> str:
    """How alike the saliency maps of a network and of the same with random weights are: the rank
    correlation of the two (Adebayo et al. 2018, NeurIPS), as far as its stages are random.

    Args:
      correlations: {up to which stage weights are random: the mean Spearman correlation}, in the
        order in which they were made random; NaN where it is undefined.
    """
    names = [clean(name) for name in correlations]
    values = [float(value) for value in correlations.values()]
    texts = [f"{value:.2f}" if math.isfinite(value) else "undefined" for value in values]
    pairs = "; ".join(f"{n} {t}" for n, t in zip(names, texts, strict=True))
    heading = "Rank correlation of the map with that of random weights"
    with drawing():
        figure = new_figure(0.95 + 0.3 * max(len(names), 1))
        axes = figure.subplots()
        lengths = [value if math.isfinite(value) else 0.0 for value in values]
        axes.barh(range(len(names)), lengths, height=0.6, color=BLUE)
        for i, (length, text) in enumerate(zip(lengths, texts, strict=True)):
            axes.text(max(length, 0) + 0.02, i, text, va="center", fontsize=8)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(names)), names)
        axes.set(
            xlim=(min([0, *lengths]) - 0.05, 1.2),
            ylim=(max(len(names), 1) - 0.5, -0.5),
            xlabel="Spearman correlation (1: the weights change nothing)",
            ylabel="Random up to",
        )
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        return finished(figure, "Randomised weights", heading, [f"{heading}: {pairs}."])


def _equal_bins(ordered: np.ndarray) -> list[slice]:
    """Parts of sorted values with equally many each, but that equal values stay together."""
    n = len(ordered)
    count = max(1, min(_BINS, n // _BINS))
    ends = [0]
    for k in range(1, count + 1):
        end = int(np.searchsorted(ordered, ordered[k * n // count - 1], "right")) if n else 0
        if end > ends[-1]:
            ends.append(end)
    return [slice(low, high) for low, high in itertools.pairwise(ends)]


def _median(values: np.ndarray) -> str:
    return f"{np.median(values):.3f}" if len(values) else "undefined"


def _whole_numbers(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True, min_n_ticks=1))
