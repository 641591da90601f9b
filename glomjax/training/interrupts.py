"""SIGTERM, Ctrl-C and a limit of time as a request: the loop ends after the running step, and
saves."""

import math
import os
import signal
import threading
import time
import types
from collections.abc import Callable
from typing import Any

from glomjax.errors import UserError, argument, is_command_line, same_again

NONE, SAVE, TIME_IS_UP, STOP = range(4)  # what a loop is asked for; the larger one counts
TRY_AGAIN = 75  # the exit code of a run that its limit of time has ended, EX_TEMPFAIL of sysexits.h


class TimeLimit:
    """When a run must have ended, whatever is left of it.

    Args:
      hours: from now on; 0 for no limit.

    Raises:
      UserError: that is no length of time.
    """

    SPARE_SECONDS = 5.0  # for what is not foreseen

    def __init__(self, hours: float = 0.0):
        known = isinstance(hours, int | float) and not isinstance(hours, bool)
        if not known or not math.isfinite(hours) or hours < 0:
            raise UserError(
                f"{argument('--max-hours')} is {hours!r}; it is a number of hours, such as 11.5, "
                "and 0 for no limit"
            )
        self._end = time.monotonic() + 3600 * hours if hours else math.inf
        self._longest = dict[str, list[float]]()

    def took(self, what: str, seconds: float) -> None:
        """A step or a save took so long; the next one may as well, and somewhat longer. The longest
        of all does not count beside others: in it the machine may have slept."""
        self._longest[what] = sorted([*self._longest.get(what, []), seconds])[-2:]

    @property
    def hours(self) -> float:
        """That are left, at least a moment; 0 for no limit."""
        left = (self._end - time.monotonic()) / 3600
        return 0.0 if math.isinf(left) else max(left, 1e-9)

    @property
    def is_up(self) -> bool:
        """Whether there is no time for another step, and for saving what it gives."""
        needed = 1.5 * sum(longest[0] for longest in self._longest.values()) + self.SPARE_SECONDS
        return time.monotonic() + needed >= self._end


class Interrupts:
    """Context manager in which the first SIGTERM or Ctrl-C only sets `signal`.

    A second Ctrl-C ends the process at once, whatever it is doing. Outside the main thread, where
    Python allows no handlers, signals are left as they are.

    Args:
      limit: of the time that the run may take.

    Attributes:
      signal: the number of the one that came, 0 before.
      can_save: while it is False there is nothing to save, and a signal raises `Interrupted`; where
        Python does not run for so long, as within a compilation, SIGTERM ends the process without
        that, and Ctrl-C does at the command line, since a notebook would lose more.
      at_end: is called before it does.
    """

    _HANDLED = (signal.SIGINT, signal.SIGTERM)
    _PATIENCE = 2.0  # seconds

    def __init__(self, limit: TimeLimit | None = None, *, can_save: bool = True) -> None:
        self.signal = 0
        self.can_save = can_save
        self.at_end: Callable[[], None] = lambda: None
        self._left = threading.Event()
        self.limit = limit or TimeLimit()
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
        self._left.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            signal.set_wakeup_fd(self._wakeup)
            os.close(self._writing)

    @property
    def request(self) -> int:
        """What a loop is asked for: NONE, TIME_IS_UP or STOP."""
        if self.signal:
            return STOP
        return TIME_IS_UP if self.limit.is_up else NONE

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        self.signal = number
        # The default of the operating system, which does not wait for Python.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if not self.can_save:
            raise Interrupted(number, saved=False)

    def _watch(self, reading: int) -> None:
        """Where both come within one compilation, Python would run `_note` only after it; but the
        number of each arrives here at once."""
        come = 0
        while number := os.read(reading, 1):
            if come and number[0] == signal.SIGINT:
                self.at_end()
                os._exit(128 + signal.SIGINT)
            if number[0] not in self._HANDLED:
                continue
            come += 1
            ends = number[0] == signal.SIGTERM or is_command_line()
            if come == 1 and ends and not self.can_save:
                threading.Thread(target=self._end, args=(number[0],), daemon=True).start()
        os.close(reading)

    def _end(self, number: int) -> None:
        self._left.wait(self._PATIENCE)
        if not self.signal and not self.can_save:  # `_note` has not run
            self.at_end()
            ended = Interrupted(number, saved=False)
            os.write(2, f"{ended}\n".encode())
            os._exit(ended.exit_code)


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, and has saved everything.

    What Ctrl-C raises anywhere else, so that a script which handles that handles SIGTERM too, and
    `except Exception` takes neither for an error.

    Args:
      number: of the signal; 0 where the limit of time has ended the run.
      saved: whether there was something to save.

    Attributes:
      exit_code: of a process that a signal ends: 130 for Ctrl-C, 143 for SIGTERM; of one that its
        limit of time ends 75, by which a script knows that it should start it again.
    """

    def __init__(self, number: int, *, saved: bool = True):
        super().__init__(number, saved)
        self.number, self.saved = number, saved
        self.exit_code = 128 + number if number else TRY_AGAIN

    def __str__(self) -> str:
        if self.number:
            said = f"{signal.Signals(self.number).name} came"
        else:
            said = f"the time that {argument('--max-hours')} gives is up"
        if not self.saved:
            return f"{said} before the first step; {same_again()} begins where this one did"
        return f"{said}; the run is saved, and {same_again()} goes on from there"
