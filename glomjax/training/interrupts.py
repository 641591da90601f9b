"""SIGTERM and Ctrl-C as a request: the loop ends after the running step, and saves."""

import os
import signal
import threading
import types
from typing import Any

from glomjax.errors import same_again

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
            reading, self._writing = os.pipe()
            os.set_blocking(self._writing, False)
            self._wakeup = signal.set_wakeup_fd(self._writing)
            threading.Thread(target=self._watch, args=(reading,), daemon=True).start()
            self._before = {number: signal.signal(number, self._note) for number in self._HANDLED}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            signal.set_wakeup_fd(self._wakeup)
            os.close(self._writing)

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        self.signal = number
        # The default of the operating system, which does not wait for Python.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def _watch(self, reading: int) -> None:
        """Where both come within one compilation, Python would run `_note` only after it; but the
        number of each arrives here at once."""
        come = 0
        while number := os.read(reading, 1):
            if come and number[0] == signal.SIGINT:
                os._exit(128 + signal.SIGINT)
            come += number[0] in self._HANDLED
        os.close(reading)


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop by a signal, and has saved everything.

    What Ctrl-C raises anywhere else, so that a script which handles that handles SIGTERM too, and
    `except Exception` takes neither for an error.

    Attributes:
      exit_code: of a process that a signal ends: 130 for Ctrl-C, 143 for SIGTERM.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.exit_code = 128 + number

    def __str__(self) -> str:
        name = signal.Signals(self.args[0]).name
        return f"{name} came; the run is saved, and {same_again()} goes on from there"
