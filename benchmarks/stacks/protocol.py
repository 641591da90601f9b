"""What `compare.py` and `device.py` say to workers, and these to them: lines of JSON.

A request on stdin is {"command": one of `COMMANDS`, and its arguments}; the reply on stdout is what
the method of that name returns, or {"error": one line}. Between requests a worker waits on stdin
and uses no CPU. No third-party imports: this runs under the Python of every stack.
"""

import contextlib
import json
import os
import pathlib
import resource
import sys
import time
import traceback
from typing import Any, TextIO

COMMANDS = (
    *("build", "export", "load", "describe", "prepare", "run", "stream", "flops", "memory"),
    *("golden", "products", "demo"),  # of the worker in checks.py
    "stop",
)
CHECKED_STEPS = 4  # the losses before the first update and after each of three

# Filters of GoogLeNet's blocks, for the stacks that have no such network: 1x1, 3x3 reduce, 3x3,
# 5x5 reduce, 5x5, pool projection (Szegedy et al. 2015, table 1).
INCEPTION = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


class Stack:
    """One stack with one network, for one task: what the workers have in common.

    A stack fills in `build`, `load`, `describe`, `compile` and `once`.
    """

    task = "train"

    def build(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Makes the network of `spec` (see `compare.specify`); returns {"tensors": {name: shape}},
        with the shapes as this stack stores them."""
        raise NotImplementedError

    def load(self, weights: str, frozen: list[str]) -> None:
        """Takes the initial weights from an .npz of its own names; `frozen` names do not train."""
        raise NotImplementedError

    def export(self, path: str) -> dict[str, Any]:
        """Writes what another stack starts from."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """{"work": what all stacks must have in common, "versions": ..., "settings": ...}."""
        raise NotImplementedError

    def compile(self) -> None:
        """All that can be done before the first step."""

    def once(self) -> list[float]:
        """One training step, which gives [loss before the update], or one batch's logits [B]."""
        raise NotImplementedError

    def dispatch(self) -> None:
        """Starts what `once` does, and waits for nothing that the device has still to do."""
        raise NotImplementedError

    def wait(self) -> None:
        """Waits for all that was dispatched."""
        raise NotImplementedError

    def prepare(self) -> dict[str, Any]:
        """Compiles and takes the first steps."""
        _reset_peak_memory()
        begun = time.perf_counter()
        self.compile()
        compiled = time.perf_counter()
        outcome = self.once()
        first = time.perf_counter()
        for _ in range(CHECKED_STEPS - 1):
            last = time.perf_counter()
            result = self.once()
            outcome += result if self.task == "train" else []
        return {
            "outcome": outcome,
            "compile_seconds": compiled - begun,
            "first_step_seconds": first - compiled,
            "step_seconds": time.perf_counter() - last,
        }

    def run(self, steps: int) -> dict[str, Any]:
        """The seconds of each of so many steps, and what the last one gave.

        One step more comes first, unmeasured: it finds memory that another stack has given back to
        the system, in caches that are another's.
        """
        self.once()
        seconds = []
        for _ in range(steps):
            begun = time.perf_counter()
            outcome = self.once()
            seconds.append(time.perf_counter() - begun)
        return {"seconds": seconds, "outcome": outcome}

    def stream(self, steps: int) -> dict[str, Any]:
        """The seconds of so many steps, dispatched one after another without waiting, from the
        first to the end of the last: how a training loop keeps a GPU busy.

        One more comes first, unmeasured.
        """
        self.dispatch()
        self.wait()
        begun = time.perf_counter()
        for _ in range(steps):
            self.dispatch()
        self.wait()
        return {"seconds": time.perf_counter() - begun}

    def memory(self) -> dict[str, float]:
        """The largest resident size since `prepare` began (since the start where that cannot be
        had), in units of 1e6 bytes."""
        return {"peak_mb": _peak_memory()}

    def stop(self) -> None:
        """Ends the worker."""


def claim_stdout() -> TextIO:
    """Standard output for the replies alone; all else that is printed goes to standard error."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return replies


def serve(stack: Stack, replies: TextIO) -> None:
    """Answers requests until `stop` or the end of stdin."""
    for line in sys.stdin:
        request = json.loads(line)
        command = request.pop("command")
        try:
            if command not in COMMANDS:
                raise ValueError(f"there is no command {command!r}")
            reply = getattr(stack, command)(**request) or {}
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)
        if command == "stop":
            return


def _reset_peak_memory() -> None:
    # Elsewhere than on Linux the peak is that of the whole process.
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def _peak_memory() -> float:
    try:
        status = pathlib.Path("/proc/self/status").read_text()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6
