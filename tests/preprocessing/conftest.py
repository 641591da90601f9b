"""Files that Pillow does not write."""

import io
import itertools
import struct
import zlib
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pytest


@pytest.fixture(scope="session")
def write_tiff():
    """`write_tiff(page, ..., order="<")` gives a TIFF file. A page is {tag: number, numbers or
    bytes}, with its pixels [h, w] or [h, w, C], as an array or encoded, under "pixels"."""
    return _write_tiff


@pytest.fixture(scope="session")
def write_png():
    """`write_png(samples, {kind: body})` gives a PNG file of uint16 [h, w, C], filtered in several
    ways, with further chunks before its pixels."""
    return _write_png


def _write_tiff(*pages: dict, order: str = "<") -> bytes:
    file = io.BytesIO()
    file.write((b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 0))
    pointer = 4  # where the offset of the next page goes
    for page in pages:
        tags = dict(page)
        pixels = np.asarray(tags.pop("pixels"))
        encoded = tags.pop("encoded", None)
        if encoded is None:
            encoded = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
        height, width, samples = (*pixels.shape, 1)[:3]
        tags = {
            256: width,
            257: height,
            258: (8 * pixels.itemsize,) * samples,
            259: 1,
            262: 1 if samples == 1 else 2,
            273: _put(file, encoded),
            277: samples,
            278: height,
            279: len(encoded),
        } | tags
        entries = []
        for tag, value in sorted(tags.items()):
            if isinstance(value, bytes):
                kind, count, data = 2, len(value), value
            else:
                numbers = value if isinstance(value, tuple) else (value,)
                kind, count = 4, len(numbers)
                if tag not in (273, 279):
                    kind = 3
                data = struct.pack(f"{order}{count}{'HI'[kind - 3]}", *numbers)
            if len(data) > 4:
                data = struct.pack(order + "I", _put(file, data))
            entries.append(struct.pack(order + "HHI", tag, kind, count) + data.ljust(4, b"\0"))
        directory = struct.pack(order + "H", len(entries)) + b"".join(entries)
        at = _put(file, directory + bytes(4))
        file.seek(pointer)
        file.write(struct.pack(order + "I", at))
        pointer = at + len(directory)
    return file.getvalue()


def _put(file: io.BytesIO, data: bytes) -> int:
    at = file.seek(0, io.SEEK_END)
    if at % 2:
        at += file.write(b"\0")
    file.write(data)
    return at


def _write_png(samples: np.ndarray, more: Mapping[bytes, bytes] = MappingProxyType({})) -> bytes:
    height, width, channels = samples.shape
    colour = {1: 0, 3: 2, 2: 4, 4: 6}[channels]
    step = 2 * channels
    rows = samples.astype(">u2").reshape(height, -1).view(np.uint8).astype(int)
    before = np.pad(rows, ((1, 0), (step, 0)))  # the row above and the pixel on the left
    lines = []
    for row, kind in zip(range(height), itertools.cycle((0, 1, 2, 4))):
        left, above, corner = before[row + 1, :-step], before[row, step:], before[row, :-step]
        closest = np.abs(np.stack([above - corner, left - corner, left + above - 2 * corner]))
        paeth = np.choose(closest.argmin(axis=0), [left, above, corner])
        predicted = {0: 0, 1: left, 2: above, 4: paeth}[kind]
        lines.append(bytes([kind]) + ((rows[row] - predicted) % 256).astype(np.uint8).tobytes())
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    chunks = {b"IHDR": header, **more, b"IDAT": zlib.compress(b"".join(lines)), b"IEND": b""}
    file = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks.items():
        file += struct.pack(">I", len(body)) + name + body
        file += struct.pack(">I", zlib.crc32(name + body))
    return file
