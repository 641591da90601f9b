"""Paired comparisons: the measures, their differences with intervals by patient, the tests."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, t, ttest_1samp
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression

from glomjax.errors import UserError
from glomjax.evaluation import probabilities
from glomjax.evaluation.comparison import compare_predictions, holm, mcnemar
from glomjax.evaluation.intervals import paired_difference
from glomjax.evaluation.measures import MEASURES, measures

CLASSES = ("other", "glomerulus")


def cohort(patients=8, each=12, seed=0):
    """(labels, logits of two networks, patient of each patch); both classes in each patient."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), each)
    labels = np.arange(patients * each) % 2
    common = rng.normal(size=patients)[patient] + 2.0 * labels - 1
    logits = [(common + rng.normal(size=len(labels)))[:, None] for _ in range(2)]
    return labels, logits, [f"p{i}" for i in patient]


@settings(max_examples=20)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(-6, 6)), min_size=4, max_size=60),
    st.sampled_from([0.2, 0.5, 0.7]),
)
def test_measures_of_two_classes_are_those_of_scikit_learn_with_ties(rows, threshold):
    labels = np.array([label for label, _ in rows], dtype=int)
    logits = np.array([[score / 2] for _, score in rows])
    found = measures(labels, logits, threshold)
    assert list(found) == list(MEASURES)
    p = probabilities(logits)[:, 1]
    decided = p > threshold
    assume(0 < labels.sum() < len(labels))
    assume(0 < decided.sum() < len(decided))
    expected = {
        "auroc": sk.roc_auc_score(labels, logits),
        "average_precision": sk.average_precision_score(labels, logits),
        "accuracy": sk.accuracy_score(labels, decided),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, decided),
        "sensitivity": sk.recall_score(labels, decided),
        "specificity": sk.recall_score(labels, decided, pos_label=0),
        "f1": sk.f1_score(labels, decided),
        "mcc": sk.matthews_corrcoef(labels, decided),
        "ppv": sk.precision_score(labels, decided),
        "npv": sk.precision_score(labels, decided, pos_label=0),
        "brier": sk.brier_score_loss(labels, p),
        "loss": sk.log_loss(labels, p),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_measures_of_more_classes_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 3, 200), rng.normal(size=(200, 3))
    logits[np.arange(200), labels] += 1
    p, chosen, one_hot = probabilities(logits), logits.argmax(axis=1), np.eye(3)[labels]
    found = measures(labels, logits)
    expected = {
        "auroc": sk.roc_auc_score(labels, p, multi_class="ovr"),
        "average_precision": sk.average_precision_score(one_hot, p),
        "accuracy": sk.accuracy_score(labels, chosen),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, chosen),
        "f1": sk.f1_score(labels, chosen, average="macro"),
        "mcc": sk.matthews_corrcoef(labels, chosen),
        "brier": sk.brier_score_loss(labels, p, scale_by_half=False),
        "loss": sk.log_loss(labels, p),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert found.keys() == {*expected, "ece"}


def test_calibration_is_that_of_the_logistic_regression_and_of_the_bins():
    labels, (logits, _), _ = cohort(seed=3)
    found = measures(labels, logits)
    fitted = LogisticRegression(C=np.inf, tol=1e-10).fit(logits, labels)
    assert found["calibration_slope"] == pytest.approx(fitted.coef_[0, 0], rel=1e-5)
    # With the slope at 1, the intercept is where as many are expected as there are.
    moved = probabilities(logits + found["calibration_intercept"])[:, 1]
    assert moved.sum() == pytest.approx(labels.sum(), abs=1e-6)
    # Bins (0.2, 0.2) with one of two positive and (0.9) with none: (2 * 0.3 + 1 * 0.9) / 3.
    three = np.log(np.array([[0.2 / 0.8], [0.2 / 0.8], [0.9 / 0.1]]))
    assert measures(np.array([1, 0, 0]), three)["ece"] == pytest.approx(0.5)
    # Twice as extreme log-odds need half the slope.
    twice = measures(labels, 2 * logits)["calibration_slope"]
    assert twice == pytest.approx(found["calibration_slope"] / 2, rel=1e-9)
    separated = measures(np.array([0, 0, 1, 1]), np.array([[-2.0], [-1], [1], [2]]))
    assert math.isnan(separated["calibration_slope"])


