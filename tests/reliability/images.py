"""Image files and arrays: which are read, and that their pixels are right."""

import pathlib
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from glomjax.data.sources import load_source
from glomjax.preprocessing.decoding import open_image
from reliability.files import chunk, encode, png, tiff, with_chunk, zeros
from reliability.situations import (
    Answer,
    Case,
    check,
    class_folders,
    picture,
    put,
)

HEADING = "Images"
SIZE = (60, 48)
NAME = "patch"
LARGE = (280, 280)
OME = (
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
    '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="48" SizeY="60" SizeZ="1"'
    ' SizeC="3" SizeT="1">'
    + "".join(
        f'<Channel ID="Channel:0:{n}" Name="{name}" SamplesPerPixel="1"/>'
        f'<TiffData FirstC="{n}" IFD="{n}" PlaneCount="1"/>'
        for n, name in enumerate(("Red", "Green", "Blue"))
    )
    + "</Pixels></Image></OME>"
)


def tissue(size: tuple[int, int] = SIZE) -> np.ndarray:
    """uint8 [*size, 3] in which no two rows are alike, so that it does not compress well."""
    rng = np.random.default_rng(1)
    grain = rng.integers(-20, 21, (*size, 3))
    return np.clip(picture(1, size).astype(int) + grain, 0, 255).astype(np.uint8)


RGB = tissue()
GREY = RGB[..., 1]
THREE_GREY = np.repeat(GREY[..., None], 3, axis=-1)


def see(encoded: Any, truth: np.ndarray | None = None, *, loss: float = 0.0, **options: Any):
    """What is read of a file, which has to be `truth` but for a mean difference of `loss`."""

    def answer(folder: pathlib.Path) -> Answer:
        seen = np.asarray(open_image(encoded, name=NAME, **options)).astype(int)
        if truth is None or seen.shape != truth.shape:
            return Answer("raw", f"it is read as {seen.shape[0]} x {seen.shape[1]} pixels")
        difference = np.abs(seen - truth).mean()
        if difference > loss:
            return Answer("raw", f"the pixels are wrong by {difference:.1f} of 255")
        kept = "but for what the format loses" if loss else "not one of them changed"
        return Answer("read", f"{truth.shape[0]} x {truth.shape[1]} pixels, {kept}")

    return answer


def oriented(kind: str, **options: Any):
    """A file that is stored on its side, and says so."""
    exif = Image.Exif()
    exif[0x112] = 6  # the viewer turns it clockwise
    stored = np.rot90(RGB).copy()
    return see(encode(stored, kind, exif=exif, **options), RGB, loss=8 * (kind == "JPEG"))


def channels() -> list[np.ndarray]:
    return [RGB[..., n].copy() for n in range(3)]


def cut(encoded: bytes, share: float) -> bytes:
    return encoded[: round(share * len(encoded))]


def flipped(encoded: bytes) -> bytes:
    changed = bytearray(encoded)
    changed[len(changed) // 2] ^= 1
    return bytes(changed)


def animated(kind: str, **options: Any) -> bytes:
    frames = [Image.fromarray(np.roll(RGB, 8 * n, axis=0)) for n in range(3)]
    return encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)


def transparent() -> tuple[bytes, np.ndarray]:
    """A PNG file whose upper half is transparent, and what is to be seen of it."""
    alpha = np.full((*SIZE, 1), 255, np.uint8)
    alpha[:30] = 0
    truth = RGB.copy()
    truth[:30] = 255
    return encode(np.concatenate([RGB, alpha], axis=-1)), truth


def broken_exif() -> bytes:
    encoded = encode(RGB, "JPEG", quality=95)
    body = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\0\0\0\0"
    return encoded[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(body)) + body + encoded[2:]


def palette() -> tuple[bytes, np.ndarray]:
    image = Image.fromarray(RGB).quantize(64)
    return encode(image), np.asarray(image.convert("RGB"))


def two_pictures() -> bytes:
    """A JPEG file of a camera with a second picture in it (MPO)."""
    second = Image.fromarray(np.roll(RGB, 20, axis=1))
    return encode(Image.fromarray(RGB), "MPO", save_all=True, append_images=[second])


def huge() -> bytes:
    """A PNG file that claims 30000 x 30000 pixels."""
    encoded = encode(RGB)
    header = struct.pack(">II", 30000, 30000) + encoded[24:29]
    return encoded[:8] + chunk(b"IHDR", header) + encoded[33:]


PNG, JPEG = encode(tissue(LARGE)), encode(tissue(LARGE), "JPEG", quality=90)
WEBP = encode(tissue(LARGE), "WEBP", quality=90)
LABEL = np.full((*SIZE, 3), 250, np.uint8)
SIXTEEN = GREY.astype(np.uint16)
TWELVE = np.rint(RGB * (4095 / 255)).astype(np.uint16)
COLOURS = RGB.astype(np.uint16)


