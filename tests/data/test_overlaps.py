"""Patches that overlap in different splits are found by their coordinates."""

import dataclasses

import numpy as np
import pytest

from glomjax.data.examples import SPLITS, Examples
from glomjax.data.overlaps import overlap_note, overlapping

SIZES = {split: np.array([[100, 100]] * 3) for split in SPLITS}


def placed(x, y=(0,) * 9, **columns):
    """Nine patches, three of each split, at these coordinates."""
    columns = {"x": x, "y": y, "slide": ["A"] * 9, **columns}
    return {
        split: Examples(
            ids=tuple(f"{split}{i}" for i in range(3)),
            labels=np.zeros(3, np.int32),
            read=lambda i: b"",
            columns={
                n: tuple(str(c) for c in cells[3 * s : 3 * s + 3]) for n, cells in columns.items()
            },
        )
        for s, split in enumerate(SPLITS)
    }


def named(names):
    return {
        split: Examples(tuple(names[3 * s : 3 * s + 3]), np.zeros(3, np.int32), lambda i: b"")
        for s, split in enumerate(SPLITS)
    }


APART = (0, 150, 300, 450, 600, 750, 900, 1050, 1200)
HALF = (0, 150, 300, 450, 600, 750, 900, 1050, 250)  # the last one overlaps the third by half


def test_patches_that_overlap_across_splits_are_named():
    note = overlap_note(placed(HALF), SIZES)
    assert note.startswith("1 pair(s) of patches in different splits overlap by their coordinates")
    assert "by up to 50%" in note
    assert "'test2' (test) ~ 'train2' (train)" in note
    assert overlap_note(placed(APART), SIZES) == ""


def test_coordinates_count_within_one_picture_and_with_the_sizes_of_a_table():
    assert overlap_note(placed(HALF, slide=["A"] * 8 + ["B"]), SIZES) == ""
    small = {"width": (40,) * 9, "height": (40,) * 9}
    assert overlap_note(placed(HALF, **small), SIZES) == ""
    assert overlap_note(placed(APART, **{"w": (200,) * 9, "h": (200,) * 9}), SIZES) != ""


def test_without_a_name_of_the_picture_no_two_patches_may_lie_at_one_place():
    def without_slide(x):
        parts = placed(x)
        for part in parts.values():
            del part.columns["slide"]
        return parts

    several = (*HALF[:7], *HALF[:2])  # as of two pictures
    assert "1 pair(s)" in overlap_note(without_slide(HALF), SIZES)
    assert overlap_note(without_slide(several), SIZES) == ""
    folders = ("glomerulus", "other")
    for x, part in ((HALF, "1 pair(s)"), (several, "")):
        names = [f"{folders[i % 2]}/x{left}_y0.png" for i, left in enumerate(x)]
        note = overlap_note(named(names), SIZES)
        assert part in note
        assert bool(part) == bool(note)


def test_patches_of_different_patients_do_not_overlap():
    parts = placed(HALF)
    apart = {s: dataclasses.replace(part, patients=(s,) * 3) for s, part in parts.items()}
    assert overlap_note(apart, SIZES) == ""
    one_each = {
        s: dataclasses.replace(part, patients=tuple(f"{s}{i}" for i in range(3)))
        for s, part in parts.items()
    }
    assert "1 pair(s)" in overlap_note(one_each, SIZES)  # which number images


def test_within_a_split_patches_may_overlap():
    assert overlap_note(placed((0, 50, 100, 450, 500, 550, 900, 950, 999)), SIZES) == ""


@pytest.mark.parametrize(
    "name",
    [
        "S1_x{x}_y{y}.png",
        "other/S1 [x={x},y={y},w=100,h=100].png",
        "S1-X{x}-Y{y}.jpg",
        "S1_y{y}_x{x}.0.png",
    ],
)
def test_coordinates_are_read_from_names(name):
    assert "1 pair(s)" in overlap_note(named([name.format(x=x, y=0) for x in HALF]), SIZES)
    assert overlap_note(named([name.format(x=x, y=0) for x in APART]), SIZES) == ""
    others = [f"S{i}_x0_y0.png" for i in range(9)]
    assert overlap_note(named(others), SIZES) == ""


@pytest.mark.parametrize(
    "x", [range(9), [""] * 9, ["left"] * 9, ["nan"] * 9], ids=["tiles", "empty", "text", "nan"]
)
def test_numbers_of_tiles_and_what_is_no_number_tell_nothing(x):
    assert overlap_note(placed(list(x), y=[i % 3 for i in range(9)]), SIZES) == ""


def test_all_pairs_are_those_of_a_plain_comparison():
    rng = np.random.default_rng(0)
    boxes = np.concatenate([rng.integers(0, 500, (60, 2)), rng.integers(20, 120, (60, 2))], axis=1)
    boxes = boxes.astype(float)
    picture, split_of = rng.integers(0, 2, 60), rng.integers(0, 3, 60)
    expected = set()
    for i in range(60):
        for j in range(i):
            sides = [
                max(
                    0,
                    min(boxes[i, s] + boxes[i, s + 2], boxes[j, s] + boxes[j, s + 2])
                    - max(boxes[i, s], boxes[j, s]),
                )
                for s in (0, 1)
            ]
            smaller = min(boxes[i, 2] * boxes[i, 3], boxes[j, 2] * boxes[j, 3])
            share = sides[0] * sides[1] / smaller
            if picture[i] == picture[j] and split_of[i] != split_of[j] and share >= 0.05:
                expected.add((frozenset((i, j)), round(share, 9)))
    count, pairs = overlapping(picture, boxes, split_of)
    found = [(frozenset((int(i), int(j))), round(share, 9)) for i, j, share in pairs.tolist()]
    assert count == len(expected) > 20
    assert len(set(found)) == 10
    assert set(found) <= expected
    shares = sorted((share for _, share in expected), reverse=True)
    assert [share for _, share in found] == shares[:10]
