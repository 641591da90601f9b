"""The pages of a TIFF file and what its tags say of them; no pixel is decoded here."""

import dataclasses
import math
import re
import struct
import xml.etree.ElementTree
from collections.abc import Mapping

SUBFILE_TYPE, OLD_SUBFILE_TYPE, WIDTH, HEIGHT, BITS = 254, 255, 256, 257, 258
COMPRESSION, PHOTOMETRIC = 259, 262
DESCRIPTION, STRIPS, SAMPLES, STRIP_BYTES, PLANAR = 270, 273, 277, 279, 284
TILES, TILE_BYTES, JPEG_TABLES = 324, 325, 347
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # TIFF 6.0 and BigTIFF, in both byte orders

_NUMBERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}  # types of whole numbers
_COLOURS = {"red": 0xFF0000, "green": 0x00FF00, "blue": 0x0000FF}


@dataclasses.dataclass(frozen=True)
class Page:
    """One page of a file.

    Attributes:
      encoded: the file.
      order: of its bytes, as `struct` writes it.
      entries: {tag: (type, how many values, where the values lie)}.
    """

    encoded: bytes
    order: str
    entries: Mapping[int, tuple[int, int, int]]

    def numbers(self, tag: int) -> tuple[int, ...]:
        """The whole numbers of a tag, () where it is not there."""
        kind, count, at = self.entries.get(tag, (0, 0, 0))
        if kind not in _NUMBERS:
            return ()
        return struct.unpack_from(f"{self.order}{count}{_NUMBERS[kind]}", self.encoded, at)

    def number(self, tag: int, otherwise: int) -> int:
        """The first number of a tag."""
        return next(iter(self.numbers(tag)), otherwise)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)"""
        return self.number(HEIGHT, 0), self.number(WIDTH, 0)

    @property
    def bits(self) -> int:
        """Of a sample, the most of all samples."""
        return max(self.numbers(BITS), default=1)

    @property
    def is_reduced(self) -> bool:
        """Whether the file says that this page is another one at a lower resolution."""
        return bool(self.number(SUBFILE_TYPE, 0) & 1) or self.number(OLD_SUBFILE_TYPE, 1) == 2

    def data(self, tag: int) -> bytes:
        """The bytes of a tag, b"" where it is not there."""
        _, count, at = self.entries.get(tag, (0, 0, 0))
        return self.encoded[at : at + count]

    @property
    def images_in_description(self) -> int:
        """How many images lie one behind another from here on, where ImageJ or tifffile says so and
        has written no page for the others; else 0."""
        text = self.data(DESCRIPTION)
        images = 0
        if found := re.match(rb"ImageJ=[^\0]*?^images=(\d{1,9})", text, re.MULTILINE):
            images = int(found[1])
        elif found := re.match(rb'\{"shape": \[([\d, ]+)\].*"truncated": true', text):
            pixels = math.prod(self.size) * self.number(SAMPLES, 1)
            images = math.prod(map(int, found[1].split(b","))) // max(pixels, 1)
        return images if images > 1 else 0

    def strips(self) -> list[tuple[int, int]]:
        """(begin, end) of the encoded pixels, in parts."""
        begin = self.numbers(STRIPS) or self.numbers(TILES)
        length = self.numbers(STRIP_BYTES) or self.numbers(TILE_BYTES)
        return [(b, b + n) for b, n in zip(begin, length, strict=False)]

    def with_black_as_zero(self) -> bytes:
        """The file with 1, black is zero, in place of this page's photometric interpretation."""
        _, _, at = self.entries[PHOTOMETRIC]
        one = struct.pack(self.order + "H", 1)
        return self.encoded[:at] + one + self.encoded[at + 2 :]


def read_pages(encoded: bytes) -> list[Page]:
    """All pages, in the order of the file.

    Raises:
      struct.error: something that the file refers to lies outside of it.
    """
    order = ">" if encoded[:2] == b"MM" else "<"
    big = struct.unpack_from(order + "H", encoded, 2) == (43,)
    first, number, pointer = (8, "Q", "Q") if big else (4, "H", "I")
    room = struct.calcsize(pointer)  # for values beside their tag; others lie elsewhere
    pages, seen = [], set[int]()
    (offset,) = struct.unpack_from(order + pointer, encoded, first)
    while offset and offset not in seen:
        seen.add(offset)
        (count,) = struct.unpack_from(order + number, encoded, offset)
        at = offset + struct.calcsize(number)
        entries = {}
        for _ in range(count):
            tag, kind, values = struct.unpack_from(f"{order}HH{pointer}", encoded, at)
            where = at + 4 + room
            if struct.calcsize(_NUMBERS.get(kind, "c")) * values > room:
                (where,) = struct.unpack_from(order + pointer, encoded, where)
            entries[tag] = kind, values, where
            at += 4 + 2 * room
        pages.append(Page(encoded, order, entries))
        if at + room > len(encoded):  # some writers leave the pointer of the last page out
            break
        (offset,) = struct.unpack_from(order + pointer, encoded, at)
    return pages


def is_rgb_in_pages(pages: list[Page]) -> bool:
    """Whether these are three grey pages of one kind of which the OME-XML says that they are the
    red, green and blue channel of one plane, in this order, by their names or their colours."""
    kinds = {(page.size, page.bits, page.number(SAMPLES, 1)) for page in pages}
    text = pages[0].data(DESCRIPTION).rstrip(b"\0")
    # What defines entities is no OME-XML, and could be made to fill all memory.
    if len(pages) != 3 or len(kinds) > 1 or b"<!" in text.replace(b"<!--", b""):
        return False
    if pages[0].bits not in (8, 16) or pages[0].number(SAMPLES, 1) != 1:
        return False
    try:
        root = xml.etree.ElementTree.fromstring(text)
    except (xml.etree.ElementTree.ParseError, ValueError, LookupError):
        return False
    planes = [e for e in root.iter() if _name(e.tag) == "Pixels"]
    if _name(root.tag) != "OME" or len(planes) != 1:
        return False
    if [planes[0].get(f"Size{axis}") for axis in "CZT"] != ["3", "1", "1"]:
        return False
    data = [e for e in planes[0] if _name(e.tag) == "TiffData"]
    if any(e.get("FirstC", "0") != e.get("IFD", "0") for e in data):
        return False
    channels = [e for e in planes[0] if _name(e.tag) == "Channel"]
    return len(channels) == 3 and all(
        _is_colour(channel, colour) for channel, colour in zip(channels, _COLOURS, strict=True)
    )


def _is_colour(channel: xml.etree.ElementTree.Element, colour: str) -> bool:
    name = (channel.get("Name") or "").strip().lower()
    if name:
        return name in (colour, colour[0])
    try:
        rgba = int(channel.get("Color", ""))  # signed, of 32 bits
    except ValueError:
        return False
    return (rgba & 0xFFFFFFFF) >> 8 == _COLOURS[colour]


def _name(tag: str) -> str:
    """Without its name space."""
    return tag.rpartition("}")[2]
