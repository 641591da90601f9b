"""What a run says: on the terminal, in its `run.log`, and to the logger `glomjax`."""

import contextlib
import datetime
import importlib.util
import logging
import math
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from glomjax.errors import printable, shell_word

RUN_LOG = "run.log"  # in the folder of a run: every line that it has said, with its time
_LOG = logging.getLogger("glomjax")


class Terminal:
    """Says what happens in a run, a line at a time.

    Lines are printed on standard output, plain where that is no terminal, and are records of the
    standard library's logger `glomjax`: INFO, and WARNING for banners. A script whose own logging
    shows those on the terminal sees each once, as its logging formats it.

    Args:
      prints: False prints nothing and shows no bar. Banners remain, as warnings of the logger,
        which without any configuration go to standard error.
      speaks: False says nothing anywhere: all but one of several processes.
    """

    def __init__(self, *, prints: bool = True, speaks: bool = True) -> None:
        self._speaks, self._prints = speaks, prints and speaks
        self._console = Console(highlight=False, soft_wrap=True, quiet=not self._prints)
        self._file: pathlib.Path | None = None
        # What the script has set up; libraries add handlers of their own later on. Without any, the
        # standard library prints warnings itself, which would be a second time.
        self._logs = _LOG.hasHandlers() or not self._prints
        self._left_to_logging = {
            level for level in (logging.INFO, logging.WARNING) if _logging_prints(level)
        }

    def keep_in(self, folder: pathlib.Path) -> None:
        """From now on every line is also added to the `run.log` in the folder of a run."""
        self._file = folder / RUN_LOG if self._speaks else None

    def say(self, text: str) -> None:
        """One line."""
        if self._passes_on(logging.INFO, text):
            self._console.print(self._shown(text), markup=False)

    def banner(self, text: str) -> None:
        """What nobody may overlook."""
        if not self._passes_on(logging.WARNING, text):
            return
        if self._console.is_terminal:
            panel = Panel(Text(self._shown(text)), style="bold yellow", expand=False)
            self._console.print(panel, soft_wrap=False)  # or the frame would cut the text short
        else:
            self._console.print(f"*** {self._shown(text)} ***", markup=False)

    def record(self, text: str) -> None:
        """A line for `run.log` alone."""
        if self._file is None:
            return
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        # Opened for each line, so that a process that dies leaves none half written or held back.
        # A full disk stops the run where it saves, and not for its log.
        with (
            contextlib.suppress(OSError),
            open(self._file, "a", encoding="utf-8") as file,
        ):
            file.writelines(f"{now} {line}\n" for line in printable(text).splitlines())

    @contextlib.contextmanager
    def recording_failure(self) -> Iterator[None]:
        """Adds to `run.log` what ends the run in here, which whoever catches it prints."""
        try:
            yield
        except Exception as error:
            self.record(f"ended by {type(error).__name__}: {error}")
            raise

    def _passes_on(self, level: int, text: str) -> bool:
        """Gives a line to `run.log` and to the logger; whether it is to be printed as well."""
        if not self._speaks:
            return False
        self.record(text)
        if self._logs:
            _LOG.log(level, "%s", printable(text))
        return self._prints and level not in self._left_to_logging

    def _shown(self, text: str) -> str:
        """The text with what the terminal cannot show replaced."""
        encoding = self._console.encoding
        return printable(text).encode(encoding, "replace").decode(encoding)

    def epoch_bar(self, epoch: int, batches: int, done: int = 0) -> "EpochBar":
        """A bar for the training batches of one epoch, counted from 1; some may be `done`."""
        return EpochBar(self._console, epoch, batches, done)

    def epoch(self, row: Mapping[str, Any], num_epochs: int, epochs_left: int, best: bool) -> None:
        """The line of a finished epoch.

        Args:
          row: its line of `metrics.jsonl`.
          num_epochs: the limit.
          epochs_left: how many more there will be at least, as far as early stopping knows.
          best: whether it is the best so far.
        """
        took = row["time"]
        seconds = took["seconds"]
        left = f"{_duration(seconds * epochs_left)} left at least" if epochs_left else ""
        self.say(
            f"epoch {row['epoch']:>3}/{num_epochs}  loss {row['loss']:.4f}  "
            f"accuracy {row['accuracy']:.3f}  val_loss {row['val_loss']:.4f}  "
            f"val_accuracy {row['val_accuracy']:.3f}  val_auroc {row['val_auroc']:.3f}  "
            f"lr {row['learning_rate']:.1e}  {took['images_per_second']:.1f} images/s "
            f"(step {took['step_images_per_second']:.1f}, input "
            f"{took['input_images_per_second']:.0f})  "
            f"{_duration(seconds)}  {left}{'  *best' if best else ''}".rstrip()
        )


