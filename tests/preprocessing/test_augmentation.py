"""Augmentation: what each effect does to the pixels, and what its random numbers depend on."""

import colorsys
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_programs import quickly

from glomjax.errors import UserError
from glomjax.preprocessing.augmentation import (
    PRESETS,
    Augmentation,
    separate_stains,
    symmetries,
    transmitted_light,
)

EVERYTHING = Augmentation(
    symmetries=0.8,
    crop=0.5,
    rotation=40.0,
    shear=15.0,
    translation=0.2,
    stain=0.3,
    brightness=0.5,
    contrast=0.5,
    saturation=0.5,
    hue=0.2,
)
MOVED = {"crop": 0.3, "rotation": 30.0, "shear": 20.0, "translation": 0.1}
GREY = np.asarray([0.299, 0.587, 0.114])
STAINS = np.asarray([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])


def keys(n: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), n)


def noise(n: int, height: int = 16, width: int = 16, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def ramps(n: int) -> np.ndarray:
    """Images whose red says in which column a pixel is and whose green in which row, times 5."""
    column, row = np.meshgrid(np.arange(48), np.arange(48))
    return np.tile(np.stack([5 * column, 5 * row, 0 * row], axis=-1).astype(np.uint8), (n, 1, 1, 1))


@functools.partial(jax.jit, static_argnums=0, compiler_options=quickly())
def compiled(augmentation: Augmentation, images: jax.Array, keys: jax.Array) -> jax.Array:
    return augmentation(images, keys)


def augment(images: np.ndarray, **strengths: float) -> np.ndarray:
    """float32 [n, H, W, 3]: the images changed with the first n keys."""
    return np.asarray(compiled(Augmentation(**strengths), images, keys(len(images))))


@functools.cache
def affines(**strengths: float) -> np.ndarray:
    """[100, 2, 3]: where the pixels of the result come from, read off the middle of the ramps."""
    found = augment(ramps(100), **strengths).astype(np.float64)
    read = found[:, 19:29, 19:29, :2] / 5 - 23.5  # [100, row, column, (x, y)]
    steps = np.arange(10) - 4.5
    # Least squares, in which column, row and 1 are orthogonal.
    by_column = (read * steps[:, None]).sum(axis=(1, 2)) / (10 * (steps**2).sum())
    by_row = (read * steps[:, None, None]).sum(axis=(1, 2)) / (10 * (steps**2).sum())
    affine = np.stack([by_column, by_row, read.mean(axis=(1, 2))], axis=-1)
    row, column = np.mgrid[-4.5:5, -4.5:5][..., None]
    fitted = [a[:, 0] * column + a[:, 1] * row + a[:, 2] for a in affine]
    np.testing.assert_allclose(fitted, read, atol=1e-4)
    return affine


# --- what the random numbers depend on


def test_an_example_depends_on_its_own_key_and_not_on_the_batch():
    images, changed = noise(8, 19, 19), jax.jit(EVERYTHING)
    together = np.asarray(changed(images, keys(8)))
    order = np.random.default_rng(1).permutation(8)
    np.testing.assert_array_equal(changed(images[order], keys(8)[order]), together[order])
    np.testing.assert_array_equal(changed(images[2:5], keys(8)[2:5]), together[2:5])
    # XLA compiles a batch of one differently.
    one = changed(images[6:7], keys(8)[6:7])
    np.testing.assert_allclose(one, together[6:7], atol=1e-3)
    other = np.asarray(changed(images, keys(8, seed=1)))
    assert (np.abs(other - together).mean(axis=(1, 2, 3)) > 1).all()


@pytest.mark.parametrize("effect", ["stain", "hue"])
def test_moving_the_pixels_leaves_the_colours_draws(effect):
    images = np.tile(np.asarray([180, 90, 150], np.uint8), (4, 6, 6, 1))
    alone = augment(images, **{effect: 0.3})
    assert np.abs(alone - images).max() > 5
    moved = augment(images, **{effect: 0.3}, symmetries=1.0, crop=0.5, rotation=40.0)
    np.testing.assert_allclose(moved, alone, atol=1e-3)


@pytest.mark.parametrize(("effect", "later"), [("brightness", "contrast"), ("contrast", "hue")])
def test_a_later_effect_on_the_colours_leaves_an_earlier_ones_draws(effect, later):
    grey = noise(4, 6, 6)[..., :1].repeat(3, axis=-1)
    if later == "contrast":
        grey[...] = grey[:, :1, :1]  # has no contrast to change
    alone = augment(grey, **{effect: 0.3})
    both = augment(grey, **{effect: 0.3, later: 0.3}, saturation=0.3)
    # The mean grey is of whole levels.
    np.testing.assert_allclose(both, alone, atol=0.5 * 0.3 if later == "contrast" else 1e-3)


def test_crop_rotation_shear_and_translation_draw_the_same_alone_and_together():
    linear = affines(rotation=30.0)[..., :2] @ affines(shear=20.0)[..., :2]
    crop, shift = affines(crop=0.3), affines(translation=0.1)[..., 2]
    together = affines(**MOVED)
    np.testing.assert_allclose(together[..., :2], linear @ crop[..., :2], atol=1e-4)
    offset = (linear @ crop[..., 2:])[..., 0] + shift
    np.testing.assert_allclose(together[..., 2], offset, atol=1e-3)


def test_flips_and_crop_draw_the_same_alone_and_together():
    images = noise(100, 48, 48)
    flipped = augment(images, symmetries=1.0).astype(np.uint8)
    both = augment(images, **MOVED, symmetries=1.0)
    np.testing.assert_allclose(both, augment(flipped, **MOVED), atol=0.05)


# --- the whole


def test_without_any_effect_the_pixels_come_back_exactly():
    images = noise(3, 7, 5)
    found = augment(images)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, images)
    assert PRESETS["none"] == Augmentation()


