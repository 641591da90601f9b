"""What the headers of a JPEG file say of its compressed pixels (ITU-T T.81)."""

import dataclasses
import struct
from collections.abc import Iterator

END = b"\xff\xd9"  # the mark EOI
_SCAN, _TABLES, _APPLICATION_2 = 0xDA, 0xC4, 0xE2
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = (0xC0, 0xC1)
_ROOM = 16  # bytes, for what lies before and behind a flat image's zeros
_FEW = 64  # bytes; two blocks of which every coefficient is -1 have no more zeros


@dataclasses.dataclass(frozen=True)
class Scan:
    """The first scan.

    Attributes:
      begin: where its compressed pixels begin.
      zeros: so many bytes that are 0 cannot follow one another in any scan of a good file.
      has_index: whether the file has an index of several pictures.
    """

    begin: int
    zeros: int
    has_index: bool


def first_scan(encoded: bytes, tables: bytes = b"") -> Scan | None:
    """Reads a stream up to its first scan; None where it has none, which the decoder will say.

    A code of zeros is the first of its Huffman table. A block takes two codes of one bit at least,
    so that zeros are a flat image's blocks if anything, of which there are as many as it has; in a
    progressive file one bit refines a block. If a table of coefficients has another first symbol
    than the end of the block, zeros are no picture at all.

    Args:
      tables: Huffman tables that stand elsewhere, as the segments DHT have them.
    """
    blocks, components, sequential, has_index = 0, 0, False, False
    for marker, begin, end in _segments(encoded):
        if marker in _FRAMES:
            sequential = marker in _SEQUENTIAL
            height, width, components = struct.unpack_from(">HHB", encoded, begin + 1)
            sampling = [(n >> 4, n & 15) for n in encoded[begin + 7 : end : 3]]
            across, down = (8 * max((*n, 1)) for n in zip(*sampling, strict=True))
            units = -(-width // across) * -(-height // down)
            blocks = units * sum(h * v for h, v in sampling)
        elif marker == _TABLES:
            tables += encoded[begin:end]
        elif marker == _APPLICATION_2:
            has_index |= encoded.startswith(b"MPF\0", begin)
        elif marker == _SCAN:
            zeros = (blocks // 4 if sequential else blocks // 8) + _ROOM
            interleaved = encoded[begin] == components
            if sequential and interleaved and any(_first_symbols(tables)):
                zeros = _FEW
            return Scan(end, zeros, has_index)
    return None


def huffman_tables(encoded: bytes) -> bytes:
    """Of a stream of tables alone, as TIFF has it beside its strips."""
    return b"".join(
        encoded[begin:end] for kind, begin, end in _segments(encoded) if kind == _TABLES
    )


def _segments(encoded: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, begin, end) of the segments up to the first scan, as far as they are well formed."""
    at = 2
    while at + 4 <= len(encoded) and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if marker == 0xFF:  # fills
            at += 1
            continue
        end = at + 2 + int.from_bytes(encoded[at + 2 : at + 4])
        if end > len(encoded):
            return
        yield marker, at + 4, end
        if marker == _SCAN:
            return
        at = end


def _first_symbols(tables: bytes) -> Iterator[int]:
    """The symbol of the code of zeros in each table of coefficients; 0 ends a block."""
    at = 0
    while at + 17 < len(tables):
        if tables[at] >> 4:
            yield tables[at + 17]
        at += 17 + sum(tables[at + 1 : at + 17])
