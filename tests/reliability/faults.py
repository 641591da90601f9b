"""Second processes, full disks, small memories and queues."""

import contextlib
import dataclasses
import io
import json
import logging
import os
import pathlib
import re
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

from small_runs import config_for
from test_old_runs import OLD, old_config, old_data

from glomjax.errors import UserError
from glomjax.training import Interrupted, resources, run_lock, train_and_evaluate
from glomjax.training.run_lock import LOCK, Holder
from reliability.runs import damaged, trained
from reliability.situations import Answer, Case, command

HEADING = "Second processes, disks, memory and time"
LOCKED = {"process": 1234, "since": "2026-05-04T10:00:00+02:00", "token": "x"}


def held(age: float = 0.0, **changes: Any):
    """A folder that a process has taken, which gave its last sign of life some seconds ago."""

    def prepare(folder: pathlib.Path) -> None:
        (folder / "run").mkdir()
        holder = dataclasses.replace(Holder.here(), **(LOCKED | changes))
        file = folder / "run" / LOCK
        file.write_text(json.dumps(dataclasses.asdict(holder)))
        # Half a second, so that the whole seconds of the sentence are these.
        then = time.time() - age - 0.4
        os.utime(file, (then, then))

    return prepare


def training(prepare: Callable[[pathlib.Path], Any], *more: str, alive: bool = False):
    """The command in a folder that is prepared."""

    def answer(folder: pathlib.Path) -> Answer:
        prepare(folder)
        lives = mock.patch.object(Holder, "lives", alive)
        with mock.patch.object(run_lock, "BEAT_SECONDS", 999), lives:
            found = command("train", "--config", "alexnet_mini", "--workdir", "run", *more)
        return Answer(found.kind, found.text.replace(Holder.here().host, "HOST"))

    return answer


def goes_on(change: Callable[[pathlib.Path], Any], part: str):
    """An interrupted run that goes on after something has happened to its folder; the line with
    these words."""

    def answer(folder: pathlib.Path) -> Answer:
        shutil.copytree(OLD / "unfinished", folder / "run")
        change(folder / "run")
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            train_and_evaluate(old_config(), folder / "run", data=old_data())
        lines = [line for line in out.getvalue().splitlines() if part in line]
        return Answer("told", lines[0].strip("* "))

    return answer


def small(
    replaced: dict[str, Any] | None = None, *, full: bool = False, hours: float = 0.0, **fields: Any
):
    """A run of small patches on a machine that has little of something."""

    def answer(folder: pathlib.Path) -> Answer:
        shutil.copytree(trained() / "patches", folder / "patches")
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        with contextlib.ExitStack() as stack:
            for name, value in (replaced or {}).items():
                stack.enter_context(mock.patch.object(resources, name, value))
            if full:
                # What a full disk does, but for the name.
                stack.callback(signal.signal, signal.SIGXFSZ, signal.getsignal(signal.SIGXFSZ))
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                stack.callback(resource.setrlimit, resource.RLIMIT_FSIZE, limit)
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            config = config_for(folder / "patches", **fields)
            try:
                train_and_evaluate(config, folder / "run", max_hours=hours)
            except Interrupted as interrupted:
                return Answer("told", f"{interrupted}")
            except UserError as error:
                text = str(error).replace("File too large", "No space left on device")
                return Answer("refused", re.sub(r"needs [\d.]+ MiB and", "needs N MiB and", text))
        return Answer("raw", "it trains")

    return answer


def relock(folder: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory() as aside:
        held()(pathlib.Path(aside))
        shutil.copy2(pathlib.Path(aside) / "run" / LOCK, folder / "run" / LOCK)


def removed(*names: str) -> Callable[[pathlib.Path], Any]:
    def change(run: pathlib.Path) -> None:
        for name in names:
            path = run / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def another_rate(run: pathlib.Path) -> None:
    """A digit of the learning rate that took effect."""
    # A run of this version; the old one has no checksum.
    shutil.rmtree(run)
    shutil.copytree(trained() / "run", run)
    file = run / "config.json"
    stored = json.loads(file.read_text())
    stored["effective"]["learning_rate"] = 0.007
    file.write_text(json.dumps(stored))


def unwritable_cache(folder: pathlib.Path) -> Answer:
    (folder / "cache").write_text("a file")
    with (
        mock.patch.dict(os.environ, GLOMJAX_CACHE=str(folder / "cache")),
        mock.patch("glomjax.training.train_and_evaluate"),
    ):
        said = io.StringIO()
        handler = logging.StreamHandler(said)
        logging.getLogger("glomjax").addHandler(handler)
        try:
            command("train", "--config", "alexnet_mini")
        finally:
            logging.getLogger("glomjax").removeHandler(handler)
    return Answer("told", said.getvalue().strip())


ELSEWHERE = {"host": "node7", "system": "another boot"}
SPACE = {"free_bytes": lambda: 0}

CASES = [
    Case("a folder in which another process of this machine trains", training(held(), alive=True)),
    Case(
        "a folder in which a process of another machine trains",
        training(held(5, **ELSEWHERE), alive=True),
    ),
    Case(
        "a run that another process trains, to be replaced",
        training(
            lambda folder: (shutil.copytree(OLD / "finished", folder / "run"), relock(folder)),
            "--overwrite",
            alive=True,
        ),
    ),
    Case("a run whose best weights are damaged", goes_on(damaged, "are lost")),
    Case(
        "a run whose best weights are gone",
        goes_on(removed("checkpoints/best"), "are lost"),
    ),
    Case(
        "a run whose last weights are gone, and the best are there",
        goes_on(removed("checkpoints/last"), ""),
    ),
    Case("a run whose config.json is gone", goes_on(removed("config.json"), "")),
    Case("a run in whose config.json a digit has changed", goes_on(another_rate, "")),
    Case("a disk that is full", small(full=True)),
    Case("a batch for which there is no memory, as for no other", small(SPACE)),
    Case(
        "decoded images for which there is no memory",
        small({"free_host_bytes": lambda: 2**23}, image_size=(280, 280)),
    ),
    Case("a limit of time that has passed", small(hours=1e-6)),
    Case("a limit of time below zero", small(hours=-1.0)),
    Case("a cache that cannot be written", unwritable_cache),
]
