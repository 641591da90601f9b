"""Splits keep patients whole, hold every class and depend on names and seed alone."""

import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glomjax.data.splits import check_group_overlap, make_splits
from glomjax.errors import UserError

SPLITS = ("train", "validation", "test")


@st.composite
def data_sets(draw):
    """(labels [N], group names [N]) of up to 12 groups, two classes, any imbalance."""
    num_groups = draw(st.integers(1, 12))
    labels, groups = [], []
    for g in range(num_groups):
        for c in (0, 1):
            n = draw(st.integers(0, 9))
            labels += [c] * n
            groups += [f"p{g}"] * n
    return np.array(labels, np.int64), groups


def groups_per_class(labels, groups):
    return [len({g for y, g in zip(labels, groups, strict=True) if y == c}) for c in (0, 1)]


@settings(max_examples=150, deadline=None)
@given(data=data_sets(), seed=st.integers(0, 1000))
def test_groups_stay_whole_each_index_occurs_once_and_each_split_has_each_class(data, seed):
    labels, groups = data
    if min(groups_per_class(labels, groups)) < 3:
        with pytest.raises(UserError, match="at least 3 patients"):
            make_splits(labels, groups, seed=seed, classes=("other", "glomerulus"))
        return
    # Three groups with each class always suffice, however the classes are spread over them.
    splits = make_splits(labels, groups, seed=seed, classes=("other", "glomerulus"))
    assert tuple(splits) == SPLITS
    assert sorted(np.concatenate(list(splits.values()))) == list(range(len(labels)))
    check_group_overlap({name: [groups[i] for i in splits[name]] for name in SPLITS})
    for indices in splits.values():
        assert (np.diff(indices) > 0).all()
        assert set(labels[indices]) == {0, 1}


@settings(max_examples=150, deadline=None)
@given(data=data_sets(), seed=st.integers(0, 1000))
def test_class_proportions_are_those_of_all_within_one_group(data, seed):
    labels, groups = data
    if min(groups_per_class(labels, groups)) < 3:
        return
    largest = max(groups.count(name) for name in set(groups))
    for indices in make_splits(labels, groups, seed=seed).values():
        expected = labels.mean() * len(indices)
        assert abs(labels[indices].sum() - expected) <= largest


@settings(max_examples=100, deadline=None)
@given(data=data_sets(), seed=st.integers(0, 1000), folds=st.integers(3, 5))
def test_each_example_is_in_the_test_split_of_one_fold(data, seed, folds):
    labels, groups = data
    options = {"seed": seed, "folds": folds, "classes": ("other", "glomerulus")}
    if min(groups_per_class(labels, groups)) < folds:
        with pytest.raises(UserError, match=f"at least {folds} patients.*or take fewer folds"):
            make_splits(labels, groups, **options)
        return
    tested = []
    for fold in range(folds):
        splits = make_splits(labels, groups, fold=fold, **options)
        assert sorted(np.concatenate(list(splits.values()))) == list(range(len(labels)))
        check_group_overlap({name: [groups[i] for i in splits[name]] for name in SPLITS})
        for indices in splits.values():
            assert set(labels[indices]) == {0, 1}
        tested.append(splits["test"])
    assert sorted(np.concatenate(tested)) == list(range(len(labels)))


def test_folds_of_single_files_are_equal_and_stratified():
    labels = np.repeat([0, 1], [40, 20])
    groups = [f"f{i:02d}" for i in range(60)]
    for fold in range(5):
        splits = make_splits(labels, groups, (0.75, 0.25 - 1e-7, 1e-7), folds=5, fold=fold)
        sizes = {name: np.bincount(labels[indices]).tolist() for name, indices in splits.items()}
        assert sizes == {"train": [24, 12], "validation": [8, 4], "test": [8, 4]}


@pytest.mark.parametrize(("folds", "fold"), [(1, 0), (-2, 0), (3, 3), (3, -1), (0, 1)])
def test_folds_that_do_not_exist_are_refused(folds, fold):
    with pytest.raises(UserError, match=f"Fold {fold} of {folds}"):
        make_splits(np.array([0, 1] * 9), [str(i) for i in range(18)], folds=folds, fold=fold)


@settings(max_examples=60, deadline=None)
@given(data=data_sets(), seed=st.integers(0, 1000), shuffle=st.randoms(use_true_random=False))
def test_the_order_of_files_does_not_change_where_a_file_goes(data, seed, shuffle):
    labels, groups = data
    if min(groups_per_class(labels, groups)) < 3:
        return
    order = list(range(len(labels)))
    shuffle.shuffle(order)
    first = make_splits(labels, groups, seed=seed)
    again = make_splits(labels, groups, seed=seed)
    moved = make_splits(labels[order], [groups[i] for i in order], seed=seed)
    for name in SPLITS:
        np.testing.assert_array_equal(first[name], again[name])
        assert sorted(order[i] for i in moved[name]) == list(first[name])


def test_the_order_of_single_files_does_not_change_where_a_file_goes():
    labels = np.arange(60) % 2
    names = [f"f{i}" for i in range(60)]
    order = np.random.default_rng(1).permutation(60)
    first = make_splits(labels, names)
    moved = make_splits(labels[order], [names[i] for i in order])
    for name in SPLITS:
        assert sorted(order[moved[name]]) == list(first[name])


