"""Figures are elements of a page that show the numbers they are given, whatever the data hold."""

import math
import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glomjax.evaluation import classification_metrics, predicted_classes, probabilities
from glomjax.files import jsonable
from glomjax.report import curves, figure_tables, figures

ESTIMATE = {"value": 0.8123, "low": 0.7011, "high": 0.9022, "note": "indicative: 6 patients"}
WITHOUT = {"value": 0.75, "low": None, "high": None, "note": "one patient says nothing of others"}
NAMES = ("other <b>", "glom & $a_1$")


def _case(labels, logits, classes=NAMES, groups=None):
    labels, logits = np.asarray(labels), np.asarray(logits, np.float64)
    metrics = jsonable(classification_metrics(labels, logits, classes, groups))
    return labels, logits, {**metrics, "threshold": 0.5}


def _drawn(labels, logits, metrics, classes=NAMES, groups=None):
    """Every figure of predictions."""
    two = len(classes) == 2
    chances, decided = probabilities(logits), predicted_classes(logits)
    found, estimates = curves.curves_of(labels, logits, metrics), metrics["estimates"]
    return {
        "roc": curves.roc(found, None if two else estimates["auroc"]),
        "pr": curves.precision_recall(found, None if two else estimates["average_precision"]),
        "reliability": figures.reliability(
            labels == 1 if two else decided == labels,
            chances[:, 1] if two else chances.max(axis=1),
            estimates,
            outcome=classes[1],
            groups=groups,
        ),
        "histogram": figures.probability_histogram(
            labels, chances, decided, classes, 0.5 if two else None
        ),
        "confusion": figure_tables.confusion(
            metrics["confusion_matrix"], classes, estimates, 0.5 if two else None
        ),
    }


def _checked(svg):
    """The element of a figure, which is fit for a page."""
    assert len(svg.encode()) < 60_000
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("role") == "img"
    assert root.get("viewBox")
    assert root.get("width") is None
    assert root.get("height") is None
    for forbidden in ("<?xml", "<!DOCTYPE", "<metadata", "<style", "<script", "<image", "http://"):
        assert forbidden not in svg.replace("http://www.w3.org/2000/svg", "")
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    assert set(root.get("aria-labelledby").split()) <= set(ids)
    assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg)) <= set(ids)
    assert all(element.text for element in root if element.tag.endswith(("title", "desc")))
    return root


def _texts(root):
    """What a reader sees, as lines."""
    return " ".join("".join(e.itertext()) for e in root.iter() if e.tag.endswith("}text"))


def _described(root):
    return next(element.text for element in root if element.tag.endswith("desc"))


def _random(n, classes=2, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    if classes == 2:
        return labels, (labels * 1.5 + rng.normal(size=n))[:, None]
    logits = rng.normal(size=(n, classes))
    logits[np.arange(n), labels] += 1
    return labels, logits


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    pairs=st.lists(
        st.tuples(st.booleans(), st.floats(-50, 50, allow_nan=False)), min_size=1, max_size=30
    ),
    names=st.lists(st.text(min_size=1), min_size=2, max_size=2, unique=True),
)
def test_any_predictions_and_names_are_well_formed(pairs, names):
    labels, logits, metrics = _case(
        [int(label) for label, _ in pairs], [[z] for _, z in pairs], names
    )
    for svg in _drawn(labels, logits, metrics, names).values():
        _checked(svg)


@settings(max_examples=5, deadline=None)
@given(
    names=st.lists(st.text(), max_size=4),
    value=st.one_of(st.none(), st.floats(0, 1)),
    title=st.text(min_size=1).filter(str.strip),
)
def test_any_rows_are_well_formed(names, value, title):
    metric = {"value": value, "low": None, "high": None, "note": ""}
    rows = [(name, 5, metric) for name in names] + [("last", 7, ESTIMATE), ("none", 1, None)]
    root = _checked(figure_tables.forest(rows, title=title, whole=metric))
    assert "0.812 (0.701 to 0.902)" in _texts(root)
    assert "undefined" in _texts(root)
    _checked(figures.randomisation(dict.fromkeys(names, 0.5) | {"last": math.nan}))


def test_numbers_are_those_that_are_given():
    labels, logits, metrics = _case(*_random(60), groups=[f"P{i % 9}" for i in range(60)])
    given_ones = {**metrics, "estimates": dict.fromkeys(metrics["estimates"], ESTIMATE)}
    drawn = _drawn(labels, logits, given_ones, groups=[f"P{i % 9}" for i in range(60)])
    for name in ("roc", "pr", "reliability", "confusion"):
        root = _checked(drawn[name])
        assert "0.812 (0.701 to 0.902)" in _described(root)
        assert "0.812" in _texts(root)
        assert "indicative" in _texts(root)
    cells = _texts(_checked(drawn["confusion"])).split()
    assert {str(n) for row in metrics["confusion_matrix"] for n in row} <= set(cells)


