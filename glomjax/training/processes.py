"""The processes of a job: how they join, and that none waits for one that has died."""

import contextlib
import itertools
import json
import logging
import math
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax._src import distributed  # jax has no other door to what its processes have in common

from glomjax.errors import UserError, argument, is_command_line, same_again
from glomjax.training.interrupts import Interrupted

JOIN_SECONDS = 300  # in which all processes of a job must have come, to it and to its runs
BEAT_SECONDS = 5.0  # between two signs of life of a process
SILENCE_SECONDS = 30  # without one, after which a process counts as dead
# jax would abort processes that a laptop has put to sleep; `Watch` tells those from dead ones.
_ASLEEP_SECONDS = 7 * 24 * 3600
# In which processes that the command line has started come from joining the job to their run.
_COMMAND_LINE_SECONDS = 45
_HELLO = 1024  # bytes of a message by which processes find each other
_WATCHES = itertools.count()  # all processes enter the same ones
_BEAT, _GOODBYE, _FAILED = b".", b"q", b"e"
_LOG = logging.getLogger("glomjax")


def initialize(
    coordinator: str = "", processes: int = 0, process: int = -1, *, timeout: float = JOIN_SECONDS
) -> None:
    """Joins the processes of a job, before anything else touches a device.

    Without arguments, a job of several processes is recognised under SLURM, on TPU pods and on GKE;
    anything else is a job of one process. Where some of them do not come in time, this process ends
    with a sentence and the exit code 2, since jax would abort it.

    Args:
      coordinator: "HOST:PORT" of process 0.
      processes: how many there are.
      process: which one this is, from 0.
      timeout: seconds in which all must have come.

    Raises:
      UserError: some of the three but not all, or the others cannot be reached.
    """
    given = (coordinator != "", processes > 0, process >= 0)
    names = [argument(option) for option in ("--coordinator", "--processes", "--process")]
    if any(given) and not all(given):
        raise UserError(
            "{}, {} and {} go together: HOST:PORT of process 0, how many processes there are, "
            "and which one this is".format(*names)
        )
    if all(given) and process >= processes:
        raise UserError(
            f"{names[2]} is {process}; of {processes} processes the last is {processes - 1}"
        )
    if not all(given) and not _is_cluster(os.environ):
        return
    # It would take SIGTERM for itself; `Interrupts` has it.
    jax.config.update("jax_enable_preemption_service", False)
    # One program after another: on CPUs, messages of two at once could be taken for each other.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    # jax takes the number of a whole job of SLURM for that of a step.
    tasks = _tasks(os.environ)
    count = processes if all(given) else tasks if tasks > 1 else None
    try:
        with _ends_after(timeout, _not_joined(coordinator, count, timeout)):
            jax.distributed.initialize(
                coordinator or None,
                count,
                process if all(given) else None,
                initialization_timeout=int(timeout) + 60,
                heartbeat_timeout_seconds=_ASLEEP_SECONDS,
            )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the processes of this job cannot be joined ({reason}); name them with {names[0]}, "
            f"{names[1]} and {names[2]}"
        ) from error


def _not_joined(coordinator: str, count: int | None, timeout: float) -> str:
    all_of = "the processes" if count is None else f"the {count} processes"
    where = f" at {coordinator}" if coordinator else ""
    return (
        f"{all_of} of this job have not all come together{where} within {timeout:.0f} s; see to it "
        f"that each of them is started, with its own {argument('--process')} and the same "
        f"{argument('--coordinator')}, and that all reach that host and port"
    )


@contextlib.contextmanager
def _ends_after(seconds: float, sentence: str) -> Iterator[None]:
    """Ends the process with a sentence where what is in here takes longer."""
    waits = f"waiting for the other processes of this job, at most {seconds:.0f} s"
    timers = [
        threading.Timer(min(15.0, seconds / 2), lambda: print(waits, file=sys.stderr, flush=True)),
        threading.Timer(seconds, lambda: _end(sentence)),
    ]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


def _end(sentence: str) -> None:
    """As the command line ends for a UserError, out of any thread."""
    os.write(2, f"error: {sentence}\n".encode(errors="replace"))
    os._exit(2)


def _tasks(environment: Mapping[str, str]) -> int:
    """How many processes srun has started in this step, 0 where that is not told. `SLURM_NTASKS` is
    the number of a whole job, which a shell that salloc opens has as well."""
    tasks = environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", ""))
    return int(tasks) if "SLURM_STEP_NODELIST" in environment and tasks.isdigit() else 0


def _is_cluster(environment: Mapping[str, str]) -> bool:
    """Whether a launcher that jax knows started several processes."""
    hosts = environment.get("TPU_WORKER_HOSTNAMES", "")  # TPU virtual machines and GKE set it
    return _tasks(environment) > 1 or "," in hosts or "MEGASCALE_COORDINATOR_ADDRESS" in environment


