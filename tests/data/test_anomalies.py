"""Images that can be read and still are no good patches are named."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw

from glomjax.data.anomalies import Anomalies, as_numbers, find_anomalies, from_numbers, notes
from glomjax.preprocessing.decoding import open_image

NOISE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
TISSUE = Image.fromarray(NOISE).resize((120, 100), Image.Resampling.BICUBIC)
PIXELS = np.asarray(TISSUE)


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def found(encoded: bytes) -> Anomalies:
    return find_anomalies(open_image(encoded, name="a"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_nothing_is_unusual_in_tissue(kind):
    assert found(saved(TISSUE, kind)) == Anomalies()
    assert found(saved(TISSUE.convert("L"), kind)) == Anomalies()  # grey is usual, too


@pytest.mark.parametrize(("kind", "top"), [("TIFF", False), ("BMP", True)])
def test_zeros_at_the_end_and_within_a_file_without_checksums_are_rows_of_one_colour(kind, top):
    whole = saved(TISSUE, kind)
    begin = len(whole) * 3 // 4
    if kind == "TIFF":  # of which the directory comes last
        pixels = whole.index(PIXELS.tobytes())
        begin = pixels + 75 * 360
        tail = whole[:begin] + bytes(25 * 360) + whole[begin + 25 * 360 :]
    else:
        tail = whole[:begin] + bytes(len(whole) - begin)
    assert 24 <= found(tail).flat_rows <= 25
    image = np.asarray(open_image(tail, name="a"))
    assert not image[0 if top else -1].any()
    block = whole[:7000] + bytes(4096) + whole[11096:]
    assert found(block).flat_rows >= 10


def test_a_jpeg_file_that_was_cut_and_closed_ends_in_grey():
    whole = saved(TISSUE, "JPEG", quality=90)
    rows = found(whole[: len(whole) // 2] + b"\xff\xd9").flat_rows
    assert 24 <= rows <= 60


@pytest.mark.parametrize("colour", ["white", (244, 244, 244)])
def test_pale_padding_is_no_damage(colour):
    padded = Image.new("RGB", (120, 160), colour)
    padded.paste(TISSUE)
    assert found(saved(padded)) == Anomalies()


@pytest.mark.parametrize("colour", ["black", "white", (128, 128, 128)])
def test_a_blank_image_is_left_to_those_who_count_blank_ones(colour):
    assert found(saved(Image.new("RGB", (40, 40), colour))) == Anomalies()


def disc(mode: str, size: int, colours: tuple) -> Image.Image:
    image = Image.new(mode, (size, size), colours[0])
    for n, colour in enumerate(colours[1:]):
        ImageDraw.Draw(image).ellipse((n * 9, 5, size // 2 + n * 9, size // 2 + 5), fill=colour)
    return image


def labels() -> Image.Image:
    image = disc("P", 64, (0, 1, 2))
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    return image


@pytest.mark.parametrize(
    "encoded",
    [
        saved(disc("1", 64, (0, 1))),
        saved(disc("L", 64, (0, 255)), "TIFF"),
        saved(disc("L", 64, (0, 1))),
        saved(disc("L", 64, (0, 1, 2, 3))),
        saved(labels()),
        saved(disc("RGB", 64, ((0, 0, 0), (255, 0, 0))), "BMP"),
        saved(disc("RGBA", 64, ((0, 0, 0, 0), (0, 128, 0, 255)))),
        saved(disc("L", 128, (0, 255)), "JPEG", quality=50),
        saved(disc("L", 128, (255, 0)), "JPEG", quality=90),
        saved(disc("RGB", 128, ("black", "white")), "WEBP"),
    ],
)
def test_masks_and_label_images_have_few_colours(encoded):
    assert found(encoded) == Anomalies(few_colours=True)


def test_little_tissue_on_a_white_slide_is_no_mask():
    slide = Image.new("RGB", (1200, 1000), (245, 243, 246))
    slide.paste(TISSUE, (50, 60))
    assert found(saved(slide)) == Anomalies()


def profile(name: str) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_profiles_other_than_srgb_are_named(kind):
    assert found(saved(TISSUE, kind, icc_profile=profile("sRGB"))) == Anomalies()
    assert found(saved(TISSUE, kind, icc_profile=b"?" * 300)) == Anomalies(profile="unknown")
    name = found(saved(TISSUE, kind, icc_profile=profile("LAB"))).profile
    assert "Lab" in name
    assert found(saved(TISSUE.convert("LA"), "PNG", icc_profile=profile("LAB"))).profile == name


def test_the_notes_count_and_name():
    anomalies = {
        "a": Anomalies(flat_rows=12),
        "b": Anomalies(few_colours=True, profile="Scanner"),
        "c": Anomalies(profile="Scanner"),
        "d": Anomalies(),
    }
    assert list(notes(anomalies)) == ["flat rows", "few colours", "colour profile"]
    flat, few, colour = notes(anomalies).values()
    assert flat.startswith("1 image(s) have 3 or more neighbouring rows of exactly one colour")
    assert "'a' (12 rows)" in flat
    assert few.startswith("1 image(s) have two to four colours alone")
    assert "'b'" in few
    assert "2 image(s) have a colour profile other than sRGB ('Scanner' in 2)" in colour
    assert "profiles are not applied" in colour
    assert notes({"d": Anomalies()}) == {}


def test_processes_add_what_each_has_found():
    mine, others = {0: Anomalies(profile="Scanner"), 2: Anomalies()}, {1: Anomalies(5, True, "X")}
    both = as_numbers(mine, 3) + as_numbers(others, 3)
    assert from_numbers(both, mine) == {
        0: Anomalies(profile="Scanner"),
        1: Anomalies(5, True, "unknown"),
    }
