"""What is chosen on a validation split: the stated rule holds there, and only numbers decide."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glomjax.errors import UserError
from glomjax.evaluation import (
    choose_threshold,
    classification_metrics,
    fit_temperature,
    predicted_classes,
)
from glomjax.evaluation.calibration import apply_temperature, fit_decision, fit_recalibration

RULES = ("youden", "sensitivity=0.9", "specificity=0.8", "sensitivity=1", "specificity=1.0")
# Few levels, so that scores tie.
scored = st.lists(
    st.tuples(st.booleans(), st.integers(-12, 12).map(lambda n: n / 4)), min_size=2, max_size=40
).filter(lambda rows: 0 < sum(label for label, _ in rows) < len(rows))
# From probabilities that round to 0 to such as round to 1.
wide = st.lists(
    st.tuples(st.booleans(), st.floats(-900, 60, width=32)), min_size=2, max_size=40
).filter(lambda rows: 0 < sum(label for label, _ in rows) < len(rows))


def arrays(rows) -> tuple[np.ndarray, np.ndarray]:
    return np.array([int(label) for label, _ in rows]), np.array([score for _, score in rows])


def chosen(labels: np.ndarray, scores: np.ndarray, rule: str) -> float | str:
    """The threshold, or why there is none."""
    try:
        return choose_threshold(labels, scores, rule)
    except UserError as error:
        return str(error)


def rates(labels: np.ndarray, scores: np.ndarray, threshold: float) -> tuple[float, float]:
    """(sensitivity, specificity) of scores above the log-odds of a probability."""
    positive = predicted_classes(scores[:, None], threshold)
    return positive[labels == 1].mean(), 1 - positive[labels == 0].mean()


@given(scored, st.sampled_from([0.05, 0.5, 0.8, 0.95, 1.0]))
def test_a_stated_value_is_reached_and_by_no_threshold_that_costs_less(rows, target):
    labels, scores = arrays(rows)
    everywhere = [1 / (1 + math.exp(-cut)) for cut in np.arange(-5, 5, 0.125)]
    found = [rates(labels, scores, threshold) for threshold in everywhere]
    threshold = choose_threshold(labels, scores, f"sensitivity={target}")
    sensitivity, specificity = rates(labels, scores, threshold)
    assert sensitivity >= target
    assert specificity == max(other for reached, other in found if reached >= target)
    threshold = choose_threshold(labels, scores, f"specificity={target}")
    sensitivity, specificity = rates(labels, scores, threshold)
    assert specificity >= target
    assert sensitivity == max(other for other, reached in found if reached >= target)


@given(scored)
def test_no_threshold_beats_youden_s(rows):
    labels, scores = arrays(rows)
    best = max(sum(rates(labels, scores, 1 / (1 + math.exp(-c)))) for c in np.arange(-5, 5, 0.125))
    threshold = chosen(labels, scores, "youden")
    if isinstance(threshold, str):
        assert "better than chance" in threshold
        assert best <= 1 + 1e-12
        return
    assert sum(rates(labels, scores, threshold)) == pytest.approx(best)
    assert best > 1


@given(scored, st.sampled_from(RULES), st.randoms(use_true_random=False))
def test_the_order_of_the_examples_changes_nothing_and_none_lies_on_the_threshold(
    rows, rule, random
):
    found = chosen(*arrays(rows), rule)
    assert chosen(*arrays(random.sample(rows, len(rows))), rule) == found
    if isinstance(found, float):
        cut = math.log(found / (1 - found))
        assert np.abs(arrays(rows)[1] - cut).min() > 0.12


@given(wide, st.sampled_from(RULES))
def test_saturated_scores_have_a_threshold_that_does_what_it_says_or_a_sentence(rows, rule):
    labels, scores = arrays(rows)
    threshold = chosen(labels, scores, rule)
    if isinstance(threshold, str):
        assert "no threshold" in threshold
        return
    assert 0 < threshold < 1
    sensitivity, specificity = rates(labels, scores, threshold)
    name, _, value = rule.partition("=")
    assert name != "sensitivity" or sensitivity >= float(value)
    assert name != "specificity" or specificity >= float(value)
    assert name != "youden" or sensitivity + specificity > 1


def test_the_threshold_lies_midway_in_log_odds():
    labels, scores = [0, 0, 0, 1, 1], [-3.0, -1.0, 0.0, 2.0, 5.0]
    for rule, cut in (
        ("youden", 1.0),
        ("sensitivity=1", 1.0),
        ("sensitivity=0.5", 3.5),
        ("specificity=0.6", -0.5),
        ("specificity=0.3", -2.0),
    ):
        threshold = choose_threshold(labels, scores, rule)
        assert math.log(threshold / (1 - threshold)) == pytest.approx(cut), rule
    # Nothing lies beyond the last one, so that all are positive by one unit.
    assert choose_threshold([1, 0], [-1.0, 4.0], "sensitivity=1") == pytest.approx(
        1 / (1 + math.exp(2))
    )
    assert choose_threshold(labels, scores, "0.5") == 0.5


def test_of_equally_good_thresholds_the_one_nearest_to_a_half_is_taken():
    labels, scores = [0, 1, 0, 1], [-4.0, -3.0, 1.0, 2.0]
    assert choose_threshold(labels, scores, "youden") == pytest.approx(1 / (1 + math.exp(-1.5)))


def test_scores_whose_probabilities_round_to_one_are_still_told_apart():
    labels, scores = np.array([0, 1]), np.array([30.0, 33.0])
    assert rates(labels, scores, choose_threshold(labels, scores, "youden")) == (1, 1)
    with pytest.raises(UserError, match=r"specificity of 1, since the log-odds, 40 to 44, are too"):
        choose_threshold(labels, scores + np.array([10, 11]), "specificity=1")


@pytest.mark.parametrize(
    ("labels", "scores", "rule", "message"),
    [
        ([1, 1], [0.0, 1.0], "youden", "only one class is present"),
        ([0, 1], [0.0, math.nan], "youden", "1 of 2 are not finite"),
        ([0, 1], [0.0], "youden", "differ in shape"),
        ([0, 1], [0.0, 0.0], "youden", "tells the classes apart better than chance"),
        ([0, 1], [1.0, 0.0], "youden", "tells the classes apart better than chance"),
        *(
            ([0, 1], [0.0, 1.0], rule, "it is '0.5', 'youden', 'sensitivity=VALUE'")
            for rule in ("0.4", "", "Youden", "sensitivity", "sensitivity=0", "specificity=1.1")
        ),
        ([0, 1], [0.0, 1.0], "sensitivity=0.0", "such as 'sensitivity=0.95'"),
        ([0, 1], [0.0, 1.0], "sensitivity=95%", "such as 'sensitivity=0.95'"),
    ],
)
def test_what_allows_no_threshold_is_one_sentence(labels, scores, rule, message):
    with pytest.raises(UserError, match=message):
        choose_threshold(labels, scores, rule)


@pytest.mark.parametrize("threshold", [0, 1, 1.5, -0.1, math.nan, "0.5", True, None])
def test_a_threshold_is_a_probability(threshold):
    with pytest.raises(UserError, match="it is a probability above 0 and below 1"):
        classification_metrics([0, 1], [[-1.0], [1.0]], ("a", "b"), threshold=threshold)


def test_counts_are_those_above_the_threshold():
    labels, logits = [0, 0, 1, 1], [[-3.0], [-1.0], [-2.0], [4.0]]
    found = classification_metrics(labels, logits, ("other", "glomerulus"), threshold=0.1)
    assert found["confusion_matrix"] == [[1, 1], [0, 2]]
    assert (found["sensitivity"], found["specificity"], found["accuracy"]) == (1, 0.5, 0.75)
    plain = classification_metrics(labels, logits, ("other", "glomerulus"))
    assert plain["confusion_matrix"] == [[2, 0], [1, 1]]
    assert (found["auroc"], found["loss"]) == (plain["auroc"], plain["loss"])
    columns = [[0.0, z] for (z,) in logits]
    assert predicted_classes(columns, 0.1).tolist() == [0, 1, 1, 1]
    assert predicted_classes([[0.0, 1.0, 3.0], [2.0, 1.0, 0.0]]).tolist() == [2, 0]


def drawn(scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and logits that are too large by a factor."""
    rng = np.random.default_rng(0)
    true = rng.normal(0, 2, 4000)
    labels = (rng.random(4000) < 1 / (1 + np.exp(-true))).astype(int)
    return labels, (scale * true[:, None]).astype(np.float32)


