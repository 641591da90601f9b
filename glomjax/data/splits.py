"""Train, validation and test splits that never divide a patient."""

from collections.abc import Mapping, Sequence

import numpy as np

from glomjax.data.examples import SPLITS
from glomjax.errors import UserError, first_few, shown

# A few tries per seed, not a global optimum: the splits are near the targets, and still differ
# from seed to seed.
_CANDIDATES = 32


def make_splits(
    labels: np.ndarray,
    groups: Sequence[str],
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    *,
    parts: Sequence[str] = SPLITS,
    folds: int = 0,
    fold: int = 0,
    kind: str = "patient",
    classes: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Divides examples into the splits, each group as a whole, near the wanted sizes.

    Of 32 seeded assignments the one is kept that has the least sum over splits s and classes c of
    (n[s, c] - t[s, c])^2 / t[s, c], where n counts examples and t = fraction * examples of the
    class; it holds both the sizes and the class proportions near their targets. One group, drawn
    before, is in the test split of all 32, so that each has a chance to be tested, however large
    it is; only where a class would be missing somewhere then is none. Every split gets every class;
    for two classes such a split is found whenever each class occurs in three groups. Where each
    group is one example the split is a plain stratified one. The outcome depends on the names of
    the groups and on the seed, not on the order of the examples.

    With `folds` the examples are divided into so many parts of one size in the same way. One of
    them is the test split, so that over all values of `fold` each example is tested once; the rest
    is divided into train and validation in the proportion of their fractions.

    Args:
      labels: int [N], class indices.
      groups: N names; examples of one name stay together.
      fractions: shares of train, validation and test; positive, summing to 1 within 1e-6.
      seed: at least 0.
      parts: the splits to make, in the proportion of their fractions.
      folds: 0, or at least 2.
      fold: which of them is the test split, from 0.
      kind: what a group is, for messages ("patient", "slide", "site", "file").
      classes: class names, for messages and to require classes that `labels` lacks.

    Returns:
      Sorted int64 indices for each of the parts; each index occurs once.

    Raises:
      UserError: fractions, seed or folds are not valid, or there are too few groups to give each
        split each class.
    """
    shares = checked_fractions(fractions)
    if seed < 0:
        raise UserError(f"The split seed is {seed}: give a whole number of at least 0.")
    if folds < 0 or folds == 1 or not 0 <= fold < max(folds, 1):
        raise UserError(
            f"Fold {fold} of {folds} is asked for: give at least 2 folds, numbered from 0, or "
            "0 folds for splits by fractions."
        )
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

    rng = np.random.default_rng(seed)
    if folds:
        every = [f"fold {n}" for n in range(folds)]
        in_fold = _divide(counts, np.full(folds, 1 / folds), every, rng, kind, classes) == fold
        split_of = np.full(len(names), SPLITS.index("test"))  # [G]
        rest = shares[:2] / shares[:2].sum()
        split_of[~in_fold] = _divide(counts[~in_fold], rest, SPLITS[:2], rng, kind, classes)
    else:
        shares = shares[[SPLITS.index(part) for part in parts]]
        split_of = _divide(counts, shares / shares.sum(), parts, rng, kind, classes)  # [G]
    return {split: np.flatnonzero(split_of[group_of] == s) for s, split in enumerate(parts)}


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
        listing = first_few([f"'{name}' ({', '.join(where[name])})" for name in shared])
        raise UserError(
            f"{len(shared)} {kind}(s) occur in more than one split: {listing}; put all patches of "
            f"a {kind} into one split."
        )


def checked_fractions(fractions: Sequence[float]) -> np.ndarray:
    """The shares of train, validation and test; UserError where they are no division."""
    try:
        shares = np.asarray(fractions, dtype=np.float64)
    except (TypeError, ValueError):
        shares = np.zeros(0)
    # `not (x > 0)` also catches NaN.
    if shares.shape != (3,) or not (shares > 0).all() or not abs(shares.sum() - 1) <= 1e-6:
        raise UserError(
            f"data.fractions is {shown(tuple(fractions))}: give three positive numbers (train, "
            f"validation, test) that sum to 1."
        )
    return shares


def _divide(
    counts: np.ndarray,
    shares: np.ndarray,
    parts: Sequence[str],
    rng: np.random.Generator,
    kind: str,
    classes: Sequence[str],
) -> np.ndarray:
    """The part [G] of each group with counts [G, C], where parts have these shares [P] of all."""
    wanted = ", ".join(parts[:-1]) + f" and {parts[-1]}" if parts[0] in SPLITS else "the folds"
    # Parts that all have every class need as many groups per class (for two classes: exactly that).
    for c, found in enumerate((counts > 0).sum(axis=0)):
        if found < len(parts):
            raise UserError(
                f"Only {found} {kind}(s) have patches of class {_class_name(c, classes)}, and at "
                f"least {len(parts)} {kind}s with it are needed for {wanted} to hold every class: "
                f"add {kind}s{'' if parts[0] in SPLITS else ' or take fewer folds'}."
            )
    if (counts.sum(axis=1) == 1).all():
        part_of = _stratified(counts.argmax(axis=1), shares, rng)
    elif "test" in parts:
        tested = parts.index("test")
        part_of = _balanced(
            counts, shares, rng, first=(_drawn(counts, shares[tested], rng), tested)
        )
        if _lacking(counts, part_of, len(parts)):
            part_of = _balanced(counts, shares, rng)
    else:
        part_of = _balanced(counts, shares, rng)
    for n, absent in _lacking(counts, part_of, len(parts)):  # only with three or more classes
        raise UserError(
            f"No division of the {len(counts)} {kind}s was found that gives {parts[n]} "
            f"class {_class_name(absent, classes)}: add {kind}s that have this class, or "
            f"name the splits in a 'split' column."
        )
    return part_of


def _lacking(counts: np.ndarray, part_of: np.ndarray, parts: int) -> list[tuple[int, int]]:
    """(part, class) of every class that a part lacks."""
    held = np.stack([counts[part_of == n].sum(axis=0) for n in range(parts)])  # [P, C]
    return [(int(n), int(c)) for n, c in np.argwhere(held == 0)]


def _drawn(counts: np.ndarray, share: float, rng: np.random.Generator) -> int:
    """A group for the test split, whatever that does to its size: the best balanced assignments
    never test a large patient, and a result over seeds would be one about the small ones. Only a
    group larger than the whole split should be has a smaller chance than the others."""
    sizes = counts.sum(axis=1)
    chance = np.minimum(1, (share * sizes.sum() / sizes) ** 2)
    return int(rng.choice(len(sizes), p=chance / chance.sum()))


def _class_name(c: int, classes: Sequence[str]) -> str:
    return f"'{classes[c]}'" if classes else str(c)


def _stratified(labels: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The part [N] of each example: every class is shuffled and cut at the shares [P]."""
    part_of = np.empty(len(labels), np.int64)
    for c in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == c))
        n = len(members)
        cuts = [0]
        for p in range(1, len(shares)):  # at least one example in each part
            cut = round(shares[:p].sum() * n)
            cuts.append(int(np.clip(cut, cuts[-1] + 1, n - (len(shares) - p))))
        part_of[members] = np.repeat(np.arange(len(shares)), np.diff([*cuts, n]))
    return part_of


