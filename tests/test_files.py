"""Tables that give back what was written."""

import csv
import io

import numpy as np
import pytest

from glomjax.data.examples import DataSplits, Examples
from glomjax.files import csv_text

NAMES = (
    "a\rb",
    "a\r\nb",
    "a\nb",
    "=1+1",
    "-2",
    "@x",
    "+3",
    'a"b',
    "a,b",
    "",
    "\t",
    "腎臓",
    "\u2028",
)


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_every_text_comes_back_as_it_was():
    rows = read(csv_text([["number", *NAMES], *([i, *NAMES] for i in range(3))]))
    assert rows == [{"number": str(i)} | dict(zip(NAMES, NAMES, strict=True)) for i in range(3)]


@pytest.mark.parametrize("name", NAMES[:3])
def test_the_table_of_splits_gives_back_names_with_line_breaks(name):
    part = Examples(
        ids=("1.png", "2.png"),
        labels=np.array([0, 1]),
        read=lambda i: b"",
        patients=(name, name),
        columns={"stain": (name, "HE")},
    )
    rows = read(DataSplits(part, part, part, classes=("other", name)).to_csv())
    assert [row["label"] for row in rows] == ["other", name] * 3
    assert {row["patient"] for row in rows} == {name}
    assert [row["stain"] for row in rows] == [name, "HE"] * 3
