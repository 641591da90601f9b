"""What the folds of a cross-validation say together: ranks within folds, repeats, patients."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glomjax.evaluation.out_of_fold import (
    OutOfFold,
    between_patients,
    between_repeats,
    pooled,
    recalibration,
    within_folds,
)

BINARY = ("other", "glomerulus")


def predictions(seed=0, *, patients=9, of_each=6, repeats=1, folds=3, classes=BINARY) -> OutOfFold:
    """Noisy logits of patients with all classes, whole patients in a fold."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), of_each)
    labels = np.arange(len(patient)) % len(classes)
    outputs = 1 if len(classes) == 2 else len(classes)
    signal = (labels[:, None] == (1 if outputs == 1 else np.arange(outputs))).astype(float)
    logits = 1.5 * signal + rng.normal(size=(repeats, len(labels), outputs))
    of_patient = np.stack([rng.permutation(patients) % folds for _ in range(repeats)])
    names = [f"P{p}" for p in patient]
    return OutOfFold(labels, logits, of_patient[:, patient], classes, names)


def pairs_in_order(data: OutOfFold, c: int, column: int, repeat: int) -> tuple[float, int]:
    """(share of the pairs of one fold that are in order, how many pairs), one by one."""
    labels, folds, scores = data.labels, data.folds[repeat], data.scores[repeat, :, column]
    won = [
        float(np.sign(scores[i] - scores[j]) + 1) / 2
        for i, j in itertools.product(np.flatnonzero(labels == c), np.flatnonzero(labels != c))
        if folds[i] == folds[j]
    ]
    return float(np.mean(won)), len(won)


@pytest.mark.parametrize("repeats", [1, 2])
def test_within_folds_each_pair_of_one_fold_counts_once(repeats):
    data = predictions(repeats=repeats)
    by_hand = [pairs_in_order(data, 1, 0, r) for r in range(repeats)]
    found = within_folds(data)
    assert found["auroc"] == pytest.approx(np.mean([share for share, _ in by_hand]))
    assert found["pairs"] == np.mean([count for _, count in by_hand])
    assert found["interval"]["method"] == "jackknife by patient"
    assert 0 < found["interval"]["low"] < found["auroc"] < found["interval"]["high"] < 1


def test_with_more_classes_it_is_the_mean_of_each_against_the_rest():
    data = predictions(classes=("a", "b", "c"), repeats=2)
    shares = [pairs_in_order(data, c, c, r)[0] for c in range(3) for r in range(2)]
    assert within_folds(data)["auroc"] == pytest.approx(np.mean(shares))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    scales=st.lists(st.floats(0.1, 10), min_size=3, max_size=3),
    shifts=st.lists(st.floats(-20, 20), min_size=3, max_size=3),
)
def test_the_scale_of_a_network_changes_no_rank_within_its_fold(seed, scales, shifts):
    data = predictions(seed)
    fold = data.folds[0]
    moved = data.logits * np.array(scales)[fold][:, None] + np.array(shifts)[fold][:, None]
    other = OutOfFold(data.labels, moved, data.folds, data.classes, data.groups)
    assert within_folds(other) == within_folds(data)


def test_recalibration_lets_networks_of_other_scales_be_pooled():
    data = predictions(patients=30)
    rng = np.random.default_rng(1)
    apart, again = data.logits.copy(), data.logits.copy()
    for fold, (scale, shift) in enumerate([(1, 0), (5, 20), (0.2, -20)]):
        labels = rng.integers(2, size=400)
        validation = 1.5 * labels[:, None] + rng.normal(size=(400, 1))
        slope, intercept = recalibration(labels, scale * validation + shift)
        rows = data.folds == fold
        apart[rows] = scale * data.logits[rows] + shift
        again[rows] = slope * apart[rows] + intercept
    rates = {
        name: pooled(OutOfFold(data.labels, logits, data.folds, BINARY, data.groups))["auroc"]
        for name, logits in (("as they are", apart), ("again", again), ("before", data.logits))
    }
    assert rates["again"] == pytest.approx(rates["before"], abs=0.02)
    assert rates["as they are"] < rates["again"] - 0.1


def test_a_patient_who_is_tested_in_each_repeat_counts_once():
    once = predictions(patients=12)
    twice = OutOfFold(
        once.labels,
        np.repeat(once.logits, 4, axis=0),
        np.repeat(once.folds, 4, axis=0),
        BINARY,
        once.groups,
    )
    one, four = pooled(once), pooled(twice)
    assert four["auroc"] == pytest.approx(one["auroc"])
    for end in ("low", "high"):
        assert four["estimates"]["auroc"][end] == pytest.approx(one["estimates"]["auroc"][end])
        assert within_folds(twice)["interval"][end] == pytest.approx(
            within_folds(once)["interval"][end]
        )
    assert "mean of the bounds of 4 repeats" in four["estimates"]["auroc"]["note"]
    assert between_repeats(four)["auroc"] == pytest.approx(0, abs=1e-12)
    assert between_repeats(one) is None


def test_the_spread_between_repeats_is_the_standard_deviation_of_their_numbers():
    found = pooled(predictions(repeats=3))
    areas = [metrics["auroc"] for metrics in found["repeats"]]
    assert found["auroc"] == pytest.approx(np.mean(areas))
    assert between_repeats(found)["auroc"] == pytest.approx(np.std(areas, ddof=1))


def test_patients_are_told_apart_with_the_worst_by_name():
    labels = np.array([0, 1] * 4 + [1, 1])
    logits = np.array([-1, 1] * 3 + [1, -1] + [2, -2], float)
    names = [f"P{i // 2}" for i in range(10)]
    found = between_patients(
        OutOfFold(labels, logits[None, :, None], np.zeros((1, 10), int), BINARY, names)
    )
    assert found["accuracy"]["patients"] == 5
    assert found["accuracy"]["median"] == 1
    assert found["accuracy"]["quartiles"] == [0.5, 1]
    assert found["accuracy"]["worst"][:2] == [
        {"patient": "P3", "value": 0.0, "n": 2},
        {"patient": "P4", "value": 0.5, "n": 2},
    ]
    assert found["auroc"]["patients"] == 4  # P4 has one class alone
    assert found["auroc"]["worst"][0] == {"patient": "P3", "value": 0.0, "n": 2}


def test_without_patients_examples_are_independent_and_there_is_no_spread():
    data = predictions()
    alone = OutOfFold(data.labels, data.logits, data.folds, BINARY)
    assert between_patients(alone) is None
    assert within_folds(alone)["interval"]["method"] == "jackknife"