STRONGEST = jax.jit(Augmentation(1.0, 0.99, 180.0, 45.0, 1.0, 1.0, 1.0, 1.0, 1.0, hue=0.5))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31 - 1), extreme=st.booleans())
def test_the_strongest_effects_stay_within_the_range_of_the_pixels(seed, extreme):
    images = noise(2, 8, 8, seed)
    if extreme:
        images = np.where(images > 127, 255, 0).astype(np.uint8)
    found = np.asarray(STRONGEST(images, keys(2, seed)))
    assert found.shape == images.shape
    assert found.dtype == np.float32
    assert found.min() >= 0  # fails for NaN as well
    assert found.max() <= 255


@pytest.mark.parametrize("shape", [(16, 16), (12, 20)])
def test_every_effect_lowers_for_gpus_and_tpus_without_implicit_promotion(strict_dtypes, shape):
    images = jax.ShapeDtypeStruct((4, *shape, 3), jnp.uint8)
    traced = jax.jit(EVERYTHING).trace(images, jax.eval_shape(lambda: keys(4)))
    assert traced.out_info.shape == (4, *shape, 3)
    for platform in ("cuda", "tpu"):
        traced.lower(lowering_platforms=(platform,))


def test_equal_augmentations_share_a_program():
    assert hash(Augmentation(crop=0.1)) == hash(Augmentation(crop=0.1))
    assert Augmentation(crop=0.1) != Augmentation(crop=0.2)


@pytest.mark.parametrize(
    ("field", "value", "limits"),
    [
        ("symmetries", 1.1, "from 0 to 1"),
        ("crop", 1.0, "at least 0 and below 1"),
        ("rotation", 181.0, "from 0 to 180"),
        ("shear", 46.0, "from 0 to 45"),
        ("translation", -0.1, "from 0 to 1"),
        ("stain", 1.5, "from 0 to 1"),
        ("brightness", 1.01, "from 0 to 1"),
        ("contrast", float("nan"), "from 0 to 1"),
        ("saturation", -1e-9, "from 0 to 1"),
        ("hue", 0.6, "from 0 to 0.5"),
    ],
)
def test_a_strength_out_of_range_is_refused_with_its_name_value_and_range(field, value, limits):
    with pytest.raises(UserError, match=f"{field} is {value}, but must be {limits}"):
        Augmentation(**{field: value})


def test_images_that_are_no_longer_pixels_are_refused():
    with pytest.raises(ValueError, match="uint8 images, not float32"):
        EVERYTHING(jnp.zeros((1, 4, 4, 3)), keys(1))


# --- flips and quarter turns


@settings(deadline=None, max_examples=10)
@given(side=st.integers(2, 5), seed=st.integers(0, 100))
def test_the_symmetries_of_a_square_are_a_group_of_eight(side, seed):
    image = noise(1, side, side, seed)
    found = np.asarray(symmetries(jnp.asarray(image)))
    assert found.shape == (8, *image.shape)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[0], image)
    expected = {
        np.rot90(x, turns).tobytes() for x in (image[0], image[0, ::-1]) for turns in range(4)
    }
    assert {x.tobytes() for x in found} == expected
    for x in found:  # closed: the symmetries of a symmetry are the same eight
        assert {y.tobytes() for y in np.asarray(symmetries(jnp.asarray(x)))} == expected


def test_images_that_are_not_square_have_four_symmetries():
    images = noise(2, 3, 5)
    expected = [images, images[:, ::-1], images[:, :, ::-1], images[:, ::-1, ::-1]]
    np.testing.assert_array_equal(symmetries(jnp.asarray(images)), expected)


