"""The one exception for what a user can cause, and what its messages need."""

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
