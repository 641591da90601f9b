"""Who trains in a run folder: one process at a time, on whatever machine.

`lock.json` in the folder says who holds it. A process of this machine is looked up, by its number
and when it began; whether one of another machine lives is told by the file's time of change, which
its holder renews. No lock of the file system is relied on, since on shared disks they often hold on
one machine alone; they only put the processes of one machine in line.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import pathlib
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator

from glomjax.errors import UserError, argument, same_again, shown

LOCK = "lock.json"
BEAT_SECONDS = 10.0  # between two signs of life
# Without one for so long, the process of another machine counts as dead. Network file systems show
# a change of a file after up to a minute.
SILENCE_SECONDS = 120.0


class RunInUse(UserError):
    """Another process trains in the folder now."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """A process, as a lock names it.

    Attributes:
      host: the name of its machine.
      process: its number.
      started: when it began, as its system counts, "" where that is not told.
      system: the boot and the group of processes within which its number is its own, "" likewise.
      since: when it took the folder, with the time zone.
      token: of this lock alone.
    """

    host: str
    process: int
    started: str
    system: str
    since: str
    token: str

    @classmethod
    def here(cls) -> "Holder":
        """This process."""
        return cls(
            host=socket.gethostname(),
            process=os.getpid(),
            started=_started(os.getpid()) or "",
            system=_system(),
            since=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            token=uuid.uuid4().hex,
        )

    @property
    def is_of_this_system(self) -> bool:
        """Whether its number means the same process here."""
        return self.system != "" and self.system == _system()

    @property
    def lives(self) -> bool:
        """Of one that `is_of_this_system`."""
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return False
        except OSError:  # another user's
            pass
        # None: it has ended, and whoever started it has not asked how.
        started = _started(self.process)
        return started is not None and started in ("", self.started)

    def __str__(self) -> str:
        return f"process {self.process} on {shown(self.host)[1:-1]} since {shown(self.since)[1:-1]}"


class RunLock:
    """Context manager in which this process alone trains in a folder.

    Args:
      folder: which exists.

    Raises:
      RunInUse: on entering, another process has it.
      UserError: on entering, the folder cannot be written.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder, self._file = folder, folder / LOCK
        self._mine: Holder | None = None
        self._ends = threading.Event()

    def __enter__(self) -> "RunLock":
        mine = Holder.here()
        try:
            with _in_line(self._folder):
                self._take(mine)
            self._mine = mine
            self._ends.clear()
            threading.Thread(target=self._beat, name="run lock", daemon=True).start()
        except BaseException:  # a signal, too: nobody would release it
            self._mine = mine
            self.release()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    @property
    def is_held(self) -> bool:
        """Whether this process has taken it."""
        return self._mine is not None

    def release(self) -> None:
        """Leaves the folder to others; a lock that is not this one's any more is left alone."""
        self._ends.set()
        mine, self._mine = self._mine, None
        if mine is not None and _read(self._file) == mine:
            with contextlib.suppress(OSError):
                self._file.unlink()

    def check(self) -> None:
        """To be called before whatever is written in the folder.

        Raises:
          UserError: the folder is gone, or another process has it.
        """
        if self._mine is None or (found := self._renewed()) == self._mine:
            return
        if found is not None:
            raise UserError(
                f"run folder '{self._folder}' was taken over by {found}, since this process gave "
                f"no sign of life for {SILENCE_SECONDS:.0f} s; it ends here and leaves the run to "
                "that one"
            )
        if not os.path.exists(self._folder / "config.json"):
            raise UserError(
                f"run folder '{self._folder}' is not there any more: it was removed or renamed, or "
                "its disk is gone; nothing more is written, and where what it held still is, "
                f"{same_again()} goes on after the last checkpoint there"
            )
        with contextlib.suppress(OSError):  # somebody has removed the lock alone
            _create(self._file, self._mine)

    def _take(self, mine: Holder) -> None:
        for _ in range(20):
            try:
                _create(self._file, mine)
                return
            except FileExistsError:
                pass
            except OSError as error:
                raise UserError(
                    f"run folder '{self._folder}' cannot be written ({error.strerror}); make room "
                    f"there, or make it writable, or name another with {argument('--workdir')}"
                ) from error
            holder, silence = _read(self._file), self._silence()
            if silence is None:
                continue  # it has just been released
            if holder is not None and holder.is_of_this_system:
                if holder.lives:
                    raise self._in_use(holder, None)
            elif silence < SILENCE_SECONDS:
                raise self._in_use(holder, silence)
            self._remove(holder)
        raise UserError(
            f"run folder '{self._folder}' is taken and released by other processes all the time; "
            "see to it that one alone trains in it"
        )

    def _in_use(self, holder: Holder | None, silence: float | None) -> RunInUse:
        freed = ""
        if silence is not None:
            freed = (
                f" (its last sign of life was {silence:.0f} s ago; {SILENCE_SECONDS:.0f} s after "
                "the last one the folder is free)"
            )
        return RunInUse(
            f"run folder '{self._folder}' is in use by {holder or 'a process that has just begun'}"
            f"{freed}; wait until that ends, or name another folder with {argument('--workdir')}"
        )

    def _silence(self) -> float | None:
        """Seconds since the last sign of life, by the clock of the disk; None without a lock."""
        try:
            with open(self._file, "rb") as file:  # a network file system looks anew for this
                last = os.fstat(file.fileno()).st_mtime
        except OSError:
            return None
        probe, now = self._folder / f".{LOCK}.{uuid.uuid4().hex}", time.time()
        with contextlib.suppress(OSError):
            probe.touch()
            now = probe.stat().st_mtime
            probe.unlink()
        return now - last

    def _remove(self, dead: Holder | None) -> None:
        """The lock of a dead process, and no other that has come in its place by now."""
        aside = self._folder / f".{LOCK}.{uuid.uuid4().hex}"
        try:
            os.rename(self._file, aside)
            if _read(aside) != dead:
                os.link(aside, self._file)
        except OSError:
            pass  # another process was faster
        with contextlib.suppress(OSError):
            aside.unlink()

    def _beat(self) -> None:
        while not self._ends.wait(BEAT_SECONDS):
            # What stands there is not this process's to renew where another one has taken it.
            if self._renewed() == self._mine:
                with contextlib.suppress(OSError):
                    os.utime(self._file)

    def _renewed(self) -> Holder | None:
        """What stands there; a lock of this process that was damaged is written again."""
        found, mine = _read(self._file), self._mine
        if found is None and mine is not None and self._file.is_file():
            whole = self._folder / f".{LOCK}.{mine.token}"
            with contextlib.suppress(OSError):
                _create(whole, mine)
                os.replace(whole, self._file)
                return mine
        return found


