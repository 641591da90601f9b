"""What damages weight files: their bytes, the header of safetensors, and JSON texts."""

import copy
import json
import random
import re
import struct
from typing import Any

from stress_files import Damage, bits, block, cut, flip, insert


def _swap(content: bytes, generator: random.Random) -> bytes:
    """Two stretches change places, as blocks of a disk or packets of a network do."""
    size = generator.choice((1, 8, 512, 4096))
    if len(content) < 2 * size:
        return content[::-1]
    one, two = sorted(generator.randrange(len(content) - size + 1) for _ in "12")
    two = max(two, one + size)
    if two + size > len(content):
        return content[size:] + content[:size]
    parts = content[:one], content[one : one + size], content[one + size : two]
    return parts[0] + content[two : two + size] + parts[2] + parts[1] + content[two + size :]


def _again(content: bytes, generator: random.Random) -> bytes:
    """A stretch comes twice, or the one behind it is gone."""
    begin, size = generator.randint(0, len(content)), generator.choice((1, 8, 512, 4096))
    if generator.random() < 0.5:
        return content[:begin] + content[begin + size :]
    return content[: begin + size] + content[begin:]


def _number(content: bytes, generator: random.Random) -> bytes:
    """A number of a binary format is another one: huge, none, or the place of something else."""
    width = generator.choice((1, 2, 4, 8))
    if len(content) < width:
        return content
    place = generator.randrange(len(content) - width + 1) // width * width
    numbers = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
    number = generator.choice((*numbers, len(content), generator.randrange(len(content)) // 8 * 8))
    written = (number & (2 ** (8 * width) - 1)).to_bytes(width, "little")
    return content[:place] + written + content[place + width :]


def _structure(content: bytes, generator: random.Random) -> bytes:
    """Bytes close behind one of HDF5's signatures, or among the first, are other ones."""
    signatures = rb"TREE|SNOD|HEAP|GCOL|OHDR|OCHK|FRHP|FHDB|BTHD|BTLF|\x89HDF|PK"
    found = [match.start() for match in re.finditer(signatures, content)] or [0]
    begin = generator.choice(found)
    stretch = content[begin : begin + generator.choice((16, 64, 400))]
    damage = generator.choice((flip, bits, _number))
    return content[:begin] + damage(stretch, generator) + content[begin + len(stretch) :]


_PIECES = (
    b"\0",
    b"\0" * 4096,
    b"\xff" * 8,
    b"{",
    b"\r\n",
    b"\n",
    b"\x89HDF\r\n\x1a\n",
    b"\x7f" * 99,
)

BYTES: dict[str, Damage] = {
    "bytes": flip,
    "bits": bits,
    "cut": cut,
    "block": block,
    "insert": insert(*_PIECES),
    "swap": _swap,
    "again": _again,
    "number": _number,
    "structure": _structure,
}


# --- JSON

# In place of nests that Python writes none of.
_DEEP, _DEEPER = "@deep@", "@deeper@"
_NESTS = {_DEEP: 600, _DEEPER: 100_000}
_NUMBERS = (-1, 0, 1, 2, 3, 1.5, -0.5, 1e308, 1e-320, float("nan"), float("inf"), 2**31, 2**63)
_ABSURD: tuple[Any, ...] = (
    *(*_NUMBERS, -(2**63), 2**64, 10**30, 10**400, 10**4000, None, True, False, "", " ", "none"),
    *(
        "a\nb",
        "\0",
        "\x1b[2J",
        "\u202e",
        "\ud800",
        "x" * 10_000,
        "davit_tiny",
        "msft",
        _DEEP,
        _DEEPER,
        {},
    ),
    *([], [[]], [None], [0, 0], [-1, -1], [1] * 20_000, {"a": 1}, [64, 64], [0.5] * 3, ["a", "b"]),
)


def edit_json(text: str, generator: random.Random) -> tuple[str, list[str]]:
    """A JSON text in which one or two values are others, gone, exchanged or under other names; and
    what was done."""
    tree, names = json.loads(text), []
    for _ in range(generator.choice((1, 1, 2))):
        containers = [tree]
        for container in containers:
            inside = container.values() if isinstance(container, dict) else container
            containers += [value for value in inside if isinstance(value, dict | list) and value]
        container = generator.choice([each for each in containers if each] or [tree])
        keys: list[Any] = list(container if isinstance(container, dict) else range(len(container)))
        if not keys:
            continue
        key, other = generator.choice(keys), generator.choice(keys)
        what = generator.choice(("other", "other", "other", "gone", "exchanged", "renamed"))
        if what == "other":
            container[key] = copy.deepcopy(generator.choice(_ABSURD))
        elif what == "exchanged":
            container[key], container[other] = container[other], container[key]
        else:
            value = container.pop(key)
            if what == "renamed" and isinstance(container, dict):
                container[generator.choice((f"{key}2", "", "x" * 10_000, "a\nb"))] = value
        names.append(f"{key!s:.20} {what}")
    return _nested(json.dumps(tree)), names


def _nested(text: str) -> str:
    for mark, depth in _NESTS.items():
        text = text.replace(f'"{mark}"', "[" * depth + "]" * depth)
    return text


def _json(content: bytes, generator: random.Random) -> bytes:
    try:
        text, _ = edit_json(content.decode(), generator)
    except (ValueError, RecursionError):  # an earlier damage
        return content
    return text.encode("utf-8", "replace")


def _digits(content: bytes, generator: random.Random) -> bytes:
    """A number in a text is another one, or a word is written otherwise."""
    pattern = generator.choice((rb"\d+", rb"\d+", rb"[A-Za-z]+"))
    found = [match.span() for match in re.finditer(pattern, content)]
    if not found:
        return content
    begin, end = generator.choice(found)
    if pattern == rb"[A-Za-z]+":
        word = content[begin:end].swapcase()
    else:
        number = generator.choice((0, 1, 10**18, 2**64, 10**300, generator.randrange(10**6)))
        word = b"%d" % number if generator.random() < 0.8 else b"-%d" % number
    return content[:begin] + word + content[end:]


def _blanks(content: bytes, generator: random.Random) -> bytes:
    """Another layout of the same text, as an editor gives it."""
    mark = generator.choice((b",", b":", b"{"))
    return content.replace(mark, mark + generator.choice((b" ", b"\n", b"\r\n", b"\t")))


TEXTS: dict[str, Damage] = {"json": _json, "digits": _digits, "blanks": _blanks}


# --- safetensors


def _length(content: bytes, generator: random.Random) -> bytes:
    """The header has another length than it says."""
    length = int.from_bytes(content[:8], "little")
    near = (length - 1, length + 1, length + 8, length // 2, 0, 1, 2, len(content) - 8)
    far = (len(content), 2**24, 10**8, 10**8 + 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
    return struct.pack("<Q", generator.choice((*near, *far)) & (2**64 - 1)) + content[8:]


def _header(content: bytes, generator: random.Random) -> bytes:
    """One to three entries of the header say something else, whose length is right."""
    size = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + size])
        names = [name for name in header if name != "__metadata__"]
        entries = [(name, dict(header[name])) for name in names]
    except (ValueError, TypeError, AttributeError, RecursionError):  # an earlier damage
        return content
    if not entries:
        return content
    about = header.get("__metadata__")
    for _ in range(generator.randint(1, 3)):
        place = generator.randrange(len(entries))
        what = generator.choice(list(_ENTRIES))
        _ENTRIES[what](entries, place, generator)
        if not entries:
            break
    if generator.random() < 0.1:
        about = generator.choice((None, 5, [], {}, {"a": 5}, {"a": None}, {"glomjax": "{"}, "x"))
    pairs = [f"{json.dumps(name)}:{json.dumps(entry)}" for name, entry in entries]
    if about is not None or generator.random() < 0.1:
        pairs.insert(0, f'"__metadata__":{json.dumps(about)}')
    written = _nested("{" + ",".join(pairs) + "}").encode("utf-8", "replace")
    written += b" " * (-len(written) % 8)
    return struct.pack("<Q", len(written)) + written + content[8 + size :]


def _header_text(content: bytes, generator: random.Random) -> bytes:
    """The header as a text, its metadata among it, is edited, and its length is right."""
    size = int.from_bytes(content[:8], "little")
    if size > len(content):
        return content
    edit = generator.choice(
        (_digits, _digits, _blanks, flip, insert(b" ", b"\n", b'"', b"}", b"\\"))
    )
    text = edit(content[8 : 8 + size], generator)
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


def _metadata(content: bytes, generator: random.Random) -> bytes:
    """What the file says of itself is other, its checksum as it was."""
    size = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + size])
        about = header.setdefault("__metadata__", {"format": "pt"})
        key = generator.choice(list(about))
        edit = generator.choice((_json, _digits, _digits, _blanks))
        about[key] = edit(about[key].encode(), generator).decode()
    except (ValueError, TypeError, AttributeError, IndexError, RecursionError):  # an earlier damage
        return content
    written = json.dumps(header).encode()
    return struct.pack("<Q", len(written)) + written + content[8 + size :]