def test_extreme_logits_rank_and_are_decided_by_their_log_odds():
    logits = np.array([[60.0], [50.0], [40.0], [45.0]])  # of which float64 makes the probability 1
    labels = np.array([1, 1, 0, 0])
    found = measures(labels, logits, 1 - 1e-15)  # log-odds of 34.5
    assert (found["auroc"], found["specificity"], found["sensitivity"]) == (1.0, 0.0, 1.0)
    two = measures(labels, np.concatenate([np.zeros_like(logits), logits], axis=1), 1 - 1e-15)
    assert two == pytest.approx(found, nan_ok=True)


def test_an_interval_with_equal_patients_is_student_s_of_their_means():
    labels, (first, second), patients = cohort()
    found = compare_predictions(labels, [first, second], CLASSES, patients)[0]["differences"]
    decided = [(part[:, 0] > 0) == labels for part in (first, second)]
    means = (decided[1].astype(float) - decided[0]).reshape(8, 12).mean(axis=1)
    expected = ttest_1samp(means, 0)
    interval = expected.confidence_interval(0.95)
    accuracy = found["accuracy"]
    assert accuracy["difference"] == pytest.approx(means.mean())
    assert (accuracy["low"], accuracy["high"]) == pytest.approx((interval.low, interval.high))
    assert accuracy["p"] == pytest.approx(expected.pvalue)
    assert accuracy["method"] == "jackknife by patient"

    def area(y, z):
        return sk.roc_auc_score(y, z[:, 0])

    value, interval = paired_difference(area, labels, second, first, patients)
    auroc = found["auroc"]
    assert (auroc["difference"], auroc["low"], auroc["high"]) == pytest.approx(
        (value, interval.low, interval.high)
    )


def test_few_large_patients_and_patients_of_one_class_have_fewer_degrees_of_freedom():
    labels, (first, second), patients = cohort(patients=4, each=6)
    # Three times the patches of one patient: (3 + 1 + 1 + 1)^2 / (9 + 3) is 3 patients.
    rows = np.concatenate([np.arange(24), np.arange(6), np.arange(6)])
    names = np.array(patients)
    (found,) = compare_predictions(labels[rows], [first[rows], second[rows]], CLASSES, names[rows])
    loss = found["differences"]["loss"]
    whole = loss["difference"]

    def without(name):
        kept = rows[names[rows] != name]
        return sk.log_loss(labels[kept], probabilities(second[kept])) - sk.log_loss(
            labels[kept], probabilities(first[kept])
        )

    squares = sum((without(name) - whole) ** 2 for name in ("p0", "p1", "p2", "p3"))
    half = t.ppf(0.975, 2) * math.sqrt(3 / 4 * squares)
    assert (loss["low"], loss["high"]) == pytest.approx((whole - half, whole + half))

    one_class = np.array([f"{name} {label}" for name, label in zip(names, labels, strict=True)])
    (found,) = compare_predictions(labels, [first, second], CLASSES, one_class)  # eight patients
    loss = found["differences"]["loss"]
    error = (loss["high"] - loss["low"]) / 2 / t.ppf(0.975, 6)
    assert loss["p"] == pytest.approx(2 * t.sf(abs(loss["difference"]) / error, 6))


def test_the_other_way_round_everything_is_turned():
    labels, logits, patients = cohort(seed=2)
    cuts = [0.4, 0.6]
    (one,) = compare_predictions(labels, logits, CLASSES, patients, thresholds=cuts)
    (two,) = compare_predictions(labels, logits[::-1], CLASSES, patients, thresholds=cuts[::-1])
    assert any(numbers["difference"] for numbers in one["differences"].values())
    for name, numbers in one["differences"].items():
        turned = two["differences"][name]
        assert numbers["difference"] == -turned["difference"], name
        assert (numbers["low"], numbers["high"]) == (-turned["high"], -turned["low"]), name
        assert numbers["p"] == turned["p"], name
    assert one["mcnemar"]["first_only"] == two["mcnemar"]["second_only"]
    assert one["mcnemar"]["p"] == two["mcnemar"]["p"]


