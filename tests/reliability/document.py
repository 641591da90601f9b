"""`docs/reliability.md`, written from answers and read again."""

import pathlib
import re
from collections.abc import Mapping, Sequence

from reliability.situations import Answer, Case, shown

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "reliability.md"
_BEHIND = "Tried at random"  # the heading behind the tables
_HEADER = "| situation | what happens | what is said, or what is read |\n| --- | --- | --- |\n"
# `][` would begin the second half of a link.
_SPECIAL = re.compile(r"[\\|*<`~]|(?<=\])\[|(?<!\w)_|_(?!\w)")


def row(case: Case, answer: Answer) -> str:
    cells = (case.situation, answer.kind, answer.text)
    return "| " + " | ".join(_SPECIAL.sub(r"\\\g<0>", shown(cell)) for cell in cells) + " |"


def document(areas: Mapping[str, Sequence[Case]], answers: Mapping[str, Answer], old: str) -> str:
    """The whole text, with other tables.

    Args:
      areas: {heading: cases}.
      answers: {situation: answer}.
      old: the text as it stands, of which what is before the tables and behind them stays.
    """
    introduction, _, rest = old.partition("\n## ")
    behind = rest.partition(f"\n## {_BEHIND}")[2]
    parts = [introduction]
    for heading, cases in areas.items():
        lines = "".join(row(case, answers[case.situation]) + "\n" for case in cases)
        parts.append(f"## {heading}\n\n{_HEADER}{lines}")
    return "\n".join([*parts, f"## {_BEHIND}{behind}"])


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
