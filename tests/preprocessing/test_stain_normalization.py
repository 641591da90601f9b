"""Stain normalisation: agreement with plain definitions; images without stained tissue."""

import concurrent.futures
import csv
import itertools
import json
import warnings

import hypothesis
import numpy as np
import pytest
import skimage
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from glomjax.errors import UserError
from glomjax.preprocessing.stain_normalization import (
    METHODS,
    STATISTICS,
    StainNormalizer,
    fit,
    image_statistics,
)

# Red, green, blue: Ruifrok and Johnston 2001, to unit length.
HAEMATOXYLIN, EOSIN = np.asarray([0.65, 0.70, 0.29]), np.asarray([0.07, 0.99, 0.11])
STAINS = np.stack([HAEMATOXYLIN / np.linalg.norm(HAEMATOXYLIN), EOSIN / np.linalg.norm(EOSIN)])


def rendered(stains: np.ndarray, factors=(1.0, 1.0), seed: int = 0) -> np.ndarray:
    """uint8 [64, 64, 3]: 15% nuclei, 65% cytoplasm and 20% white, seen in stains [2, 3]."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(3, p=[0.15, 0.65, 0.2], size=(64, 64))
    amounts = (
        rng.uniform(0.3, 1.0, (64, 64, 1)) * np.asarray([[1.6, 0.0], [0.05, 0.8], [0, 0]])[kind]
    )
    density = (amounts * factors) @ stains
    return np.rint(255 * np.exp(-density)).astype(np.uint8)


def tissue() -> np.ndarray:
    """uint8 [180, 180, 3]: real tissue, with a little white."""
    return skimage.data.immunohistochemistry()[100:280, 200:380]


def fitted(method: str, *images: np.ndarray) -> StainNormalizer:
    return fit(method, np.stack([image_statistics(method, image) for image in images]))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean difference in levels."""
    return float(np.abs(a.astype(float) - b).mean())


def density(image: np.ndarray) -> np.ndarray:
    """Optical densities, float64 [N, 3]."""
    return -np.log(np.maximum(image.reshape(-1, 3), 1) / 255)


def tissue_pixels(image: np.ndarray) -> np.ndarray:
    """bool [N]."""
    return (density(image).mean(axis=1) > 0.15) & (image.reshape(-1, 3).min(axis=1) >= 10)


