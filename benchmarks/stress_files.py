"""Damaged tables and images for `stress.py`, and what damages a file whatever it holds."""

import functools
import io
import pathlib
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from glomjax.data.sources import load_source
from glomjax.preprocessing.decoding import open_image

# What it is called, and what is done.
Case = tuple[str, Callable[[], Any]]


def drawn(
    fixed: list[Case], draw: Callable[[random.Random], Case], count: int, seed: int
) -> list[Case]:
    """`count` cases: a part of the fixed ones, or all and so many drawn ones; 0 takes the fixed."""
    generator = random.Random(seed)
    if count and count < len(fixed):
        return generator.sample(fixed, count)
    return fixed + [draw(generator) for _ in range(count - len(fixed))]


def write_patches(folder: pathlib.Path, count: int = 48) -> None:
    """A small set of labelled patches with patients."""
    rows = ["path,label,patient,site"]
    for i in range(count):
        label = ("glomerulus", "other")[i % 2]
        (folder / label).mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(folder / label / f"{i}.png")
        rows.append(f"{label}/{i}.png,{label},P{i // 4},S{i // 12}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")


Damage = Callable[[bytes, random.Random], bytes]


def flip(content: bytes, generator: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(generator.randint(1, 8)):
        if changed:
            changed[generator.randrange(len(changed))] = generator.randrange(256)
    return bytes(changed)


def bits(content: bytes, generator: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(generator.choice((1, 1, 3, 20))):
        if changed:
            changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
    return bytes(changed)


def cut(content: bytes, generator: random.Random) -> bytes:
    return content[: generator.randint(0, len(content))]


def block(content: bytes, generator: random.Random) -> bytes:
    """A stretch of one value, as a torn write or a hole leaves it."""
    begin = generator.randint(0, len(content))
    size = min(generator.choice((4, 64, 512, 4096)), len(content) - begin)
    return content[:begin] + generator.choice((b"\0", b"\xff")) * size + content[begin + size :]


def insert(*pieces: bytes) -> Damage:
    def damage(content: bytes, generator: random.Random) -> bytes:
        place = generator.randint(0, len(content))
        return content[:place] + generator.choice(pieces) + content[place:]

    return damage


# --- tables


def table_cases(folder: pathlib.Path, count: int, seed: int) -> list[Case]:
    """A good manifest, damaged once to three times."""
    write_patches(folder)
    good = (folder / "manifest.csv").read_bytes()
    load_source(folder)

    def draw(generator: random.Random) -> Case:
        content, names = good, []
        for _ in range(generator.randint(1, 3)):
            name = generator.choice(list(_TABLE_DAMAGES))
            content = _TABLE_DAMAGES[name](content, generator)
            names.append(name)
        table = functools.partial(_list_table, folder / "manifest.csv", content)
        return f"tables: {', '.join(names)} ({zlib.crc32(content):08x})", table

    return drawn([], draw, count or 2000, seed)


def _list_table(file: pathlib.Path, content: bytes) -> None:
    file.write_bytes(content)
    load_source(file)


def _recode(content: bytes, generator: random.Random) -> bytes:
    text = content.decode("utf-8", "replace").replace("P1", generator.choice(("P1", "Ä1", "肾1")))
    names = ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252", "shift_jis", "cp037"]
    return text.encode(generator.choice(names), "replace")


def _replace(old: bytes, *news: bytes) -> Damage:
    return lambda content, generator: content.replace(old, generator.choice(news))


def _cells(content: bytes, generator: random.Random) -> bytes:
    """Some cells are other ones: empty, a word for a missing value, a number, or very long."""
    words = (b"", b"nan", b"NA", b"-", b"1e999", b"../..", b"/etc/passwd", b"a\0b", b"x" * 200_000)
    lines = [line.split(b",") for line in content.split(b"\n")]
    for _ in range(generator.choice((1, 3, 20))):
        line = generator.choice(lines)
        line[generator.randrange(len(line))] = generator.choice(words)
    return b"\n".join(b",".join(line) for line in lines)


def _columns(content: bytes, generator: random.Random) -> bytes:
    """A column twice, gone, or more under a name that says something."""
    lines = [line.split(b",") for line in content.split(b"\n")]
    width = len(lines[0])
    which = generator.randrange(width)
    name = generator.choice((b"patient", b"split", b"mpp", b"weight", b"", b"Label", b"path "))
    what = generator.choice(("twice", "gone", "more"))
    cell = generator.choice((b"train", b"0.5", b"nan", b"1", b"-1", b"x"))
    for number, line in enumerate(lines):
        if len(line) != width:
            continue
        if what == "twice":
            line.append(line[which])
        elif what == "gone":
            del line[which]
        else:
            line.append(cell if number else name)
    return b"\n".join(b",".join(line) for line in lines)


def _lines(content: bytes, generator: random.Random) -> bytes:
    """Lines twice, gone, blank, or in another order."""
    lines = content.split(b"\n")
    for _ in range(min(generator.randint(1, 5), len(lines))):
        place = generator.randrange(len(lines))
        lines[place : place + generator.choice((0, 1))] = generator.choice(
            ([], [b""], [b",,,"], [generator.choice(lines)], [b"#" + lines[place]], [b"sep=;"])
        )
    if generator.random() < 0.3:
        generator.shuffle(lines)
    return b"\n".join(lines)


_TABLE_DAMAGES: dict[str, Damage] = {
    "bytes": flip,
    "cut": cut,
    "NUL": insert(b"\0", b"\0" * 1000),
    "quote": insert(b'"', b"'", b'""', b'"\n"', b'\\"'),
    "controls": insert(b"\r", b"\x1a", b"\x1b[2J", b"\xef\xbb\xbf", b"\xe2\x80\xae", b"\x85"),
    "encoding": _recode,
    "separator": _replace(b",", b";", b"\t", b"|", b" ", b",,", b""),
    "line end": _replace(b"\n", b"\r\n", b"\r", b"\n\n", b"\n\r", b"\x0b", b"\x85"),
    "cells": _cells,
    "columns": _columns,
    "lines": _lines,
}

# --- images


def image_cases(folder: pathlib.Path, count: int, seed: int) -> list[Case]:
    """Good files of each format, and of two that are refused as they are, damaged once or twice."""
    good = _good_images()
    for kind in good.keys() - {"TIFF pages", "GIF"}:
        open_image(good[kind], name="good")

    def draw(generator: random.Random) -> Case:
        kind = generator.choice(list(good))
        content, names = good[kind], []
        for _ in range(generator.randint(1, 2)):
            name = generator.choice(list(_IMAGE_DAMAGES))
            content = _IMAGE_DAMAGES[name](content, generator)
            names.append(name)
        case = functools.partial(open_image, content, name="patch")
        return f"{kind}: {', '.join(names)} ({zlib.crc32(content):08x})", case

    return drawn([], draw, count or 10_000, seed)


def _good_images() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (48, 40, 3), np.uint8))
    grey = Image.fromarray(rng.integers(0, 2**16, (48, 40), np.uint16))
    ways: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "PNG": (rgb, {"format": "PNG"}),
        "PNG palette": (rgb.convert("P"), {"format": "PNG"}),
        "PNG alpha": (rgb.convert("RGBA"), {"format": "PNG"}),
        "PNG 16 bits": (grey, {"format": "PNG"}),
        "JPEG": (rgb, {"format": "JPEG"}),
        "JPEG CMYK": (rgb.convert("CMYK"), {"format": "JPEG", "progressive": True}),
        "TIFF": (rgb, {"format": "TIFF"}),
        "TIFF LZW": (rgb, {"format": "TIFF", "compression": "tiff_lzw"}),
        "TIFF JPEG": (rgb, {"format": "TIFF", "compression": "jpeg"}),
        "TIFF pages": (rgb, {"format": "TIFF", "save_all": True, "append_images": [rgb]}),
        "WebP": (rgb, {"format": "WEBP", "lossless": True}),
        "BMP": (rgb, {"format": "BMP"}),
        "GIF": (rgb, {"format": "GIF", "save_all": True, "append_images": [rgb.rotate(90)]}),
    }
    files = {}
    for kind, (image, options) in ways.items():
        file = io.BytesIO()
        image.save(file, **options)
        files[kind] = file.getvalue()
    return files