Entries = list[tuple[str, dict[str, Any]]]


def _offsets(entries: Entries, place: int, generator: random.Random) -> None:
    entry, other = entries[place][1], generator.choice(entries)[1]
    begin, end = (entry.get("data_offsets") or [0, 4])[:2]
    entry["data_offsets"] = generator.choice(
        (
            *([0, 2**63], [2**64 - 1, 2**64], [2**64 - 4, 0], [-1, 4], [end, begin], [0, 0]),
            *([begin, end, end], [begin], [], None, [[]], "x", [f"{begin}", f"{end}"], _DEEPER),
            *([begin, end + 4], [begin + 4, end + 4], [begin, 2**40], [1.0 * begin, end]),
            other.get("data_offsets"),
        )
    )


def _shape(entries: Entries, place: int, generator: random.Random) -> None:
    entry = entries[place][1]
    shape = list(entry["shape"]) if isinstance(entry.get("shape"), list) else [1]
    entry["shape"] = generator.choice(
        (
            *(
                shape[::-1],
                [*shape, 1],
                [1, *shape],
                shape[1:],
                [-n for n in shape if isinstance(n, int)],
            ),
            *([], [0], [0, 2**40], [0, 2**63], [2**32, 2**32], [2**63, 2], [2**64], [2**64 - 1]),
            *([-1], [1.5], ["8"], "8", None, [1] * 100, [1] * 30_000, [None], {}, [[8]], _DEEPER),
        )
    )


