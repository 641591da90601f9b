"""Files that are written whole or not at all, tables, checksums, and the folder of what can be made
again."""

import csv
import errno
import hashlib
import io
import math
import os
import pathlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from glomjax.errors import UserError, argument

# A full disk, a quota, and the limit of a file's size.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file in one step: a reader, or a crash, never sees half of it.

    Raises:
      UserError: the file cannot be written, or its folder cannot be made.
    """
    target = pathlib.Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        advice = (
            "make room there" if error.errno in NO_ROOM else "give a folder that can be written"
        )
        raise UserError(f"{path} cannot be written ({error.strerror}); {advice}") from error


def new_folder(out: str | os.PathLike[str], option: str = "--out") -> pathlib.Path:
    """The folder that an option names, which is made where it does not exist.

    Raises:
      UserError: it holds something already, or cannot be made.
    """
    folder = pathlib.Path(out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A table or a picture tells whoever reads the message more than facts about a machine do.
        there = sorted((file.suffix == ".json", file.name) for file in folder.iterdir())
    except OSError as error:
        raise UserError(
            f"folder '{folder}' cannot be made ({error.strerror}); name another with "
            f"{argument(option)}"
        ) from error
    if there:
        raise UserError(
            f"folder '{folder}' is not empty ('{there[0][1]}' for one); name a new one with "
            f"{argument(option)}"
        )
    return folder


def why_not_writable(folder: pathlib.Path) -> str:
    """Why no file can be written in a folder, which is made where it does not exist; "" where one
    can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"glomjax")
    except OSError as error:
        return error.strerror or str(error)
    return ""


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as a comma-separated table that gives every text back as it was, as `csv` reads it.

    A text that begins with =, +, - or @ is left as it is, too: a mark before it, by which
    spreadsheets take it for no formula, would be another name. Who opens a table of names that
    others chose in a spreadsheet imports its columns as text.
    """
    stream = io.StringIO(newline="")
    plain = csv.writer(stream, lineterminator="\n")
    # Python 3.11 and 3.12 leave a carriage return unquoted, and read it as the end of a row.
    quoted = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        returns = any("\r" in cell for cell in row if isinstance(cell, str))
        (quoted if returns else plain).writerow(row)
    return stream.getvalue()


def checksum(path: str | os.PathLike[str], algorithm: str = "sha256") -> str:
    """The hexadecimal digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def jsonable(value: Any) -> Any:
    """Plain Python values, with None for NaN and infinities, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return jsonable(value.tolist())
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"section.field": value} of a configuration."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        section = isinstance(value, dict)
        flat |= flatten(value, f"{prefix}{key}.") if section else {prefix + key: value}
    return flat


def as_tuples(value: Any) -> Any:
    """A value that JSON gave back, with its lists, at any depth, as tuples."""
    return tuple(map(as_tuples, value)) if isinstance(value, list | tuple) else value


def cache_dir(name: str) -> pathlib.Path:
    """The cache folder for `name`, such as "synthetic" or "weights"; it need not exist yet.

    It lies in the folder named by the environment variable GLOMJAX_CACHE, else in
    `$XDG_CACHE_HOME/glomjax`, else in `~/.cache/glomjax`.
    """
    own = os.environ.get("GLOMJAX_CACHE", "")
    if own:
        return pathlib.Path(own).expanduser() / name
    shared = os.environ.get("XDG_CACHE_HOME", "") or "~/.cache"
    return pathlib.Path(shared).expanduser() / "glomjax" / name