def _create(file: pathlib.Path, holder: Holder) -> None:
    """Raises FileExistsError where there is a lock."""
    text = json.dumps(dataclasses.asdict(holder), indent=2) + "\n"
    stream = open(file, "x", encoding="utf-8")  # noqa: SIM115
    try:
        with stream:  # a disk may say only at the end that it is full
            stream.write(text)
    except OSError:
        file.unlink()
        raise


def _read(file: pathlib.Path) -> Holder | None:
    """None where there is no lock, or one that is damaged or is being written."""
    try:
        return Holder(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


@contextlib.contextmanager
def _in_line(folder: pathlib.Path) -> Iterator[None]:
    """One process of this machine after another, where the file system can do that."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _started(process: int) -> str | None:
    """When a process began, as the kernel counts; None where it has ended, "" where that is not
    told."""
    try:
        text = pathlib.Path(f"/proc/{process}/stat").read_text()
    except OSError:
        state, _, started = _asked("ps", "-o", "state=,lstart=", "-p", str(process)).partition(" ")
        return None if state.startswith("Z") else started.strip()
    # Behind the name in brackets, which may hold anything: the state, and 18 fields later this.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def _system() -> str:
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # macOS has neither
        return _asked("sysctl", "-n", "kern.boottime")


def _asked(*command: str) -> str:
    """What a command of the system says, "" where there is none."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
