"""SIGTERM and Ctrl-C as a request: the loop ends after the running step, and saves."""

import signal
import threading
import types
from typing import Any

NONE, SAVE, STOP = 0, 1, 2  # what a loop is asked for; the larger one counts


class Interrupts:
    """Context manager in which the first SIGTERM or Ctrl-C only sets `signal`.

    A second Ctrl-C ends the process at once, whatever it is doing. Outside the main thread, where
    Python allows no handlers, signals are left as they are.

    Attributes:
      signal: the number of the one that came, 0 before.
    """

    _HANDLED = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self._HANDLED}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        self.signal = number
        # The default of the operating system, which does not wait for Python.
        signal.signal(signal.SIGINT, signal.SIG_DFL)


class Interrupted(BaseException):
    """The run was asked to stop by a signal, and has saved everything.

    No `Exception`, so that nothing on the way takes it for an error.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.exit_code = 128 + number