@pytest.mark.parametrize(("width", "count", "probability"), [(3, 8, 0.4), (4, 4, 1.0)])
def test_symmetries_are_drawn_with_the_probability_and_each_equally_often(
    width, count, probability
):
    image = noise(1, 3, width)
    found = augment(np.tile(image, (1000, 1, 1, 1)), symmetries=probability)
    known = [x.tobytes() for x in np.asarray(symmetries(jnp.asarray(image, jnp.float32)))]
    drawn = np.bincount([known.index(x.tobytes()) for x in found], minlength=count)
    expected = np.full(count, 1000 * probability / count)
    expected[0] += 1000 * (1 - probability)
    np.testing.assert_array_less(np.abs(drawn - expected), 5 * expected**0.5)


# --- crop, rotation, shear, translation


def test_resampling_agrees_with_scipy_also_beyond_the_border():
    images = noise(100, 48, 48)
    found = augment(images, **MOVED)
    row, column = np.mgrid[:48, :48] - 23.5
    outside = 0
    for image, result, affine in zip(images[:5], found, affines(**MOVED), strict=False):
        x, y = (a[0] * column + a[1] * row + a[2] + 23.5 for a in affine)
        outside += ((x < 0) | (x > 47) | (y < 0) | (y > 47)).sum()
        for channel in range(3):
            expected = scipy.ndimage.map_coordinates(
                image[..., channel].astype(np.float64), [y, x], order=1, mode="reflect"
            )
            np.testing.assert_allclose(result[..., channel], expected, atol=0.05)
    assert outside > 100


def test_crops_keep_the_share_of_the_area_the_ratio_and_the_image():
    found = affines(crop=0.3)
    np.testing.assert_allclose(found[:, [0, 1], [1, 0]], 0, atol=1e-4)
    wide, tall = found[:, 0, 0], found[:, 1, 1]
    area, ratio = wide * tall, wide / tall
    assert 0.7 - 1e-4 <= area.min() < 0.72
    assert 0.98 < area.max() <= 1 + 1e-4
    assert 3 / 4 - 1e-4 <= ratio.min() < 0.8
    assert 1.25 < ratio.max() <= 4 / 3 + 1e-4
    for share, centre in ((wide, found[:, 0, 2]), (tall, found[:, 1, 2])):
        room = (1 - share) * 24
        assert (np.abs(centre) <= room + 1e-3).all()
        assert (centre < -0.8 * room).any()
        assert (centre > 0.8 * room).any()


def test_rotation_shear_and_translation_reach_their_strength_and_not_further():
    turned, sheared, moved = affines(rotation=30.0), affines(shear=20.0), affines(translation=0.1)
    angle = np.degrees(np.arctan2(turned[:, 1, 0], turned[:, 0, 0]))
    np.testing.assert_allclose(np.linalg.det(turned[..., :2]), 1, atol=1e-4)
    np.testing.assert_allclose(turned[:, 0, 0], turned[:, 1, 1], atol=1e-4)
    np.testing.assert_allclose(turned[..., 2], 0, atol=1e-4)

    slope = np.degrees(np.arctan(sheared[:, 0, 1]))
    np.testing.assert_allclose(sheared[:, 0, [0, 2]], np.tile([1, 0], (100, 1)), atol=1e-4)
    np.testing.assert_allclose(sheared[:, 1], np.tile([0, 1, 0], (100, 1)), atol=1e-4)

    np.testing.assert_allclose(moved[..., :2], np.tile(np.eye(2), (100, 1, 1)), atol=1e-4)
    right, down = moved[..., 2].T
    for found, strength in ((angle, 30), (slope, 20), (right, 4.8), (down, 4.8)):
        assert -strength - 1e-3 <= found.min() < -0.9 * strength
        assert 0.9 * strength < found.max() <= strength + 1e-3


def test_nothing_black_enters_however_far_the_image_moves():
    images = np.full((8, 9, 12, 3), 201, np.uint8)
    found = augment(images, symmetries=1.0, crop=0.5, rotation=180.0, shear=45.0, translation=1.0)
    np.testing.assert_array_equal(found, images)


# --- colours: the factor is read off one pixel, the others must follow the definition


def test_brightness_multiplies():
    images = noise(20) // 2
    found = augment(images, brightness=0.5)
    for image, result in zip(images.astype(np.float64), found, strict=True):
        factor = result.max() / image.max()
        assert 0.5 <= factor <= 1.5
        np.testing.assert_allclose(result, factor * image, rtol=1e-5)


def test_contrast_moves_the_pixels_from_the_mean_grey():
    images = 64 + noise(20) // 2
    found = augment(images, contrast=0.4).astype(np.float64)
    for image, result in zip(images.astype(np.float64), found, strict=True):
        mean = np.rint(image @ GREY).mean()
        factor = np.ptp(result) / np.ptp(image)
        assert 0.6 <= factor <= 1.4
        np.testing.assert_allclose(result, mean + factor * (image - mean), atol=0.01)