def test_the_threshold_is_of_the_probabilities_after_the_temperature():
    labels, logits = drawn(4.0)
    assert fit_temperature(labels, logits) == pytest.approx(4, rel=0.1)
    with_it = fit_decision(labels, logits, "sensitivity=0.9", temperature=True)
    without = fit_decision(labels, logits, "sensitivity=0.9", temperature=False)
    assert with_it.temperature == pytest.approx(4, rel=0.1)
    assert without.temperature == 1
    decided = predicted_classes(apply_temperature(logits, with_it.temperature), with_it.threshold)
    assert decided.tolist() == predicted_classes(logits, without.threshold).tolist()
    assert decided[labels == 1].mean() == pytest.approx(0.9, abs=1e-3)
    assert without.threshold < with_it.threshold < 0.5
    assert "by the rule sensitivity=0.9: on the validation, where it was chosen" in without.notes[0]
    assert len(with_it.notes) == 2


def test_three_classes_have_a_temperature_and_no_threshold():
    logits = np.random.default_rng(1).normal(0, 5, (60, 3)).astype(np.float32)
    found = fit_decision(np.arange(60) % 3, logits, "0.5", temperature=True)
    assert (found.threshold, found.rule) == (0.5, "0.5")
    assert found.temperature > 5


def test_what_the_validation_does_not_tell_is_said_and_nothing_is_made_of_it():
    labels = np.array([0, 1, 0, 1])
    constant = fit_decision(labels, np.zeros((4, 1), np.float32), "youden", temperature=False)
    assert constant.threshold == 0.5
    assert constant.rule == "0.5, since the validation allows none by the rule youden"
    assert "in place of one by the rule youden: no threshold tells" in constant.notes[0]
    separated = np.array([[-2.0], [2], [-2], [2]], np.float32)
    found = fit_decision(labels, separated, "0.5", temperature=True)
    assert found.temperature == pytest.approx(0.1, rel=1e-3)
    assert "too few errors" in found.notes[0]
    assert fit_decision(labels, separated, "0.5", temperature=False).notes == ()


def test_scores_that_are_all_equal_are_recalibrated_to_the_share_of_positives():
    slope, intercept = fit_recalibration([0, 0, 0, 1], np.full(4, 0.3))
    assert slope == 0
    assert 0.2 < 1 / (1 + math.exp(-intercept)) < 0.4
