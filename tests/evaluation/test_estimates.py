"""Every metric has the value of scikit-learn and an interval that counts patients, or says why not.

How often the intervals hold the truth is measured by `benchmarks/interval_coverage.py`; what must
hold of each one is tested here.
"""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference
from sklearn.linear_model import LogisticRegression

from glomjax.errors import UserError
from glomjax.evaluation import auroc, auroc_interval, classification_metrics

CLASSES = ("other", "glomerulus")
COVERAGE = Path(__file__).parents[2] / "benchmarks" / "interval_coverage.py"


def sample(patients, each=20, seed=0, effect=0.6, apart=1.5):
    """(labels, log-odds, patients) of patients who differ."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), each)
    labels = np.tile([0, 1], patients * each // 2)
    scores = apart * (labels - 0.5) + effect * rng.normal(size=patients)[patient]
    return labels, scores + rng.normal(size=len(labels)), patient


def of(labels, log_odds, groups=None, **options):
    return classification_metrics(labels, np.asarray(log_odds)[:, None], CLASSES, groups, **options)


@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_values_are_those_of_scikit_learn(threshold):
    labels, log_odds, patient = sample(8, effect=1.0)
    log_odds = np.round(log_odds, 1)  # with ties
    chances = 1 / (1 + np.exp(-log_odds))
    decided = chances > threshold
    fitted = LogisticRegression(C=1e12, tol=1e-10).fit(log_odds[:, None], labels)
    expected = {
        "auroc": reference.roc_auc_score(labels, log_odds),
        "average_precision": reference.average_precision_score(labels, log_odds),
        "accuracy": reference.accuracy_score(labels, decided),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, decided),
        "sensitivity": reference.recall_score(labels, decided),
        "specificity": reference.recall_score(labels, decided, pos_label=0),
        "f1": reference.f1_score(labels, decided),
        "mcc": reference.matthews_corrcoef(labels, decided),
        "ppv": reference.precision_score(labels, decided),
        "npv": reference.precision_score(~labels.astype(bool), ~decided),
        "brier": reference.brier_score_loss(labels, chances),
        "loss": reference.log_loss(labels, chances),
        "calibration_slope": fitted.coef_[0, 0],
    }
    found = of(labels, log_odds, patient, threshold=threshold)["estimates"]
    assert {name: found[name]["value"] for name in expected} == pytest.approx(expected, rel=1e-5)
    # The rest by their definitions: probabilities that are right on average, and bins.
    shifted = 1 / (1 + np.exp(-log_odds - found["calibration_intercept"]["value"]))
    assert shifted.mean() == pytest.approx(labels.mean())
    bins = np.minimum((chances * 10).astype(int), 9)
    gaps = [abs((chances - labels)[bins == b].sum()) for b in range(10)]
    assert found["ece"]["value"] == pytest.approx(sum(gaps) / len(labels))


def test_values_of_three_classes_are_macro_averages_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=120)
    logits = 2 * np.eye(3)[labels] + rng.normal(size=(120, 3))
    patient = np.arange(120) % 8
    metrics = classification_metrics(labels, logits, ("a", "b", "c"), patient)
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    decided = logits.argmax(axis=1)
    expected = {
        "auroc": reference.roc_auc_score(labels, chances, multi_class="ovr"),
        "average_precision": reference.average_precision_score(np.eye(3)[labels], chances),
        "accuracy": reference.accuracy_score(labels, decided),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, decided),
        "f1": reference.f1_score(labels, decided, average="macro"),
        "mcc": reference.matthews_corrcoef(labels, decided),
        "loss": reference.log_loss(labels, chances),
    }
    found = metrics["estimates"]
    # One class against the rest ranks by log-odds, scikit-learn by probabilities: in one order.
    assert {name: found[name]["value"] for name in expected} == pytest.approx(expected)
    for name in set(expected) - {"loss"}:
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]
    assert "no interval" in found["loss"]["note"]
    b = metrics["estimates_by_class"]["b"]
    assert b["sensitivity"]["value"] == reference.recall_score(labels == 1, decided == 1)
    assert b["auroc"]["value"] == pytest.approx(auroc(labels == 1, chances[:, 1]))
    assert "patients_needed" not in metrics


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(
        st.tuples(st.booleans(), st.integers(-4, 4), st.integers(0, 7)), min_size=1, max_size=60
    ),
    grouped=st.booleans(),
    threshold=st.sampled_from([0.5, 0.2, 0.99]),
)
def test_intervals_hold_the_value_and_stay_on_the_scale(rows, grouped, threshold):
    labels, log_odds, patient = (np.array(column) for column in zip(*rows, strict=True))
    metrics = of(labels, log_odds + 0.25, patient if grouped else None, threshold=threshold)
    lowest = {"mcc": -1, "calibration_slope": -math.inf, "calibration_intercept": -math.inf}
    highest = {"loss": math.inf, "calibration_slope": math.inf, "calibration_intercept": math.inf}
    for name, found in metrics["estimates"].items():
        if found["method"] == "none":
            assert (found["low"], found["high"]) == (None, None)
            assert found["note"]
            continue
        assert lowest.get(name, 0) <= found["low"] <= found["value"] + 1e-12
        assert found["value"] - 1e-12 <= found["high"] <= highest.get(name, 1)
        if grouped:
            assert "patient" in found["method"]
            assert len(set(patient)) > 1
        else:
            assert "patches are independent" in found["note"]


def test_one_patient_has_no_interval_and_few_are_said():
    one = of(*sample(1))
    assert one["auroc_interval"]["method"] == "none"
    for found in one["estimates"].values():
        assert found["method"] == "none"
    assert "one patient says nothing of others" in one["estimates"]["sensitivity"]["note"]
    for patients, note in ((9, "indicative: 9 patients"), (10, "")):
        few = of(*sample(patients))["estimates"]
        assert few["auroc"]["note"] == few["accuracy"]["note"] == few["brier"]["note"] == note
    # Of a class, not of all: two of twelve have negatives.
    labels, log_odds, patient = sample(12)
    labels = np.where(patient < 10, 1, labels)
    found = of(labels, log_odds, patient)["estimates"]
    assert found["auroc"]["note"] == found["specificity"]["note"] == "indicative: 2 patients"
    assert found["sensitivity"]["note"] == ""


def test_slides_that_stand_in_for_patients_are_called_slides():
    found = of(*sample(4), kind="slide")["estimates"]
    assert found["auroc"]["method"] == "newcombe by slide"
    assert found["ppv"]["note"] == "indicative: 4 slides"


@pytest.mark.parametrize("metric", ["auroc", "accuracy", "sensitivity", "f1", "balanced_accuracy"])
def test_patches_of_one_patient_count_for_less_than_patches_of_many(metric):
    labels, log_odds, patient = sample(6, each=60, effect=1.5, apart=2)
    by_patient, by_patch = (of(labels, log_odds, g)["estimates"][metric] for g in (patient, None))
    assert by_patient["value"] == by_patch["value"]
    width = by_patient["high"] - by_patient["low"]
    assert width > 1.8 * (by_patch["high"] - by_patch["low"])
    # As many patches of more patients, who do not differ, tell more.
    labels, log_odds, patient = sample(60, each=6, effect=0, apart=2)
    more = of(labels, log_odds, patient)["estimates"][metric]
    assert more["high"] - more["low"] < 0.7 * width


def test_the_interval_of_the_auroc_narrows_steadily_with_patients():
    widths = []
    for patients in range(2, 13):
        intervals = [
            auroc_interval(*sample(patients, each=30, seed=seed, effect=0.5)) for seed in range(12)
        ]
        widths.append(np.mean([interval.high - interval.low for interval in intervals]))
    steps = np.array(widths[:-1]) / np.array(widths[1:])
    assert (steps > 1).all(), widths
    assert (steps < 1.6).all(), widths


def test_one_changed_patch_moves_the_interval_of_the_auroc_little():
    labels, patient = np.arange(100) % 2, np.arange(100) // 20
    rng = np.random.default_rng(0)
    for overlap in (6.0, 3.0):  # perfect at first, or with errors
        scores = overlap * labels + rng.normal(size=100)
        before = auroc_interval(labels, scores, patient)
        for which in range(100):
            changed = scores.copy()
            changed[which] = -9.0 if labels[which] else 9.0
            after = auroc_interval(labels, changed, patient)
            assert abs(after.low - before.low) < 0.1
            assert abs(after.high - before.high) < 0.1


def test_predictive_values_at_a_prevalence():
    labels, log_odds, patient = sample(12)
    plain = of(labels, log_odds, patient)["estimates"]
    assert "ppv_at_prevalence" not in plain
    r, s = plain["sensitivity"]["value"], plain["specificity"]["value"]
    for prevalence in (0.5, 0.05):
        found = of(labels, log_odds, patient, prevalence=prevalence)["estimates"]
        ppv, npv = found["ppv_at_prevalence"], found["npv_at_prevalence"]
        assert ppv["value"] == pytest.approx(
            prevalence * r / (prevalence * r + (1 - prevalence) * (1 - s))
        )
        assert npv["value"] == pytest.approx(
            (1 - prevalence) * s / ((1 - prevalence) * s + prevalence * (1 - r))
        )
        for value in (ppv, npv):
            assert 0 < value["low"] < value["value"] < value["high"] < 1
    # All right: as good as can be, and not certain.
    perfect = of(labels, 9 * labels - 4, patient, prevalence=0.05)["estimates"]
    assert perfect["ppv_at_prevalence"]["value"] == perfect["ppv_at_prevalence"]["high"] == 1
    assert 0.05 < perfect["ppv_at_prevalence"]["low"] < 0.9
    with pytest.raises(UserError, match="prevalence.* is 5; it is a share between 0 and 1"):
        of(labels, log_odds, prevalence=5)


def test_more_patients_are_expected_to_narrow_the_interval():
    found = of(*sample(8, each=30, effect=1.0))
    needed = found["patients_needed"]
    assert needed["patients"] == 8
    assert 0 < needed["correlation"] < 1
    assert needed["design_effect"] > 1
    assert needed["effective_patches"] == pytest.approx(240 / needed["design_effect"])
    interval, widths = found["auroc_interval"], needed["expected_width"]
    assert widths["1"] == pytest.approx(interval["high"] - interval["low"])
    assert widths["1"] > 1.3 * widths["2"] > 1.3**2 * widths["4"] > 1.3**3 * widths["8"] > 0
    # Sixteen such patients have nearly the width that eight foretell.
    actual = [of(*sample(16, each=30, effect=1.0, seed=s))["auroc_interval"] for s in range(8)]
    widths16 = [interval["high"] - interval["low"] for interval in actual]
    assert np.mean(widths16) == pytest.approx(widths["2"], rel=0.35)
    assert of(*sample(1, each=30))["patients_needed"] is None
    assert "patients_needed" not in of(*sample(8)[:2])


def test_coverage_is_measured():
    command = [sys.executable, COVERAGE, "--draws=2", "--patients", "4", "--jobs=2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = {line[9:32].strip(): line[32:].split() for line in done.stdout.splitlines()[1:-1]}
    assert float(rows["auroc"][1]) > 0.9
    assert rows["ece"] == ["none"]
    assert float(done.stdout.splitlines()[-1].split()[-1]) < 0.1


def test_few_patients_of_either_class_are_said_of_metrics_of_both():
    labels = np.repeat(np.arange(20) < 2, 10) & (np.arange(200) % 2 == 0)
    log_odds = 2.0 * labels + np.random.default_rng(0).normal(size=200)
    found = of(labels.astype(int), log_odds, np.arange(200) // 10, prevalence=0.1)["estimates"]
    for name in ("auroc", "average_precision", "ppv", "f1", "mcc", "brier", "ppv_at_prevalence"):
        if found[name]["method"] != "none":
            assert found[name]["note"] == "indicative: 2 patients", name
    assert found["specificity"]["note"] == ""


def test_the_brier_score_of_many_classes_runs_to_two():
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(3, size=240), 3 * rng.normal(size=(240, 3))
    patient = np.arange(240) % 12
    found = classification_metrics(labels, logits, ("a", "b", "c"), patient)["estimates"]["brier"]
    assert 1 < found["value"] < found["high"] < 2


@pytest.mark.parametrize("name", [None, math.nan, ""])
def test_a_patient_without_a_name_is_refused(name):
    labels, log_odds, patient = sample(4)
    groups = [f"P{number}" for number in patient[:-1]] + [name]
    with pytest.raises(UserError, match="a patient has no name"):
        of(labels, log_odds, groups)


def test_a_calibration_that_has_no_end_is_undefined():
    labels = np.arange(40) % 2
    log_odds = 1000.0 * (2 * labels - 1)
    log_odds[[0, 2]] *= -1
    found = of(labels, log_odds)["estimates"]
    assert found["calibration_intercept"]["value"] is None


@pytest.mark.parametrize("prevalence", ["0.1", True, 1e-300, 0, math.nan])
def test_a_prevalence_that_is_no_share_is_refused(prevalence):
    labels, log_odds, _ = sample(4)
    with pytest.raises(UserError, match="prevalence.* is .*; it is a share between 0 and 1"):
        of(labels, log_odds, prevalence=prevalence)
