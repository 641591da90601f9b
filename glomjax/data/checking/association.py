"""How far two things go together, and how often chance alone does as much."""

import math
from collections.abc import Callable

import numpy as np

PERMUTATIONS = 5000


def permuted(
    measure: Callable[[np.ndarray], np.ndarray], units: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The values [K] that `measure` gives for `units`, and for each its p-value: how often shuffled
    units give one at least as far from 0."""
    rng = np.random.default_rng(0)
    actual = measure(units)
    reached = np.zeros(len(actual))
    for _ in range(PERMUTATIONS):
        reached += np.abs(measure(rng.permutation(units))) >= np.abs(actual) - 1e-9
    return actual, (1 + reached) / (1 + PERMUTATIONS)


def group_sums(groups: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Sums [count, K] of values [N, K] over groups [N]."""
    return np.stack([np.bincount(groups, column, count) for column in values.T], axis=1)


def ranks(values: np.ndarray) -> np.ndarray:
    """Of each column of [N, K], from 1; ties get their mean."""

    def of_column(column: np.ndarray) -> np.ndarray:
        _, inverse, counts = np.unique(column, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[inverse]

    return np.apply_along_axis(of_column, 0, values)


def auroc(is_positive: np.ndarray, ranked: np.ndarray) -> np.ndarray:
    """The share [K] of pairs in which the positive has the higher one of `ranks` [N, K], ties
    counting half."""
    n = int(is_positive.sum())
    return (ranked[is_positive].sum(axis=0) - n * (n + 1) / 2) / (n * (len(ranked) - n))


def auroc_within(is_positive: np.ndarray, values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The same of values [N, K] over the pairs of one group; NaN if there is none."""
    ordered, total = np.full(values.shape[1], 0.0), 0
    order = np.argsort(groups, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        positives = int(is_positive[rows].sum())
        if pairs := positives * (len(rows) - positives):
            ordered += pairs * auroc(is_positive[rows], ranks(values[rows]))
            total += pairs
    return ordered / total if total else np.full(values.shape[1], np.nan)


def cramers_v(table: np.ndarray) -> float:
    """Of counts [V, C], corrected for its bias (Bergsma 2013, J Korean Statist Soc 42:323-328)."""
    n = table.sum()
    table = table[:, table.sum(axis=0) > 0]
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / n
    rows, columns = table.shape
    chance = (rows - 1) * (columns - 1) / (n - 1)
    phi = max(0.0, float(((table - expected) ** 2 / expected).sum() / n) - chance)
    effective = [k - (k - 1) ** 2 / (n - 1) - 1 for k in (rows, columns)]
    return min(1.0, math.sqrt(phi / min(effective))) if min(effective) > 0 else 0.0


def between_groups(
    is_positive: np.ndarray, labels: np.ndarray, values: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Correlation [K] of group means with the groups' shares of a class, and its p-values [K].

    Each class by itself is ranked and averaged over the patches of a group, so that what the class
    looks like plays no part; the classes are then taken together. None if all shares are equal.

    Args:
      is_positive: bool [N]; labels: int [N]; values: float [N, K]; groups: int [N], all from 0.
    """
    shares = np.bincount(groups, is_positive) / np.bincount(groups)  # [G]
    if np.ptp(shares) < 1e-9:
        return None
    ranked = np.empty(values.shape)
    for label in np.unique(labels):
        mine = labels == label
        ranked[mine] = ranks(values[mine]) / mine.sum()
    cells, cell_of = np.unique(labels * len(shares) + groups, return_inverse=True)
    _, label_of = np.unique(cells // len(shares), return_inverse=True)
    group_of = cells % len(shares)
    sizes = np.bincount(label_of)[:, None]

    def centred(of: np.ndarray) -> np.ndarray:  # [cells, K], each class around its mean
        return of - (group_sums(label_of, of, len(sizes)) / sizes)[label_of]

    means = centred(group_sums(cell_of, ranked, len(cells)) / np.bincount(cell_of)[:, None])
    spread = (means**2).sum(axis=0)

    def correlation(shares: np.ndarray) -> np.ndarray:
        share = centred(shares[group_of, None])[:, 0]
        return share @ means / np.maximum(np.sqrt(share @ share * spread), 1e-12)

    return permuted(correlation, shares)
