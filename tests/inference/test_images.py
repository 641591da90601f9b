"""Every network gets an image decoded as its own training images were."""

import dataclasses
import io

import numpy as np
from PIL import Image

from glomjax.inference.images import iterate_images, prepare_images
from glomjax.preprocessing.preprocessing import IMAGENET
from glomjax.pretrained.spec import NetworkSpec

VALUES = np.array([[0, 1024], [2048, 4095]], np.uint16)


def spec(**rules) -> NetworkSpec:
    preprocessing = dataclasses.replace(IMAGENET, **rules)
    return NetworkSpec("alexnet_mini", {}, 1, ("no", "yes"), (2, 2), preprocessing)


def prepared(images, *specs):
    stream = iterate_images(images)
    return [
        image.pixels or image.problem
        for image in prepare_images(stream.images, specs, None, ahead=4)
    ]


def test_networks_of_an_ensemble_each_get_their_own_bits_and_rules(tmp_path):
    Image.fromarray(VALUES).save(tmp_path / "a.png")
    for given in (tmp_path / "a.png", [Image.fromarray(VALUES)]):
        specs = spec(bits=12), spec(bits=16), spec(decoding=1), spec(bits=12)
        ((twelve, sixteen, first, again),) = prepared(given, *specs)
        assert twelve[..., 0].tolist() == [[0, 64], [128, 255]]
        assert sixteen[..., 0].tolist() == first[..., 0].tolist() == [[0, 4], [8, 16]]
        np.testing.assert_array_equal(again, twelve)
        (refused,) = prepared(given, spec(bits=12), spec())
        assert "as of a camera with 12 bits" in refused


def test_an_opened_file_of_several_pages_is_refused_and_a_page_of_it_is_not():
    stream = io.BytesIO()
    pages = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    pages[0].save(stream, "TIFF", save_all=True, append_images=pages[1:])
    with Image.open(stream) as image:
        image.seek(1)
        refused, page = prepared([image, image.copy()], spec())
    assert "Image '0' has 2 pages: give the one that is meant" in refused
    assert (page[0] == (0, 0, 255)).all()
