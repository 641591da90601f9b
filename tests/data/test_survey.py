"""One reading of all images finds the unreadable, the copies and the spacings, and says so."""

import io

import numpy as np
import pytest
from PIL import Image

from glomjax.data.examples import SPLITS, DataSplits, Examples
from glomjax.data.pipeline import DecodedImages
from glomjax.data.survey import (
    duplicate_notes,
    seen_spacing,
    size_note,
    survey,
    unreadable_message,
    without_unreadable,
)
from glomjax.errors import UserError

SIZE = (64, 64)


def tissue(seed: int) -> np.ndarray:
    """Smooth blobs, uint8 [64, 64, 3]: unlike noise, they survive JPEG."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC))


def jpeg(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "jpeg", quality=80)
    return stream.getvalue()


def data_set(**replaced) -> DataSplits:
    """Four images a split, named `train0` to `test3`, of alternating classes; some replaced."""
    parts = []
    for s, split in enumerate(SPLITS):
        names = tuple(f"{split}{i}" for i in range(4))
        images = [replaced.get(name, tissue(4 * s + i)) for i, name in enumerate(names)]
        parts.append(Examples(names, np.array([0, 1, 0, 1], np.int32), images.__getitem__))
    return DataSplits(*parts, classes=("other", "glomerulus"))


def surveyed(splits: DataSplits, **options):
    return survey({split: DecodedImages(splits[split], SIZE) for split in SPLITS}, **options)


def test_different_images_give_no_note():
    splits = data_set()
    found = surveyed(splits)
    assert not found.unreadable
    assert duplicate_notes(splits, found) == []
    assert {split: sizes.tolist() for split, sizes in found.sizes.items()} == {
        split: [[64, 64]] * 4 for split in SPLITS
    }


def test_all_unreadable_images_are_listed_each_with_its_reason():
    splits = data_set(train1=b"", test2=b"no image", validation0=jpeg(tissue(0))[:200])
    message = unreadable_message(surveyed(splits).unreadable, 12, "skip")
    assert message.startswith("3 of 12 images cannot be read")
    lines = message.splitlines()[1:]
    assert [line.split("'")[1] for line in lines] == ["train1", "validation0", "test2"]
    assert "is empty (0 bytes)" in lines[0]
    assert "no known image format" in lines[2]


def test_unreadable_images_that_are_left_out_are_counted():
    splits = data_set(train1=b"", test2=b"no image")
    left = without_unreadable(splits, surveyed(splits))
    assert left.train.ids == ("train0", "train2", "train3")
    assert left.train.labels.tolist() == [0, 0, 1]
    assert left.notes == (
        "2 image(s) cannot be read and are left out (1 of train, 0 of validation, 1 of test): "
        "'train1', 'test2'.",
    )
    assert np.array_equal(left.test.read(2), tissue(11))


def test_a_class_without_a_readable_image_in_a_split_is_refused():
    splits = data_set(test1=b"", test3=b"")
    with pytest.raises(UserError, match="No image of class 'glomerulus' in the test split can be"):
        without_unreadable(splits, surveyed(splits))


def test_the_same_pixels_in_two_splits_are_refused_whatever_the_file_format():
    stream = io.BytesIO()
    Image.fromarray(tissue(1)).save(stream, "png")
    splits = data_set(test0=stream.getvalue())  # train1 is the same as an array
    with pytest.raises(
        UserError, match=r"1 image\(s\) are in more than one split.*'train1' \(train\) = 'test0' \("
    ):
        duplicate_notes(splits, surveyed(splits))


def test_copies_within_a_split_are_noted_and_contrary_labels_said():
    splits = data_set(train2=tissue(0), test3=tissue(10))
    (note,) = duplicate_notes(splits, surveyed(splits))
    assert note == (
        "2 image(s) occur more than once within a split; 1 of them with different labels: "
        "'test2' (test) = 'test3' (test)."
    )


def test_nearly_the_same_image_in_two_splits_is_noted():
    splits = data_set(validation1=jpeg(np.rot90(tissue(3))))
    (note,) = duplicate_notes(splits, surveyed(splits))
    assert note.startswith("1 pair(s) of nearly the same image lie in different splits")
    assert "'train3' (train) ~ 'validation1' (validation)" in note


def test_blank_tiles_are_equal_without_being_copies():
    white = np.full((*SIZE, 3), 255, np.uint8)
    splits = data_set(train0=white, test1=white)
    assert duplicate_notes(splits, surveyed(splits)) == [
        "2 image(s) are blank: one colour throughout."
    ]


def test_processes_that_share_the_images_find_the_same():
    splits = data_set(train1=b"", validation1=jpeg(tissue(3)))
    whole = surveyed(splits, stain="reinhard")
    tables = [[], []]
    for process in range(2):
        surveyed(
            splits,
            stain="reinhard",
            shard=(process, 2),
            total=lambda values, kept=tables[process]: kept.append(values) or values,
        )
    sums = iter([a + b for a, b in zip(*tables, strict=True)])
    found = surveyed(splits, stain="reinhard", shard=(1, 2), total=lambda values: next(sums))
    assert list(found.unreadable) == list(whole.unreadable) == ["train1"]
    for split in SPLITS:
        assert np.array_equal(found.contents[split], whole.contents[split])
        assert np.array_equal(found.hashes[split], whole.hashes[split])
        assert np.array_equal(found.sizes[split], whole.sizes[split])
    assert np.array_equal(found.stains, whole.stains, equal_nan=True)


# Spacing.


def spaced(mpp, sizes):
    """A data set with a spacing and a stored size of each of the four images of a split."""
    splits = data_set()
    splits = splits.map(
        lambda part: Examples(part.ids, part.labels, part.read, mpp=np.array(mpp, np.float64))
    )
    return splits, {split: np.array(sizes) for split in SPLITS}


@pytest.mark.parametrize(
    ("resize", "size", "expected"),
    [
        ("stretch", (512, 512), 0.25 * 512 / 280),
        ("pad", (560, 280), 0.5),
        ("crop", (560, 280), 0.25),
    ],
)
def test_the_spacing_that_a_network_sees_follows_the_resizing(resize, size, expected):
    splits, sizes = spaced([0.25] * 4, [size] * 4)
    assert seen_spacing(splits, sizes, (280, 280), resize) == pytest.approx(expected)


def test_spacings_that_resizing_makes_equal_are_one():
    splits, sizes = spaced([0.25, 0.25, 0.5, 0.5], [(560, 560)] * 2 + [(280, 280)] * 2)
    assert seen_spacing(splits, sizes, (280, 280), "stretch") == 0.5


@pytest.mark.parametrize(
    ("mpp", "sizes"),
    [
        ([0.25, 0.25, 0.5, 0.5], [(280, 280)] * 4),
        ([0.25] * 4, [(280, 280)] * 3 + [(560, 560)]),
        ([0.25] * 4, [(280, 560)] * 4),  # stretched: other spacings along than across
    ],
)
def test_mixed_spacings_are_refused_with_the_way_out(mpp, sizes):
    splits, sizes = spaced(mpp, sizes)
    with pytest.raises(UserError, match=r"from 0.25 to 0.5 microns.*config.target_mpp = 0"):
        seen_spacing(splits, sizes, (280, 280), "stretch")


def test_sizes_that_differ_are_noted_where_spacings_are_unknown():
    splits = data_set(train0=np.asarray(Image.fromarray(tissue(0)).resize((100, 90))))
    found = surveyed(splits)
    assert seen_spacing(splits, found.sizes, SIZE, "stretch") is None
    assert "2 sizes (64 x 64 to 90 x 100)" in size_note(found.sizes, SIZE)
    assert size_note({"train": np.array([[64, 64]] * 3)}, SIZE) == ""
