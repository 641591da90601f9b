"""Whether the images that a stain normalisation is fitted on have one stain."""

import collections

import numpy as np

from glomjax.data.examples import Examples
from glomjax.data.sources.columns import column_name
from glomjax.errors import first_few

_COLUMNS = ("stain", "staining", "stain_type", "stain_name", "dye")
# Ashman's D of the two groups along the line between their means. On 797 kidney patches of six
# stains and data sets, by macenko's directions: four of the six have at most 4.2, and so have the
# embedded images, whose stain varies evenly; H&E from three laboratories, and PAS of four patients
# of one, have 5.6. Of the 15 pairs of these sets 12 are told, by reinhard's means 6: H&E with PAS
# of one data set has 3.1, so that a column tells more than this.
_APART = 4.5
_LEAST_SHARE = 0.1
_COLOURS = {"macenko": 6, "reinhard": 3}  # the first statistics; the others tell amounts and spread


def several_stains_note(train: Examples, method: str, statistics: np.ndarray) -> str:
    """A note where training images have several stains, so that their median is none, else "".

    A column says so, or their colours form two groups.

    Args:
      method, statistics: of the training images, as `stain_normalization.fit` takes them.
    """
    for name, cells in train.columns.items():
        values = collections.Counter(cell for cell in cells if cell)
        if column_name(name) in _COLUMNS and len(values) > 1:
            listed = first_few([f"'{value}' {n}" for value, n in values.most_common()])
            return (
                f"The training images have {len(values)} stains by the column '{name}' ({listed}), "
                "and stains are normalised to their median, which is none of them: train on one "
                "stain at a time, or without stain_normalization."
            )
    colours = statistics[~np.isnan(statistics).any(axis=1), : _COLOURS[method]]
    groups = _two_groups(colours)
    if groups is None:
        return ""
    sizes = sorted(np.bincount(groups.astype(np.int64), minlength=2).tolist(), reverse=True)
    return (
        f"The colours of the training images form two groups ({sizes[0]} and {sizes[1]} images), "
        "as of two stains or laboratories, and stains are normalised to their median, which may be "
        "neither: look at both, and train on one stain at a time."
    )


def _two_groups(rows: np.ndarray) -> np.ndarray | None:
    """The group, bool [N], of each row of [N, K] where there are two that lie apart."""
    if len(rows) < 2 / _LEAST_SHARE:
        return None
    centred = rows - rows.mean(axis=0)
    along = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
    best = None
    for start in (10, 25, 50, 75, 90):  # 2-means from several cuts along the longest axis
        group = along > np.percentile(along, start)
        for _ in range(50):
            if not _LEAST_SHARE <= group.mean() <= 1 - _LEAST_SHARE:
                break
            means = np.stack([rows[~group].mean(axis=0), rows[group].mean(axis=0)])
            distances = ((rows[:, None] - means[None]) ** 2).sum(axis=2)  # [N, 2]
            nearer = distances[:, 1] < distances[:, 0]
            if (nearer == group).all():
                spread = distances.min(axis=1).sum()
                if best is None or spread < best[0]:
                    best = spread, group, means
                break
            group = nearer
    if best is None:
        return None
    _, group, means = best
    places = rows @ (means[1] - means[0])
    first, second = places[~group], places[group]
    within = np.sqrt((first.var() + second.var()) / 2)
    return group if abs(second.mean() - first.mean()) > _APART * within else None