class Watch:
    """Context manager in which a process ends, with a sentence and the exit code 2, where another
    one of its job has died: it would wait for that for ever, or be aborted by jax.

    Process 0 is connected to each of the others. A process that dies closes its connection, one
    whose machine dies falls silent. All processes enter and leave it together, or an exception ends
    them.

    Args:
      at_end: is called before the process ends.
    """

    def __init__(self, at_end: Callable[[], None] = lambda: None):
        self._at_end = at_end
        # As jax was told. Its devices take a while to come, and a process that dies in the meantime
        # is to be missed as well.
        state = distributed.global_state
        self._processes, self._me = state.num_processes or 1, state.process_id or 0
        self._peers: dict[int, tuple[socket.socket, str]] = {}  # with what they are called
        self._left = threading.Event()
        self._done = False  # from now on, others may end as they like
        self._ending = threading.Lock()
        self._listeners: list[threading.Thread] = []

    def __enter__(self) -> "Watch":
        if self._processes > 1:
            self._connect()
            self._listeners = [self._start(self._listen, peer) for peer in self._peers]
            self._start(self._beat)
        return self

    def __exit__(self, kind: object, value: BaseException | None, *trace: object) -> None:
        if value is None or (isinstance(value, Interrupted) and value.saved):
            self._send(_GOODBYE)
            self._wait_for_peers()  # one of them may fail at its last file
            self._done = True
            self._left.set()
        else:
            self._left.set()
            self.say_failed()
            # Where another process has died, which this exception then comes from, that is said.
            self._wait_for_peers(0.5)
            self._done = True
            # jax aborts the others as soon as process 0 is gone: they have a sentence to say first.
            self._wait_for_peers(4)
        for connection, _ in self._peers.values():
            connection.close()

    def say_failed(self) -> None:
        """Tells the others that this process ends."""
        self._send(_FAILED)

    def _wait_for_peers(self, seconds: float = math.inf) -> None:
        end = time.monotonic() + seconds
        while any(thread.is_alive() for thread in self._listeners) and time.monotonic() < end:
            time.sleep(0.02)

    def _connect(self) -> None:
        """Process 0 tells the others where it listens, by what jax keeps for all of them."""
        store: Any = distributed.global_state.client
        key = f"glomjax/watch/{next(_WATCHES)}"
        name = f"process {self._me} of {self._processes} ({os.getpid()} on {socket.gethostname()})"
        if self._me == 0:
            with socket.create_server(("", 0), backlog=self._processes) as server:
                token = secrets.token_hex(16)
                hosts = [socket.gethostname(), _own_address(), "127.0.0.1"]
                store.key_value_set(key, json.dumps([server.getsockname()[1], token, hosts]))
                self._accept(server, token, name)
            if missing := set(range(1, self._processes)) - self._peers.keys():
                raise UserError(
                    f"process {min(missing)} of {self._processes} has joined this job and does not "
                    "come to its run: it has died, or does not reach process 0 on a free port; "
                    f"start all of them again, and {same_again()} goes on after the last checkpoint"
                )
            connected = True
        else:
            connected = False
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # it has not come yet
                told = store.blocking_key_value_get(key, 1000 * JOIN_SECONDS)
                port, token, hosts = json.loads(told)
                connected = self._call(hosts, port, token, name)
        if not connected:
            _LOG.warning(
                "not all processes of this job reach process 0 on a free port of it; where one of "
                "them dies, the others may wait for it until somebody ends them"
            )

    def _call(self, hosts: list[str], port: int, token: str, name: str) -> bool:
        for host in hosts:
            try:
                connection = socket.create_connection((host, port), timeout=5)
                connection.sendall(json.dumps([token, self._me, name]).encode().ljust(_HELLO))
                self._peers[0] = connection, json.loads(_receive(connection, _HELLO))
                connection.sendall(_BEAT)  # only now process 0 counts on it
                return True
            except (OSError, ValueError):
                continue
        return False

    def _accept(self, server: socket.socket, token: str, name: str) -> None:
        server.settimeout(0.2)
        # A script may do something else in between, such as reading its arrays.
        end = time.monotonic() + (_COMMAND_LINE_SECONDS if is_command_line() else JOIN_SECONDS)
        while len(self._peers) < self._processes - 1 and time.monotonic() < end:
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            try:
                connection.settimeout(5)
                theirs, peer, called = json.loads(_receive(connection, _HELLO))
                if not secrets.compare_digest(theirs, token):
                    raise ValueError("a stranger")
                connection.sendall(json.dumps(name).encode().ljust(_HELLO))
                _receive(connection, 1)
                self._peers[int(peer)] = connection, called
            except (OSError, ValueError, TypeError):
                connection.close()

    def _start(self, target: Callable[..., None], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        thread.start()
        return thread

    def _beat(self) -> None:
        while not self._left.wait(BEAT_SECONDS):
            self._send(_BEAT)

    def _send(self, what: bytes) -> None:
        for connection, _ in self._peers.values():
            with contextlib.suppress(OSError):
                connection.sendall(what)

    def _listen(self, peer: int) -> None:
        connection, name = self._peers[peer]
        connection.settimeout(1)
        silent = 0  # waits of this process: where it was suspended itself, no time has passed
        while silent < SILENCE_SECONDS:
            try:
                said = connection.recv(64)
            except TimeoutError:
                silent += 1
                continue
            except OSError:
                said = b""
            silent = 0
            if _GOODBYE in said:
                return
            if _FAILED in said:
                # It prints why; and what ends it may end this one in a moment, too.
                if not self._left.wait(1):
                    self._die(name, "has ended by an error")
                return
            if not said:
                self._die(name, "has died")
                return
        self._die(name, f"gives no sign of life for {SILENCE_SECONDS} s")

    def _die(self, name: str, what: str) -> None:
        with self._ending:
            if self._done:
                return
            self._at_end()
            _end(
                f"{name} {what}, so this one ends as well; start all of them again: {same_again()} "
                "goes on after the last checkpoint"
            )


def _receive(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        part = connection.recv(size - len(received))
        if not part:
            raise OSError("closed")
        received += part
    return received


def _own_address() -> str:
    """By which other machines know this one, as far as its routes tell."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # of no machine, and nothing is sent to it
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"
