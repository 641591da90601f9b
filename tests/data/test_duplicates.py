"""Copies are found however they were saved, and different images are not taken for copies."""

import collections
import csv
import io
import itertools

import numpy as np
import pytest
import scipy.fft
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from glomjax.data import duplicates
from glomjax.data.duplicates import (
    MIN_SPREAD,
    NEAR_DISTANCE,
    content_hash,
    exact_duplicates,
    near_duplicates,
    perceptual_hash,
)

SIZE = 280
SYMMETRIES = [
    (lambda image, turns=turns, flip=flip: np.rot90(image[:, ::-1] if flip else image, turns))
    for turns in range(4)
    for flip in (False, True)
]
SEEDS = st.integers(0, 2**32 - 1)


def jpeg(image, quality):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))


def resized(image, size, kind=Image.Resampling.BICUBIC):
    return np.array(Image.fromarray(image).resize((size, size), kind))


def cropped(image, top, left, bottom, right):
    return resized(image[top : len(image) - bottom, left : image.shape[1] - right], SIZE)


def brighter(image, factor):
    return np.array(ImageEnhance.Brightness(Image.fromarray(image)).enhance(factor))


def more_contrast(image, factor):
    return np.array(ImageEnhance.Contrast(Image.fromarray(image)).enhance(factor))


COPIES = {
    "JPEG 95": lambda image: jpeg(image, 95),
    "JPEG 50": lambda image: jpeg(image, 50),
    "256 and back": lambda image: resized(resized(image, 256), SIZE),
    "300 and back": lambda image: resized(resized(image, 300), SIZE),
    "224, another filter": lambda image: resized(image, 224, Image.Resampling.BILINEAR),
    "darker": lambda image: brighter(image, 0.9),
    "brighter": lambda image: brighter(image, 1.1),
    "less contrast": lambda image: more_contrast(image, 0.9),
    "more contrast": lambda image: more_contrast(image, 1.1),
    "cropped": lambda image: cropped(image, 3, 3, 3, 3),
    "cropped at a corner": lambda image: cropped(image, 3, 3, 0, 0),
    "turned": lambda image: np.rot90(image),
    "flipped, cropped, brighter, JPEG": lambda image: jpeg(
        brighter(cropped(image[:, ::-1], 2, 2, 2, 2), 1.05), 80
    ),
}


@pytest.fixture(scope="module")
def tissue() -> list[np.ndarray]:
    """Patches that do not overlap, from a stained section and a photograph of a retina."""
    section, retina = skimage.data.immunohistochemistry(), skimage.data.retina()[300:1100, 300:1100]
    return [
        resized(image[y : y + side, x : x + side], SIZE)
        for image, side in ((section, 128), (retina, 200))
        for y in range(0, image.shape[0] - side + 1, side)
        for x in range(0, image.shape[1] - side + 1, side)
    ]


def hashes(images):
    """(perceptual [N, 4], content [N])"""
    return (
        np.stack([perceptual_hash(image) for image in images]),
        np.array([content_hash(image) for image in images], np.uint64),
    )


def bits(hashed):
    """bool [16, 16], by whole-number arithmetic."""
    number = sum(int(word) << (64 * w) for w, word in enumerate(hashed))
    return np.array([number >> b & 1 for b in range(256)], bool).reshape(16, 16)


def words(table):
    """The reverse of `bits`."""
    number = sum(int(bit) << b for b, bit in enumerate(table.ravel()))
    return np.array([number >> (64 * w) & (2**64 - 1) for w in range(4)], np.uint64)


def random_hash(rng):
    table = rng.random((16, 16)) < 0.5
    table[0, 0] = True
    return words(table)


# --- the hash of the pixels


def test_the_content_hash_is_fixed_and_has_64_bits():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    # Hashes of other processes and machines must be comparable.
    assert content_hash(image) == 16664176197271270093
    assert 0 <= content_hash(image) < 2**64


def test_the_content_hash_does_not_depend_on_the_layout_in_memory():
    image = skimage.data.astronaut()
    view = np.asfortranarray(image)
    assert not view.flags.c_contiguous
    assert content_hash(view) == content_hash(image)
    assert content_hash(image[::2, ::-1]) == content_hash(image[::2, ::-1].copy())