def _dtype(entries: Entries, place: int, generator: random.Random) -> None:
    kinds = ("F16", "BF16", "F64", "I32", "U32", "I64", "BOOL", "F8_E4M3", "F8_E5M2", "C64", "F4")
    entry = entries[place][1]
    entry["dtype"] = generator.choice((*kinds, "U8", "f32", "F32 ", "", "F32\0", None, 5, [], {}))
    if entry["dtype"] in ("F16", "BF16") and isinstance(entry.get("shape"), list):
        entry["shape"] = [*entry["shape"], 2]
    if entry["dtype"] == "U8" and isinstance(entry.get("shape"), list):
        entry["shape"] = [*entry["shape"], 4]


def _name(entries: Entries, place: int, generator: random.Random) -> None:
    name, entry = entries[place]
    other = generator.choice(entries)[0]
    names: tuple[str, ...] = (
        "",
        "__metadata__",
        "x" * 10_000,
        "a\nb",
        "\x1b[2J",
        "\0",
        "\ud800",
        "肾" * 300,
        other,
    )
    names += (f"{name}2", name.upper(), f"module.{name}", name[:-1], "norm/scale", "../../x")
    entries[place] = (generator.choice(names), entry)


def _twice(entries: Entries, place: int, generator: random.Random) -> None:
    entries.insert(
        generator.randrange(len(entries) + 1), (entries[place][0], dict(entries[place][1]))
    )


def _exchange(entries: Entries, place: int, generator: random.Random) -> None:
    """Two tensors have each other's names or places."""
    other = generator.randrange(len(entries))
    (name, one), (name2, two) = entries[place], entries[other]
    if generator.random() < 0.5:
        entries[place], entries[other] = (name2, one), (name, two)
    elif "data_offsets" in one and "data_offsets" in two:
        one["data_offsets"], two["data_offsets"] = two["data_offsets"], one["data_offsets"]


def _gone(entries: Entries, place: int, generator: random.Random) -> None:
    if generator.random() < 0.5:
        del entries[place]
    elif keys := list(entries[place][1]):
        del entries[place][1][generator.choice(keys)]


def _more(entries: Entries, place: int, generator: random.Random) -> None:
    last = max((e[1]["data_offsets"][1] for e in entries[-1:] if _whole(e[1])), default=0)
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [last, last]}
    count = generator.choice((1, 3, 20_000))
    entries += [(f"more{number}", dict(empty)) for number in range(count)]
    if generator.random() < 0.3:
        entries[place][1][generator.choice(("more", "dtype2"))] = generator.choice(_ABSURD)


def _whole(entry: dict[str, Any]) -> bool:
    offsets = entry.get("data_offsets")
    return isinstance(offsets, list) and len(offsets) == 2 and isinstance(offsets[1], int)


_ENTRIES = {
    "offsets": _offsets,
    "shape": _shape,
    "dtype": _dtype,
    "name": _name,
    "twice": _twice,
    "exchange": _exchange,
    "gone": _gone,
    "more": _more,
}

HEADER: dict[str, Damage] = {
    "length": _length,
    "header": _header,
    "header 2": _header,
    "text": _header_text,
    "metadata": _metadata,
}
