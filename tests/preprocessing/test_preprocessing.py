"""Normalisation: the published constants, and statistics that are those of the pixels."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from glomjax.errors import UserError
from glomjax.preprocessing.preprocessing import IMAGENET, ChannelStatistics, Preprocessing


def tissue(n: int, seed: int = 0) -> np.ndarray:
    """uint8 [n, 9, 7, 3], each channel with a mean and a spread of its own."""
    noise = np.random.default_rng(seed).normal(size=(n, 9, 7, 3))
    return np.clip([230, 120, 40] + noise * [3, 40, 20], 0, 255).astype(np.uint8)


def statistics_of(*parts: np.ndarray) -> Preprocessing:
    statistics = ChannelStatistics()
    for part in parts:
        statistics.add(part)
    return statistics.standardize(IMAGENET)


def test_standardised_training_pixels_have_mean_0_and_deviation_1():
    images = tissue(20)
    pixels = np.asarray(statistics_of(images)(jnp.asarray(images)), np.float64)
    np.testing.assert_allclose(pixels.mean(axis=(0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(pixels.std(axis=(0, 1, 2)), 1, atol=1e-4)


def test_statistics_equal_those_of_all_pixels_at_once_in_float64():
    images = tissue(20)
    found = statistics_of(images[:7], images[7:8], images[8:])
    scaled = images.astype(np.float64) / 255
    np.testing.assert_allclose(found.mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found.std, scaled.std(axis=(0, 1, 2)), rtol=1e-10)


@pytest.mark.parametrize(
    "preprocessing", [IMAGENET, statistics_of(tissue(5))], ids=lambda p: p.name
)
def test_preprocessing_agrees_with_float64_on_every_pixel_value(preprocessing):
    images = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(1, 16, 16, 3)
    got = jax.jit(preprocessing)(images)
    assert got.dtype == jnp.float32
    expected = (images.astype(np.float64) / 255 - preprocessing.mean) / preprocessing.std
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=2e-6 * np.abs(expected).max())


def test_imagenet_has_the_published_mean_and_deviation():
    assert IMAGENET.mean == (0.485, 0.456, 0.406)
    assert IMAGENET.std == (0.229, 0.224, 0.225)


def test_a_channel_with_one_value_everywhere_cannot_be_standardised():
    images = tissue(4)
    images[..., 1] = 77
    with pytest.raises(UserError, match="channel G has the value 77 in every pixel"):
        statistics_of(images)


def test_a_preprocessing_comes_back_from_its_json_form():
    found = statistics_of(tissue(3))
    stored = found.to_dict()
    assert Preprocessing.from_dict(json.loads(json.dumps(stored))) == found


def test_images_are_opened_by_the_bits_and_the_rules_that_are_stored():
    image = Image.fromarray(np.array([[0, 2048, 4095]], np.uint16))
    twelve = dataclasses.replace(IMAGENET, bits=12)
    found = Preprocessing.from_dict(twelve.to_dict()).open(image, name="a")
    assert np.asarray(found)[0, :, 0].tolist() == [0, 128, 255]
    with pytest.raises(UserError, match="as of a camera with 12 bits"):
        IMAGENET.open(image, name="a")
    # What stores neither was written under the first rules, by which 65535 was white.
    stored = {key: value for key, value in IMAGENET.to_dict().items() if key[0] not in "bd"}
    first = Preprocessing.from_dict(stored)
    assert (first.decoding, first.bits) == (1, 0)
    assert np.asarray(first.open(image, name="a"))[0, :, 0].tolist() == [0, 8, 16]
