"""The ranking of doubtful labels, and which of them confident learning counts as wrong."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from glomjax.errors import UserError
from glomjax.evaluation.label_errors import rank_label_errors


def test_examples_are_compared_within_their_class():
    """The network is unsure of every example of class 1, so that probabilities alone would put
    all of these first."""
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    logits = np.array([-4.0, -5, -2, -6, 0.3, -0.2, 0.1, 0.4])[:, None]
    errors = rank_label_errors(labels, logits)
    assert errors.order.tolist() == [5, 2, 6, 0, 4, 1, 7, 3]
    chance = 1 / (1 + np.exp(-logits[:, 0]))
    np.testing.assert_allclose(errors.self_confidence, np.where(labels, chance, 1 - chance))
    assert (errors.counted_as == labels).tolist() == [True] * 8


def test_probabilities_that_saturate_are_still_ranked():
    errors = rank_label_errors([0, 0, 0, 1], np.array([900.0, 950, 800, 1])[:, None])
    assert (errors.self_confidence[:3] == 0).all()
    assert errors.order.tolist()[:2] == [1, 0]


def test_the_count_is_that_of_the_paper():
    """Thresholds, the mean self-confidence of each class, are 0.6, 0.6 and 0.5: the second example
    reaches that of class 1, the sixth that of class 2; the fourth reaches none, and keeps its own
    class; the seventh reaches those of two, of which the more probable one counts."""
    chances = np.array(
        [
            [0.90, 0.05, 0.05],
            [0.30, 0.65, 0.05],
            [0.10, 0.80, 0.10],
            [0.30, 0.40, 0.30],
            [0.10, 0.10, 0.80],
            [0.10, 0.70, 0.20],
            [0.02, 0.48, 0.50],
        ]
    )
    labels = np.array([0, 0, 1, 1, 2, 2, 2])
    errors = rank_label_errors(labels, np.log(chances))
    assert errors.counted_as.tolist() == [0, 1, 1, 1, 2, 1, 2]


@hypothesis.given(st.integers(2, 4), st.integers(0, 2**16), st.floats(0.2, 5))
@hypothesis.settings(max_examples=50)
def test_each_part_of_the_list_holds_the_least_confident_of_each_class(classes, seed, scale):
    rng = np.random.default_rng(seed)
    labels = np.append(np.arange(classes), rng.integers(0, classes, 60))
    logits = rng.normal(scale=scale, size=(len(labels), classes))
    errors = rank_label_errors(labels, logits)
    assert sorted(errors.order) == list(range(len(labels)))
    for c in range(classes):
        listed = errors.self_confidence[errors.order[labels[errors.order] == c]]
        assert (np.diff(listed) >= 0).all()
    for part in (10, 30):
        share = np.bincount(labels[errors.order[:part]], minlength=classes)
        expected = part * np.bincount(labels) / len(labels)
        assert (abs(share - expected) <= 1).all()


def test_what_is_no_set_of_labels_is_refused():
    with pytest.raises(UserError, match="no example has the label 1"):
        rank_label_errors([0, 0], np.zeros((2, 1)))
    with pytest.raises(UserError, match="not finite"):
        rank_label_errors([0, 1], np.array([[np.nan], [0.0]]))
    with pytest.raises(UserError, match="labels have shape"):
        rank_label_errors([0, 1, 1], np.zeros((2, 1)))
