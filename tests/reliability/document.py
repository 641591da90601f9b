"""`docs/reliability.md`, written from answers and read again."""

import pathlib
import re
from collections.abc import Mapping, Sequence

from reliability.situations import Answer, Case, shown

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "reliability.md"
INTRODUCTION = """\
# What happens to what you bring

Folders come from scanners, tables from spreadsheets, and both from several hands. This page lists
situations and what glomjax makes of each, word for word; the tests bring every one of them about
and check that the row is true. `FOLDER` stands for the folder in which it was tried.

- **refused**: nothing is done. A script gets the sentence as the message of a
  `glomjax.errors.UserError`; a command prints it on standard error and exits with code 2. Nothing
  that was there before is lost or changed, and the same command can be given again.
- **told**: it goes on, and the sentence is printed, stands out at the start of a run and is kept
  with its results; `check-data` lists it as a warning or a note.
- **read**: it goes on without a word; what is read is given.

Sentences name options where a command line is read (`--config.data.mpp=0.25`) and arguments and
fields in a script (`config.data.mpp = 0.25`).
"""
_HEADER = "| situation | what happens | what is said, or what is read |\n| --- | --- | --- |\n"
_SPECIAL = re.compile(r"[\\|*<`~]|(?<!\w)_|_(?!\w)")


def row(case: Case, answer: Answer) -> str:
    cells = (case.situation, answer.kind, answer.text)
    return "| " + " | ".join(_SPECIAL.sub(r"\\\g<0>", shown(cell)) for cell in cells) + " |"


def document(areas: Mapping[str, Sequence[Case]], answers: Mapping[str, Answer]) -> str:
    """The whole text.

    Args:
      areas: {heading: cases}.
      answers: {situation: answer}.
    """
    parts = [INTRODUCTION]
    for heading, cases in areas.items():
        lines = "".join(row(case, answers[case.situation]) + "\n" for case in cases)
        parts.append(f"## {heading}\n\n{_HEADER}{lines}")
    return "\n".join(parts)


def rows_of(text: str) -> list[str]:
    """The lines of its tables."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [line for line in lines if line not in _HEADER.splitlines()]


def sentence(line: str) -> str:
    """What the row of a table says, without what depends on its values: quoted names, paths,
    numbers, kinds of things, and how an option is written."""
    text = re.split(r"(?<!\\)\|", line)[-2].strip()
    text = re.sub(r"^(ERROR|WARNING|NOTE): ", "", text).replace("--config.", "config.")
    text = re.sub(
        r"'[^']*'|\"[^\"]*\"|\[[^]]*\]|\([^()]*\)|FOLDER[\w/.-]*|-?\d[\w.,^+]*", "*", text
    )
    kinds = "patient|slide|site|class|file|block|stain|field|folder|train|validation|test"
    text = re.sub(rf"\b({kinds})(e?s)?\b", "*", text)
    return re.sub(r"\*([\s,=]*\*)+", "*", text)