def test_single_files_are_split_with_the_same_class_proportion_everywhere():
    labels = np.array([0] * 600 + [1] * 200)
    splits = make_splits(labels, [str(i) for i in range(800)], kind="file")
    assert {name: len(splits[name]) for name in SPLITS} == {
        "train": 560,
        "validation": 120,
        "test": 120,
    }
    for indices in splits.values():
        assert labels[indices].mean() == 0.25


@pytest.mark.parametrize("fractions", [(0.01, 0.49, 0.5), (0.98, 0.01, 0.01), (0.1, 0.1, 0.8)])
def test_three_single_files_of_a_class_go_one_to_each_split(fractions):
    splits = make_splits(np.array([0, 1] * 3), list("abcdef"), fractions)
    assert [len(splits[name]) for name in SPLITS] == [2, 2, 2]


def test_other_seeds_give_other_splits():
    labels = np.tile([0, 1], 130)
    groups = [f"p{i // 20}" for i in range(260)]  # 13 patients
    tests = {tuple(make_splits(labels, groups, seed=seed)["test"]) for seed in range(10)}
    assert len(tests) >= 5


def test_one_patient_with_most_patches_does_not_upset_the_sizes():
    labels = np.tile([0, 1], 100)
    groups = ["big"] * 140 + [f"p{i // 4}" for i in range(60)]
    splits = make_splits(labels, groups)
    assert "big" in {groups[i] for i in splits["train"]}
    assert 140 <= len(splits["train"]) <= 148
    assert min(len(splits["validation"]), len(splits["test"])) >= 24


def test_rare_positive_patients_reach_every_split():
    # 3 of 40 patients have the positive class.
    groups = [f"p{i // 5:02d}" for i in range(200)]
    labels = np.array([int(g in ("p03", "p17", "p31")) for g in groups])
    for seed in range(10):
        splits = make_splits(labels, groups, seed=seed)
        assert [int(labels[splits[name]].sum()) for name in SPLITS] == [5, 5, 5]


def test_too_few_groups_are_refused_with_the_number_that_is_needed():
    with pytest.raises(UserError, match=r"Only 2 slide\(s\) .* class 'glomerulus'.* at least 3"):
        make_splits(
            np.array([0, 0, 0, 1, 1, 1]),
            ["a", "b", "c", "a", "b", "b"],
            kind="slide",
            classes=("other", "glomerulus"),
        )


def test_three_classes_without_a_possible_division_are_refused():
    # Each class occurs in three groups, yet a split needs two of these five.
    held = {"a": (0, 1), "b": (0, 1), "c": (0, 2), "d": (1, 2), "e": (2, 2)}
    labels = np.array([c for pair in held.values() for c in pair])
    groups = [name for name in held for _ in range(2)]
    with pytest.raises(UserError, match="No division of the 5 patients"):
        make_splits(labels, groups)


@pytest.mark.parametrize(
    "fractions",
    [(0.7, 0.3), (0.7, 0.2, 0.2), (1.0, 0.0, 0.0), (1.2, -0.1, -0.1), (float("nan"), 0.5, 0.5)],
)
def test_fractions_that_are_no_shares_are_refused(fractions):
    with pytest.raises(UserError, match="three positive numbers"):
        make_splits(np.array([0, 1] * 5), list("aabbccddee"), fractions)


def test_a_negative_seed_is_refused():
    with pytest.raises(UserError, match="-1"):
        make_splits(np.array([0, 1] * 5), list("aabbccddee"), seed=-1)


def test_overlap_names_each_shared_patient_and_its_splits():
    with pytest.raises(UserError, match=r"2 patient\(s\).*'a' \(train, test\), 'b'"):
        check_group_overlap({"train": ["a", "b", "c"], "validation": ["b"], "test": ["a", "d"]})
    check_group_overlap({"train": ["a", "a"], "validation": ["b"], "test": ["c"]})


@pytest.mark.parametrize("name", ["kidney_slides", "biopsy_stains"])
def test_real_patients_stay_apart_with_balanced_classes(real_data, name):
    with open(real_data / name / "manifest.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    labels = np.array([int(row["label"] == "glomerulus") for row in rows])
    patients = [row["patient"] for row in rows]
    for seed in range(5):
        splits = make_splits(labels, patients, seed=seed)
        check_group_overlap({s: [patients[i] for i in splits[s]] for s in SPLITS})
        for split, share in zip(SPLITS, (0.7, 0.15, 0.15), strict=True):
            assert abs(labels[splits[split]].mean() - labels.mean()) < 0.15
            assert abs(len(splits[split]) / len(labels) - share) < 0.05


def test_each_group_has_a_chance_to_be_tested_however_large_it_is():
    # The test split should have 7 of 48 examples; one group has 14, another 10, the others 2.
    groups = ["large"] * 14 + ["middle"] * 10 + [f"P{i // 2}" for i in range(24)]
    labels = np.arange(48) % 2
    tested = [make_splits(labels, groups, seed=seed)["test"] for seed in range(150)]
    assert {groups[i] for rows in tested for i in rows} == set(groups)
    assert 6 <= np.median([len(rows) for rows in tested]) <= 9
