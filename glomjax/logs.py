"""Logging of the process, which belongs to whoever runs it."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def logging_left_to_scripts() -> Iterator[None]:
    """Orbax, and what imports it, sets up logging for the whole process (by absl, with its first
    line), after which a script's own `logging.basicConfig` would do nothing: this takes it back."""
    bare = not logging.root.handlers
    try:
        yield
    finally:
        if bare:
            logging.root.handlers.clear()
