"""The rule that tells images apart from those of a training."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from glomjax.data.sources import load_source
from glomjax.preprocessing.appearance import (
    MEASURES,
    Appearance,
    fit_appearance,
    is_blank,
    measure,
    thumbnail,
)


def tissue(seed: int, stain=(0.2, 0.45, 0.3), size: int = 96) -> Image.Image:
    """Blobs of one stain on a pale ground; the amount of it differs by image."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 1, (12, 12)) * rng.uniform(0.7, 1.2)
    amount = np.asarray(Image.fromarray(coarse.astype(np.float32)).resize((size, size)))
    density = amount[..., None] * np.array(stain)
    return Image.fromarray((255 * 10**-density + rng.normal(0, 2, density.shape))
                           .clip(0, 255).astype(np.uint8))  # fmt: skip


def measured(image: Image.Image) -> np.ndarray:
    return measure(thumbnail(image))


def differs(rule: Appearance, image: Image.Image) -> bool:
    return bool(rule.differs(measured(image)[None])[0])


@pytest.fixture(scope="module")
def rule() -> Appearance:
    rows = np.array([measured(tissue(seed)) for seed in range(120)])
    found = fit_appearance(rows, [f"P{seed // 10}" for seed in range(120)])
    assert found is not None
    return found


def test_images_like_those_of_the_training_pass(rule):
    others = [differs(rule, tissue(seed)) for seed in range(500, 700)]
    assert np.mean(others) < 0.1
    assert 0 <= rule.false_alarms < 0.1
    assert (rule.groups, rule.kind, len(rule.mean)) == (12, "patient", MEASURES)


@pytest.mark.parametrize(
    "change",
    [
        lambda image: Image.eval(image, lambda v: 255 - v),
        lambda image: image.convert("L").convert("RGB"),
        lambda image: Image.merge("RGB", image.split()[::-1]),
        lambda image: Image.eval(image, lambda v: v // 3),
        lambda image: image.resize((4, 4)).resize(image.size),
    ],
    ids=["inverted", "grey", "channels swapped", "dark", "blurred"],
)
def test_other_colours_and_another_texture_do_not(rule, change):
    flagged = [differs(rule, change(tissue(seed))) for seed in range(500, 540)]
    assert np.mean(flagged) > 0.95


def test_another_stain_does_not(rule):
    masson = [differs(rule, tissue(seed, (0.45, 0.2, 0.1))) for seed in range(500, 540)]
    assert np.mean(masson) > 0.95


def test_the_size_of_an_image_says_nothing():
    for seed in range(500, 520):
        large = tissue(seed).resize((960, 960), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(measured(large), measured(tissue(seed)), atol=0.05)


def test_few_images_or_patients_give_no_rule():
    rows = np.array([measured(tissue(seed)) for seed in range(60)])
    assert fit_appearance(rows[:35], [str(n) for n in range(35)]) is None
    assert fit_appearance(rows, [f"P{n % 2}" for n in range(60)]) is None
    assert fit_appearance(rows, [f"P{n % 3}" for n in range(60)]) is None  # 20 without two of them
    assert fit_appearance(rows, [f"P{n % 5}" for n in range(60)]) is not None
    one_has_nearly_all = ["A"] * 56 + ["B", "C", "D", "E"]
    assert fit_appearance(rows, one_has_nearly_all) is None


def test_it_does_not_depend_on_the_names_of_patients(rule):
    rows = np.array([measured(tissue(seed)) for seed in range(120)])
    named = fit_appearance(rows, [f"Frau {seed // 10:02d}" for seed in range(120)])
    assert (named.mean, named.precision) == (rule.mean, rule.precision)


def test_it_comes_back_from_json(rule):
    assert Appearance.from_dict(json.loads(json.dumps(dataclasses.asdict(rule)))) == rule


def test_equal_images_give_a_rule_too():
    rows = np.repeat(measured(tissue(0))[None], 60, axis=0)
    found = fit_appearance(rows, [str(n) for n in range(60)])
    assert found is not None
    assert not found.differs(rows).any()
    assert differs(found, tissue(1))


@pytest.mark.parametrize("value", [0, 128, 240, 255])
def test_one_colour_with_noise_is_blank(value):
    noise = np.random.default_rng(0).normal(value, 5, (280, 280, 3)).clip(0, 255)
    assert is_blank(thumbnail(Image.fromarray(noise.astype(np.uint8))))
    assert np.isfinite(measured(Image.fromarray(noise.astype(np.uint8)))).all()
    assert not is_blank(thumbnail(tissue(0)))


def test_small_images_have_measures():
    for size in (1, 2, 7):
        assert np.isfinite(measured(tissue(0).resize((size, size)))).all()


@pytest.mark.parametrize("name", ["kidney_slides", "biopsy_stains"])
def test_real_patches(real_data, name):
    """Of half of the patients, judged on the other half, on glass, on pink and on negatives."""
    splits = load_source(real_data / name, fractions=(0.5, 0.25, 0.25))

    def images(part):
        return [Image.open(real_data / name / path).convert("RGB") for path in part.ids]

    train = images(splits.train)
    assert not any(is_blank(thumbnail(image)) for image in train)
    rule = fit_appearance(np.array([measured(image) for image in train]), splits.train.patients)
    held_out = [*images(splits.validation), *images(splits.test)]
    assert np.mean([differs(rule, image) for image in held_out]) < 0.15
    negatives = [Image.eval(image, lambda v: 255 - v) for image in held_out]
    assert np.mean([differs(rule, image) for image in negatives]) > 0.75
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:280, :280]
    for colour in ((230, 150, 190), (220, 120, 170), (205, 130, 180)):  # eosin of fibres
        waves = 12 * np.sin((x + 8 * np.sin(y / 30)) / 3)[..., None] * np.array([0.4, 1, 0.6])
        pink = colour + waves + rng.normal(0, 4, (280, 280, 3))
        assert differs(rule, Image.fromarray(pink.clip(0, 255).astype(np.uint8)))
    for grey in (228, 240, 250):
        glass = rng.normal(grey, 4, (280, 280, 3)).clip(0, 255).astype(np.uint8)
        pixels = thumbnail(Image.fromarray(glass))
        assert is_blank(pixels)
        assert rule.differs(measure(pixels)[None])[0]
