"""Train, validation and test splits that never divide a patient."""

from collections.abc import Mapping, Sequence

import numpy as np

from glomjax.data.examples import SPLITS
from glomjax.errors import UserError

# A few tries per seed, not a global optimum: the splits are near the targets, and still differ
# from seed to seed.
_CANDIDATES = 32


def make_splits(
    labels: np.ndarray,
    groups: Sequence[str],
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    *,
    kind: str = "patient",
    classes: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Divides examples into three splits, each group as a whole, near the wanted sizes.

    Of 32 seeded assignments the one is kept that has the least sum over splits s and classes c of
    (n[s, c] - t[s, c])^2 / t[s, c], where n counts examples and t = fraction * examples of the
    class; it holds both the sizes and the class proportions near their targets. Every split gets
    every class; for two classes such a split is found whenever each class occurs in three groups.
    Where each group is one example the split is a plain stratified one. The outcome depends on
    the names of the groups and on the seed, not on the order of the examples.

    Args:
      labels: int [N], class indices.
      groups: N names; examples of one name stay together.
      fractions: shares of train, validation and test; positive, summing to 1 within 1e-6.
      seed: at least 0.
      kind: what a group is, for messages ("patient", "slide", "file").
      classes: class names, for messages and to require classes that `labels` lacks.

    Returns:
      Sorted int64 indices for "train", "validation" and "test"; each index occurs once.

    Raises:
      UserError: fractions or seed are not valid, or there are too few groups to give each split
        each class.
    """
    shares = _checked_fractions(fractions)
    if seed < 0:
        raise UserError(f"The split seed is {seed}: give a whole number of at least 0.")
    labels = np.asarray(labels, dtype=np.int64)
    if len(labels) != len(groups):
        raise ValueError(f"{len(labels)} labels but {len(groups)} groups")
    # Sorted names make the result independent of the order in which the file system lists files.
    names = sorted(set(groups))
    number = {name: g for g, name in enumerate(names)}
    group_of = np.array([number[name] for name in groups], dtype=np.int64)  # [N]
    num_classes = max(len(classes), int(labels.max(initial=-1)) + 1)
    counts = np.zeros((len(names), num_classes), np.int64)  # [G, C]
    np.add.at(counts, (group_of, labels), 1)
    _check_enough_groups(counts, kind, classes)

    rng = np.random.default_rng(seed)
    if len(names) == len(labels):
        split_of = _stratified(counts.argmax(axis=1), shares, rng)  # [G]
    else:
        split_of = _balanced(counts, shares, rng)  # [G]
    for s, split in enumerate(SPLITS):
        absent = np.flatnonzero(counts[split_of == s].sum(axis=0) == 0)
        if len(absent):  # only with three or more classes
            raise UserError(
                f"No division of the {len(names)} {kind}s was found that gives the {split} split "
                f"class {_class_name(absent[0], classes)}: add {kind}s that have this class, or "
                f"name the splits in a 'split' column."
            )
    return {split: np.flatnonzero(split_of[group_of] == s) for s, split in enumerate(SPLITS)}


def check_group_overlap(splits: Mapping[str, Sequence[str]], kind: str = "patient") -> None:
    """Raises UserError that lists the groups which occur in more than one split.

    Args:
      splits: for each split the group name of every example in it.
      kind: what a group is, for the message ("patient", "slide").
    """
    where: dict[str, list[str]] = {}
    for split, names in splits.items():
        for name in set(names):
            where.setdefault(name, []).append(split)
    shared = [name for name in sorted(where) if len(where[name]) > 1]
    if shared:
        listing = ", ".join(f"'{name}' ({', '.join(where[name])})" for name in shared[:10])
        rest = f" and {len(shared) - 10} more" if len(shared) > 10 else ""
        raise UserError(
            f"{len(shared)} {kind}(s) occur in more than one split: {listing}{rest}; put all "
            f"patches of a {kind} into one split."
        )


def _checked_fractions(fractions: Sequence[float]) -> np.ndarray:
    shares = np.asarray(fractions, dtype=np.float64)
    # `not (x > 0)` also catches NaN.
    if shares.shape != (3,) or not (shares > 0).all() or not abs(shares.sum() - 1) <= 1e-6:
        raise UserError(
            f"The split fractions are {tuple(fractions)}: give three positive numbers (train, "
            f"validation, test) that sum to 1."
        )
    return shares


def _check_enough_groups(counts: np.ndarray, kind: str, classes: Sequence[str]) -> None:
    """Three splits with every class need three groups per class (for two classes: exactly that)."""
    for c, found in enumerate((counts > 0).sum(axis=0)):
        if found < len(SPLITS):
            raise UserError(
                f"Only {found} {kind}(s) have patches of class {_class_name(c, classes)}, and at "
                f"least {len(SPLITS)} {kind}s with it are needed for train, validation and test "
                f"splits that each hold every class: add {kind}s."
            )


def _class_name(c: int, classes: Sequence[str]) -> str:
    return f"'{classes[c]}'" if classes else str(c)


def _stratified(labels: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The split [N] of each example: every class is shuffled and cut at the fractions."""
    split_of = np.empty(len(labels), np.int64)
    for c in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == c))
        n = len(members)
        first = int(np.clip(round(shares[0] * n), 1, n - 2))  # at least one example in each split
        second = int(np.clip(round((shares[0] + shares[1]) * n), first + 1, n - 1))
        split_of[members] = np.repeat(np.arange(3), (first, second - first, n - second))
    return split_of


def _balanced(counts: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The split [G] of each group: the best of the greedy candidates.

    A candidate takes the groups in a random order, in which large groups tend to come early, and
    gives each to the split whose cost then falls most. Half of the candidates (`cover`) first see
    to it that every split has every class: groups with the most classes go first, each to the
    split where it brings the most missing classes. For two classes that cannot fail if each class
    occurs in three groups.
    """
    num_groups, num_classes = counts.shape
    cover = np.arange(_CANDIDATES) % 2 == 1  # [K]
    # Exponential draws over weights: each next group is drawn with a chance in proportion to size.
    key = rng.exponential(size=(_CANDIDATES, num_groups)) / counts.sum(axis=1)  # [K, G]
    classes_held = (counts > 0).sum(axis=1)  # [G]
    rank = np.where(cover[:, None], -classes_held, 0)  # [K, G]
    order = np.lexsort((key, rank), axis=1)  # [K, G]

    target = shares[:, None] * counts.sum(axis=0)  # [3, C]
    have = np.zeros((_CANDIDATES, 3, num_classes), np.int64)
    split_of = np.empty((_CANDIDATES, num_groups), np.int64)
    rows = np.arange(_CANDIDATES)
    for position in range(num_groups):
        group = order[:, position]  # [K]
        added = counts[group][:, None, :]  # [K, 1, C]
        change = (added * (added + 2 * (have - target)) / target).sum(axis=2)  # [K, 3]
        new = ((added > 0) & (have == 0)).sum(axis=2) * cover[:, None]  # [K, 3]
        split = np.lexsort((change, -new), axis=1)[:, 0]  # [K]
        split_of[rows, group] = split
        have[rows, split] += added[:, 0]
    cost = ((have - target) ** 2 / target).sum(axis=(1, 2))  # [K]
    missing = (have == 0).sum(axis=(1, 2))  # [K]
    return split_of[np.lexsort((cost, missing))[0]]
