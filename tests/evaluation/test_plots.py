"""The figure of a run is readable at any length and leaves the user's matplotlib alone."""

import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from glomjax.errors import UserError
from glomjax.evaluation import plot_history


def _history(epochs):
    return [
        {
            "epoch": e + 1,
            "loss": 0.7 * 0.9**e,
            "accuracy": 0.6,
            "val_loss": 0.6 + 0.01 * abs(e - 3),
            "val_accuracy": 0.55,
            "val_auroc": 0.6,
            "learning_rate": 1e-3 * 0.5 ** (e // 4),
        }
        for e in range(epochs)
    ]


def _drawn(monkeypatch, tmp_path, history, **options):
    """The panels of the figure that was written."""
    from matplotlib.figure import Figure

    figures = []
    original = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), original(self, *a, **k))
    )
    plot_history(history, tmp_path / "history.png", **options)
    return figures[0].axes


@pytest.mark.parametrize("epochs", [1, 2, 300])
def test_the_figure_is_a_png_that_shows_something(tmp_path, epochs):
    path = tmp_path / "report" / "history.png"
    plot_history(_history(epochs), path, prior_entropy=0.6931)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert 1200 < image.width < 2400
        assert 400 < image.height < 1000
        pixels = np.asarray(image.convert("RGB"))
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):  # training and validation
        assert (np.abs(pixels.astype(int) - colour).sum(axis=-1) < 10).sum() > 20


def test_epochs_count_from_one_and_the_best_is_marked(monkeypatch, tmp_path):
    loss, quality, rate = _drawn(monkeypatch, tmp_path, _history(8), prior_entropy=0.6931)
    assert loss.lines[0].get_xdata().tolist() == list(range(1, 9))
    legend = [text.get_text() for text in loss.get_legend().get_texts()]
    assert legend == ["training", "validation", "prior entropy", "best epoch (4)"]
    assert all(float(tick).is_integer() for tick in loss.get_xticks())
    assert len(quality.lines) == 4
    assert rate.get_yscale() == "log"


def test_the_callers_best_epoch_wins(monkeypatch, tmp_path):
    loss, *_ = _drawn(monkeypatch, tmp_path, _history(8), best_epoch=7)
    assert "best epoch (7)" in [text.get_text() for text in loss.get_legend().get_texts()]


def test_keys_absent_everywhere_leave_out_their_panel(monkeypatch, tmp_path):
    history = [{"epoch": e + 1, "loss": 1.0, "val_loss": math.nan} for e in range(3)]
    assert len(_drawn(monkeypatch, tmp_path, history)) == 1


@pytest.mark.filterwarnings("error")
def test_training_without_validation_is_drawn_without_a_warning(monkeypatch, tmp_path):
    history = [{"epoch": e + 1, "loss": 1.0, "learning_rate": 1e-3} for e in range(3)]
    _, rate = _drawn(monkeypatch, tmp_path, history)
    assert rate.get_legend() is None


def test_null_values_leave_a_gap(monkeypatch, tmp_path):
    history = _history(3)
    history[1]["val_auroc"] = None
    _, quality, _ = _drawn(monkeypatch, tmp_path, history)
    assert np.isnan(quality.lines[2].get_ydata()).tolist() == [False, True, False]


def test_a_key_missing_in_some_rows_is_refused(tmp_path):
    history = _history(3)
    del history[1]["val_loss"]
    with pytest.raises(UserError, match=r"row 1 .* 'val_loss'"):
        plot_history(history, tmp_path / "history.png")


@pytest.mark.parametrize(("history", "message"), [([], "no epoch"), ([{"epoch": 1}], "none of")])
def test_a_history_without_curves_is_refused(tmp_path, history, message):
    with pytest.raises(UserError, match=message):
        plot_history(history, tmp_path / "history.png")


def test_plotting_neither_sets_a_backend_nor_imports_matplotlib_early(tmp_path):
    code = f"""
import sys
import glomjax.evaluation
heavy = {{"matplotlib", "sklearn", "scipy", "jax"}} & set(sys.modules)
assert not heavy, heavy
import matplotlib
matplotlib.use("svg")
glomjax.evaluation.plot_history([{{"epoch": 1, "loss": 1.0}}], {str(tmp_path / "h.png")!r})
assert matplotlib.get_backend() == "svg"
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert (tmp_path / "h.png").read_bytes().startswith(b"\x89PNG")