def in_folder(part: str, change, *, size: tuple[int, int] = SIZE, **options: Any):
    """What check-data finds in class folders of which one file is replaced."""

    def answer(folder: pathlib.Path) -> Answer:
        class_folders(folder, count=6, size=size)
        change(folder)
        return check(folder, part, **options)

    return answer


def replaced(content: bytes):
    return lambda folder: (folder / "other/00.png").write_bytes(content)


def all_replaced(change):
    """Every image written again, with Pillow's options that `change` gives for its number."""

    def rewrite(folder: pathlib.Path) -> None:
        for n, file in enumerate(sorted(folder.rglob("*.png"))):
            Image.open(file).copy().save(file, "PNG", **change(n))

    return rewrite


def masks(folder: pathlib.Path) -> None:
    for n in range(3):
        image = Image.new("L", SIZE[::-1])
        ImageDraw.Draw(image).ellipse((5, 5, 20 + n, 20), fill=255)
        image.save(folder / f"other/a{n}.png")


def blank(folder: pathlib.Path) -> None:
    Image.new("RGB", SIZE[::-1], "white").save(folder / "other/00.png")
    Image.new("RGB", SIZE[::-1], "white").save(folder / "other/01.png")


def black_tail(folder: pathlib.Path) -> None:
    pixels = picture(0, SIZE).copy()
    pixels[40:] = 0
    Image.fromarray(pixels).save(folder / "other/00.bmp")


def sizes(folder: pathlib.Path) -> None:
    put(folder / "other/00.png", 0, (40, 40))


def vanished(folder: pathlib.Path) -> Answer:
    data = load_source(class_folders(folder))
    (folder / data.test.ids[0]).unlink()
    return Answer("read", f"{data.test.read(0)!r}")


