"""Image files that Pillow does not write: of more than 8 bits, of several pages, damaged."""

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

_TIFF_TYPES = {"B": 1, "s": 2, "H": 3, "I": 4}


def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """A file as Pillow writes it."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png(values: np.ndarray) -> bytes:
    """A PNG file of uint16 [h, w, 3]."""
    height, width, _ = values.shape
    lines = values.astype(">u2").reshape(height, -1)
    pixels = b"".join(b"\0" + line.tobytes() for line in lines)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in chunks)


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG file, with its checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunk(encoded: bytes, kind: bytes, body: bytes) -> bytes:
    """A PNG file with one more chunk, before its pixels."""
    at = 8 + 25
    return encoded[:at] + chunk(kind, body) + encoded[at:]


def tiff(
    *pages: np.ndarray, photometric: int | None = None, description: str = "", reduced: int = -1
) -> bytes:
    """A TIFF file without compression.

    Args:
      pages: [h, w] or [h, w, 3] of unsigned or signed integers or floats.
      photometric: 0 where zero is white; by default what the shape of a page says.
      description: of the first page.
      reduced: the page that the file calls a reduced version of another.
    """
    file = bytearray(b"II*\0" + bytes(4))
    link = 4
    for number, page in enumerate(pages):
        samples = 3 if page.ndim == 3 else 1
        kind = {"u": 1, "i": 2, "f": 3}[page.dtype.kind]
        tags: dict[int, tuple[str, Sequence[int] | bytes]] = {
            254: ("I", [int(number == reduced)]),
            256: ("I", [page.shape[1]]),
            257: ("I", [page.shape[0]]),
            258: ("H", [8 * page.itemsize] * samples),
            259: ("H", [1]),
            262: ("H", [{1: 1, 3: 2}[samples] if photometric is None else photometric]),
            273: ("I", [_add(file, page.astype(page.dtype.newbyteorder("<")).tobytes())]),
            277: ("H", [samples]),
            278: ("I", [page.shape[0]]),
            279: ("I", [page.nbytes]),
            339: ("H", [kind] * samples),
        }
        if description and not number:
            tags[270] = ("s", description.encode() + b"\0")
        entries = b"".join(_entry(file, tag, *tags[tag]) for tag in sorted(tags))
        directory = _add(file, struct.pack("<H", len(tags)) + entries + bytes(4))
        struct.pack_into("<I", file, link, directory)
        link = len(file) - 4
    return bytes(file)


def _entry(file: bytearray, tag: int, kind: str, values: Sequence[int] | bytes) -> bytes:
    packed = bytes(values) if kind == "s" else struct.pack(f"<{len(values)}{kind}", *values)
    if len(packed) > 4:
        packed = struct.pack("<I", _add(file, packed))
    return struct.pack("<HHI", tag, _TIFF_TYPES[kind], len(values)) + packed.ljust(4, b"\0")


def _add(file: bytearray, content: bytes) -> int:
    """Where the content begins that is added."""
    file += bytes(len(file) % 2)
    at = len(file)
    file += content
    return at


def zeros(encoded: bytes, begin: float, end: float = 1.0) -> bytes:
    """The file with a part of it replaced by zeros, as shares of its length."""
    first, last = round(begin * len(encoded)), round(end * len(encoded))
    return encoded[:first] + bytes(last - first) + encoded[last:]
