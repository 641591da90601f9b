"""Faults of machines, thrown at whole runs of a tiny network: `python benchmarks/stress.py KIND`.

kills sends SIGKILL at random moments to a plain run, one that thaws, one of which the head alone
trains, and one of two processes, over and over until each has ended, and compares what it leaves
with an undisturbed one. processes kills one of two at moments spread over the run. disk lets a run
find its disk full from the n-th file on that it opens for writing, for every n. epochs trains for
long, and looks at memory and open files.
"""

import collections
import contextlib
import json
import multiprocessing
import os
import pathlib
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

ENDS_WITHIN = 60  # seconds, of a process whose partner was killed
SERVER: Any = multiprocessing.get_context("forkserver")
PRELOADED = ["glomjax.training.loop", "orbax.checkpoint", "tensorboardX", "matplotlib.figure"]
FLAT = 1.05  # by which memory may grow


def toy(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy grey squares, those of class 1 a little greener."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = rng.uniform(70, 170, (count, 1, 1, 1)) + rng.normal(0, 12, (count, 32, 32, 3))
    images[..., 1] += 25 * labels[:, None, None]
    return images.clip(0, 255).astype(np.uint8), labels


DATA = {"train": toy(50, 0), "validation": toy(20, 1), "test": toy(30, 2)}


def configuration(kind: str, source: pathlib.Path, epochs: int) -> Any:
    """Of a tiny DaViT that is saved every few steps; all but the plain kind start from the weights
    of a run in `source`."""
    from glomjax.training import default_config

    config = default_config()
    config.report = "none"
    config.update(image_size=(32, 32), batch_size=6, num_epochs=epochs, learning_rate=0.01)
    config.checkpoint_minutes = 0.002
    config.early_stopping.patience = epochs
    config.freeze.regime = "scratch"
    config.model.options.update(
        {"depths": (1,), "embed_dims": (8,), "num_heads": (1,), "dropout_rate": 0.1}
    )
    if kind in ("thawing", "head"):
        config.pretrained.source = str(source)
        config.pretrained.allow_seen = True
        config.freeze.regime = "head_only"
    if kind == "thawing":
        config.freeze.unfreeze = ("2:full:0.1",)
    return config


def train(kind: str, folder: pathlib.Path, about: dict[str, Any]) -> None:
    """One process of a run; its exit code is that of a command line.

    Args:
      about: "source" and "epochs", as of `configuration`; "process" and "port", of two processes;
        "full_at", from which file on that it opens the disk is full (0 for none, and their number
        is the last line that it says), and "ballast", the file that fills it, or else a limit of
        all files does; "log", for what it says.
    """
    if log := about.get("log"):
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
    import jax

    from glomjax.cli.command import print_error
    from glomjax.errors import UserError, at_command_line
    from glomjax.files import cache_dir
    from glomjax.training import Interrupted, initialize, train_and_evaluate

    jax.config.update("jax_compilation_cache_dir", str(cache_dir("jit-stress")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        if "process" in about:
            # One that is killed before it has joined is missed for so long.
            initialize(f"127.0.0.1:{about['port']}", 2, about["process"], timeout=10)
        opened: list[str] = []
        if "full_at" in about:
            fill_at(folder, about["full_at"], about.get("ballast"), opened)
        config = configuration(kind, about["source"], about["epochs"])
        with at_command_line():
            train_and_evaluate(config, folder, data=DATA, progress="log" in about)
        print(len(opened), flush=True)
        if (
            "process" in about
        ):  # which a command does at its end, and a child of this module does not
            jax.distributed.shutdown()
    except UserError as error:
        print_error(error)
        os._exit(2)
    except Interrupted as interrupted:
        os._exit(interrupted.exit_code)


def fill_at(
    folder: pathlib.Path, number: int, ballast: pathlib.Path | None, opened: list[str]
) -> None:
    """From the file of this number on that is opened for writing below the folder, its disk is
    full. `opened` gets the names of all."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        if not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        name = os.fsdecode(arguments[0])
        if not name.startswith(str(folder)):
            return
        opened.append(name)
        if len(opened) != number:
            return
        if ballast is None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        else:
            fill(ballast)

    sys.addaudithook(hook)


def fill(ballast: pathlib.Path) -> None:
    """Writes a file until its disk is full."""
    handle = os.open(ballast, os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while True:
            os.write(handle, bytes(2**16))
    with contextlib.suppress(OSError):
        while True:
            os.write(handle, bytes(1))
    os.close(handle)


def outcome(folder: pathlib.Path) -> dict[str, Any]:
    """What a finished run leaves that must not depend on what happened to it."""
    from glomjax import checkpoints

    arrays, _ = checkpoints.restore(folder / "checkpoints" / "best")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "best": {path: value.tobytes() for path, value in arrays.items()},
        "history": [row for row in rows if row.pop("time")],
        "metrics": json.loads((folder / "test_metrics.json").read_text()),
        "predictions": (folder / "predictions.csv").read_bytes(),
    }


class Stress:
    """Runs of one kind of fault in a folder of their own.

    Attributes:
      found: what went wrong, a line each.
      counts: how often what happened.
    """

    def __init__(self, folder: pathlib.Path, count: int, seed: int):
        SERVER.set_forkserver_preload(PRELOADED)
        self.folder, self.count, self.rng = folder, count, random.Random(seed)
        self.found: list[str] = []
        self.counts: collections.Counter[str] = collections.Counter()
        self._undisturbed: dict[str, tuple[dict[str, Any], float]] = {}
        self.epochs = 4

    def undisturbed(self, kind: str) -> tuple[dict[str, Any], float]:
        """(outcome, seconds) of a run to which nothing happens."""
        if kind not in self._undisturbed:
            if kind in ("thawing", "head"):
                self.undisturbed("plain")
            seconds = 0.0
            for _ in range(2):  # the first one compiles
                shutil.rmtree(self.folder / kind, ignore_errors=True)
                begun = time.monotonic()
                codes = self.wait(self.start(kind, self.folder / kind), 300)
                seconds = time.monotonic() - begun
                if any(codes):
                    raise SystemExit(f"an undisturbed run of the kind {kind} ends with {codes}")
            self._undisturbed[kind] = outcome(self.folder / kind), seconds
        return self._undisturbed[kind]

    def start(self, kind: str, workdir: pathlib.Path, **more: Any) -> list[Any]:
        """The processes of a run."""
        about = {"source": self.folder / "plain", "epochs": self.epochs, **more}
        each = [about]
        if kind == "two":
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            each = [about | {"process": i, "port": port} for i in range(2)]
        processes = [SERVER.Process(target=train, args=(kind, workdir, one)) for one in each]
        for process in processes:
            process.start()
        return processes

    def wait(self, processes: list[Any], seconds: float) -> list[int | None]:
        """Their exit codes; None of one that has not ended by then, which is killed."""
        end, codes = time.monotonic() + seconds, []
        for process in processes:
            process.join(max(end - time.monotonic(), 0))
            codes.append(process.exitcode)
            process.kill()
            process.join()
        return codes

    def compare(self, kind: str, workdir: pathlib.Path, about: str) -> None:
        """Notes where a finished run is not the undisturbed one."""
        expected, _ = self.undisturbed(kind)
        got = outcome(workdir)
        if different := [name for name in expected if got[name] != expected[name]]:
            self.found.append(f"{kind}, {about}: other {', '.join(different)}")
        self.counts["runs that ended as undisturbed ones"] += not different

    def said(self, log: pathlib.Path, about: str) -> None:
        """Notes where a process did not end with one sentence."""
        text = log.read_text(errors="replace")
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        if len(errors) != 1 or "Traceback" in text or "Check failure" in text:
            self.found.append(f"{about}: {text[-300:]!r}")


def kills(stress: Stress) -> None:
    for kind in ("plain", "thawing", "head", "two"):
        _, seconds = stress.undisturbed(kind)
        share, number = max(stress.count // 4, 1), 0
        while share > 0:
            workdir = stress.folder / f"{kind}{number}"
            number += 1
            while True:
                # With none left, it may end; each goes on where the one before it was.
                processes = stress.start(kind, workdir, log=stress.folder / "log")
                if share > 0:
                    time.sleep(stress.rng.uniform(0, 0.8 * seconds))
                    victim = stress.rng.choice(processes)
                    if all(process.is_alive() for process in processes):
                        share -= 1
                        stress.counts[f"kills of {kind}"] += 1
                        os.kill(victim.pid, signal.SIGKILL)
                codes = stress.wait(processes, 2 * ENDS_WITHIN)
                for process, code in zip(processes, codes, strict=True):
                    if code not in (0, 2, -signal.SIGKILL):
                        stress.found.append(f"{kind}: process {process.pid} ends with {code}")
                if not any(codes):
                    break
            stress.compare(kind, workdir, f"run {number}")
            shutil.rmtree(workdir)


def processes(stress: Stress) -> None:
    _, seconds = stress.undisturbed("two")
    for moment in range(stress.count):
        workdir = stress.folder / "pair"
        both = stress.start("two", workdir, log=stress.folder / "log")
        time.sleep(seconds * 0.9 * (moment + 0.5) / stress.count)
        victim = both[moment % 2]
        other = both[1 - moment % 2]
        if victim.is_alive():
            os.kill(victim.pid, signal.SIGKILL)
            begun = time.monotonic()
            (code,) = stress.wait([other], ENDS_WITHIN)
            took = time.monotonic() - begun
            stress.counts[f"ended within {10 * (1 + int(took / 10))} s"] += 1
            if code != 2:
                stress.found.append(f"moment {moment}: the other process ends with {code}")
        stress.wait(both, 300)
        if any(codes := stress.wait(stress.start("two", workdir), 300)):
            stress.found.append(f"moment {moment}: they go on to {codes}")
        else:
            stress.compare("two", workdir, f"moment {moment}")
        shutil.rmtree(workdir)


def disk(stress: Stress) -> None:
    root, log = stress.folder / "disk", stress.folder / "log"
    workdir, ballast = root / "run", root / "ballast"
    with small_disk(root) as mounted:
        stress.counts["a disk of 20 MB" if mounted else "a limit of the size of files"] = 1
        stress.undisturbed("plain")
        if any(stress.wait(stress.start("plain", workdir, full_at=0, log=log), 120)):
            raise SystemExit(f"a run on the small disk says: {log.read_text()}")
        files = int(log.read_text().split()[-1])
        shutil.rmtree(workdir)
        stress.counts["files that a run opens"] = files
        count = min(stress.count or files, files)
        for number in sorted({1 + i * files // count for i in range(count)}):
            log.unlink(missing_ok=True)
            more = {"full_at": number, "log": log} | ({"ballast": ballast} if mounted else {})
            (code,) = stress.wait(stress.start("plain", workdir, **more), 120)
            ballast.unlink(missing_ok=True)
            if code == 2:
                stress.counts["one sentence, exit code 2"] += 1
                stress.said(log, f"file {number}")
            elif code == 0:  # those behind it are for reading, such as the curves
                stress.counts["to its end without them"] += 1
            else:
                stress.found.append(f"file {number}: exit code {code}")
            if code:
                (code,) = stress.wait(stress.start("plain", workdir), 120)
            if code:
                stress.found.append(f"file {number}: it goes on to {code}")
            else:
                stress.compare("plain", workdir, f"file {number}")
            shutil.rmtree(workdir)


@contextlib.contextmanager
def small_disk(folder: pathlib.Path) -> Iterator[bool]:
    """A disk of 20 MB in a folder, where this user may mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)]
    mounted = False
    with contextlib.suppress(OSError):
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def epochs(stress: Stress) -> None:
    stress.undisturbed("plain")
    stress.epochs = stress.count
    workdir = stress.folder / "long"
    (process,) = stress.start("plain", workdir)
    seen: list[tuple[int, int, int]] = []  # (epochs, bytes, open files)
    while process.is_alive():
        time.sleep(0.02)
        with contextlib.suppress(OSError):
            done = (workdir / "metrics.jsonl").read_bytes().count(b"\n")
            pages = int(pathlib.Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            files = len(os.listdir(f"/proc/{process.pid}/fd"))
            seen.append((done, pages * resource.getpagesize(), files))
    (code,) = stress.wait([process], 0)
    if code:
        stress.found.append(f"the run ends with {code}")
    parts = []
    for low, high in ((0.2, 0.4), (0.8, 1.0)):
        part = [row for row in seen if low * stress.count <= row[0] < high * stress.count]
        if not part:
            stress.found.append(f"it was never seen between {low:.0%} and {high:.0%}")
            return
        # While it saves, some more are open for a moment.
        parts.append((*np.median(np.array(part), axis=0)[:2], min(row[2] for row in part)))
    early, late = parts
    stress.counts["MB in the second fifth"] = int(early[1] / 1e6)
    stress.counts["MB in the last fifth"] = int(late[1] / 1e6)
    stress.counts["open files in the second fifth"] = int(early[2])
    stress.counts["open files in the last fifth"] = int(late[2])
    if late[1] > FLAT * early[1] or late[2] > early[2]:
        stress.found.append(f"memory or open files grow: {early} to {late}")


# {kind: (what it does, how often by default; 0 until there is no more)}
KINDS: dict[str, tuple[Callable[[Stress], None], int]] = {
    "kills": (kills, 500),
    "processes": (processes, 20),
    "disk": (disk, 0),
    "epochs": (epochs, 1000),
}


def stress_runs(kind: str, count: int, seed: int) -> int:
    """Runs a kind and prints what happened; how much of it should not have."""
    what, default = KINDS[kind]
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        stress = Stress(pathlib.Path(folder), count or default, seed)
        what(stress)
    print(f"{kind}: seed {seed}, {time.monotonic() - begun:.0f} s")
    for name, number in stress.counts.items():
        print(f"  {number:>6} {name}")
    for line in stress.found:
        print(f"  WRONG: {line}")
    return len(stress.found)