def _balanced(
    counts: np.ndarray,
    shares: np.ndarray,
    rng: np.random.Generator,
    first: tuple[int, int] | None = None,
) -> np.ndarray:
    """The part [G] of each group: the best of the greedy candidates.

    A candidate takes the groups in a random order, in which large groups tend to come early, and
    gives each to the part whose cost then falls most. Half of the candidates (`cover`) first see
    to it that every part has every class: groups with the most classes go first, each to the
    part where it brings the most missing classes. For two classes that cannot fail if each class
    occurs in three groups. `first` is a group, and the part that it is given to before all others.
    """
    num_groups, num_classes = counts.shape
    cover = np.arange(_CANDIDATES) % 2 == 1  # [K]
    # Exponential draws over weights: each next group is drawn with a chance in proportion to size.
    key = rng.exponential(size=(_CANDIDATES, num_groups)) / counts.sum(axis=1)  # [K, G]
    classes_held = (counts > 0).sum(axis=1)  # [G]
    rank = np.where(cover[:, None], -classes_held, 0)  # [K, G]
    if first is not None:
        rank[:, first[0]] = -num_classes - 1
    order = np.lexsort((key, rank), axis=1)  # [K, G]

    target = shares[:, None] * counts.sum(axis=0)  # [P, C]
    have = np.zeros((_CANDIDATES, len(shares), num_classes), np.int64)
    part_of = np.empty((_CANDIDATES, num_groups), np.int64)
    rows = np.arange(_CANDIDATES)
    for position in range(num_groups):
        group = order[:, position]  # [K]
        added = counts[group][:, None, :]  # [K, 1, C]
        change = (added * (added + 2 * (have - target)) / target).sum(axis=2)  # [K, P]
        new = ((added > 0) & (have == 0)).sum(axis=2) * cover[:, None]  # [K, P]
        part = np.lexsort((change, -new), axis=1)[:, 0]  # [K]
        if first is not None and position == 0:
            part = np.full(_CANDIDATES, first[1])
        part_of[rows, group] = part
        have[rows, part] += added[:, 0]
    cost = ((have - target) ** 2 / target).sum(axis=(1, 2))  # [K]
    missing = (have == 0).sum(axis=(1, 2))  # [K]
    return part_of[np.lexsort((cost, missing))[0]]
