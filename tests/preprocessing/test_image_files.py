"""A file is read when it is whole, of a documented format, and holds one picture; else it is named
with what it is."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from glomjax.errors import UserError
from glomjax.preprocessing.decoding import open_image

SMOOTH = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8))
PICTURE = SMOOTH.resize((96, 64), Image.Resampling.BICUBIC)
PIXELS = np.asarray(PICTURE)
GREY = np.ascontiguousarray(PIXELS[..., 0])


def saved(image: Image.Image = PICTURE, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def opened(encoded: bytes) -> np.ndarray:
    return np.asarray(open_image(encoded, name="a.png"))


def refusal(encoded: bytes) -> str:
    with pytest.raises(UserError) as error:
        opened(encoded)
    return str(error.value)


# Formats.


@pytest.mark.parametrize(
    ("encoded", "what"),
    [
        (saved(kind="GIF"), "a GIF file"),
        (saved(kind="EPS"), "a PostScript file (EPS)"),
        (b"\xc5\xd0\xd3\xc6" + bytes(40), "a PostScript file (EPS)"),
        (saved(kind="PDF"), "a PDF file"),
        (saved(kind="JPEG2000"), "a JPEG 2000 file"),
        (saved(kind="JPEG2000", no_jp2=True), "a JPEG 2000 file"),
        (saved(kind="AVIF"), "an AVIF file"),
        (saved(kind="ICO"), "an icon (ICO)"),
        (b"\0\0\0\x18ftypheic", "a HEIC or video file"),
        (bytes(128) + b"DICM", "a DICOM file"),
        (b"SIMPLE  =                    T", "a FITS file"),
        (b'\xef\xbb\xbf\n<svg width="1"/>', "an SVG file"),
        (b"<?xml version='1.0'?><svg/>", "an XML or SVG file"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a stand-in that 'git lfs pull'"),
    ],
)
def test_no_other_format_is_opened_whatever_its_name_says(encoded, what, monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("Pillow was called"))
    assert refusal(encoded).startswith(f"Image 'a.png' is {what}")


@pytest.mark.parametrize("kind", ["PPM", "TGA", "SGI", "PCX", "MSP"])
def test_formats_that_pillow_could_open_are_no_images_here(kind):
    image = PICTURE.convert("1") if kind == "MSP" else PICTURE
    assert "cannot be decoded (no known image format)" in refusal(saved(image, kind))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "WEBP"])
def test_the_content_decides_and_not_the_name(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(opened(saved(kind=kind, **options)), PIXELS)


def test_a_header_that_pillow_does_not_know_is_no_unknown_format(write_tiff):
    odd = write_tiff({"pixels": PIXELS, 262: 1})  # three samples of grey
    assert "is of a kind that Pillow does not read: save it as 8-bit RGB" in refusal(odd)


def test_a_file_of_zeros_is_called_that():
    assert "cannot be decoded (it holds zeros alone)" in refusal(bytes(5000))


# Damage.


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.95])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"optimize": True}),
        ("JPEG", {"subsampling": 0, "quality": 98}),
        ("WEBP", {"quality": 95}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", {"compression": "packbits"}),
        ("TIFF", {"compression": "jpeg"}),
    ],
)
def test_a_tail_and_a_block_of_zeros_are_damage(kind, options, share):
    noise = np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)
    whole = saved(Image.fromarray(noise), kind, **options)
    begin = int(share * len(whole))
    block = min(4096, (len(whole) - begin) // 2)
    for zeros in (len(whole) - begin, block, 512):
        damaged = (whole[:begin] + bytes(zeros) + whole[begin + zeros :])[: len(whole)]
        assert "cannot be decoded" in refusal(damaged)


@pytest.mark.parametrize("size", [(280, 280), (1200, 900)])
@pytest.mark.parametrize("colour", ["white", "black", (243, 240, 245)])
def test_a_blank_image_is_no_damage_though_its_code_is_full_of_zeros(size, colour):
    blank = Image.new("RGB", size, colour)
    for kind, options in (
        ("JPEG", {"optimize": True}),
        ("JPEG", {"optimize": True, "subsampling": 0}),
        ("JPEG", {"progressive": True}),
        ("WEBP", {}),
        ("TIFF", {"compression": "packbits"}),
        ("TIFF", {"compression": "jpeg"}),
        ("PNG", {}),
    ):
        assert opened(saved(blank, kind, **options)).shape == (*size[::-1], 3)


@pytest.mark.parametrize("chunk", [b"IHDR", b"IDAT", b"IEND", b"PLTE", b"tRNS"])
def test_one_flipped_bit_of_a_png_file_is_seen(chunk):
    png = saved(PICTURE.quantize(32), transparency=3)
    at = png.index(chunk)
    for place in (at + 4, at - 4 + 8 + struct.unpack_from(">I", png, at - 4)[0]):
        damaged = png[:place] + bytes([png[place] ^ 1]) + png[place + 1 :]
        assert re.search(
            r"cannot be decoded \((the checksum of its chunk|it ends)", refusal(damaged)
        )


def test_a_png_file_without_its_end_is_damaged():
    png = saved()
    assert "it ends before its chunk IEND" in refusal(png[:-12])
    assert "it ends within a chunk" in refusal(png[:-20])
    np.testing.assert_array_equal(opened(png + bytes(512)), PIXELS)  # padding behind it is harmless


def test_a_jpeg_file_needs_its_end_and_what_follows_is_no_matter():
    jpeg = saved(kind="JPEG")
    pixels = opened(jpeg)
    for lost in (1, 2, 100):
        assert "it ends before its mark EOI" in refusal(jpeg[:-lost])
    for behind in (bytes(4096), bytes(4096) + b"\xff\xd9", b"\nfilm"):
        np.testing.assert_array_equal(opened(jpeg + behind), pixels)


# Ancillary chunks.


def test_a_large_profile_or_text_does_not_keep_a_png_file_from_being_read():
    noise = np.random.default_rng(0).bytes(1_200_000)
    texts = PngImagePlugin.PngInfo()
    texts.add_text("comment", "x" * 1_300_000, zip=True)
    texts.add_itxt("XML:com.adobe.xmp", "x" * 1_300_000, zip=True)
    texts.add_text("Raw profile type exif", "x" * 1_300_000)
    png = saved(icc_profile=noise, pnginfo=texts)
    image = open_image(png, name="a")
    np.testing.assert_array_equal(np.asarray(image), PIXELS)
    assert image.info == {"icc_profile": noise}


def test_damage_of_a_text_is_no_damage_of_the_pixels():
    texts = PngImagePlugin.PngInfo()
    texts.add_text("comment", "a good one")
    np.testing.assert_array_equal(
        opened(saved(pnginfo=texts).replace(b"a good one", b"a worse one"[:10])), PIXELS
    )


@pytest.mark.parametrize("where", ["exif", "xmp", "packed xmp"])
def test_the_orientation_survives_wherever_it_is_written(where):
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    texts, exif = PngImagePlugin.PngInfo(), Image.Exif()
    if where == "exif":
        exif[0x0112] = 6
    else:
        texts.add_itxt("XML:com.adobe.xmp", xmp, zip=where == "packed xmp")
    turned = opened(saved(exif=exif, pnginfo=texts, icc_profile=b"x"))
    np.testing.assert_array_equal(turned, np.rot90(PIXELS, k=-1))


# Several pages.

HALF = np.asarray(PICTURE.resize((48, 32)))


@pytest.mark.parametrize(
    ("pages", "counts"),
    [
        ([HALF, PIXELS], r"2 pages \(32 x 48, 64 x 96\)"),  # a thumbnail first
        ([PIXELS, HALF], r"2 pages \(64 x 96, 32 x 48\)"),
        ([PIXELS] * 5, r"5 pages \(5 of 64 x 96\)"),  # a stack
        ([GREY] * 3, r"3 pages \(3 of 64 x 96\)"),  # channels that nobody names
    ],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_file_of_several_pages_is_refused(write_tiff, pages, counts, order):
    encoded = write_tiff(*({"pixels": page} for page in pages), order=order)
    assert re.search(rf"'a\.png' has {counts}, and one picture is read", refusal(encoded))


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("tag", [{254: 1}, {255: 2}])
def test_a_page_that_is_called_a_reduced_version_does_not_count(write_tiff, first, tag):
    pages = [{"pixels": PIXELS}, {"pixels": HALF, **tag}]
    encoded = write_tiff(*pages[:: -1 if first else 1])
    np.testing.assert_array_equal(opened(encoded), PIXELS)
    if first:
        with pytest.raises(
            UserError, match=r"several pages, of which the rules .*\(version 1\) take"
        ):
            open_image(encoded, name="a", version=1)
    else:
        np.testing.assert_array_equal(np.asarray(open_image(encoded, name="a", version=1)), PIXELS)


@pytest.mark.parametrize(
    ("about", "three", "one"),
    [
        (b"ImageJ=1.54f\nimages=3\nchannels=3\nmode=composite\n\0", b"images=3", b"images=1"),
        (b'{"shape": [3, 64, 96], "truncated": true}\0', b"[3,", b"[1,"),  # tifffile
    ],
)
def test_images_behind_one_directory_are_counted(write_tiff, about, three, one):
    assert "has 3 pages (3 of 64 x 96)" in refusal(write_tiff({"pixels": GREY, 270: about}))
    alone = about.replace(three, one)
    assert opened(write_tiff({"pixels": GREY, 270: alone})).shape == PIXELS.shape


def ome(channels: str, sizes: str = 'SizeC="3" SizeT="1" SizeZ="1"', data: str = "") -> bytes:
    return (
        '<?xml version="1.0"?><!-- written by hand --><OME xmlns="http://www.openmicroscopy.org/'
        f'Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" {sizes}>{channels}{data}'
        "</Pixels></Image></OME>\0"
    ).encode()


NAMES = "".join(f'<Channel ID="{n}" Name="{name}"/>' for n, name in enumerate(("Red", "g", "BLUE")))
COLOURS = "".join(f'<Channel Color="{colour}"/>' for colour in (-16776961, 16711935, 65535))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    "about",
    [
        ome(NAMES),
        ome(COLOURS),
        ome(NAMES, data='<TiffData IFD="0"/><TiffData FirstC="1" IFD="1"/>'),
    ],
)
def test_channels_that_ome_calls_red_green_and_blue_are_one_image(write_tiff, about, dtype):
    channels = [PIXELS[..., c].astype(dtype) * (257 if dtype == np.uint16 else 1) for c in range(3)]
    pages = [{"pixels": channel} for channel in channels]
    pages[0][270] = about
    encoded = write_tiff(*pages)
    np.testing.assert_array_equal(opened(encoded), PIXELS)
    with pytest.raises(UserError, match="several pages"):
        open_image(encoded, name="a", version=1)


@pytest.mark.parametrize(
    "about",
    [
        ome(""),
        ome(NAMES.replace("Red", "DAPI")),
        ome(NAMES.replace("g", "BLUE").replace("BLUE", "g")),
        ome(COLOURS.replace("65535", "-1")),
        ome(NAMES, 'SizeC="1" SizeT="1" SizeZ="3"'),
        ome(NAMES, data='<TiffData FirstC="2" IFD="0"/>'),
        ome(NAMES).replace(b"<!--", b"<!DOCTYPE x><!--"),
        ome(NAMES)[:-9],
        b"red, green, blue",
    ],
)
def test_other_channels_are_refused(write_tiff, about):
    pages = [{"pixels": GREY} for _ in range(3)]
    pages[0][270] = about
    assert "has 3 pages (3 of 64 x 96)" in refusal(write_tiff(*pages))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "MPO"])
def test_frames_of_other_formats_are_refused(kind):
    other = Image.fromarray(PIXELS[::-1])
    encoded = saved(kind=kind, save_all=True, append_images=[other])
    assert "'a.png' has 2 frames (2 of 64 x 96), and one picture is read" in refusal(encoded)
    options = {"lossless": True} if kind == "WEBP" else {}
    alone = saved(kind=kind, save_all=True, **options)
    assert np.abs(opened(alone).astype(int) - PIXELS).mean() < (10 if kind == "MPO" else 1)


def test_a_picture_beside_the_animation_counts(write_png):
    encoded = saved(save_all=True, append_images=[Image.new("RGB", (96, 64))], default_image=True)
    assert "has 2 frames" in refusal(encoded)


def test_a_thumbnail_that_a_camera_has_added_does_not_count():
    mpo = saved(kind="MPO", save_all=True, append_images=[PICTURE.resize((48, 32))])
    assert "has 2 frames (64 x 96, 32 x 48)" in refusal(mpo)
    size = len(mpo) - mpo.rindex(b"\xff\xd8\xff")
    index = struct.pack("<LL", 0, size)
    assert index in mpo
    thumbnail = mpo.replace(index, struct.pack("<LL", 0x010001, size))
    np.testing.assert_array_equal(opened(thumbnail), opened(saved(kind="JPEG")))


def test_an_opened_image_of_several_pages_is_refused_until_one_is_taken(write_tiff):
    encoded = write_tiff({"pixels": PIXELS}, {"pixels": PIXELS[::-1]})
    with Image.open(io.BytesIO(encoded)) as image:
        with pytest.raises(UserError, match="'a' has 2 pages: give the one that is meant"):
            open_image(image, name="a")
        image.seek(1)
        np.testing.assert_array_equal(np.asarray(open_image(image.copy(), name="a")), PIXELS[::-1])


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # of Pillow
@pytest.mark.parametrize("seed", range(40))
def test_random_damage_gives_pixels_or_one_sentence(seed):
    """Whatever bytes there are, nothing but a `UserError` comes out."""
    rng = np.random.default_rng(seed)
    kind = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")[seed % 5]
    encoded = bytearray(saved(kind=kind))
    for _ in range(rng.integers(1, 6)):
        at = int(rng.integers(0, min(len(encoded), 400 if seed % 2 else len(encoded))))
        encoded[at : at + 4] = rng.bytes(4)
    if seed % 3 == 0:
        del encoded[int(rng.integers(4, len(encoded))) :]
    if seed % 5 == 0 and seed % 2:  # a good checksum, so that what is behind it is looked at
        encoded[29:33] = struct.pack(">I", zlib.crc32(encoded[12:29]))
    said = ""
    try:
        opened(bytes(encoded))
    except UserError as error:
        said = str(error)
    assert "\n" not in said
