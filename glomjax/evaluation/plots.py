"""The learning curves of a run as a figure, and the colours of all figures. matplotlib is imported
when a figure is drawn."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glomjax.errors import UserError
from glomjax.files import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that colour-blind readers tell apart (Okabe and Ito 2008, Color Universal Design).
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "black", "#56B4E9", "#E69F00")

# One panel each: y label, and for each curve its key in the history, its legend, its colour, and
# for who sees none its line.
_PANELS: tuple[tuple[str, tuple[tuple[str, str, str, str], ...]], ...] = (
    (
        "Loss (nats)",
        (("loss", "training", BLUE, "-"), ("val_loss", "validation", ORANGE, "--")),
    ),
    (
        "Accuracy, AUROC",
        (
            ("accuracy", "training accuracy", BLUE, "-"),
            ("val_accuracy", "validation accuracy", ORANGE, "--"),
            ("val_auroc", "validation AUROC", GREEN, "-."),
        ),
    ),
    ("Learning rate", (("learning_rate", "", GREY, "-"),)),
)


def plot_history(
    history: Sequence[Mapping[str, Any]],
    path: str | Path,
    *,
    best_epoch: int | None = None,
    prior_entropy: float | None = None,
) -> None:
    """Draws loss, accuracy with AUROC, and learning rate against the epoch, as a PNG.

    Args:
      history, best_epoch, prior_entropy: as in `history_figure`.
      path: the file to write.

    Raises:
      UserError: as of `history_figure`, or the file cannot be written.
    """
    image = history_png(history, best_epoch=best_epoch, prior_entropy=prior_entropy)
    write_file(Path(path), image)


def history_png(
    history: Sequence[Mapping[str, Any]],
    *,
    best_epoch: int | None = None,
    prior_entropy: float | None = None,
) -> bytes:
    """What `plot_history` writes, for whoever writes it in another way."""
    figure = history_figure(history, best_epoch=best_epoch, prior_entropy=prior_entropy)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=160, facecolor="white")
    return image.getvalue()


def history_figure(
    history: Sequence[Mapping[str, Any]],
    *,
    best_epoch: int | None = None,
    stopped: int | None = None,
    prior_entropy: float | None = None,
    width: float = 3.9,
    stacked: bool = False,
) -> "Figure":
    """Loss, accuracy with AUROC, and learning rate against the epoch.

    Args:
      history: one row per epoch, as in `metrics.jsonl`, with `epoch` (from 1) and any of `loss`,
        `val_loss`, `accuracy`, `val_accuracy`, `val_auroc`, `learning_rate`. A key that no row has
        is left out, and so is a panel without curves; None or NaN leaves a gap.
      best_epoch: from 1, marked by a vertical line; by default that of the lowest `val_loss`.
      stopped: from 1, the epoch after which early stopping ended the training, marked likewise.
      prior_entropy: nats; the loss of the best constant prediction, a dotted line.
      width: of a panel, in inches.
      stacked: the panels lie below one another, not side by side.

    Raises:
      UserError: there is no row or no curve, or a key is missing in some rows only.
    """
    curves = _curves(history)
    epochs = [int(row["epoch"]) for row in history]
    if best_epoch is None and "val_loss" in curves:
        finite = [(v, e) for v, e in zip(curves["val_loss"], epochs, strict=True) if v == v]
        best_epoch = min(finite)[1] if finite else None
    panels = [
        (label, shown)
        for label, lines in _PANELS
        if (shown := [line for line in lines if line[0] in curves])
    ]

    # A Figure of its own, not pyplot, which would set the backend of the user's session.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows, columns = (len(panels), 1) if stacked else (1, len(panels))
    figure = Figure(figsize=(width * columns, (2.4 if stacked else 3.3) * rows))
    figure.set_layout_engine("constrained", wspace=0.08)
    drawn = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (label, lines) in zip(drawn, panels, strict=True):
        # A point per epoch while points can be told apart, and for an epoch alone to be visible.
        marker = "o" if len(epochs) <= 30 else ""
        for key, legend, colour, line in lines:
            axes.plot(
                epochs, curves[key], color=colour, label=legend, linewidth=1.5, linestyle=line,
                marker=marker, markersize=3.5,
                drawstyle="steps-mid" if key == "learning_rate" else "default",
            )  # fmt: skip
        if label == _PANELS[0][0] and prior_entropy is not None:
            axes.axhline(
                prior_entropy, color=GREY, linestyle=":", linewidth=1.2, label="prior entropy"
            )
        if best_epoch is not None:
            axes.axvline(
                best_epoch, color="black", linestyle="--", linewidth=0.9, zorder=1,
                label=f"best epoch ({best_epoch})",
            )  # fmt: skip
        if stopped is not None:
            axes.axvline(
                stopped, color=GREY, linestyle="-.", linewidth=0.9, zorder=1,
                label=f"stopped ({stopped})",
            )  # fmt: skip
        values = [v for key, *_ in lines for v in curves[key] if math.isfinite(v)]
        if label == _PANELS[1][0]:  # one scale for all runs, whose figures then compare
            axes.set_ylim(min([0.45, *values]) - 0.02, 1.02)
        if label == _PANELS[2][0]:
            _scale_learning_rate(axes, values)
        axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)  # no tick at epoch 0, which is not there
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))
        axes.set(xlabel="Epoch", ylabel=label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        if axes.get_legend_handles_labels()[1]:
            # Above the panel, where no curve can be.
            axes.legend(
                loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, frameon=False, fontsize=8,
                columnspacing=1.2, handlelength=1.6,
            )  # fmt: skip
    return figure


def _curves(history: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """The values of every key that the history has, NaN where a row holds None."""
    if not history:
        raise UserError("the history has no epoch to plot; train for one epoch at least")
    curves: dict[str, list[float]] = {}
    known = [key for _, lines in _PANELS for key, *_ in lines]
    for key in ("epoch", *known):
        missing = [i for i, row in enumerate(history) if key not in row]
        if missing and (key == "epoch" or len(missing) < len(history)):
            raise UserError(
                f"row {missing[0]} of the history has no '{key}' though it is needed in every row; "
                "write the value, or null where there is none"
            )
        if key != "epoch" and not missing:
            curves[key] = [math.nan if row[key] is None else float(row[key]) for row in history]
    if not curves:
        raise UserError(f"the history has none of {', '.join(known)}; there is nothing to plot")
    return curves


def _scale_learning_rate(axes: "Axes", values: Sequence[float]) -> None:
    """A log axis from one power of ten to another, so that it has labelled ticks."""
    positive = [v for v in values if v > 0]
    if not positive:
        return
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    # The small number keeps 1e-3 in float32 (0.00100000005) at its power of ten.
    low = math.floor(math.log10(min(positive)) + 1e-6)
    high = math.ceil(math.log10(max(positive)) - 1e-6)
    if low == high:
        low, high = low - 1, high + 1
    axes.set_ylim(10 ** (low - 0.1), 10 ** (high + 0.1))