@given(seed=SEEDS, data=st.data())
def test_one_changed_value_changes_the_content_hash(seed, data):
    image = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    other = image.copy()
    other.flat[data.draw(st.integers(0, image.size - 1))] ^= data.draw(st.integers(1, 255))
    assert content_hash(other) != content_hash(image)


def test_the_content_hash_knows_the_shape():
    image = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    assert content_hash(image) != content_hash(image.reshape(6, 4, 3))


@given(st.lists(st.sampled_from([0, 1, 5, 2**63, 2**64 - 1])))
def test_exact_duplicates_are_all_groups_in_order(values):
    groups = collections.defaultdict(list)
    for i, value in enumerate(values):
        groups[value].append(i)
    found = exact_duplicates(np.array(values, np.uint64))
    groups.pop(0, None)  # images without a hash
    assert [list(group) for group in found] == [g for g in groups.values() if len(g) > 1]


# --- the perceptual hash


@settings(max_examples=30)
@given(seed=SEEDS)
def test_the_perceptual_hash_holds_the_signs_of_the_dct(seed):
    # Grey and 32 x 32, so that nothing is converted or shrunk before the transform.
    grey = np.random.default_rng(seed).integers(0, 256, (32, 32), np.uint8)
    expected = scipy.fft.dctn(grey.astype(float), type=2, norm="ortho")[:16, :16]
    found = bits(perceptual_hash(np.repeat(grey[..., None], 3, axis=2)))
    clear = np.abs(expected) > 0.1  # a cosine rounded to 1/4096 moves a coefficient by less
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(found[clear], expected[clear] > 0)
    assert found[0, 0]


@settings(max_examples=30)
@given(seed=SEEDS)
def test_the_eight_hashes_follow_from_one(seed):
    grey = np.random.default_rng(seed).integers(0, 256, (32, 32, 1), np.uint8)
    image = np.repeat(grey, 3, axis=2)
    derived = duplicates._symmetries(perceptual_hash(image)[None])[:, 0]
    direct = [perceptual_hash(turn(image)) for turn in SYMMETRIES]
    assert {tuple(h) for h in derived} == {tuple(h) for h in direct}
    assert len({tuple(h) for h in derived}) == 8