class EpochBar:
    """Context manager around the batches of an epoch; `advance` after each."""

    def __init__(self, console: Console, epoch: int, batches: int, done: int):
        self._progress = Progress(
            TextColumn(f"epoch {epoch:>3}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} batches  {task.fields[speed]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=console.quiet or not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=batches, completed=done, speed="")
        self._start = time.monotonic()
        self._images = 0

    def __enter__(self) -> "EpochBar":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def advance(self, images: int) -> None:
        """One batch of `images` is done."""
        self._images += images
        speed = self._images / max(time.monotonic() - self._start, 1e-9)
        self._progress.update(self._task, advance=1, speed=f"{speed:.1f} images/s")


class Curves:
    """The figure of a run's curves, drawn anew while it trains, for under 2% of its time.

    A drawing takes about 0.3 s of one core, which is longer than an epoch of a small network. So
    there is one after an epoch only where many times as long has passed since the one before; long
    epochs have one each.

    Args:
      draw: draws and writes it.
      clock: seconds, as of `time.monotonic`.
    """

    SPACING = 50.0  # how many times as long as the last drawing took there is none
    _FIRST_SECONDS = 0.5  # that the first one is taken for, which also imports matplotlib

    def __init__(self, draw: Callable[[], None], clock: Callable[[], float] = time.monotonic):
        self._draw, self._clock = draw, clock
        self._drawn, self._took = clock(), self._FIRST_SECONDS

    def epoch(self) -> None:
        """An epoch has ended: draws where it is time to."""
        if self._clock() - self._drawn >= self.SPACING * self._took:
            self.draw()

    def draw(self) -> None:
        """Draws in any case."""
        begun = self._clock()
        self._draw()
        self._drawn = self._clock()
        self._took = self._drawn - begun


class TensorBoard:
    """The epochs as TensorBoard reads them (written by tensorboardX, without TensorFlow).

    They are a convenience: where the disk is full or the folder gone, the checkpoints say so.

    Args:
      folder: for the event files.
      epoch: the first that comes, counted from 1; what an earlier part of the run wrote from there
        on is hidden.
      writes: False writes nothing.
    """

    def __init__(self, folder: pathlib.Path, epoch: int, writes: bool):
        self._writer: Any = None
        if not writes:
            return
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        with contextlib.suppress(OSError):
            folder.mkdir(exist_ok=True)
            # Neither the queue nor the thread of a `SummaryWriter`, which end with a traceback on a
            # full disk, and may then wait for each other for ever.
            self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}")
            if epoch > 1:
                self._add(epoch, session_log=SessionLog(status=SessionLog.START))

    def epoch(self, row: Mapping[str, Any]) -> None:
        """A line of `metrics.jsonl`: training and validation under one heading each."""
        if self._writer is None:
            return
        values = {"images_per_second/training": row["time"]["images_per_second"]}
        for name, value in row.items():
            if isinstance(value, float):
                part = "validation" if name.startswith("val_") else "training"
                values[f"{name.removeprefix('val_')}/{part}"] = value
        from tensorboardX.summary import scalar

        with contextlib.suppress(OSError):
            for name, value in values.items():
                self._add(row["epoch"], summary=scalar(name, value))
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()

    def _add(self, epoch: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write_event(Event(wall_time=time.time(), step=epoch, **content))


def describe_viewing(folder: pathlib.Path) -> str:
    """A line on how to look at the run in a folder while it trains."""
    command, missing = "tensorboard", ""
    if shutil.which(command) is None:
        if importlib.util.find_spec(command) is None:
            missing = " (pip install tensorboard gives that command)"
        else:  # in an environment that is used without being activated
            command = f"{shell_word(sys.executable)} -m tensorboard.main"
    return (
        f"to look at it while it trains: '{folder / 'history.png'}', or {command} --logdir "
        f"{shell_word(folder)}{missing}"
    )


def _logging_prints(level: int) -> bool:
    """Whether a handler that the script has set up shows records of this level on its terminal."""
    logger: logging.Logger | None = _LOG if _LOG.isEnabledFor(level) else None
    while logger is not None:
        for handler in logger.handlers:
            console = getattr(handler, "console", None)  # rich's handler
            stream = getattr(handler, "stream", getattr(console, "file", None))
            if handler.level <= level and stream in (sys.stdout, sys.stderr):
                return True
        logger = logger.parent if logger.propagate else None
    return False


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
