"""The one exception for what a user can cause, and what its messages need."""

from collections.abc import Sequence


class UserError(Exception):
    """Something the user can put right: a path, a configuration value, a data set, a weight file.

    The message is one clear sentence that names the thing, the value and the way out. The command
    line (`main.py`) prints it and exits with code 2; nothing else catches it.
    """


def first_few(items: Sequence[str]) -> str:
    """At most ten of the items, and how many more there are: for messages."""
    rest = f" and {len(items) - 10} more" if len(items) > 10 else ""
    return ", ".join(items[:10]) + rest
