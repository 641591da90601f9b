"""What a run says on the terminal: a line an epoch, and a bar within it."""

import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text


class Terminal:
    """Prints a run; plain lines where the output is not a terminal, and nothing where `quiet`."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(highlight=False, soft_wrap=True, quiet=quiet)

    def say(self, text: str) -> None:
        """One line."""
        self._console.print(text, markup=False)

    def banner(self, text: str) -> None:
        """What nobody may overlook."""
        if self._console.is_terminal:
            self._console.print(Panel(Text(text), style="bold yellow", expand=False))
        else:
            self.say(f"*** {text} ***")

    def epoch_bar(self, epoch: int, batches: int, done: int = 0) -> "EpochBar":
        """A bar for the training batches of one epoch, counted from 0; some may be `done`."""
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
            f"epoch {row['epoch'] + 1:>3}/{num_epochs}  loss {row['loss']:.4f}  "
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
            TextColumn(f"epoch {epoch + 1:>3}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} batches  {task.fields[speed]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
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


class TensorBoard:
    """The epochs as TensorBoard reads them (written by tensorboardX, without TensorFlow).

    Args:
      folder: for the event files.
      epoch: the first that comes; what an earlier part of the run wrote from there on is hidden.
      writes: False writes nothing.
    """

    def __init__(self, folder: pathlib.Path, epoch: int, writes: bool):
        self._writer: Any = None
        if writes:
            import tensorboardX

            # Its own `flush` leaves what is queued; its thread writes that within these seconds.
            self._writer = tensorboardX.SummaryWriter(
                str(folder), purge_step=epoch or None, flush_secs=1
            )

    def epoch(self, row: Mapping[str, Any]) -> None:
        """A line of `metrics.jsonl`: training and validation under one heading each."""
        if self._writer is None:
            return
        for name, value in row.items():
            if isinstance(value, float):
                metric = name.removeprefix("val_")
                part = "validation" if name.startswith("val_") else "training"
                self._writer.add_scalar(f"{metric}/{part}", value, row["epoch"])
        speed = row["time"]["images_per_second"]
        self._writer.add_scalar("images_per_second/training", speed, row["epoch"])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