CASES = [
    Case("an RGB image as PNG", see(encode(RGB), RGB)),
    Case("an RGB image as TIFF", see(encode(RGB, "TIFF"), RGB)),
    Case("an RGB image as TIFF with LZW", see(encode(RGB, "TIFF", compression="tiff_lzw"), RGB)),
    Case("an RGB image as BMP", see(encode(RGB, "BMP"), RGB)),
    Case("an RGB image as lossless WebP", see(encode(RGB, "WEBP", lossless=True), RGB)),
    Case("an RGB image as JPEG", see(encode(RGB, "JPEG", quality=95), RGB, loss=8)),
    Case("a grey image", see(encode(GREY), THREE_GREY)),
    Case("an image with a palette", see(*palette())),
    Case("a CMYK image", see(encode(Image.fromarray(RGB).convert("CMYK"), "TIFF"), RGB)),
    Case("an image that is transparent in part, on white", see(*transparent())),
    Case("a JPEG file that is stored on its side and says so", oriented("JPEG", quality=98)),
    Case("a PNG file that is stored on its side and says so", oriented("PNG")),
    Case("a TIFF file that is stored on its side and says so", oriented("TIFF")),
    Case("a JPEG file with broken EXIF data", see(broken_exif(), RGB, loss=8)),
    Case("16-bit grey, in which 65535 is white", see(encode(SIXTEEN * 257), THREE_GREY)),
    Case("16-bit RGB as TIFF", see(tiff(COLOURS * 257), RGB)),
    Case("16-bit RGB as PNG", see(png(COLOURS * 257), RGB)),
    Case(
        "16-bit grey in which zero is white",
        see(tiff((255 - SIXTEEN) * 257, photometric=0), THREE_GREY),
    ),
    Case("8-bit grey in which zero is white", see(tiff(255 - GREY, photometric=0), THREE_GREY)),
    Case("12-bit grey in 16 bits as TIFF", see(tiff(SIXTEEN * 16))),
    Case("12-bit grey in 16 bits as PNG", see(encode(SIXTEEN * 16))),
    Case("12-bit RGB in 16 bits as TIFF", see(tiff(COLOURS * 16))),
    Case("12-bit RGB in 16 bits as PNG", see(png(COLOURS * 16))),
    Case("10-bit grey in 16 bits", see(encode(SIXTEEN * 4))),
    Case("8-bit grey in 16 bits", see(encode(SIXTEEN))),
    Case(
        "12-bit RGB in 16 bits, with data.bits 12",
        see(tiff(TWELVE), RGB, bits=12),
    ),
    Case("a value beyond 12 bits, with data.bits 12", see(tiff(COLOURS * 257), bits=12)),
    Case("32-bit whole numbers", see(tiff(GREY.astype(np.int32)))),
    Case("floats from 0 to 1", see(tiff((GREY / 255).astype(np.float32)))),
    Case(
        "three grey pages that are red, green and blue, as their OME-XML says",
        see(tiff(*channels(), description=OME), RGB),
    ),
    Case("three grey pages without a word", see(tiff(*channels()))),
    Case("a TIFF file with a thumbnail in front", see(tiff(RGB[::4, ::4].copy(), RGB))),
    Case("a TIFF file with a label in front", see(tiff(LABEL, RGB))),
    Case("a TIFF file of a focus stack", see(tiff(*(np.roll(RGB, n, 0) for n in range(5))))),
    Case(
        "a TIFF file with a page that is called a reduced one",
        see(tiff(RGB, RGB[::2, ::2].copy(), reduced=1), RGB),
    ),
    Case("an animated PNG file", see(animated("PNG"))),
    Case("an animated WebP file", see(animated("WEBP", lossless=True))),
    Case("a camera's JPEG file with two pictures", see(two_pictures())),
    Case("an animated GIF file", see(animated("GIF"))),
    Case("a GIF file", see(encode(Image.fromarray(RGB).quantize(64), "GIF"))),
    Case("a PostScript file (EPS) that is called .png", see(encode(RGB, "EPS"))),
    Case("a PDF file", see(b"%PDF-1.7\n" + bytes(range(256)))),
    Case("a JPEG 2000 file", see(b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(range(256)))),
    Case("a DICOM file", see(bytes(128) + b"DICM" + bytes(range(256)))),
    Case("an SVG file", see(b"<svg xmlns='http://www.w3.org/2000/svg'></svg>")),
    Case("a web page that was saved as .png", see(b"<!DOCTYPE html><html>Not found</html>")),
    Case(
        "a stand-in of Git LFS",
        see(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    ),
    Case("a text file", see(b"this is no image\n")),
    Case("an empty file", see(b"")),
    Case("a file of zeros", see(bytes(5000))),
    Case("a PNG file that is cut short", see(cut(PNG, 0.5))),
    Case("a JPEG file that is cut short", see(cut(JPEG, 0.5))),
    Case(
        "a JPEG file that is cut short and closed again",
        in_folder("one colour", replaced(cut(JPEG, 0.5) + b"\xff\xd9"), size=LARGE),
    ),
    Case("a TIFF file that is cut short", see(cut(encode(RGB, "TIFF"), 0.5))),
    Case("a BMP file that is cut short", see(cut(encode(RGB, "BMP"), 0.5))),
    Case("a WebP file that is cut short", see(cut(WEBP, 0.5))),
    Case("a PNG file whose end was replaced by zeros", see(zeros(encode(RGB), 0.5))),
    Case("a PNG file with a flipped bit", see(flipped(PNG))),
    Case("a JPEG file whose end was replaced by zeros", see(zeros(JPEG, 0.5))),
    Case("a JPEG file with zeros within", see(zeros(JPEG, 0.4, 0.5))),
    Case("a WebP file whose end was replaced by zeros", see(zeros(WEBP, 0.5))),
    Case(
        "a TIFF file with LZW and zeros within",
        see(zeros(encode(tissue(LARGE), "TIFF", compression="tiff_lzw"), 0.4, 0.6)),
    ),
    Case("a PNG file that claims 30000 x 30000 pixels", see(huge())),
    Case(
        "a PNG file with 1.2 MB of text",
        see(with_chunk(encode(RGB), b"tEXt", b"Comment\0" + b"x" * 1_200_000), RGB),
    ),
    Case(
        "a PNG file with 1.2 MB of compressed text",
        see(
            with_chunk(encode(RGB), b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 1_200_000)),
            RGB,
        ),
    ),
    Case(
        "a PNG file with a colour profile of 1.2 MB",
        see(
            with_chunk(encode(RGB), b"iCCP", b"scanner\0\0" + zlib.compress(bytes(1_200_000))), RGB
        ),
    ),
    Case(
        "images with a colour profile other than sRGB",
        in_folder("colour profile", all_replaced(lambda n: {"icc_profile": b"none"})),
    ),
    Case("an image whose lower rows are black", in_folder("one colour", black_tail)),
    Case("masks that lie among the images", in_folder("two to four colours", masks)),
    Case("images of one colour", in_folder("are blank", blank)),
    Case("images of several sizes", in_folder("sizes", sizes)),
    Case(
        "a data set with an image that cannot be read",
        in_folder(
            "cannot be read", lambda folder: (folder / "other/00.png").write_bytes(cut(PNG, 0.5))
        ),
    ),
    Case("an image that vanishes while it is used", vanished),
    Case("an array of floats", see(RGB / 255)),
    Case("an array of grey values", see(GREY)),
    Case("an array of RGBA", see(np.concatenate([RGB, RGB[..., :1]], axis=-1))),
    Case("an array without pixels", see(RGB[:0])),
    Case("an image of Pillow with floats", see(Image.new("F", (8, 8)))),
    Case("an image of Pillow without pixels", see(Image.new("RGB", (0, 8)))),
]