def test_names_are_escaped_and_equal_figures_equal_texts_whose_ids_no_other_has():
    labels, logits, metrics = _case(*_random(20))
    drawn = _drawn(labels, logits, metrics)
    for svg in drawn.values():
        assert "<b>" not in svg
        assert "glom &amp; $a_1$" in svg
    assert "$a_1$" in _texts(_checked(drawn["confusion"]))
    assert drawn == _drawn(labels, logits, metrics)
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in drawn.values()]
    assert sum(map(len, ids)) == len(set().union(*ids))


def test_many_patches_stay_small_and_their_curve_stays_where_it_is():
    labels, logits, metrics = _case(*_random(10_000))
    for svg in _drawn(labels, logits, metrics).values():
        _checked(svg)
    # Along the thinned curve the area is that of all points.
    x, y = curves._roc_points(labels == 1, logits[:, 0])
    kept = curves._thinned(x, y)
    assert len(kept) < 500 < len(x)
    assert np.trapezoid(y[kept], x[kept]) == pytest.approx(metrics["auroc"], abs=2e-3)
    assert (x[kept][-1], y[kept][-1]) == (1, 1)


def test_curves_go_through_what_the_metrics_are():
    labels, logits, metrics = _case(*_random(50))
    x, y = curves._roc_points(labels == 1, logits[:, 0])
    assert np.trapezoid(y, x) == pytest.approx(metrics["auroc"])
    recall, precision = curves._precision_points(labels == 1, logits[:, 0])
    area = float(np.diff(recall) @ precision[1:])
    assert area == pytest.approx(metrics["estimates"]["average_precision"]["value"])


@pytest.mark.parametrize(("classes", "lines"), [(3, 3), (11, 0)])
def test_several_classes_have_a_curve_each_and_very_many_their_average(classes, lines):
    names = [f"class {c}" for c in range(classes)]
    labels, logits, metrics = _case(*_random(120, classes), names)
    drawn = {name: _checked(svg) for name, svg in _drawn(labels, logits, metrics, names).items()}
    text = _texts(drawn["roc"])
    assert len(re.findall(r"class \d+: 0\.\d{3}", text)) == lines
    assert ("the average of 11 classes" in " ".join(text.split())) == (lines == 0)
    assert f"{metrics['estimates']['auroc']['value']:.3f}" in text
    assert ("2 others" in _texts(drawn["confusion"])) == (lines == 0)


def test_one_class_has_no_curve_and_says_so():
    labels, logits, metrics = _case([1] * 6, np.arange(6.0)[:, None])
    root = _checked(_drawn(labels, logits, metrics)["roc"])
    assert "undefined: one class is missing" in _texts(root)
    assert "no curve" in _described(root)


def test_patches_without_a_score_are_counted():
    labels, logits, metrics = _case(*_random(30))
    scores = np.where(np.arange(30) < 3, np.nan, logits[:, 0])
    curve = curves.Curve("glomerulus", labels == 1, scores, metrics["estimates"])
    root = _checked(curves.roc([curve]))
    assert "3 of 30 patches have no finite score" in _texts(root)
    assert "3 of 30 patches have no finite score" in _described(root)


def test_equal_probabilities_are_one_bin():
    estimates = {"calibration_slope": WITHOUT}
    svg = figures.reliability(np.arange(40) % 2 == 0, np.full(40, 0.5), estimates, outcome="glom")
    assert "n = 40 patches each" in _texts(_checked(svg))


def test_bins_are_as_large_as_they_can_be_alike():
    svg = figures.reliability(np.arange(105) % 2 == 0, np.linspace(0, 1, 105), {}, outcome="glom")
    assert "n = 10 to 11 patches each" in _texts(_checked(svg))


def test_a_long_forest_shows_its_lowest_rows_and_says_so():
    rows = [(f"P{i}", 3, {**ESTIMATE, "value": i / 100}) for i in range(100)]
    text = _texts(_checked(figure_tables.forest(rows, title="AUROC by patient")))
    assert "the 60 lowest of 100" in text
    assert "P59" in text
    assert "P60" not in text


def test_learning_curves_mark_the_best_epoch_and_the_stop():
    history = [
        {"epoch": e, "loss": 1 / e, "val_loss": 1.0, "learning_rate": 10.0 ** -(e % 3 + 2)}
        for e in range(1, 13)
    ]
    svg = figures.learning_curves(history, best_epoch=5, stopped=12, prior_entropy=0.69)
    text = _texts(_checked(svg))
    assert "best epoch (5)" in text
    assert "stopped (12)" in text
    assert "prior entropy" in text
    assert "0.001" in text


def test_settings_of_matplotlib_and_its_backend_are_left_alone():
    code = """
import sys
from glomjax.report import figures
assert "matplotlib" not in sys.modules
import matplotlib
matplotlib.use("svg")
before = dict(matplotlib.rcParams)
figures.randomisation({"head": 0.5})
assert dict(matplotlib.rcParams) == before
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
