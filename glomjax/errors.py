"""The one exception for what a user can cause."""


class UserError(Exception):
    """Something the user can put right: a path, a configuration value, a data set, a weight file.

    The message is one clear sentence that names the thing, the value and the way out. The command
    line (`main.py`) prints it and exits with code 2; nothing else catches it.
    """
