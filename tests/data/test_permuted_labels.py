"""Labels that are permuted within patients."""

import collections

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from glomjax.data.examples import DataSplits, Examples
from glomjax.data.permuted_labels import permute_labels, permute_within

ROWS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2)), min_size=1, max_size=60)


@given(ROWS, st.integers(0, 2**32 - 1))
def test_patients_keep_their_shares_and_those_with_one_class_stay_so(rows, seed):
    patients, labels = [f"P{p}" for p, _ in rows], np.array([label for _, label in rows])
    permuted = permute_within(labels, patients, seed)
    np.testing.assert_array_equal(permuted, permute_within(labels, patients, seed))
    before, after = collections.Counter(), collections.Counter()
    for patient in set(patients):
        mine = [i for i, p in enumerate(patients) if p == patient]
        was, now = sorted(labels[mine]), sorted(permuted[mine])
        if len(set(was)) == 1:
            assert len(set(now)) == 1
            before[was[0]] += 1
            after[now[0]] += 1
        else:
            assert was == now
    assert before == after
    alone = permute_within(labels, None, seed)
    assert sorted(alone) == sorted(labels)


def part(seed: int, split: str) -> Examples:
    labels = np.random.default_rng(seed).integers(0, 2, 60).astype(np.int32)
    patients = tuple(f"{split}{i // 10}" for i in range(60))
    return Examples(tuple(f"{split}/{i}" for i in range(60)), labels, lambda i: b"", patients)


def test_the_test_keeps_its_labels_and_nobody_takes_the_others_for_true_ones():
    parts = [part(n, split) for n, split in enumerate(("train", "validation", "test"))]
    splits = DataSplits(*parts, classes=("other", "glomerulus"), notes=("before",))
    permuted = permute_labels(splits, 0)
    assert permuted.test is splits.test
    for split in ("train", "validation"):
        before, after = splits[split].labels, permuted[split].labels
        assert 0.25 < (before != after).mean() < 0.75
        assert after.dtype == before.dtype
    assert permuted.digest() == permute_labels(splits, 0).digest() != splits.digest()
    assert permuted.digest() != permute_labels(splits, 1).digest()
    assert permuted.notes[0] == "before"
    assert "permuted within patients" in permuted.notes[1]
    assert permuted.to_csv().splitlines()[0] == "path,permuted_label,split,patient"
    assert splits.to_csv().splitlines()[0] == "path,label,split,patient"
