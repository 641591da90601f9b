"""The one exception for what a user can cause, and what its messages need."""

import difflib
from collections.abc import Iterable

LISTED = 10  # names that a message spells out


class UserError(Exception):
    """Something the user can put right: a path, a configuration value, a data set, a weight file.

    The message is one clear sentence that names the thing, the value and the way out. The command
    line prints it and exits with code 2; nothing else catches it.
    """


def first_few(items: Iterable[str], total: int = 0) -> str:
    """At most ten of the items, and how many more there are of `total`, by default of all these."""
    items = list(items)
    more = max(total, len(items)) - len(items[:LISTED])
    return ", ".join(items[:LISTED]) + (f" and {more} more" if more else "")


def quoted(names: Iterable[str]) -> str:
    """`first_few` of the names, each in quotes."""
    return first_few(f"'{name}'" for name in names)


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