def test_the_order_of_rows_and_the_names_of_patients_count_for_nothing():
    labels, (first, second), patients = cohort()
    (one,) = compare_predictions(labels, [first, second], CLASSES, patients)
    order = np.random.default_rng(0).permutation(len(labels))
    renamed = np.array([f"z{99 - int(name[1:])}" for name in patients])[order]
    (two,) = compare_predictions(labels[order], [first[order], second[order]], CLASSES, renamed)
    for name, numbers in one["differences"].items():
        for key in ("difference", "low", "high", "p"):
            assert numbers[key] == pytest.approx(two["differences"][name][key], rel=1e-8), name
    assert one["mcnemar"] == pytest.approx(two["mcnemar"])


def test_patches_repeated_within_their_patient_say_no_more():
    labels, (first, second), patients = cohort(each=6)
    (one,) = compare_predictions(labels, [first, second], CLASSES, patients)
    more = [np.repeat(part, 4, axis=0) for part in (labels, first, second, patients)]
    (two,) = compare_predictions(more[0], more[1:3], CLASSES, more[3])
    for name, numbers in one["differences"].items():
        assert numbers["low"] == pytest.approx(two["differences"][name]["low"], rel=1e-6), name
    assert one["mcnemar"]["p"] == pytest.approx(two["mcnemar"]["p"])
    independent = compare_predictions(more[0], more[1:3], CLASSES)[0]["differences"]["auroc"]
    assert independent["method"] == "jackknife"
    width = independent["high"] - independent["low"]
    assert width < 0.7 * (one["differences"]["auroc"]["high"] - one["differences"]["auroc"]["low"])


def test_the_same_predictions_differ_in_nothing():
    labels, (first, _), patients = cohort()
    (found,) = compare_predictions(labels, [first, first.copy()], CLASSES, patients)
    for numbers in found["differences"].values():
        assert (numbers["difference"], numbers["low"], numbers["high"], numbers["p"]) == (
            0,
            0,
            0,
            1,
        )
    assert (found["mcnemar"]["p"], found["mcnemar"]["first_only"]) == (1, 0)
    # Where they are not the same and still decide alike, that says nothing of other patients.
    (found,) = compare_predictions(labels, [first, 2 * first], CLASSES, patients)
    accuracy = found["differences"]["accuracy"]
    assert (accuracy["difference"], accuracy["method"]) == (0, "none")
    assert accuracy["note"] == "it is the same whichever patient is left out"
    assert found["differences"]["loss"]["method"] == "jackknife by patient"


def test_what_few_patients_leave_undefined_has_no_interval():
    labels, (first, second), patients = cohort(patients=2)
    (found,) = compare_predictions(labels, [first, second], CLASSES, ["p"] * len(labels))
    assert found["differences"]["auroc"]["note"] == "one patient says nothing of others"
    labels = np.where(np.array(patients) == "p0", labels, 0)
    (found,) = compare_predictions(labels, [first, second], CLASSES, patients)
    assert found["differences"]["auroc"]["note"] == "without one patient the metric is not defined"
    assert math.isnan(found["differences"]["auroc"]["p"])


def test_the_clustered_test_of_a_table_done_by_hand():
    # Patients (n, b, c): (4, 2, 0), (2, 0, 1), (5, 3, 1), (10, 1, 0). The differences of their
    # shares are 1/2, -1/2, 2/5 and 1/10: their sum is 1/2, the sum of squares 0.67.
    first, second, patients = [], [], []
    for name, n, b, c in (("a", 4, 2, 0), ("b", 2, 0, 1), ("c", 5, 3, 1), ("d", 10, 1, 0)):
        first += [True] * b + [False] * c + [True] * (n - b - c)
        second += [False] * b + [True] * c + [True] * (n - b - c)
        patients += [name] * n
    found = mcnemar(first, second, patients)
    assert (found.first_only, found.second_only, found.method) == (6, 2, "clustered")
    assert found.statistic == pytest.approx(0.25 / 0.67)
    assert found.p == pytest.approx(math.erfc(math.sqrt(0.25 / 0.67 / 2)))
    assert found.note == "indicative: 4 patients"
    # A patch each is McNemar's own statistic, (b - c)^2 / (b + c).
    alone = mcnemar(first, second, range(21))
    assert alone.statistic == pytest.approx((6 - 2) ** 2 / 8)
    assert alone.p == pytest.approx(chi2.sf(2, 1))
    assert alone.note == ""


