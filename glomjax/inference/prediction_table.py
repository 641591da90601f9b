"""Predictions as a table on the disk, written as they come and gone on with where they stopped."""

import csv
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from glomjax.errors import UserError, same_again
from glomjax.evaluation.report import free_names, score_columns
from glomjax.files import csv_text, write_file
from glomjax.inference.classifier import Predictions
from glomjax.inference.images import NamedImage

UNLIKE, PROBLEM = "unlike_training", "problem"
Row = list[str]


def header_of(columns: Sequence[str], classes: Sequence[str], outputs: int) -> Row:
    """`id`, what the data says of its images, `prediction`, `probability_<class>` of each class,
    `logit` (or `logit_<class>`), `unlike_training` (in what an image does not resemble those of the
    training) and `problem` (why it cannot be read; then it has no numbers).

    Args:
      columns: what the data says.
      classes, outputs: of the network: names, and logits of an image.
    """
    scores = score_columns(classes, outputs)
    own = ["prediction", *scores, UNLIKE, PROBLEM]
    return ["id", *free_names(columns, ["id", *own]), *own]


def rows_of(
    predictions: Predictions, images: Sequence[NamedImage], columns: Sequence[str]
) -> list[Row]:
    """The rows of a batch, with the columns of `header_of`; numbers with all their digits."""
    rows = []
    numbers = zip(predictions.probabilities.tolist(), predictions.logits.tolist(), strict=True)
    for i, (chances, logits) in enumerate(numbers):
        name = predictions.ids[i]
        problem = predictions.problems.get(name, "")
        said = [images[i].columns.get(column, "") for column in columns]
        scores = ["" if problem else repr(value) for value in (*chances, *logits)]
        unlike = "; ".join(predictions.unlike.get(name, ()))
        rows.append([name, *said, predictions.labels[i], *scores, unlike, problem])
    return rows


class PredictionTable:
    """A table of predictions that a process writes, and the next one goes on with.

    It is `FILE.part` until it is whole. `FILE.json` beside it says by what it was made.

    Args:
      file: the table.
      header: names of its columns.
      about: JSON-ready, what decides the numbers: networks, settings, data.

    Attributes:
      goes_on: whether a process that was stopped has begun it.

    Raises:
      UserError: the file is there, or cannot be written; or what is there of it was made by
        something else.
    """

    def __init__(self, file: str | os.PathLike[str], header: Row, about: Mapping[str, Any]):
        self.path = pathlib.Path(file)
        self.part = self.path.with_name(f"{self.path.name}.part")
        self._header = header
        self._file: BinaryIO | None = None
        if os.path.lexists(self.path):
            raise UserError(f"'{self.path}' exists already; remove it, or name another file")
        about_file = self._about_file = self.path.with_name(f"{self.path.name}.json")
        text = json.dumps(about, indent=2, sort_keys=True) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Without a buffer, so that what is written is written, or the error is known here.
            self._file = open(self.part, "ab+", buffering=0)  # noqa: SIM115
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            before = about_file.read_text(encoding="utf-8") if about_file.exists() else ""
        except BlockingIOError as error:
            raise UserError(
                f"'{self.part}' is being written by another process; wait for it, or name another "
                "file"
            ) from error
        except OSError as error:
            raise self._not_written(error) from error
        self.goes_on = before == text
        if self.goes_on:
            return
        if self._has_rows() or (before and not _is_about(before)):
            self.close()
            raise UserError(
                f"'{self.part}' was begun with another network, other data or other settings than "
                f"now ('{about_file}' says with which); remove both, or name another file"
            )
        self._file.truncate(0)
        write_file(about_file, text.encode())

    def kept_rows(self) -> Iterator[Row]:
        """The rows that are there already. When they end, the table can be written: what a stopped
        process has left of a row behind them is cut off.

        Raises:
          UserError: the file is no such table, or cannot be read or written.
        """
        whole = pending = 0

        def lines() -> Iterator[str]:
            nonlocal pending
            with open(self.part, "rb") as file:
                for line in file:
                    if not line.endswith(b"\n"):
                        return
                    pending += len(line)
                    yield line.decode()

        try:
            reader = csv.reader(lines())
            if (first := next(reader, None)) not in (None, self._header):
                raise UserError(
                    f"'{self.part}' is not what was written ({first}); remove it, or name another "
                    "file"
                )
            whole = pending
            for row in reader:
                if len(row) != len(self._header):  # cut within a cell of several lines
                    break
                whole = pending
                yield row
            assert self._file is not None
            self._file.truncate(whole)
        except OSError as error:
            raise self._not_written(error) from error
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(
                f"'{self.part}' is not what was written ({error}); remove it, or name another file"
            ) from error
        if not whole:
            self.write([self._header])

    def write(self, rows: Sequence[Row]) -> None:
        """Adds rows, which are on the disk when this returns; behind `kept_rows`."""
        assert self._file is not None
        left = memoryview(csv_text(rows).encode())
        try:
            while left:  # a disk that is nearly full takes a part
                left = left[self._file.write(left) :]
        except OSError as error:
            raise self._not_written(error) from error

    def close(self) -> None:
        """Leaves it as it is, to be gone on with."""
        if self._file is not None:
            self._file.close()  # which ends the lock, too

    def discard(self) -> None:
        """Removes what there is of it."""
        for file in (self.part, self._about_file):
            file.unlink(missing_ok=True)

    def finish(self) -> None:
        """The table is whole, and gets its name."""
        try:
            os.replace(self.part, self.path)
        except OSError as error:
            raise self._not_written(error) from error

    def _has_rows(self) -> bool:
        with open(self.part, "rb") as file:
            return len(file.readlines(2**16)) > 1

    def _not_written(self, error: OSError) -> UserError:
        return UserError(
            f"'{self.part}' cannot be written ({error.strerror or error}); make room, and "
            f"{same_again()} goes on behind the last whole row, or name another file"
        )


def _is_about(text: str) -> bool:
    """Whether a file says by what a table was made, and is none of the user's."""
    try:
        return {"networks", "glomjax_version"} <= set(json.loads(text))
    except (ValueError, TypeError):
        return False
