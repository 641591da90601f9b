"""16-bit images keep their precision until they are rounded to 8, in every kind of file, and a
camera's fewer bits are never taken for darkness."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from glomjax.errors import UserError
from glomjax.preprocessing.decoding import open_image

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 2**16, (9, 7, 3), np.uint16)
GREY = RNG.integers(0, 2**16, (9, 7), np.uint16)
DEFLATE = {259: 8}


def opened(encoded: bytes, **options) -> np.ndarray:
    return np.asarray(open_image(encoded, name="a", **options))


def rounded(values: np.ndarray, limit: int = 2**16 - 1) -> np.ndarray:
    """uint8 [h, w, 3]"""
    grey = values.astype(np.float64)
    colour = grey if grey.ndim == 3 else np.stack([grey] * 3, axis=-1)
    return np.floor(colour * 255 / limit + 0.5).astype(np.uint8)


def deflated(page: dict, order: str) -> dict:
    """With horizontal differences, and then Deflate."""
    pixels = page["pixels"]
    columns = pixels.reshape(*pixels.shape[:2], -1)
    differences = np.diff(columns, axis=1, prepend=np.zeros_like(columns[:, :1]))
    encoded = zlib.compress(differences.astype(pixels.dtype.newbyteorder(order)).tobytes())
    return page | {259: 8, 317: 2, "encoded": encoded}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", ["grey", "white is zero", "RGB", "RGBX", "CMYK"])
def test_a_tiff_file_is_rounded_and_not_cut(write_tiff, order, compressed, kind):
    four = np.concatenate([COLOUR, GREY[..., None]], axis=-1)
    page, expected = {
        "grey": ({"pixels": GREY}, rounded(GREY)),
        "white is zero": ({"pixels": GREY, 262: 0}, rounded(2**16 - 1 - GREY)),
        "RGB": ({"pixels": COLOUR}, rounded(COLOUR)),
        "RGBX": ({"pixels": four, 338: 0}, rounded(COLOUR)),
        "CMYK": (
            {"pixels": four, 262: 5},
            np.asarray(Image.fromarray(rounded(four), "CMYK").convert("RGB")),
        ),
    }[kind]
    encoded = write_tiff(deflated(page, order) if compressed else page, order=order)
    np.testing.assert_array_equal(opened(encoded), expected)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_png_file_is_rounded_and_not_cut(write_png, channels):
    colour = COLOUR[..., : 1 if channels < 3 else 3]
    opaque = np.full((9, 7, 1), 2**16 - 1, np.uint16)
    samples = colour if channels % 2 else np.concatenate([colour, opaque], axis=-1)
    expected = np.broadcast_to(rounded(colour), (9, 7, 3))
    np.testing.assert_array_equal(opened(write_png(samples)), expected)


@pytest.mark.parametrize("extra", [1, 2])  # colours that are multiplied with alpha, or not
def test_transparency_of_16_bits_is_composited_on_white(write_tiff, write_png, extra):
    alpha = np.array([[[0], [2**15], [2**16 - 1]]], np.uint16)
    straight = np.concatenate([COLOUR[:1, :3], alpha], axis=-1)
    share = alpha / (2**16 - 1)
    stored = straight.copy()
    if extra == 1:
        stored[..., :3] = straight[..., :3] * share
    expected = np.rint(255 * (straight[..., :3] / (2**16 - 1) * share + 1 - share))
    found = opened(write_tiff({"pixels": stored, 338: extra}))
    assert np.abs(found - expected).max() <= 1
    if extra == 2:
        np.testing.assert_array_equal(opened(write_png(straight)), found)


def test_a_transparent_colour_of_16_bits_is_compared_in_full(write_png):
    samples = np.array([[[258, 40000, 7], [256, 40000, 7]]], np.uint16)  # equal when cut to 8
    png = write_png(samples, {b"tRNS": samples[0, 0].astype(">u2").tobytes()})
    assert opened(png).tolist() == [[[255, 255, 255], [1, 156, 0]]]


@pytest.mark.parametrize("kind", ["tiff", "png", "tiff grey", "png grey", "pillow"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_fewer_bits_are_refused_until_they_are_given(write_tiff, write_png, kind, bits):
    values = COLOUR >> (16 - bits)
    values[0, 0] = 2**bits - 1
    if "grey" in kind or kind == "pillow":
        values = values[..., 0]
    if kind.startswith("png"):
        encoded = write_png(values.reshape(9, 7, -1))
    elif kind == "pillow":
        encoded = Image.fromarray(values)
    else:
        encoded = write_tiff({"pixels": values})
    with pytest.raises(
        UserError,
        match=rf"'a' is stored with 16 bits and has no value above {2**bits - 1}, as of a camera "
        rf"with {bits} bits.*config\.data\.bits = {bits} \(16 where 65535 is white\)",
    ):
        opened(encoded)
    np.testing.assert_array_equal(opened(encoded, bits=bits), rounded(values, 2**bits - 1))
    np.testing.assert_array_equal(opened(encoded, bits=16), rounded(values))
    if bits > 8:
        with pytest.raises(UserError, match=f"'a' has the value {2**bits - 1}, above the 255 that"):
            opened(encoded, bits=8)


def test_white_is_zero_within_fewer_bits(write_tiff):
    values = GREY >> 4
    tiff = write_tiff({"pixels": values, 262: 0}, order=">")
    np.testing.assert_array_equal(opened(tiff, bits=12), rounded(4095 - values, 4095))


def test_opaque_alpha_says_nothing_of_the_bits_of_the_colours(write_png):
    for opaque in (4095, 65535):
        samples = np.concatenate([COLOUR >> 4, np.full((9, 7, 1), opaque, np.uint16)], axis=-1)
        with pytest.raises(UserError, match="with 12 bits"):
            opened(write_png(samples))
        found = opened(write_png(samples), bits=12)
        np.testing.assert_array_equal(found, rounded(COLOUR >> 4, 4095))


def test_twelve_bits_that_the_file_itself_states_need_no_other_word(write_tiff):
    values = np.array([[0, 4095], [2048, 16]], np.uint16)
    packed = bytes([0x00, 0x0F, 0xFF, 0x80, 0x00, 0x10])  # two of 12 bits in three bytes
    tiff = write_tiff({"pixels": values, "encoded": packed, 258: 12})
    np.testing.assert_array_equal(opened(tiff), rounded(values, 4095))


def test_a_black_image_is_black_whatever_the_bits(write_tiff):
    assert not opened(write_tiff({"pixels": np.zeros((4, 4, 3), np.uint16)})).any()


def test_colours_in_planes_of_their_own_are_refused(write_tiff):
    planes = np.ascontiguousarray(COLOUR.transpose(2, 0, 1))
    strips = {273: (8, 134, 260), 279: (126, 126, 126), "encoded": planes.tobytes()}
    tiff = write_tiff({"pixels": COLOUR, 284: 2, **strips})
    with pytest.raises(UserError, match="'a' has 16-bit colours in planes of their own"):
        opened(tiff)


@pytest.mark.parametrize(("dtype", "sample_format"), [("i2", 2), ("i4", 2), ("u4", 1), ("f4", 3)])
def test_values_without_a_defined_range_are_refused(write_tiff, dtype, sample_format):
    tiff = write_tiff({"pixels": np.ones((4, 4), dtype), 339: sample_format})
    with pytest.raises(UserError, match=r"'a' has (pixels of mode '[IF]'|a damaged header)"):
        opened(tiff)


def test_version_1_of_the_rules_decodes_as_it_did(write_tiff, write_png):
    grey = rounded(GREY)
    white_is_zero = write_tiff({"pixels": GREY, 262: 0})
    np.testing.assert_array_equal(opened(white_is_zero, version=1), grey)
    for encoded in (write_tiff({"pixels": COLOUR}), write_png(COLOUR)):
        np.testing.assert_array_equal(opened(encoded, version=1), COLOUR >> 8)
    np.testing.assert_array_equal(
        opened(write_tiff({"pixels": GREY >> 4}), version=1), rounded(GREY >> 4)
    )


def test_pillow_is_not_trusted_with_16_bit_colours(write_png):
    with Image.open(io.BytesIO(write_png(COLOUR))) as image:
        with pytest.raises(UserError, match="'a' has 16-bit values that Pillow does not give"):
            open_image(image, name="a")
        image.load()  # from now on they have 8 bits, which is the caller's doing
        np.testing.assert_array_equal(np.asarray(open_image(image, name="a")), COLOUR >> 8)


def test_one_hot_pixel_does_not_hide_the_range_of_a_camera(write_tiff):
    values = np.tile(COLOUR >> 4, (20, 20, 1))
    values[0, 0, 0] = 65535
    with pytest.raises(UserError, match="has hardly a value above 4.*with 12 bits"):
        opened(write_tiff({"pixels": values}))
    assert opened(write_tiff({"pixels": values}), bits=16).max() == 255
