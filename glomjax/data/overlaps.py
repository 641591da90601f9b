"""Patches of one field or slide that overlap and lie in different splits.

Perceptual hashes tell copies of a patch, also when a few pixels are cut off. They do not tell
patches that share half of their tissue, as tiles of a sliding window do; where a table or the names
of the files give coordinates, these do.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from glomjax.data.examples import SPLITS, Examples
from glomjax.errors import LISTED, first_few

# Names of the columns of (left, top, width, height), in pixels.
_NAMES = (
    ("x", "x0", "left", "xmin", "x_min", "tile_x", "patch_x", "coord_x", "x_coord", "pos_x"),
    ("y", "y0", "top", "ymin", "y_min", "tile_y", "patch_y", "coord_y", "y_coord", "pos_y"),
    ("width", "w", "tile_width", "patch_width"),
    ("height", "h", "tile_height", "patch_height"),
)
# The columns by which coordinates belong to one picture.
_PICTURES = re.compile(
    "(slide|field|fov|region|roi|section|scan|wsi|((source|parent|original|whole)_)?image)"
    "(_?(id|name|no|nr|number|file))?"
)
_AFTER = r"(?:[,_\s-]*w[=_-]?(?P<w>\d+)[,_\s-]*h[=_-]?(?P<h>\d+))?[\])]?"
_X, _Y = (rf"{axis}[=_-]?(?P<{axis}>\d+(?:\.\d+)?)" for axis in "xy")
_IN_NAME = [
    re.compile(rf"[\[(_,\s-]*{first}[,_\s-]*{second}{_AFTER}", re.IGNORECASE)
    for first, second in ((_X, _Y), (_Y, _X))
]
_LEAST_SHARE = 0.05  # of the smaller patch; less may be a border


@dataclasses.dataclass(frozen=True)
class _Patches:
    """Where N patches lie: `picture` of each, `boxes` float64 [N, 4]: left, top, width, height."""

    picture: np.ndarray
    boxes: np.ndarray


def overlap_note(splits: Mapping[str, Examples], sizes: Mapping[str, np.ndarray]) -> str:
    """A note on the patches of different splits that overlap, "" without any or coordinates.

    Args:
      splits: the examples of each split.
      sizes: {split: [N, 2]}, (height, width) as stored, where no column tells them.
    """
    ids = [name for split in SPLITS for name in splits[split].ids]
    split_of = np.repeat(np.arange(3), [len(splits[split]) for split in SPLITS])
    stored = np.concatenate([sizes[split] for split in SPLITS])
    columns = {
        name: [cell for split in SPLITS for cell in splits[split].columns.get(name, ())]
        for name in splits["train"].columns
    }
    names = [name for split in SPLITS for name in splits[split].patients or ()]
    # Patients of one image each number the images, and tell nothing of where they come from.
    patients = [names] if len(set(names)) < len(names) else []
    patches = _from_columns(columns, patients, stored) or _from_names(ids, patients, stored)
    if patches is None:
        return ""
    count, pairs = overlapping(patches.picture, patches.boxes, split_of)
    if not count:
        return ""
    listed = first_few(
        [
            f"'{ids[int(i)]}' ({SPLITS[split_of[int(i)]]}) ~ '{ids[int(j)]}' "
            f"({SPLITS[split_of[int(j)]]})"
            for i, j, _ in pairs
        ],
        count,
    )
    return (
        f"{count} pair(s) of patches in different splits overlap by their coordinates, by up "
        f"to {pairs[:, 2].max():.0%}, so the estimate may be optimistic: {listed}."
    )


def overlapping(
    picture: np.ndarray, boxes: np.ndarray, split_of: np.ndarray
) -> tuple[int, np.ndarray]:
    """The pairs of patches of one picture and of different splits that overlap.

    Args:
      picture: of each patch, [N].
      boxes: float [N, 4]: left, top, width and height in pixels.
      split_of: of each patch, [N].

    Returns:
      How many there are, and float64 [P, 3] of at most `LISTED`, the largest first: (i, j, the
      share of the smaller one that both have).
    """
    count, best = 0, np.zeros((0, 3))
    _, codes = np.unique(picture, return_inverse=True)
    order = np.lexsort((boxes[:, 0], codes))
    for rows in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        if len(set(split_of[rows].tolist())) == 1:
            continue
        left, top, width, height = boxes[rows].T  # sorted by their left sides
        ends = np.searchsorted(left, left + width)
        for a, end in enumerate(ends.tolist()):
            b = np.arange(a + 1, end)
            b = b[split_of[rows[b]] != split_of[rows[a]]]
            across = np.minimum(left[a] + width[a], left[b] + width[b]) - left[b]
            down = np.minimum(top[a] + height[a], top[b] + height[b]) - np.maximum(top[a], top[b])
            smaller = np.minimum(width[a] * height[a], width[b] * height[b])
            share = np.maximum(across, 0) * np.maximum(down, 0) / smaller
            found = np.flatnonzero(share >= _LEAST_SHARE)
            if not len(found):
                continue
            count += len(found)
            first = np.full(len(found), rows[a])
            pairs = np.stack([first, rows[b[found]], share[found]], axis=1)
            best = np.concatenate([best, pairs])
            best = best[np.argsort(-best[:, 2], kind="stable")[:LISTED]]
    return count, best


def _from_columns(
    columns: Mapping[str, Sequence[str]], patients: Sequence[Sequence[str]], stored: np.ndarray
) -> _Patches | None:
    numbers: list[np.ndarray | None] = []
    for names in _NAMES:
        name = next((name for name in names if name in columns), "")
        try:
            numbers.append(np.array([float(cell.replace(",", ".")) for cell in columns[name]]))
        except (KeyError, ValueError):
            numbers.append(None)
    left, top, width, height = numbers
    if left is None or top is None:
        return None
    pictures = [cells for name, cells in columns.items() if _PICTURES.fullmatch(name)]
    return _placed([*patients, *pictures], left, top, width, height, stored)


def _from_names(
    ids: Sequence[str], patients: Sequence[Sequence[str]], stored: np.ndarray
) -> _Patches | None:
    """Of names such as `S1_x512_y0.png` and `S1 [x=512,y=0,w=280,h=280].png`: what is left of the
    name of the file is the picture."""
    stems = [pathlib.PurePosixPath(name).stem for name in ids]
    matches = [next(filter(None, (way.search(stem) for way in _IN_NAME)), None) for stem in stems]
    if not matches or None in matches:
        return None
    told = [match for match in matches if match is not None]
    picture = [match.string[: match.start()] + match.string[match.end() :] for match in told]
    left, top = (np.array([float(match[side]) for match in told]) for side in "xy")
    sized = all(match["w"] for match in told)
    width, height = (
        np.array([float(match[side]) for match in told]) if sized else None for side in "wh"
    )
    named_by = [*patients, picture] if any(picture) else patients
    return _placed(named_by, left, top, width, height, stored)


def _placed(
    named_by: Sequence[Sequence[str]],
    left: np.ndarray,
    top: np.ndarray,
    width: np.ndarray | None,
    height: np.ndarray | None,
    stored: np.ndarray,
) -> _Patches | None:
    """Patches of one picture are those that are alike in all of `named_by`, each [N]."""
    if not named_by and not _are_distinct(left, top):
        return None
    if all(map(_are_numbers_of_tiles, (left, top))):
        return None
    width = stored[:, 1] if width is None else width
    height = stored[:, 0] if height is None else height
    boxes = np.stack([left, top, width, height], axis=1).astype(np.float64)
    if not np.isfinite(boxes).all() or (boxes[:, 2:] <= 0).any():
        return None
    picture = ["|".join(cells) for cells in zip(*named_by, strict=True)] or [""] * len(left)
    return _Patches(np.array(picture), boxes)


def _are_numbers_of_tiles(side: np.ndarray) -> bool:
    """Whether coordinates count tiles, one after another, and not pixels."""
    values = np.unique(side)
    return len(values) > (values[-1] - values[0]) / 2


def _are_distinct(left: np.ndarray, top: np.ndarray) -> bool:
    """Whether no two patches lie at one place: where nothing names the picture, those of several
    would."""
    return len(np.unique(np.stack([left, top]), axis=1).T) == len(left)