def blank(noise=0.0, slope=0.0):
    rng = np.random.default_rng(0)
    grey = 240 - slope * np.linspace(0, 1, SIZE) + rng.normal(0, noise, (SIZE, SIZE))
    return np.repeat(np.clip(np.rint(grey), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def with_tissue(share, background):
    """A strip of real tissue on a background."""
    image = background.copy()
    image[:, : round(share * SIZE)] = skimage.data.immunohistochemistry()[
        :SIZE, : round(share * SIZE)
    ]
    return image


@pytest.mark.parametrize(
    "image",
    [np.zeros((SIZE, SIZE, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8), blank()],
    ids=["black", "one pixel", "white"],
)
def test_blank_images_have_no_hash_and_no_duplicates(image):
    perceptual, content = hashes([image, image])
    assert not perceptual.any()
    assert not content.any()
    assert exact_duplicates(content) == []
    assert len(near_duplicates(perceptual, content, ["train", "test"])) == 0


@pytest.mark.parametrize(
    "image",
    [
        blank(noise=5),
        jpeg(blank(noise=5), 75),
        blank(noise=2, slope=5),
        with_tissue(0.2, blank(noise=2)),
    ],
    ids=["noise", "JPEG noise", "slope", "a fifth tissue"],
)
def test_almost_blank_images_have_no_perceptual_hash_and_are_only_exact_duplicates(image):
    perceptual, content = hashes([image, image, jpeg(image, 60)])
    assert not perceptual[0].any()
    assert near_duplicates(perceptual, content, ["train", "test", "test"]).shape == (0, 3)
    assert list(exact_duplicates(content)[0][:2]) == [0, 1]


@pytest.mark.parametrize("image", [blank(slope=20), with_tissue(0.35, blank(noise=2))])
def test_pale_images_and_a_third_of_tissue_have_a_hash(image):
    assert perceptual_hash(image).any()


@pytest.mark.parametrize(("levels", "hashed"), [(MIN_SPREAD - 1, False), (MIN_SPREAD, True)])
def test_the_spread_of_grey_that_a_hash_needs(levels, hashed):
    image = np.full((32, 32, 3), 100, np.uint8)
    image[:, ::2] += levels  # half of the pixels
    assert perceptual_hash(image).any() == hashed


def test_a_dark_corner_is_not_mistaken_for_an_image_without_a_hash():
    coefficients = np.zeros((32, 32))
    coefficients[:16, :16] = -1 / np.outer(np.arange(1, 17), np.arange(1, 17))
    grey = scipy.fft.idctn(coefficients)  # darkest at the upper left
    grey = np.rint(255 * (grey - grey.min()) / np.ptp(grey)).astype(np.uint8)
    hashed = perceptual_hash(np.repeat(grey[..., None], 3, axis=2))
    # All coefficients are negative but the mean's, whose bit tells it from "no hash".
    assert hashed.tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("function", [content_hash, perceptual_hash])
@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(function, image):
    with pytest.raises(ValueError, match="uint8"):
        function(image)


# --- pairs


@settings(max_examples=60)
@given(seed=SEEDS, n=st.integers(0, 14), chunk=st.sampled_from([1, 5, 1 << 16]))
def test_near_duplicates_are_the_pairs_of_a_plain_double_loop(seed, n, chunk):
    rng = np.random.default_rng(seed)
    odd = np.arange(16) % 2 == 1

    def symmetries(table):
        return [
            t ^ (up & odd[:, None]) ^ (left & odd)
            for t in (table, table.T)
            for up, left in itertools.product((False, True), repeat=2)
        ]

    tables = [bits(random_hash(rng)) for _ in range(n)]
    for i in range(1, n):
        if rng.random() < 0.7:  # a copy of an earlier one, turned and with some bits changed
            copy = symmetries(tables[rng.integers(i)])[rng.integers(8)].copy()
            copy.flat[rng.integers(1, 256, rng.integers(0, 60))] ^= True
            tables[i] = copy
    for i in range(n):
        if rng.random() < 0.1:
            tables[i] = np.zeros((16, 16), bool)
    content = rng.integers(0, 2 * n + 1, n).astype(np.uint64)
    splits = rng.choice(["train", "validation", "test"], n).tolist()

    expected = []
    for i, j in itertools.combinations(range(n), 2):
        distance = min(int((t ^ tables[j]).sum()) for t in symmetries(tables[i]))
        if (
            distance <= NEAR_DISTANCE
            and tables[i].any()
            and tables[j].any()
            and content[i] != content[j]
            and splits[i] != splits[j]
        ):
            expected.append((i, j, distance))
    perceptual = np.stack([words(t) for t in tables]) if n else np.zeros((0, 4), np.uint64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_PAIRS", chunk)
        found = near_duplicates(perceptual, content, splits)
    assert found.dtype == np.int64
    assert [tuple(pair) for pair in found] == sorted(expected, key=lambda p: (p[2], p[0], p[1]))


def test_a_distance_is_near_up_to_the_threshold():
    first = random_hash(np.random.default_rng(0))
    second, third = bits(first), bits(first)
    second.flat[1 : NEAR_DISTANCE + 1] ^= True
    third.flat[1 : NEAR_DISTANCE + 2] ^= True
    perceptual = np.stack([first, words(second), words(third)])
    found = near_duplicates(perceptual, np.arange(3), ["train", "test", "test"])
    assert found.tolist() == [[0, 1, NEAR_DISTANCE]]


def test_random_hashes_are_far_from_each_other():
    rng = np.random.default_rng(0)
    perceptual = rng.integers(0, 2**64, (1500, 4), np.uint64, endpoint=False) | np.uint64(1)
    splits = np.repeat([0, 1], [1000, 500])
    assert len(near_duplicates(perceptual, np.arange(1500), splits)) == 0


@pytest.mark.parametrize(
    ("perceptual", "content", "splits"), [((3, 4), 3, 2), ((3, 4), 2, 3), ((3, 2), 3, 3)]
)
def test_arrays_of_different_lengths_are_refused(perceptual, content, splits):
    with pytest.raises(ValueError, match="shapes"):
        near_duplicates(np.ones(perceptual, np.uint64), np.arange(content), ["train"] * splits)


# --- real pixels


def test_different_patches_of_one_tissue_are_not_near(tissue):
    perceptual, content = hashes(tissue)
    assert len(tissue) == 32
    assert perceptual.any(axis=1).all()
    # Each patch is a split of its own.
    assert len(near_duplicates(perceptual, content, np.arange(len(tissue)))) == 0


@pytest.mark.parametrize("name", COPIES)
def test_copies_of_patches_are_found_and_only_with_their_original(tissue, name):
    copies = [COPIES[name](image) for image in tissue]
    n = len(tissue)
    perceptual, content = hashes(tissue + copies)
    found = near_duplicates(perceptual, content, ["train"] * n + ["test"] * n)
    assert sorted((i, j) for i, j, _ in found.tolist()) == [(i, n + i) for i in range(n)]


@pytest.mark.parametrize("turn", SYMMETRIES[1:])
def test_flips_and_turns_of_photographs_of_any_shape_differ_in_few_bits(turn):
    for image in (skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea()):
        perceptual, content = hashes([image, turn(image)])
        [[_, _, distance]] = near_duplicates(perceptual, content, ["train", "test"]).tolist()
        assert distance <= 8  # Pillow shrinks one direction after the other and rounds between


def test_flips_of_a_patch_differ_in_no_bit(tissue):
    n = len(tissue)
    for flipped in ([image[:, ::-1] for image in tissue], [image[::-1] for image in tissue]):
        perceptual, content = hashes(tissue + flipped)
        found = near_duplicates(perceptual, content, ["train"] * n + ["test"] * n)
        assert found.tolist() == [[i, n + i, 0] for i in range(n)]


def test_exact_copies_are_no_near_ones_and_copies_within_a_split_are_left_out(tissue):
    image = tissue[0]
    images = [image, image, jpeg(image, 90), tissue[1]]
    perceptual, content = hashes(images)
    assert [g.tolist() for g in exact_duplicates(content)] == [[0, 1]]
    found = near_duplicates(perceptual, content, ["train", "test", "test", "validation"])
    assert [pair[:2] for pair in found.tolist()] == [[0, 2]]
    found = near_duplicates(perceptual, content, ["test", "train", "test", "validation"])
    assert [pair[:2] for pair in found.tolist()] == [[1, 2]]


def test_a_split_of_blank_images_alone_has_no_pairs(tissue):
    perceptual, content = hashes([*tissue[:3], blank()])
    assert len(near_duplicates(perceptual, content, ["train"] * 3 + ["test"])) == 0


@pytest.mark.parametrize("name", ["kidney_slides", "biopsy_stains"])
def test_no_patch_of_one_patient_is_near_one_of_another(real_data, name):
    with open(real_data / name / "manifest.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    images = [np.array(Image.open(real_data / name / row["path"]).convert("RGB")) for row in rows]
    perceptual, content = hashes(images)
    assert perceptual.any(axis=1).all()
    assert len(near_duplicates(perceptual, content, [row["patient"] for row in rows])) == 0


@pytest.mark.parametrize("name", COPIES)
def test_copies_of_real_patches_are_found_and_only_with_their_original(real_data, name):
    paths = sorted((real_data / "aidpath").glob("*/*.jpg"))[::2]
    images = [np.array(Image.open(path).convert("RGB")) for path in paths]
    n = len(images)
    perceptual, content = hashes(images + [COPIES[name](image) for image in images])
    found = near_duplicates(perceptual, content, ["train"] * n + ["test"] * n)
    assert sorted((i, j) for i, j, _ in found.tolist()) == [(i, n + i) for i in range(n)]