def _huge(content: bytes, generator: random.Random) -> bytes:
    """A header that says that the image is huge, with a checksum that is right where it has one."""
    width, height = (generator.choice((0, 1, 2**14, 2**16 - 1, 2**20, 2**31 - 1)) for _ in "wh")
    changed = bytearray(content)
    if content.startswith(b"\x89PNG") and len(content) > 33:
        changed[16:24] = struct.pack(">II", width, height)
        changed[29:33] = struct.pack(">I", zlib.crc32(changed[12:29]))
    elif content.startswith(b"BM") and len(content) > 26:
        changed[18:26] = struct.pack("<ii", width, height)
    elif (place := content.find(b"\xff\xc0")) > 0 and place + 9 < len(content):
        changed[place + 5 : place + 9] = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
    elif content[:2] == b"II":
        for tag, size in ((256, width), (257, height)):
            place = content.find(struct.pack("<H", tag), 8)
            if 0 < place < len(content) - 12:
                changed[place + 2 : place + 12] = struct.pack("<HII", 4, 1, size)
    return bytes(changed)


_IMAGE_DAMAGES: dict[str, Damage] = {
    "cut": cut,
    "block": block,
    "bits": bits,
    "bytes": flip,
    "huge": _huge,
    "more": insert(b"\0" * 64, b"\xff\xd8", b"IHDR", b"%!PS"),
}
