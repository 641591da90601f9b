"""The one exception for what a user can cause, and what its messages need."""

import contextlib
import difflib
import re
import reprlib
import shlex
import unicodedata
from collections.abc import Iterable, Iterator

LISTED = 10  # names that a message spells out
SHOWN = 160  # characters of a value in a message


class UserError(Exception):
    """Something the user can put right: a path, a configuration value, a data set, a weight file.

    The message is one clear sentence that names the thing, the value and the way out, and
    `printable`. The command line prints it and exits with code 2; nothing else catches it.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


_speaks_command_line = False  # or Python, to whoever imports this package


@contextlib.contextmanager
def at_command_line() -> Iterator[None]:
    """Messages name options of the command line, and not arguments and fields as a script does."""
    global _speaks_command_line
    before, _speaks_command_line = _speaks_command_line, True
    try:
        yield
    finally:
        _speaks_command_line = before


def is_command_line() -> bool:
    """Whether `at_command_line` holds."""
    return _speaks_command_line


def assignment(key: str, value: object = None) -> str:
    """How a field of the configuration is set where the message is read:
    `--config.data.fold=1`, or in a script `config.data.fold = 1`; without a value, its name."""
    if value is None:
        return f"--config.{key}" if _speaks_command_line else f"config.{key}"
    if _speaks_command_line:
        return f"--config.{key}={shell_word(value)}"
    return f"config.{key} = {value!r}"


def argument(option: str, value: object = None) -> str:
    """An argument that the command line and the functions of this package call alike: `--workdir`,
    or in a script `workdir`; with a value, `--target-mpp=0.5` and `target_mpp=0.5`, and of a flag
    that is set `--overwrite` and `overwrite=True`."""
    if _speaks_command_line:
        return option if value in (None, True) else f"{option}={shell_word(value)}"
    name = option.lstrip("-").replace("-", "_")
    return name if value is None else f"{name}={value!r}"


def cross_validation(folds: int) -> str:
    """What does a cross-validation: `glomjax crossval --folds=5`, or in a script
    `cross_validate(folds=5)`."""
    option = argument("--folds", folds)
    return f"glomjax crossval {option}" if _speaks_command_line else f"cross_validate({option})"


def same_again() -> str:
    """What goes on with a run: the command, or in a script the call, that began it."""
    return "the same command" if _speaks_command_line else "the same call"


def printable(text: object) -> str:
    """A text as a terminal, a log or a table shows it: with the line breaks and control characters
    that a name may hold as Python's escapes, so that a name stays on its line and commands no
    terminal. A message's own list, whose lines begin with two blanks, keeps its lines."""
    parts = str(text).split("\n  ")
    return "\n  ".join(
        "".join(
            character.encode("unicode_escape").decode()
            if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
            else character
            for character in part
        )
        for part in parts
    )


def shell_word(value: object) -> str:
    """A value as a shell and this package's command line take it."""
    if isinstance(value, tuple | list) and value:
        parts = [str(item) for item in value]
        if all(re.fullmatch(r"[\w.+-]+", part) for part in parts):
            return ",".join(parts) + ("," if len(parts) == 1 else "")
    return shlex.quote(str(value))


def shown(value: object) -> str:
    """A value as Python writes it, on one line and cut in the middle where it is long."""
    try:
        text = _SHORT.repr(value)
    except Exception:  # an integer of more digits than Python writes, or a `__repr__` of their own
        return f"a value of type {type(value).__name__}"
    text = re.sub(r"\s*\n\s*", " ", text.strip())
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return _cut(text, SHOWN)


def excerpt(text: object, most: int = SHOWN) -> str:
    """What others said, or called something, on one line and cut in the middle where it is long."""
    return _cut(printable(" ".join(str(text).split())), most)


def _cut(text: str, most: int) -> str:
    """A text without its middle where it has more than `most` characters."""
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
_SHORT.maxtuple = _SHORT.maxlist = _SHORT.maxdict = LISTED


def first_few(items: Iterable[str], total: int = 0) -> str:
    """At most ten of the items, and how many more there are of `total`, by default of all these."""
    items = list(items)
    more = max(total, len(items)) - len(items[:LISTED])
    return ", ".join(items[:LISTED]) + (f" and {more} more" if more else "")


def named(names: Iterable[str], most: int = LISTED) -> str:
    """`first_few` of the names that a file gives to what it holds, at most so many, each cut in the
    middle where it is very long."""
    names = list(names)
    return first_few([excerpt(name, 80) for name in names[:most]], len(names))


def quoted(names: Iterable[str]) -> str:
    """`first_few` of the names, each in quotes, and cut in the middle where it is very long."""
    return first_few(f"'{_cut(printable(name), 255)}'" for name in names)


def plural(name: str) -> str:
    """Of the name of a column or a kind."""
    if name.endswith(("s", "x", "ch")):
        return f"{name}es"
    return f"{name[:-1]}ies" if name.endswith("y") else f"{name}s"


def nearest_key(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """A clause with the name that was probably meant, compared without the sections before its last
    dot; else `otherwise`, by default all that are known."""
    known = list(known)
    # Of several with the same last part, the first one.
    by_last = {key.rpartition(".")[2]: key for key in reversed(known)}
    close = difflib.get_close_matches(name.rpartition(".")[2], by_last, n=1, cutoff=0.7)
    return (
        f"did you mean {by_last[close[0]]}"
        if close
        else otherwise or f"known are {', '.join(known)}"
    )
