"""Negative controls: fitted where they should be, found where they tell the classes, and said."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from glomjax.data.permuted_labels import permute_within
from glomjax.evaluation import classification_metrics, controls
from glomjax.evaluation.controls import (
    compare_with_controls,
    control_message,
    controls_line,
    fit_controls,
    fit_controls_in_folds,
)

CLASSES = ("other", "glomerulus")


def patches(seed: int, patients: int = 12, each: int = 20):
    """(labels, patients, features of which one tells the classes by 1.5 deviations)."""
    rng = np.random.default_rng(seed)
    labels = np.tile([0, 1], patients * each // 2)
    names = np.repeat([f"{seed}-{i}" for i in range(patients)], each)
    values = rng.normal(size=(len(labels), 6))
    values[:, 0] += 1.5 * labels
    return labels, names, {"colours": values}


def test_a_network_that_does_not_beat_the_best_control_is_told_so():
    labels, _, features = patches(0)
    truth, names, test = patches(1)
    noise = np.random.default_rng(2).normal(size=(len(truth), 1))
    features |= {"nothing": np.random.default_rng(3).normal(size=(len(labels), 3))}
    test |= {"nothing": noise.repeat(3, axis=1)}
    fitted = fit_controls(features, labels, test)
    again = fit_controls(features, labels, test)
    assert all(np.array_equal(fitted[name], again[name]) for name in fitted)

    poor = compare_with_controls(truth, noise + 0.5 * truth[:, None], fitted, CLASSES, names)
    assert poor["colours"]["auroc"] > 0.8
    assert abs(poor["nothing"]["auroc"] - 0.5) < 0.1
    text = control_message(poor)
    assert "not shown to be better than a logistic regression on colours" in text
    assert f"{poor['colours']['auroc']:.3f}" in text
    assert "jackknife by patient" in text

    good = compare_with_controls(truth, noise + 5.0 * truth[:, None], fitted, CLASSES, names)
    assert good["colours"]["difference"]["low"] > 0
    assert control_message(good) == ""
    json.dumps(good)
    # Two patients have no interval worth the name, and what is not known is not shown.
    alone = compare_with_controls(truth, 5.0 * truth[:, None], fitted, CLASSES, ["A"] * len(truth))
    assert "no interval: one patient says nothing of others" in control_message(alone)


@given(
    st.lists(st.tuples(st.booleans(), *[st.integers(-2, 2)] * 3), min_size=4, max_size=20).filter(
        lambda rows: len({row[0] for row in rows}) == 2
    )
)
@settings(max_examples=40)
def test_differences_are_those_of_scikit_learn_s_areas_whatever_ties_there_are(rows):
    labels, table = np.array([row[0] for row in rows]), np.array([row[1:] for row in rows]) / 4
    two, one = table[:, :2], table[:, 2:]
    found = compare_with_controls(labels, two, {"control": one}, CLASSES)["control"]
    expected = roc_auc_score(labels, two[:, 1] - two[:, 0]) - roc_auc_score(labels, one[:, 0])
    assert found["difference"]["value"] == pytest.approx(expected, abs=1e-12)


def test_more_than_two_classes_have_a_logit_each():
    labels = np.tile([0, 1, 2], 40)
    values = np.random.default_rng(0).normal(size=(120, 4))
    values[np.arange(120), labels] += 2
    fitted = fit_controls({"values": values}, labels, {"values": values})
    assert fitted["values"].shape == (120, 3)
    found = compare_with_controls(labels, fitted["values"], fitted, ("a", "b", "c"))
    assert found["values"]["auroc"] > 0.9
    assert found["values"]["difference"]["value"] == 0
    other = np.random.default_rng(1).normal(size=(120, 3))
    found = compare_with_controls(labels, other, fitted, ("a", "b", "c"))["values"]
    ours = classification_metrics(labels, other, ("a", "b", "c"))["auroc"]
    assert found["difference"]["value"] == pytest.approx(ours - found["auroc"], abs=1e-12)


def test_many_images_are_taken_in_parts_and_thumbnails_stay_bytes(monkeypatch):
    labels, _, features = patches(0)
    pixels = {"thumbnails": (128 + 20 * features["colours"]).clip(0, 255).astype(np.uint8)}
    whole = fit_controls(pixels, labels, pixels)["thumbnails"]
    monkeypatch.setattr(controls, "_AT_ONCE", 7)
    np.testing.assert_allclose(fit_controls(pixels, labels, pixels)["thumbnails"], whole)
    monkeypatch.setattr(controls, "_MOST_FITTED", 100)
    fewer = fit_controls(pixels, labels, pixels)["thumbnails"]
    assert fewer.shape == whole.shape
    assert not np.allclose(fewer, whole)
    assert roc_auc_score(labels, fewer[:, 0]) > 0.8


def test_without_a_training_split_whole_patients_are_left_out():
    """Each patient has one class and a mark of its own: only who has seen the patient knows."""
    names = np.repeat([f"P{i:02d}" for i in range(20)], 10)
    labels = np.repeat(np.arange(20) % 2, 10)
    marks = {"marks": np.random.default_rng(0).normal(size=(20, 15)).repeat(10, axis=0)}
    seen = fit_controls(marks, labels, marks)["marks"][:, 0]
    assert roc_auc_score(labels, seen) > 0.95
    left_out, how = fit_controls_in_folds(marks, labels, names, 2)
    assert how == "on this data, 5 parts of its patients left out in turn"
    assert roc_auc_score(labels, left_out["marks"][:, 0]) < 0.75
    # Without patients it is images that are left out, whose neighbours know them.
    alone, how = fit_controls_in_folds(marks, labels, None, 2)
    assert "its images left out" in how
    assert roc_auc_score(labels, alone["marks"][:, 0]) > 0.95


@pytest.mark.parametrize(
    ("labels", "names", "why"),
    [
        ([0, 0, 0, 0], "AABB", "a class has no image"),
        ([0, 0, 1, 1], "AABB", "a class has the images of one patient alone"),
    ],
)
def test_where_no_patient_can_be_left_out_there_is_no_control_and_it_is_said(labels, names, why):
    fitted, how = fit_controls_in_folds({"x": np.eye(4)}, labels, list(names), 2)
    assert fitted == {}
    assert how.startswith(why)
    assert controls_line({}, how).startswith(f"controls: none, since {why}")
    assert control_message({}) == ""


def test_permuted_labels_leave_a_control_nothing():
    truth, _, test = patches(1)
    labels, names, features = patches(0)
    areas = []
    for seed in range(20):
        permuted = permute_within(labels, names, seed)
        fitted = fit_controls(features, permuted, test)["colours"]
        areas.append(roc_auc_score(truth, fitted[:, 0]))
    assert abs(np.mean(areas) - 0.5) < 0.15
    assert roc_auc_score(truth, fit_controls(features, labels, test)["colours"][:, 0]) > 0.8
