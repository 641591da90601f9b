"""Metrics agree with independent computations and do not flatter the model."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from glomjax.errors import UserError
from glomjax.evaluation import (
    auroc,
    auroc_interval,
    classification_metrics,
    collapse_message,
    probabilities,
)
from glomjax.evaluation.metrics import metrics_of_network

CLASSES = ("other", "glomerulus")


def _scores(n, seed=0, shift=1.0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    return labels, rng.normal(size=n) + shift * labels


def test_probabilities_are_exact_at_extreme_logits():
    np.testing.assert_allclose(
        probabilities([[0.0], [1000.0], [-1000.0]]), [[0.5, 0.5], [0, 1], [1, 0]]
    )
    three = probabilities(np.float32([[1e4, 1e4, -1e4]]))
    assert three.dtype == np.float64
    np.testing.assert_allclose(three, [[0.5, 0.5, 0.0]])


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=60))
def test_auroc_is_that_of_scikit_learn_with_ties(rows):
    labels, scores = (np.array(column, dtype=int) for column in zip(*rows, strict=True))
    if len(set(labels)) == 1:
        assert math.isnan(auroc(labels, scores))
    else:
        assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 9)), min_size=2, max_size=40),
    st.booleans(),
)
def test_interval_contains_the_estimate_and_stays_in_the_unit_interval(rows, grouped):
    labels, scores = (np.array(column, dtype=int) for column in zip(*rows, strict=True))
    groups = [f"p{i % 13}" for i in range(len(rows))] if grouped else None
    interval = auroc_interval(labels, scores, groups)
    if len(set(labels)) == 1:
        assert interval.method == "none"
        assert math.isnan(interval.low)
    else:
        assert 0 <= interval.low <= auroc(labels, scores) <= interval.high <= 1
        assert interval.low < interval.high


def test_delong_interval_of_a_case_done_by_hand():
    # positives 2, 4 and negatives 1, 3: components (1/2, 1) and (1, 1/2), so the variance is
    # 0.125 / 2 + 0.125 / 2 = 0.125 around 0.75
    interval = auroc_interval([1, 1, 0, 0], [2.0, 4.0, 1.0, 3.0])
    half = 1.959964 * math.sqrt(0.125) / (0.75 * 0.25)
    expected = [1 / (1 + math.exp(-(math.log(3) + sign * half))) for sign in (-1, 1)]
    assert interval.method == "delong"
    np.testing.assert_allclose([interval.low, interval.high], expected, rtol=1e-6)


def test_delong_interval_is_that_of_the_structural_components():
    labels, scores = _scores(31, seed=3)
    scores = np.round(scores, 1)  # with ties
    ones, zeros = scores[labels == 1], scores[labels == 0]
    kernel = np.array([[1.0 if a > b else 0.5 if a == b else 0.0 for b in zeros] for a in ones])
    variance = np.var(kernel.mean(axis=1), ddof=1) / len(ones)
    variance += np.var(kernel.mean(axis=0), ddof=1) / len(zeros)
    area = kernel.mean()
    interval = auroc_interval(labels, scores, level=0.9)
    for bound, sign in ((interval.low, -1), (interval.high, 1)):
        logit = math.log(area / (1 - area)) + sign * 1.6448536 * math.sqrt(variance) / (
            area * (1 - area)
        )
        assert bound == pytest.approx(1 / (1 + math.exp(-logit)), rel=1e-6)


def test_perfect_and_constant_scores_do_not_give_a_point_for_an_interval():
    perfect = auroc_interval([0] * 10 + [1] * 10, np.arange(20.0))
    assert perfect.method == "newcombe"
    assert perfect.high == 1
    # the bound solves (1 - t)^2 = z^2 V(t) of Newcombe 2006, method 5
    t, half = perfect.low, 9
    variance = t * (1 - t) / 100 * (1 + half * ((1 - t) / (2 - t) + t / (1 + t)))
    assert (1 - t) ** 2 == pytest.approx(1.959964**2 * variance, rel=1e-5)

    constant = auroc_interval([0, 1] * 10, np.zeros(20))
    assert constant.low < 0.35
    assert constant.high > 0.65
    # one of each: Wilson's interval of one success in one trial
    assert auroc_interval([0, 1], [0.0, 1.0]).low == pytest.approx(1 / (1 + 1.959964**2), rel=1e-5)


def test_repeated_patches_of_a_patient_do_not_narrow_the_interval():
    labels, scores = _scores(80)
    patients = np.array([f"patient {i // 2}" for i in range(80)])
    independent = auroc_interval(labels, scores)
    once = auroc_interval(labels, scores, patients)
    repeated = auroc_interval(*(np.repeat(a, 10) for a in (labels, scores, patients)))
    flattered = auroc_interval(np.repeat(labels, 10), np.repeat(scores, 10))

    assert repeated.method == "newcombe by patient"
    assert (repeated.low, repeated.high) == pytest.approx((once.low, once.high), abs=0.02)
    width = repeated.high - repeated.low
    assert width == pytest.approx(independent.high - independent.low, rel=0.4)
    assert width > 2 * (flattered.high - flattered.low)


def test_few_patients_give_a_wide_interval_that_says_why():
    labels, scores = _scores(300)
    patients = [("a", "b", "c")[i // 100] for i in range(300)]
    interval = auroc_interval(labels, scores, patients)
    naive = auroc_interval(labels, scores)
    assert interval.method == "newcombe by patient"
    assert interval.note == "indicative: 3 patients"
    assert interval.high - interval.low > 2 * (naive.high - naive.low)


def test_perfect_scores_of_many_patients_still_have_a_lower_bound():
    labels = np.arange(40) % 2
    interval = auroc_interval(labels, labels, [str(i // 2) for i in range(40)])
    assert (interval.method, interval.high) == ("newcombe by patient", 1.0)
    assert 0.7 < interval.low < 0.95


def test_binary_metrics_are_those_counted_by_hand():
    labels = np.array([0, 0, 0, 1, 1])
    logits = np.array([[-2.0], [-1.0], [0.5], [3.0], [-0.5]])
    metrics = classification_metrics(labels, logits, CLASSES)
    assert metrics["n"] == 5
    assert metrics["confusion_matrix"] == [[2, 1], [1, 1]]
    assert metrics["accuracy"] == pytest.approx(3 / 5)
    assert metrics["positive_class"] == "glomerulus"
    assert metrics["sensitivity"] == pytest.approx(1 / 2)
    assert metrics["specificity"] == pytest.approx(2 / 3)
    assert metrics["auroc"] == pytest.approx(5 / 6)
    assert metrics["loss"] == pytest.approx(log_loss(labels, probabilities(logits)))
    assert metrics["class_prior"] == {"other": 0.6, "glomerulus": 0.4}
    assert metrics["prior_entropy"] == pytest.approx(-0.6 * math.log(0.6) - 0.4 * math.log(0.4))
    assert "patients" not in metrics["auroc_interval"]


def test_one_logit_and_two_logits_are_the_same_model():
    labels, scores = _scores(50)
    patients = [str(i % 12) for i in range(50)]
    one = classification_metrics(labels, scores[:, None], CLASSES, patients)
    two = classification_metrics(labels, np.stack([-scores / 2, scores / 2], 1), CLASSES, patients)
    assert one["auroc_interval"].pop("patients") == two["auroc_interval"].pop("patients") == 12
    assert one.pop("auroc_interval") == pytest.approx(two.pop("auroc_interval"))
    assert {k: pytest.approx(v) if isinstance(v, float) else v for k, v in one.items()} == two


def test_saturated_logits_keep_their_loss_and_their_order():
    metrics = classification_metrics([0, 1, 0], [[900.0], [800.0], [700.0]], CLASSES)
    assert metrics["loss"] == pytest.approx(1600 / 3)
    assert metrics["auroc"] == 0.5  # all three probabilities round to 1


def test_multiclass_auroc_is_the_macro_average_of_scikit_learn():
    rng = np.random.default_rng(1)
    labels, logits = rng.integers(3, size=60), rng.normal(size=(60, 3))
    metrics = classification_metrics(labels, logits, ("a", "b", "c"))
    p = probabilities(logits)
    assert metrics["auroc"] == pytest.approx(roc_auc_score(labels, p, multi_class="ovr"))
    assert metrics["loss"] == pytest.approx(log_loss(labels, p))
    assert metrics["auroc_interval"]["method"] == "mean of the classes' delong"
    assert np.sum(metrics["confusion_matrix"]) == 60
    assert "sensitivity" not in metrics


@pytest.mark.parametrize("bias", [0.0, -0.4, 9.0])
def test_equal_predictions_are_reported_as_collapsed(bias):
    labels = np.arange(200) % 2
    noise = np.random.default_rng(0).normal(size=(200, 1))
    metrics = classification_metrics(labels, bias + 1e-3 * noise, CLASSES)
    assert metrics["collapsed"] is True
    message = collapse_message(metrics)
    assert "collapsed" in message
    assert "all 200 predictions" in message
    assert "0.6931" in message


@pytest.mark.parametrize("size", [1e-3, 0.02])
def test_nearly_equal_predictions_are_collapsed_even_if_they_rank(size):
    labels, scores = _scores(400)
    assert auroc_interval(labels, scores).low > 0.5
    assert classification_metrics(labels, size * scores[:, None], CLASSES)["collapsed"]


def test_a_collapsed_multiclass_model_is_reported():
    metrics = classification_metrics(np.arange(90) % 3, np.zeros((90, 3)), ("a", "b", "c"))
    assert metrics["collapsed"]


def _loss_at_ln2_but_spread():
    labels, scores = _scores(400, shift=0.0)
    return labels, 0.3 * scores


def _confident_and_right():
    labels = np.arange(100) % 2
    return labels, 10.0 * (2 * labels - 1)


def _one_class_only():
    return np.ones(50, int), np.full(50, 6.0)


def _finds_the_one_positive_of_a_thousand():
    labels = np.zeros(1000, int)
    labels[7] = 1
    return labels, np.where(labels == 1, -1.4, -7.0)


@pytest.mark.parametrize(
    "case",
    [
        _loss_at_ln2_but_spread,
        _confident_and_right,
        _one_class_only,
        _finds_the_one_positive_of_a_thousand,
    ],
)
def test_a_model_that_has_not_collapsed_is_not_called_so(case):
    labels, scores = case()
    metrics = classification_metrics(labels, scores[:, None], CLASSES)
    assert metrics["collapsed"] is False
    assert metrics["collapsed_reason"] == ""
    assert collapse_message(metrics) == ""


def test_one_class_has_no_auroc_and_no_sensitivity():
    metrics = classification_metrics([0, 0], [[-1.0], [1.0]], CLASSES)
    assert math.isnan(metrics["auroc"])
    assert math.isnan(metrics["sensitivity"])
    assert metrics["specificity"] == 0.5


def test_logits_that_are_not_finite_are_refused_with_their_number():
    logits = np.array([[0.0], [math.nan], [math.inf], [1.0]])
    with pytest.raises(UserError, match="2 of 4 predictions are not finite"):
        classification_metrics([0, 1, 0, 1], logits, CLASSES)


@pytest.mark.parametrize(
    ("labels", "logits", "classes", "groups", "message"),
    [
        ([0, 1], np.zeros((2, 1)), ("a", "b", "c"), None, "2 classes but 3 are named"),
        ([0, 2], np.zeros((2, 1)), CLASSES, None, "from 0 to 2"),
        ([0], np.zeros((2, 1)), CLASSES, None, "for 2 predictions"),
        ([0, 1], np.zeros((2, 1)), CLASSES, ["p"], "1 patients were given for 2"),
        ([], np.zeros((0, 1)), CLASSES, None, "at least one"),
        ([0, 1], np.zeros(2), CLASSES, None, "shape"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(labels, logits, classes, groups, message):
    with pytest.raises(UserError, match=message):
        classification_metrics(labels, logits, classes, groups)


def test_auroc_refuses_other_labels_and_scores_that_are_not_finite():
    with pytest.raises(UserError, match="needs 0 and 1"):
        auroc([0, 2], [0.1, 0.2])
    with pytest.raises(UserError, match="1 of 2 scores"):
        auroc([0, 1], [0.1, math.nan])


@pytest.mark.parametrize("scores", [["a", "b"], [[1], [2, 3]], [1j, 2j], None])
def test_scores_that_are_no_numbers_are_refused(scores):
    with pytest.raises(UserError, match="no arrays of numbers"):
        auroc([0, 1], scores)


@pytest.mark.parametrize("level", [95, 0, 1, "a", None])
def test_a_level_that_is_no_share_is_refused(level):
    with pytest.raises(UserError, match="level is .*; it is a share between 0 and 1"):
        auroc_interval([0, 1], [0.0, 1.0], level=level)


SPREAD = np.array([[0.1], [0.8], [0.3], [0.9]])  # probabilities, or logits that look like them
LABELS = np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("given", "classes", "message"),
    [
        (SPREAD, CLASSES, r"both sides of 0\.5, as probabilities .* both columns \(0, logit\)"),
        (np.hstack([1 - SPREAD, SPREAD]), CLASSES, "each row sums to 1, as probabilities do"),
        (np.float16(np.hstack([1 - SPREAD, SPREAD])), CLASSES, "each row sums to 1"),
        (probabilities(np.arange(12.0).reshape(4, 3) % 5), "abc", "each row sums to 1"),
    ],
)
def test_probabilities_in_place_of_logits_are_refused(given, classes, message):
    with pytest.raises(UserError, match=message):
        classification_metrics(LABELS, given, tuple(classes))


@pytest.mark.parametrize(
    "given",
    [
        np.zeros((4, 1)),  # a head of zeros
        np.zeros((4, 2)),
        SPREAD / 2,  # a network that has hardly begun, and calls everything positive
        SPREAD + 0.01 * (SPREAD - 0.5) + np.array([[0], [0], [0], [0.2]]),
        np.hstack([np.zeros_like(SPREAD), SPREAD]),
    ],
)
def test_logits_that_may_be_small_are_taken(given):
    assert classification_metrics(LABELS, given, CLASSES)["n"] == 4


def test_a_run_scores_its_network_whatever_its_logits_look_like():
    both = np.hstack([np.zeros_like(SPREAD), SPREAD])
    metrics = classification_metrics(LABELS, both, CLASSES)
    assert metrics_of_network(LABELS, SPREAD, CLASSES) == metrics


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"labels": ["a", "b", "a", "b"]},
            "labels are of <U1, such as 'a'; .* whole numbers from 0",
        ),
        ({"labels": [None, 0, 1, 1]}, "labels are of object, such as None"),
        ({"labels": [0, 1, 0.5, 1]}, "must be whole numbers from 0 to 1"),
        ({"labels": [0, 1, math.nan, 1]}, "labels run from nan"),
        ({"labels": LABELS[:, None]}, r"labels have shape \(4, 1\) for 4 predictions"),
        ({"labels": np.eye(2)[LABELS]}, r"labels have shape \(4, 2\)"),
        ({"labels": [[0], [1, 1], 0, 1]}, "labels are no array"),
        ({"logits": [["a"]] * 4}, "logits are no array of numbers"),
        ({"logits": None}, r"logits have shape \(\)"),
        ({"classes": "ab"}, "classes is 'ab'; it is a name for each class"),
        ({"classes": None}, "classes is None; it is a name for each class"),
        ({"groups": "abcd"}, "1 patients were given for 4 examples"),
    ],
)
def test_arguments_of_another_kind_are_refused_by_name(change, message):
    arguments = {"labels": LABELS, "logits": 4 * SPREAD - 2, "classes": CLASSES} | change
    with pytest.raises(UserError, match=message):
        classification_metrics(**arguments)
