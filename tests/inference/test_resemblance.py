"""In what an image does not resemble those of a training."""

import collections
import dataclasses

import numpy as np
import pytest
from PIL import Image
from small_runs import blots

from glomjax.inference.resemblance import differences, false_alarms, summary
from glomjax.preprocessing.appearance import fit_appearance, measure, thumbnail
from glomjax.preprocessing.preprocessing import IMAGENET
from glomjax.pretrained.spec import NetworkSpec


@pytest.fixture(scope="module")
def spec() -> NetworkSpec:
    rows = np.array([measure(thumbnail(blots(seed))) for seed in range(80)])
    return NetworkSpec(
        "alexnet_mini",
        {},
        1,
        ("no", "yes"),
        (40, 40),
        IMAGENET,
        source_size=(40, 40),
        source_sizes=((38, 40), (50, 40)),
        appearance=fit_appearance(rows, [f"P{seed // 8}" for seed in range(80)]),
    )


def seen_at(spec, mpp):
    return dataclasses.replace(spec, preprocessing=dataclasses.replace(IMAGENET, seen_mpp=mpp))


def darker(seed: int) -> Image.Image:
    return Image.eval(blots(seed), lambda v: v // 3)


def test_an_image_like_the_others_has_no_reason(spec):
    assert differences([spec], blots(200), None) == ()
    assert differences([seen_at(spec, 0.5)], blots(200), 0.5) == ()


def test_a_blank_image_is_blank_and_nothing_else(spec):
    assert differences([seen_at(spec, 0.5)], Image.new("RGB", (9, 9)), 3.0) == ("blank",)


def test_another_spacing_is_told_in_numbers_and_takes_the_place_of_the_size(spec):
    found = differences([seen_at(spec, 0.5)], blots(200, size=80), 0.5)
    assert found == ("another spacing (1 in place of 0.5 microns per pixel)",)
    assert differences([seen_at(spec, 0.5)], blots(200, size=80), 0.25) == ()


def test_another_size_is_told_where_no_spacing_is_known(spec):
    tall = blots(200).resize((40, 49))
    assert differences([spec], tall, None) == ()  # between the least and the largest
    (reason,) = differences([spec], blots(200, size=60), None)
    assert reason == "another size (60 x 60 in place of 40 x 40)"
    old = dataclasses.replace(spec, source_sizes=None, source_size=None)
    assert differences([old], blots(200, size=60), None) == ()


def test_other_colours_are_told_and_several_reasons_come_in_order(spec):
    assert differences([spec], darker(200), None) == ("other colours",)
    found = differences([spec, spec], darker(200).resize((90, 90)), None)
    assert found == ("another size (90 x 90 in place of 40 x 40)", "other colours")
    assert differences([dataclasses.replace(spec, appearance=None)], darker(200), None) == ()


def test_a_member_of_an_ensemble_is_enough(spec):
    plain = dataclasses.replace(spec, appearance=None)
    assert differences([plain, spec], darker(200), None) == ("other colours",)


def test_what_was_found_is_counted_by_kind(spec):
    assert summary({}, 10) == ""
    found = collections.Counter(
        [
            ("blank",),
            ("other colours",),
            ("another size (9 x 9 in place of 8 x 8)", "other colours"),
        ]
    )
    text = summary(found, 10)
    assert text.startswith(
        "3 of 10 images do not resemble those of the training: 2 other colours, "
    )
    assert "1 another size (9 x 9 in place of 8 x 8)" in text
    assert false_alarms([dataclasses.replace(spec, appearance=None)]) == ""
    assert "% of the training images (each patient of 10 held out from it)" in false_alarms([spec])
