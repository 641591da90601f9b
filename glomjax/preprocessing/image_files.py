"""Which image files are read: of five formats, whole, and with one picture in them.

Decoders fill in what a damaged file lacks and give the first of several pages, and Pillow tries
some forty formats on a file whatever its name says, one of which starts another program. So what is
decided here is read from the bytes, before a decoder sees them.
"""

import collections
import dataclasses
import io
import struct
import zlib
from collections.abc import Mapping

from PIL import Image, ImageFile, PngImagePlugin

from glomjax.errors import UserError, first_few
from glomjax.preprocessing import jpeg, tiff

READ = "PNG, JPEG, TIFF, BMP or WebP"
_OTHERS = (  # (where, first bytes, what that is)
    (0, b"GIF8", "a GIF file"),
    (0, b"%!PS", "a PostScript file (EPS)"),
    (0, b"\xc5\xd0\xd3\xc6", "a PostScript file (EPS)"),
    (0, b"%PDF", "a PDF file"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 file"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 file"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL file"),
    (0, b"\xff\x0a", "a JPEG XL file"),
    (0, b"II\xbc\x01", "a JPEG XR file"),
    (4, b"ftypavif", "an AVIF file"),
    (4, b"ftyp", "a HEIC or video file"),
    (128, b"DICM", "a DICOM file"),
    (0, b"SIMPLE  =", "a FITS file"),
    (0, b"8BPS", "a Photoshop file (PSD)"),
    (0, b"\0\0\1\0", "an icon (ICO)"),
    (0, b"ZISRAWFILE", "a CZI file"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"PK\3\4", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"version https://git-lfs", "a stand-in that 'git lfs pull' replaces"),
    (0, b"<svg", "an SVG file"),
    (0, b"<?xml", "an XML or SVG file"),
    (0, b"<!DOCTYPE", "a web page"),
    (0, b"<html", "a web page"),
)
# Compressed data has no long runs of zeros but for flat images: in Deflate two bits stand for 258
# bytes at most, and in WebP, measured on white images, 40 blocks give a zero.
_ZEROS = 64
_DEFLATED = 4 * 258
# Texts of a PNG file that may hold its orientation; no other text decides on pixels.
_ORIENTED = (b"XML:com.adobe.xmp", b"Raw profile type exif", b"Raw profile type APP1")
_LARGEST_PROFILE = 2**24  # bytes; what unpacks to more is no colour profile


@dataclasses.dataclass(frozen=True)
class StoredImage:
    """A file with one picture.

    Attributes:
      kind: its format, as Pillow calls it.
      encoded: its bytes, without what could keep Pillow from reading it.
      bits: of a sample as stored.
      frames: the pages of the picture: one, or three that are its red, green and blue channel.
      page: of a TIFF file, the first of these pages.
      profile: the colour profile of a PNG file, None where there is none.
    """

    kind: str
    encoded: bytes
    bits: int = 8
    frames: tuple[int, ...] = (0,)
    page: tiff.Page | None = None
    profile: bytes | None = None

    def open(self, frame: int = 0) -> ImageFile.ImageFile:
        """A page as Pillow opens it."""
        image = Image.open(io.BytesIO(self.encoded), formats=[self.kind])
        if frame:
            image.seek(frame)
        if self.profile is not None:
            image.info["icc_profile"] = self.profile
        return image


class _Damage(Exception):
    """What is wrong with a file, as a clause."""


def read_file(encoded: bytes, name: str) -> StoredImage:
    """Looks at the bytes of a file.

    A PNG file has the checksums of its chunks; of the other formats, zeros within compressed pixels
    are found. Pages that a TIFF file calls reduced versions of another one, and the thumbnails of a
    camera's JPEG file, do not count. Three grey pages of a TIFF file are one RGB image where its
    OME-XML says that their channels are red, green and blue.

    Raises:
      UserError: the file is of another format, is damaged, or has several pages.
    """
    try:
        if encoded.startswith(b"\x89PNG\r\n\x1a\n"):
            return _png(encoded, name)
        if encoded.startswith(b"\xff\xd8\xff"):
            return _jpeg(encoded, name)
        if encoded.startswith(tiff.MAGIC):
            return _tiff(encoded, name)
        if encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
            return _webp(encoded, name)
        if encoded.startswith(b"BM"):
            return StoredImage("BMP", encoded)
        if not encoded.strip(b"\0"):
            raise _Damage("it holds zeros alone")
    except _Damage as damage:
        raise cannot_decode(name, damage) from damage
    except (struct.error, ValueError, IndexError) as error:
        raise cannot_decode(name, "a header of it is damaged") from error
    text = encoded[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    for at, start, what in _OTHERS:
        if encoded.startswith(start, at) or (start[:1] == b"<" and text.startswith(start)):
            raise UserError(
                f"Image '{name}' is {what}, which is not read: save it as {READ}, or remove it."
            )
    raise cannot_decode(name, "no known image format")


def cannot_decode(name: str, reason: object) -> UserError:
    """The sentence on a file that is damaged or no image."""
    return UserError(f"Image '{name}' cannot be decoded ({reason}): replace the file or remove it.")


def _several(name: str, sizes: Mapping[tuple[int, int], int], what: str = "pages") -> UserError:
    """The sentence on a file of several pictures: {(height, width): how many}."""
    listed = first_few(
        f"{h} x {w}" if n == 1 else f"{n} of {h} x {w}" for (h, w), n in sizes.items()
    )
    return UserError(
        f"Image '{name}' has {sum(sizes.values())} {what} ({listed}), and one picture is read of a "
        "file: save the one that is meant, or channels together as RGB, as a file of its own."
    )


def _check_zeros(encoded: bytes, begin: int, end: int, length: int) -> None:
    if (at := encoded.find(bytes(length), begin, end)) >= 0:
        raise _Damage(f"from byte {at} on, {length} bytes or more of its pixels are zeros")


def _png(encoded: bytes, name: str) -> StoredImage:
    sizes: list[tuple[int, int]] = []
    profile, animated = None, False
    height = width = bits = 0
    view = memoryview(encoded)
    kept, at = [view[:8]], 8
    while kept[-1][4:8] != b"IEND":
        if at + 12 > len(encoded):
            raise _Damage("it ends before its chunk IEND")
        length, kind = struct.unpack_from(">I4s", encoded, at)
        chunk, at = view[at : at + 12 + length], at + 12 + length
        if at > len(encoded):
            raise _Damage("it ends within a chunk")
        body = chunk[8:-4]
        if kind[:1].isupper() or not kind.isalpha() or kind in (b"tRNS", b"eXIf"):
            if chunk[-4:] != zlib.crc32(chunk[4:-4]).to_bytes(4):
                raise _Damage(f"the checksum of its chunk at byte {at - 12 - length} is wrong")
        elif kind not in (b"tEXt", b"zTXt", b"iTXt") or not _may_turn(kind, bytes(body)):
            if kind == b"iCCP":
                profile = _unpacked(bytes(body).partition(b"\0")[2][1:], _LARGEST_PROFILE)
            elif kind == b"fcTL":
                sizes.append(struct.unpack_from(">II", body, 4)[::-1])
            animated |= kind == b"acTL"
            continue
        if kind == b"IHDR":
            width, height, bits = struct.unpack_from(">IIB", body)
        if kind == b"IDAT" and not sizes:  # of a picture that is not one of the animation
            sizes.append((height, width))
        kept.append(chunk)
    if animated and len(sizes) > 1:
        raise _several(name, collections.Counter(sizes), "frames")
    if sum(map(len, kept)) < at:
        encoded = b"".join(kept)
    return StoredImage("PNG", encoded, bits, profile=profile)


def _unpacked(packed: bytes, most: int) -> bytes:
    """Of data that zlib has packed; b"" where it is damaged, or more than `most` bytes."""
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(packed, most)
    except zlib.error:
        return b""
    return b"" if unpacker.unconsumed_tail else unpacked


def _may_turn(kind: bytes, body: bytes) -> bool:
    """Whether a text may give the orientation and is no larger than Pillow reads."""
    keyword, _, rest = body.partition(b"\0")
    if keyword not in _ORIENTED:
        return False
    if kind == b"zTXt":
        return bool(_unpacked(rest[1:], PngImagePlugin.MAX_TEXT_CHUNK))
    if kind == b"iTXt" and rest[:1] == b"\1":
        packed = rest[2:].split(b"\0", 2)[-1]  # behind the language and the translated keyword
        return bool(_unpacked(packed, PngImagePlugin.MAX_TEXT_CHUNK))
    return len(rest) <= PngImagePlugin.MAX_TEXT_CHUNK


def _jpeg(encoded: bytes, name: str) -> StoredImage:
    file = StoredImage("JPEG", encoded)
    scan = jpeg.first_scan(encoded)
    if scan is None:
        return file
    # Behind the mark there may be anything; it is looked for where that matters.
    if not encoded.endswith(jpeg.END) or encoded.find(bytes(scan.zeros), scan.begin) >= 0:
        end = encoded.find(jpeg.END, scan.begin)
        if end < 0:
            raise _Damage("it ends before its mark EOI")
        _check_zeros(encoded, scan.begin, end, scan.zeros)
    if scan.has_index:
        _check_frames(file, name)
    return file


def _check_frames(file: StoredImage, name: str) -> None:
    """Refuses further pictures of a JPEG file that are not called thumbnails of the first. Pillow
    itself leaves out what only brightens the first on some screens."""
    try:
        image = file.open()
    except Exception:  # decoding it tells why
        return
    sizes = [image.size[::-1]]
    for number, entry in enumerate(getattr(image, "mpinfo", {}).get(0xB002, [])):
        kind = entry["Attribute"]["MPType"]
        if number and not str(kind).startswith("Large Thumbnail"):
            try:
                image.seek(number)
            except Exception:  # it is not there
                continue
            sizes.append(image.size[::-1])
    if len(sizes) > 1:
        raise _several(name, collections.Counter(sizes), "frames")


def _webp(encoded: bytes, name: str) -> StoredImage:
    sizes, at = [], 12
    while at + 8 <= len(encoded):
        kind, length = struct.unpack_from("<4sI", encoded, at)
        at += 8
        if kind == b"ANMF":
            width, height = (int.from_bytes(encoded[at + n : at + n + 3], "little") for n in (6, 9))
            sizes.append((height + 1, width + 1))
            length = 16  # what follows its header are chunks again
        elif kind in (b"VP8 ", b"VP8L"):
            _check_zeros(encoded, at, at + length, _ZEROS + _webp_blocks(encoded, at, kind) // 16)
        at += length + length % 2
    if len(sizes) > 1:
        raise _several(name, collections.Counter(sizes), "frames")
    return StoredImage("WEBP", encoded)


def _webp_blocks(encoded: bytes, at: int, kind: bytes) -> int:
    """Of 16 x 16 pixels, from the header of the pixels (RFC 6386 and RFC 9649)."""
    if kind == b"VP8 ":
        width, height = (n & 0x3FFF for n in struct.unpack_from("<HH", encoded, at + 6))
    else:
        (packed,) = struct.unpack_from("<I", encoded, at + 1)
        width, height = (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    return -(-width // 16) * -(-height // 16)


def _tiff(encoded: bytes, name: str) -> StoredImage:
    pages = tiff.read_pages(encoded)
    whole = [number for number, page in enumerate(pages) if not page.is_reduced]
    frames = tuple(whole or range(len(pages)))
    if not frames or any(0 in page.size for page in pages):
        raise _Damage("a page of it has no size")
    page = pages[frames[0]]
    if len(frames) > 1 and not tiff.is_rgb_in_pages([pages[number] for number in frames]):
        raise _several(name, collections.Counter(page.size for page in pages))
    if images := page.images_in_description:
        raise _several(name, {page.size: images})
    for number in frames:
        _check_strips(pages[number])
    return StoredImage("TIFF", encoded, page.bits, frames, page)


def _check_strips(page: tiff.Page) -> None:
    compression = page.number(tiff.COMPRESSION, 1)
    if compression in (1, 2, 3, 4):  # none, and those of faxes
        return
    height, width = page.size
    zeros = _ZEROS + height * width * page.bits * page.number(tiff.SAMPLES, 1) // 8 // _DEFLATED
    tables = jpeg.huffman_tables(page.data(tiff.JPEG_TABLES))
    for begin, end in page.strips():
        if compression == 7:
            scan = jpeg.first_scan(page.encoded[begin:end], tables)
            if scan is None:
                continue
            begin, zeros = begin + scan.begin, scan.zeros
        _check_zeros(page.encoded, begin, end, zeros)