def test_saturation_moves_the_pixels_from_their_own_grey():
    images = 64 + noise(20) // 2
    found = augment(images, saturation=0.4).astype(np.float64)
    for image, result in zip(images.astype(np.float64), found, strict=True):
        grey = (image @ GREY)[..., None]
        factor = np.ptp(result[..., 0] - result[..., 1]) / np.ptp(image[..., 0] - image[..., 1])
        assert 0.6 <= factor <= 1.4
        np.testing.assert_allclose(result, grey + factor * (image - grey), atol=0.01)


def test_hue_turns_as_in_colorsys():
    images = noise(20, 6, 6)
    images[:, 0, 0] = [255, 0, 0]
    images[:, 0, 1] = [77, 77, 77]
    images[:, 0, 2] = [255, 255, 0]
    found = augment(images, hue=0.5)
    turns = []
    for image, result in zip(images, found, strict=True):
        turns.append(colorsys.rgb_to_hsv(*(result[0, 0] / 255))[0])
        for pixel, changed in zip(image.reshape(-1, 3), result.reshape(-1, 3), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
            expected = colorsys.hsv_to_rgb((hue + turns[-1]) % 1, saturation, value)
            np.testing.assert_allclose(changed, 255 * np.asarray(expected), atol=0.01)
    assert min(turns) < 0.3
    assert max(turns) > 0.7


# --- stains, against scikit-image 0.26.0: pixels, rgb2hed(pixels), hed2rgb(rgb2hed(pixels)) * 255

PIXELS = np.asarray(
    [
        [0, 0, 0],
        [255, 255, 255],
        [230, 220, 235],
        [180, 90, 150],
        [90, 60, 140],
        [150, 110, 60],
        [200, 30, 30],
        [20, 200, 120],
    ],
    np.uint8,
)
HED = np.asarray(
    [
        [1.21016731, 0.0, 0.88195046],
        [0.0, 0.0, 0.0],
        [0.00976332, 0.0017597, 0.00370144],
        [0.01925985, 0.04168263, 0.03620219],
        [0.10854122, 0.02202927, 0.01218186],
        [0.00508017, 0.0, 0.13519726],
        [0.0, 0.08363558, 0.21298169],
        [0.31202255, 0.0, 0.0],
    ]
)
BACK = np.asarray(
    [
        [1.81187373e-04, 2.03033133e-06, 1.49046207e-04],
        [255.0, 255.0, 255.0],
        [230.0, 220.0, 235.0],
        [180.0, 90.0, 150.0],
        [90.0, 60.0, 140.0],
        [147.132277, 83.7199247, 58.2073046],
        [106.263203, 15.1826458, 22.6248859],
        [15.4757685, 12.4751409, 73.0501208],
    ]
)
EXPLAINED = [2, 3, 4]  # pixels that are made of the three stains and nothing else, nor white


def planes(pixels: np.ndarray) -> list[jax.Array]:
    return [jnp.asarray(pixels[None, :, c], jnp.float32) for c in range(3)]


def test_stains_are_those_of_scikit_image(strict_dtypes):
    stains = separate_stains(planes(PIXELS / 255))
    np.testing.assert_allclose(np.stack(stains, axis=-1)[0], HED, atol=2e-6)
    light = transmitted_light(planes(HED))
    np.testing.assert_allclose(255 * np.stack(light, axis=-1)[0], BACK, atol=2e-3)


def test_stain_jitter_scales_and_shifts_the_stains_of_scikit_image():
    strength, halving = 0.2, np.log(2) / np.log(1e6)
    images = np.tile(PIXELS[None, None], (30, 1, 1, 1))
    found = augment(images, stain=strength).astype(np.float64)[:, 0]
    reached = []
    for result in found:
        # What two dark pixels have gained of each stain, over what they had, tells both draws.
        had = HED[EXPLAINED]
        density = np.log(result[EXPLAINED] / 255) / np.log(1e-6)
        gained = density @ np.linalg.inv(STAINS) - had
        u = (gained[2] - gained[1]) / (had[2] - had[1])
        v = gained[1] - u * had[1]
        reached += [np.abs(u).max(), np.abs(v).max() / halving]
        # hed2rgb of the changed stains, where the stains are all there is
        expected = 255 * np.exp(-np.log(1e6) * (had * (1 + u) + v) @ STAINS)
        np.testing.assert_allclose(result[EXPLAINED], np.clip(expected, 0, 255), atol=0.05)
        # and elsewhere what they leave unexplained stays
        expected = PIXELS * np.exp(-np.log(1e6) * (HED * u + v) @ STAINS)
        np.testing.assert_allclose(result, np.clip(expected, 0, 255), atol=0.05)
    assert 0.9 * strength < max(reached) <= strength * 1.001