def test_without_patients_the_test_is_exact():
    # One against six: twice the chance of at most one head in seven throws, 2 (1 + 7) / 128.
    first = [True] + [False] * 6 + [True] * 5
    second = [False] + [True] * 6 + [True] * 5
    found = mcnemar(first, second)
    assert found.p == pytest.approx(0.125)
    assert (found.method, found.note) == ("exact", "assumes that examples are independent")
    assert mcnemar([True, False], [True, False]).p == 1


def test_holm_corrects_for_the_tests_that_there_are():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.2, math.nan, 0.7]) == pytest.approx([0.4, math.nan, 0.7], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    labels, (first, second), patients = cohort()
    found = compare_predictions(labels, [first, second, -first], CLASSES, patients)
    p = [part["differences"]["auroc"]["p"] for part in found]
    corrected = [part["differences"]["auroc"]["p_holm"] for part in found]
    assert corrected == holm(p)
    assert corrected != p


def test_a_threshold_decides_for_its_own_predictions_alone():
    labels, (first, second), patients = cohort()
    (found,) = compare_predictions(
        labels, [first, second], CLASSES, patients, thresholds=[0.5, 0.8]
    )
    cut = math.log(4)
    sensitivity = found["differences"]["sensitivity"]
    assert sensitivity["value"] == pytest.approx((second[labels == 1, 0] > cut).mean())
    assert sensitivity["reference"] == pytest.approx((first[labels == 1, 0] > 0).mean())


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"logits": [np.zeros((4, 1))]}, "1 prediction is given"),
        ({"logits": [np.zeros((4, 1)), np.zeros((3, 1))]}, r"shapes \(3, 2\), \(4, 2\)"),
        ({"logits": [np.zeros((4, 1)), np.full((4, 1), np.nan)]}, "4 predictions are not finite"),
        ({"groups": ["a"] * 3}, "3 patients were given for 4 examples"),
        ({"thresholds": [0.5, 1.0]}, r"threshold is 1.0; it is a probability"),
        ({"thresholds": [0.5]}, "for 2 predictions"),
        ({"labels": [0, 1, 2, 0]}, "labels run from 0 to 2"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, part):
    arguments = {"labels": [0, 1, 0, 1], "logits": [np.zeros((4, 1))] * 2, "classes": CLASSES}
    with pytest.raises(UserError, match=part):
        compare_predictions(**{**arguments, **changes})


def test_more_than_two_classes_have_no_threshold():
    logits = [np.eye(3), np.eye(3)]
    with pytest.raises(UserError, match="3 classes have none"):
        compare_predictions([0, 1, 2], logits, ("a", "b", "c"), thresholds=[0.5, 0.4])


def test_saturated_predictions_that_differ_are_not_the_same():
    labels = np.arange(40) % 2
    rng = np.random.default_rng(0)
    ranked, mixed = 900 + 3 * labels + rng.normal(size=40), 900 + rng.normal(size=40)
    (found,) = compare_predictions(
        labels, [ranked[:, None], mixed[:, None]], ("a", "b"), np.arange(40) // 4
    )
    area = found["differences"]["auroc"]
    assert area["low"] < area["difference"] < area["high"]
    assert area["p"] < 0.05


def test_one_patient_tells_nothing_of_right_and_wrong():
    found = mcnemar([True, True, False], [False, True, False], ["a"] * 3)
    assert math.isnan(found.p)
    assert found.note == "one patient says nothing of others"


def test_what_is_counted_is_called_by_its_name():
    labels = np.arange(40) % 2
    rng = np.random.default_rng(1)
    logits = [(labels + rng.normal(size=40))[:, None] for _ in range(2)]
    (found,) = compare_predictions(labels, logits, ("a", "b"), np.arange(40) // 8, kind="slide")
    assert found["differences"]["auroc"]["method"] == "jackknife by slide"
    assert found["mcnemar"]["note"] == "indicative: 5 slides"
