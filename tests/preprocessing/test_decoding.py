"""Every kind of file becomes the same uint8 RGB, and a damaged one is named."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from glomjax.errors import UserError
from glomjax.preprocessing.decoding import decode_image, fit_image, unfit_map

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)

BICUBIC = Image.Resampling.BICUBIC


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_lossless_rgb_comes_back_unchanged(kind):
    pixels = decode_image(encode(Image.fromarray(RGB), kind), (6, 8), name="a")
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    np.testing.assert_array_equal(pixels, RGB)


def test_grey_is_repeated_over_the_channels():
    grey = RGB[..., 0]
    pixels = decode_image(encode(Image.fromarray(grey)), (6, 8), name="a")
    np.testing.assert_array_equal(pixels, np.stack([grey] * 3, axis=-1))


def test_palette_colours_are_looked_up():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    pixels = decode_image(encode(image), (1, 2), name="a")
    assert pixels.tolist() == [[[10, 20, 30], [200, 100, 50]]]


def test_transparent_pixels_become_white_and_half_transparent_ones_half_white():
    image = Image.new("RGBA", (3, 1), (100, 0, 0, 255))
    image.putpixel((1, 0), (100, 0, 0, 0))
    image.putpixel((2, 0), (100, 0, 0, 128))
    pixels = decode_image(encode(image), (1, 3), name="a")
    assert pixels[0, :2].tolist() == [[100, 0, 0], [255, 255, 255]]
    np.testing.assert_allclose(pixels[0, 2], [177, 127, 127], atol=1)


def test_a_transparent_palette_entry_and_grey_with_alpha_become_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    pixels = decode_image(encode(palette, transparency=1), (1, 2), name="a")
    assert pixels.tolist() == [[[10, 20, 30], [255, 255, 255]]]
    grey = decode_image(encode(Image.new("LA", (1, 1), (0, 0))), (1, 1), name="a")
    assert grey.tolist() == [[[255, 255, 255]]]


def test_cmyk_is_converted():
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # magenta and yellow make red
    pixels = decode_image(encode(image, "JPEG", quality=100), (8, 8), name="a")
    assert pixels[..., 0].min() > 240
    assert pixels[..., 1:].max() < 15


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_by_257_and_rounded(kind):
    values = np.array([[0, 128, 129, 257, 40000, 65406, 65407, 65535]], np.uint16)
    pixels = decode_image(encode(Image.fromarray(values), kind), (1, 8), name="a")
    expected = np.round(values / 257).astype(np.uint8)
    assert expected.tolist() == [[0, 0, 1, 1, 156, 254, 255, 255]]
    np.testing.assert_array_equal(pixels, np.stack([expected] * 3, axis=-1))


def test_float_pixels_are_refused_because_their_white_is_unknown():
    image = Image.fromarray(np.ones((2, 2), np.float32))
    with pytest.raises(UserError, match=r"'depth\.tif' has pixels of mode 'F'"):
        decode_image(encode(image, "TIFF"), (2, 2), name="depth.tif")


def test_exif_orientation_is_applied_before_the_size_is_compared():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees clockwise to be upright
    pixels = decode_image(encode(Image.fromarray(RGB), exif=exif), (8, 6), name="a")
    np.testing.assert_array_equal(pixels, np.rot90(RGB, k=-1))


def test_resize_is_height_by_width_and_antialiased():
    stripes = np.zeros((64, 32, 3), np.uint8)
    stripes[::2] = 255
    pixels = decode_image(encode(Image.fromarray(stripes)), (8, 4), name="a")
    assert pixels.shape == (8, 4, 3)
    # Without antialiasing single stripes would be picked: 0 or 255.
    assert np.abs(pixels.astype(int) - 127).max() <= 12


def test_an_array_is_taken_as_it_is_or_resized_like_a_file():
    np.testing.assert_array_equal(decode_image(RGB, (6, 8), name="a"), RGB)
    from_file = decode_image(encode(Image.fromarray(RGB)), (3, 5), name="a")
    np.testing.assert_array_equal(decode_image(RGB, (3, 5), name="a"), from_file)


@pytest.mark.parametrize(
    "array",
    [
        RGB.astype(np.float32),
        RGB[..., 0],
        RGB[..., :2],
        RGB[None],
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(array):
    with pytest.raises(UserError, match="Image 'a'"):
        decode_image(array, (6, 8), name="a")


def test_an_empty_file_is_named():
    with pytest.raises(UserError, match=r"'x/empty\.png' is empty"):
        decode_image(b"", (6, 8), name="x/empty.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
def test_a_truncated_file_is_named_wherever_it_is_cut(kind):
    whole = encode(Image.fromarray(np.tile(RGB, (10, 10, 1))), kind)
    for share in (0.05, 0.3, 0.5, 0.8):
        with pytest.raises(UserError, match=r"'cut\.img' cannot be decoded"):
            decode_image(whole[: int(share * len(whole))], (6, 8), name="cut.img")
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_bytes_that_are_no_image_are_named():
    with pytest.raises(UserError, match=r"'a\.png' cannot be decoded \(no known image format\)"):
        decode_image(b"path,label\n", (6, 8), name="a.png")


def test_a_decompression_bomb_is_refused():
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    bomb = (
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    )
    with pytest.raises(UserError, match=r"'bomb\.png' cannot be decoded .*pixels"):
        decode_image(bomb, (6, 8), name="bomb.png")


# Fitting to a size.


def halves(width: int, height: int) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), (255, 0, 0))
    image.paste((0, 0, 255), (width // 2, 0, width, height))
    return image


def test_pad_keeps_the_aspect_ratio_and_adds_white():
    found = fit_image(halves(80, 40), (20, 20), resize="pad")
    assert (found[:5] == 255).all()
    assert (found[15:] == 255).all()
    assert np.array_equal(found[5:15], np.asarray(halves(80, 40).resize((20, 10), BICUBIC)))


def test_crop_keeps_the_aspect_ratio_and_takes_the_centre():
    image = halves(80, 40)
    image.paste((0, 255, 0), (0, 0, 10, 40))  # what is cut away
    found = fit_image(image, (20, 20), resize="crop")
    assert (found[:, :8] == (255, 0, 0)).all()
    assert (found[:, 12:] == (0, 0, 255)).all()


@pytest.mark.parametrize("resize", ["stretch", "pad", "crop"])
def test_a_square_is_resized_alike_in_every_way(resize):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8))
    assert np.array_equal(
        fit_image(image, (20, 20), resize=resize), image.resize((20, 20), BICUBIC)
    )


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_a_scale_is_of_the_tissue_and_not_of_the_size(scale):
    """A disc of 8 pixels in an image of another size each: its diameter follows the scale."""
    rows, columns = np.mgrid[:48, :64]
    disc = (rows - 23.5) ** 2 + (columns - 31.5) ** 2 < 16**2
    image = Image.fromarray(np.where(disc[..., None], 0, 255).astype(np.uint8).repeat(3, -1))
    found = fit_image(image, (40, 40), scale=scale)
    across = (found[20, :, 0] < 128).sum()
    assert across == min(round(32 * scale), 40)
    assert abs((found[20, :, 0] < 128).argmax() - max(20 - 16 * scale, 0)) <= 1


def test_an_enormous_scale_makes_no_enormous_image():
    found = fit_image(halves(64, 64), (32, 32), scale=10_000.0)  # 640,000 x 640,000 in full
    assert found.shape == (32, 32, 3)
    assert (
        found.astype(int).sum(axis=-1) == 255
    ).all()  # where red goes over to blue, some of both


@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    image_size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    way=st.sampled_from([("stretch", None), ("pad", None), ("crop", None), ("stretch", "scale")]),
    scale=st.floats(0.05, 8),
)
def test_a_map_goes_back_over_what_was_kept_of_an_image(size, image_size, way, scale):
    resize, by_scale = way
    options = {"resize": resize, "scale": scale if by_scale else None}
    found = unfit_map(np.ones(image_size, np.float32), size, **options)
    assert (found.shape, found.dtype) == (size, np.float32)
    assert set(np.unique(found)) <= {0, 1}  # zeros where the image was cropped away
    rows, columns = found.any(axis=1), found.any(axis=0)
    np.testing.assert_array_equal(found, np.outer(rows, columns))
    for kept, side, extent in zip((rows, columns), size, image_size, strict=True):
        before = int(kept.argmax())
        after = int(kept[::-1].argmax())
        assert abs(before - after) <= 1 + side / extent  # the middle is kept
        if resize == "pad" or (resize, by_scale) == ("stretch", None):
            assert kept.all()