def plain_macenko(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stains [2, 3] and maxima [2], step by step as in the paper."""
    x = density(image)[tissue_pixels(image)]
    plane = np.linalg.svd(x, full_matrices=False)[2][:2]
    plane *= np.sign(plane.sum(axis=1, keepdims=True))
    angle = np.arctan2(x @ plane[1], x @ plane[0])
    extremes = [np.percentile(angle, q) for q in (1, 99)]
    stains = np.stack([np.cos(a) * plane[0] + np.sin(a) * plane[1] for a in extremes])
    if stains[0, 0] < stains[1, 0]:
        stains = stains[::-1]
    amounts = np.linalg.lstsq(stains.T, x.T)[0]
    return stains, np.percentile(amounts, 99, axis=1)


# Agreement with plain definitions.


def test_macenko_statistics_are_those_of_the_plain_method():
    stains, maxima = plain_macenko(tissue())
    expected = np.concatenate([stains.ravel(), maxima])
    np.testing.assert_allclose(image_statistics("macenko", tissue()), expected, rtol=1e-4)


def test_macenko_shows_the_scaled_amounts_in_the_targets_stains():
    target = fitted("macenko", rendered(STAINS))
    stains, maxima = plain_macenko(tissue())
    amounts = np.maximum(np.linalg.lstsq(stains.T, density(tissue()).T)[0], 0)
    amounts *= (np.asarray(target.target[6:]) / maxima)[:, None]
    moved = np.asarray(target.target[:6]).reshape(2, 3).T @ amounts
    expected = np.clip(255 * np.exp(-moved), 0, 255).T.reshape(tissue().shape)
    assert np.abs(target(tissue()) - expected).max() < 0.6
    assert distance(target(tissue()), tissue()) > 5


def test_reinhard_statistics_are_those_of_scikit_images_cielab():
    lab = skimage.color.rgb2lab(tissue()).reshape(-1, 3)[tissue_pixels(tissue())]
    expected = np.concatenate([lab.mean(axis=0), lab.std(axis=0)])
    np.testing.assert_allclose(image_statistics("reinhard", tissue()), expected, atol=2e-3)


def test_reinhard_gives_every_pixel_the_targets_mean_and_deviation():
    target = fitted("reinhard", rendered(STAINS))
    lab = skimage.color.rgb2lab(tissue())
    inside = lab.reshape(-1, 3)[tissue_pixels(tissue())]
    mean, deviation = np.asarray(target.target).reshape(2, 3)
    moved = (lab - inside.mean(axis=0)) / inside.std(axis=0) * deviation + mean
    fade = np.minimum(density(tissue()).mean(axis=1) / 0.15, 1).reshape(180, 180, 1)
    moved = lab + fade * (moved - lab)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-image warns of colours out of range
        expected = 255 * np.clip(skimage.color.lab2rgb(moved), 0, 1)
    assert np.abs(target(tissue()) - expected).max() < 0.6
    assert distance(target(tissue()), tissue()) > 5


def test_every_colour_survives_cielab_and_back():
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    image = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(52, -1, 3)
    np.testing.assert_array_equal(fitted("reinhard", image)(image), image)


# What normalisation is for.


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_macenko_finds_the_stains_and_puts_haematoxylin_first(order):
    found = image_statistics("macenko", rendered(STAINS[order]))  # nuclei in the first of these
    cosines = (found[:6].reshape(2, 3) * STAINS).sum(axis=1)
    assert (np.degrees(np.arccos(cosines)) < 3).all()
    np.testing.assert_allclose(found[6:], np.asarray([1.6, 0.8])[order], rtol=0.1)


# Only Macenko's method tells a stronger stain from more of its tissue.
@pytest.mark.parametrize(
    ("method", "factors", "gain"),
    [("macenko", (0.7, 0.7), 10), ("macenko", (0.7, 1.6), 10), ("reinhard", (0.7, 0.7), 2.5)],
)
def test_two_stainings_of_one_tissue_come_closer(method, factors, gain):
    other = np.asarray([[0.55, 0.75, 0.45], [0.25, 0.88, 0.40]])
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    first, second = rendered(STAINS), rendered(other, factors)
    normalizer = fitted(method, rendered(STAINS, factors=(1.1, 1.1), seed=1))
    before, after = distance(first, second), distance(normalizer(first), normalizer(second))
    assert before > 15
    assert after < before / gain


@pytest.mark.parametrize(("method", "gain"), [("macenko", 10), ("reinhard", 2)])
def test_real_tissue_comes_closer_to_its_paler_copy(method, gain):
    image = tissue()
    paler = np.rint(255 * np.exp(-0.6 * density(image))).astype(np.uint8).reshape(image.shape)
    normalizer = fitted(method, image)
    assert distance(normalizer(paler), normalizer(image)) < distance(paler, image) / gain


@pytest.mark.parametrize("method", METHODS)
def test_an_image_of_the_target_hardly_changes(method):
    image = rendered(STAINS)
    changed = np.abs(fitted(method, image)(image).astype(int) - image)
    assert changed.mean() < 0.3
    assert changed.max() <= 3


@pytest.mark.parametrize("method", METHODS)
def test_slides_of_different_laboratories_come_closer(method, real_data):
    with open(real_data / "kidney_slides" / "manifest.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["stain"] == "HE"]
    slides = [
        [
            np.asarray(Image.open(real_data / "kidney_slides" / row["path"]))
            for row in list(members)[::12]
        ]
        for _, members in itertools.groupby(sorted(rows, key=lambda r: r["slide"]), _slide)
    ]
    normalizer = fitted(method, *itertools.chain(*slides[::2]))  # the others are new to it

    def spread(apply) -> float:
        """The deviation of the slides' mean colours."""
        colours = [np.mean([apply(image).mean(axis=(0, 1)) for image in s], axis=0) for s in slides]
        return float(np.std(colours, axis=0).mean())

    assert len(slides) >= 5
    assert spread(normalizer) < spread(lambda image: image) / 2


def _slide(row: dict[str, str]) -> str:
    return row["slide"]


# Images without what a method needs.


def shades(colour: tuple[int, int, int]) -> np.ndarray:
    """uint8 [64, 64, 3]: one stain in amounts from 0.6 to 1.4 times that of the colour."""
    amounts = np.linspace(0.6, 1.4, 64 * 64).reshape(64, 64, 1)
    return np.rint(255 * (np.asarray(colour) / 255) ** amounts).astype(np.uint8)


def grey(noise: int) -> np.ndarray:
    """uint8 [64, 64, 3]: a ramp, and up to so many levels of noise in each channel."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(70, 210, 64 * 64).reshape(64, 64, 1).round()
    return (ramp + rng.integers(-noise, noise + 1, (64, 64, 3))).astype(np.uint8)


def nearly_blank(share: float) -> np.ndarray:
    """uint8 [64, 64, 3]: tissue in a share of the pixels, white elsewhere."""
    image = np.full((64 * 64, 3), 245, np.uint8)
    inside = rendered(STAINS).reshape(-1, 3)
    inside = inside[tissue_pixels(inside[None])]
    count = round(share * len(image))
    image[:count] = inside[:count]
    return image.reshape(64, 64, 3)


def flat(*colour: int) -> np.ndarray:
    return np.full((64, 64, 3), colour, np.uint8)


WITHOUT_STAIN = {
    "white": flat(255),
    "pale": flat(240, 225, 235),
    "black": flat(0),
    "dark": flat(9),
    "one colour": flat(180, 90, 160),
    "grey": grey(0),
    "noisy grey": grey(1),
    "4% tissue": nearly_blank(0.04),
    "one pixel": flat(180, 90, 160)[:1, :1],
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("image", WITHOUT_STAIN.values(), ids=WITHOUT_STAIN)
def test_an_image_without_stained_tissue_stays_as_it_is(method, image):
    before = image.copy()
    assert np.isnan(image_statistics(method, image)).all()
    np.testing.assert_array_equal(fitted(method, tissue())(image), before)


def test_one_stain_has_no_stain_plane():
    image = shades((200, 110, 180))
    assert fitted("macenko", tissue())(image) is image


def test_a_few_percent_of_tissue_are_enough():
    for method in METHODS:
        assert np.isfinite(image_statistics(method, nearly_blank(0.06))).all()


def test_what_gets_lighter_than_white_is_white():
    names = STATISTICS["macenko"]
    target = dict(zip(names, image_statistics("macenko", rendered(STAINS)), strict=True))
    target["eosin_red"] = -0.3
    normalizer = StainNormalizer("macenko", tuple(target[name] for name in names))
    image = rendered(STAINS)
    nearly_eosin = (image[..., 0] > 200) & (image[..., 1] < 180)
    assert nearly_eosin.any()
    assert (normalizer(image)[nearly_eosin, 0] > 240).all()


@pytest.mark.parametrize("method", METHODS)
def test_dark_borders_and_white_do_not_count(method):
    image = rendered(STAINS)
    framed = np.concatenate([flat(3)[:20], image, flat(255)[:20]])
    np.testing.assert_allclose(
        image_statistics(method, framed), image_statistics(method, image), rtol=1e-5
    )
    normalized = fitted(method, tissue())(framed)
    assert normalized[:20].max() < 60
    assert normalized[-20:].min() > 195


@pytest.mark.parametrize("method", METHODS)
def test_a_vignetted_field_stays_dark_at_its_border(method):
    y, x = np.mgrid[-1:1:180j, -1:1:180j]
    light = np.clip(1.3 - np.hypot(x, y), 0, 1)[..., None]
    image = (tissue() * light).astype(np.uint8)
    normalized = fitted(method, tissue())(image)
    assert normalized[0, 0].max() < 90
    assert normalized[80:100, 80:100].mean() > normalized[0, 0].max() + 20


_PALETTE = st.sampled_from([0, 1, 9, 10, 11, 100, 128, 200, 218, 219, 220, 254, 255])
_IMAGES = hnp.arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5), st.just(3)))
_FEW_COLOURS = hnp.arrays(np.uint8, (4, 4, 3), elements=_PALETTE)


@pytest.mark.parametrize("method", METHODS)
@hypothesis.given(image=st.one_of(_IMAGES, _FEW_COLOURS))
@hypothesis.settings(max_examples=150, derandomize=True)
@hypothesis.example(image=np.asarray([[[100, 255, 255], [255, 100, 255]]], np.uint8))
@hypothesis.example(image=np.asarray([[[10, 255, 255], [255, 255, 10]]], np.uint8))
def test_any_image_gives_an_image_without_a_warning(method, image):
    normalizer = _ANY_TARGET[method]
    before = image.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        normalized = normalizer(image)
    assert normalized.dtype == np.uint8
    assert normalized.shape == image.shape
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(normalizer(image), normalized)


_ANY_TARGET = {method: fitted(method, rendered(STAINS)) for method in METHODS}


# The fit, and how it is kept.


@pytest.mark.parametrize("method", METHODS)
def test_a_fit_depends_neither_on_the_order_nor_on_pale_images(method):
    images = [rendered(STAINS, factors=(1, 0.6 + 0.2 * i), seed=i) for i in range(5)]
    rows = np.stack([image_statistics(method, image) for image in [*images, flat(255)]])
    expected = fit(method, rows[:5])
    assert fit(method, rows[::-1]) == expected
    assert fit(method, np.roll(rows, 3, axis=0)) == expected


def test_the_target_is_the_median_with_stains_of_unit_length():
    rows = np.stack(
        [image_statistics("macenko", rendered(STAINS, (1, f), i)) for i, f in enumerate((1, 2, 3))]
    )
    target = np.asarray(fit("macenko", rows).target)
    np.testing.assert_allclose(np.linalg.norm(target[:6].reshape(2, 3), axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(target, np.median(rows, axis=0), rtol=1e-2)
    rows = np.stack([image_statistics("reinhard", rendered(STAINS, (1, f))) for f in (1, 2, 3)])
    np.testing.assert_array_equal(fit("reinhard", rows).target, np.median(rows, axis=0))


@pytest.mark.parametrize("method", METHODS)
def test_an_outlier_among_the_training_images_hardly_moves_the_target(method):
    images = [rendered(STAINS, seed=i) for i in range(7)]
    outlier = shades((60, 120, 70)) // 2 + tissue()[:64, :64] // 2
    expected = np.asarray(fitted(method, *images).target)
    found = np.asarray(fitted(method, *images, outlier).target)
    np.testing.assert_allclose(found, expected, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_statistics_have_their_names(method):
    assert image_statistics(method, tissue()).shape == (len(STATISTICS[method]),)
    assert image_statistics(method, tissue()).dtype == np.float64


@pytest.mark.parametrize("method", METHODS)
def test_training_images_without_tissue_cannot_be_fitted(method):
    with pytest.raises(UserError, match="none of the 2 training images can be a target"):
        fitted(method, flat(255), flat(0))


def test_statistics_of_the_other_method_cannot_be_fitted():
    rows = np.ones((4, len(STATISTICS["reinhard"])))
    with pytest.raises(ValueError, match="statistics of macenko are"):
        fit("macenko", rows)


@pytest.mark.parametrize("method", METHODS)
def test_a_normalizer_comes_back_from_its_json_form_to_the_last_bit(method):
    normalizer = fitted(method, tissue())
    stored = json.loads(json.dumps(normalizer.to_dict()))
    assert list(stored["target"]) == list(STATISTICS[method])
    assert StainNormalizer.from_dict(stored) == normalizer


@pytest.mark.parametrize("method", METHODS)
def test_a_damaged_target_is_refused(method):
    stored = fitted(method, tissue()).to_dict()
    del stored["target"][STATISTICS[method][-1]]
    with pytest.raises(UserError, match=f"finite numbers: {STATISTICS[method][0]}, "):
        StainNormalizer.from_dict(stored)


@pytest.mark.parametrize(
    "call",
    [
        lambda: image_statistics("vahadane", tissue()),
        lambda: fit("vahadane", np.ones((1, 8))),
        lambda: StainNormalizer.from_dict({"method": "vahadane", "target": {}}),
    ],
)
def test_an_unknown_method_is_refused(call):
    with pytest.raises(UserError, match="'vahadane' is unknown; use macenko or reinhard"):
        call()


@pytest.mark.parametrize("image", [tissue() / 255, tissue()[..., 0], tissue()[:0]])
def test_other_arrays_than_uint8_rgb_are_refused(image):
    with pytest.raises(ValueError, match=r"takes uint8 \[H, W, 3\]"):
        _ANY_TARGET["macenko"](image)


@pytest.mark.parametrize("method", METHODS)
def test_threads_and_memory_layout_change_nothing(method):
    normalizer = _ANY_TARGET[method]
    images = [tissue()[i : i + 60] for i in range(0, 120, 10)]
    expected = [normalizer(image) for image in images]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        found = list(threads.map(normalizer, images))
    np.testing.assert_array_equal(found, expected)
    view = tissue()[::-1, ::2]
    np.testing.assert_array_equal(normalizer(view), normalizer(view.copy()))
