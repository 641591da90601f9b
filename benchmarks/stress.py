"""Absurd values, damaged files, killed processes and full disks: does each end in one sentence, and
does what was stopped go on?

    python benchmarks/stress.py [KIND|all] [--count N] [--seed S]

KIND is one of config, tables, images and weights, of which each case is refused or accepted, and of
kills, processes, disk and epochs, which train (`stress_runs.py` says what they do). config gives
every field of the configuration and every option of every network values that no run can have,
through the `ConfigDict` of a script, through the text of a command line and, for options, through
`create_model`. What the checks let pass goes on to where a run would read its first image: devices,
splits of a small folder, the network in shapes, what trains. tables damages a good manifest and
lists it with `load_source`; images damages good files and decodes them with `open_image`; weights
damages weight files and checkpoints and reads them with `read_weights`.

Each case runs in a worker of its own limits: 2 s of computing to refuse it, 10 s to accept it and 1
GiB of memory. Prints how many cases ended how, and the first of those that should not have: raw
exceptions, timeouts, too much memory, dead workers, sentences of several lines or of more than 600
characters, and silent loads: other weights than those that a checksum was written for. The exit
code is 1 where there are any. --count takes so many cases of each kind; by default it is all fixed
values of the configuration, 2,000 tables, 10,000 images and 10,000 weights, 500 kills, 20 pairs of
processes, every file that a run opens on a full disk, and 1,000 epochs.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import resource
import selectors
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

from stress_config import config_cases
from stress_files import image_cases, table_cases
from stress_runs import KINDS as RUNS
from stress_runs import stress_runs
from stress_weights import SilentLoad, weight_cases

from glomjax.errors import UserError

KINDS = {
    "config": config_cases,
    "tables": table_cases,
    "images": image_cases,
    "weights": weight_cases,
}
REFUSED, ACCEPTED = "refused", "accepted"
OFFENCES = (
    "raw exception",
    "timeout",
    "memory",
    "died",
    "several lines",
    "long sentence",
    "silent",
)
REFUSAL_SECONDS, ACCEPTANCE_SECONDS, DEADLINE = 2, 10, 30  # of computing; by the clock
MEMORY = 2**30
LONGEST = 600  # characters of a sentence
SHOWN = 12  # offenders of each kind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", nargs="?", default="all", choices=(*KINDS, *RUNS, "all"))
    parser.add_argument("--count", type=int, default=0, help="cases of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.kind, args.count, args.seed)
        return
    kinds = [*KINDS, *RUNS] if args.kind == "all" else [args.kind]
    offences = [
        (stress if kind in KINDS else stress_runs)(kind, args.count, args.seed) for kind in kinds
    ]
    raise SystemExit(1 if any(offences) else 0)


def stress(kind: str, count: int, seed: int) -> int:
    """Runs the cases of a kind and prints how they ended; the number of those that should not have
    ended so."""
    begun = time.monotonic()
    ends: collections.Counter[tuple[str, str]] = collections.Counter()  # (door, outcome)
    found: dict[str, list[str]] = {offence: [] for offence in OFFENCES}
    for name, outcome, detail in outcomes(kind, count, seed):
        ends[name.partition(":")[0], outcome] += 1
        if outcome in found:
            found[outcome].append(f"{name}  {detail}")
    columns = (REFUSED, ACCEPTED, *OFFENCES)
    print(f"{kind}: {sum(ends.values())} cases, seed {seed}, {time.monotonic() - begun:.0f} s")
    print("".join([f"{'':<14}", *(f"{column:>15}" for column in columns)]))
    for door in dict.fromkeys(door for door, _ in ends):
        print("".join([f"{door:<14}", *(f"{ends[door, column]:>15}" for column in columns)]))
    for offence, names in found.items():
        if names:
            print(f"{offence}:")
            print("".join(f"  {name}\n" for name in names[:SHOWN]), end="")
    return sum(map(len, found.values()))


def outcomes(kind: str, count: int, seed: int) -> Iterator[tuple[str, str, str]]:
    """(name, outcome, detail) of each case, from workers that are started anew where one ends."""
    number, total = 0, 1
    while number < total:
        with Worker(kind, count, seed) as worker:
            total = worker.total
            while number < total:
                name, outcome, detail = worker.ask(number)
                yield name, outcome, detail
                number += 1
                if outcome in ("timeout", "memory", "died"):
                    break


class Worker:
    """A process with a limit of memory that runs cases by their numbers."""

    def __init__(self, kind: str, count: int, seed: int):
        command = [sys.executable, __file__, kind, "--worker", f"--count={count}", f"--seed={seed}"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        # Without a buffer, in which a line could lie that `select` does not know of.
        process: Any = subprocess.Popen(command, **pipes, stderr=subprocess.DEVNULL, bufsize=0)
        self._process = process
        self._replies = selectors.DefaultSelector()
        self._replies.register(self._process.stdout, selectors.EVENT_READ)
        ready = self._process.stdout.readline()
        if not ready:
            raise SystemExit(f"the worker for {kind} does not start: run {' '.join(command)}")
        self.total = int(ready)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, number: int) -> tuple[str, str, str]:
        self._process.stdin.write(b"%d\n" % number)
        name = self._line(10) or "a case before which the worker ended"
        reply = self._line(DEADLINE)
        if reply is None:
            return name, "timeout", f"no answer within {DEADLINE} s"
        return (name, *json.loads(reply)) if reply else (name, "died", "the worker ended")

    def _line(self, seconds: float) -> str | None:
        """The next line, "" where the process has ended, None where none comes in time."""
        if not self._replies.select(seconds):
            return None
        return self._process.stdout.readline().decode().rstrip("\n")


def work(kind: str, count: int, seed: int) -> None:
    """The worker: reads numbers of cases and writes the name and the outcome of each."""
    os.environ["GLOMJAX_OFFLINE"] = "1"
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    with tempfile.TemporaryDirectory() as folder:
        cases = KINDS[kind](pathlib.Path(folder), count, seed)
        used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        print(len(cases), file=out, flush=True)
        for line in sys.stdin:
            name, run = cases[int(line)]
            print(name, file=out, flush=True)
            print(json.dumps(attempt(run)), file=out, flush=True)


def attempt(run: Callable[[], Any]) -> tuple[str, str]:
    """(outcome, detail) of a case."""
    begun = time.process_time()
    try:
        run()
        outcome, detail, limit = ACCEPTED, "", ACCEPTANCE_SECONDS
    except UserError as error:
        outcome, detail, limit = REFUSED, str(error), REFUSAL_SECONDS
        if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in detail):
            outcome = "several lines"
        elif len(detail) > LONGEST:
            outcome = "long sentence"
        if _ran_out_of_memory(error.__cause__):
            outcome = "memory"
    except MemoryError:
        return "memory", "MemoryError"
    except SilentLoad as error:
        return "silent", ascii(f"{error} ({', '.join(error.__notes__)})"[:200])
    except BaseException as error:
        memory = _ran_out_of_memory(error)
        said = f"{type(error).__name__}: {error!s:.150}"
        said += "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        return ("memory" if memory else "raw exception"), ascii(said[:300])
    seconds = time.process_time() - begun
    if seconds > limit:
        return "timeout", f"{outcome} after {seconds:.1f} s of computing"
    return outcome, ascii(detail[:200])


def _ran_out_of_memory(error: BaseException | None) -> bool:
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
