"""SIGTERM and Ctrl-C: the first is a request, a second Ctrl-C is the end."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from glomjax.training.interrupts import (
    NONE,
    STOP,
    TIME_IS_UP,
    Interrupted,
    Interrupts,
    TimeLimit,
)

HANDLED = (signal.SIGINT, signal.SIGTERM)


def handlers() -> list:
    return [signal.getsignal(number) for number in HANDLED]


@pytest.mark.parametrize("number", HANDLED, ids=lambda number: number.name)
def test_the_first_signal_is_only_noted_and_everything_is_put_back(number):
    before, threads = handlers(), set(threading.enumerate())
    with Interrupts() as interrupts:
        assert interrupts.signal == 0
        assert before[0] not in handlers()
        os.kill(os.getpid(), number)
        assert interrupts.signal == number
        wakeup = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(wakeup)
    assert handlers() == before
    # Closed, so that its number is free and the thread that reads it ends.
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(wakeup)
    assert signal.set_wakeup_fd(-1) == -1
    for thread in set(threading.enumerate()) - threads:
        thread.join(1)
    assert set(threading.enumerate()) <= threads
    interrupted = Interrupted(number)
    assert isinstance(interrupted, KeyboardInterrupt)
    assert interrupted.exit_code == 128 + number
    assert str(interrupted).startswith(f"{signal.Signals(number).name} came; the run is saved")


def test_a_second_sigterm_is_no_more_than_the_first():
    with Interrupts() as interrupts:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.signal == signal.SIGTERM


def test_an_error_inside_puts_the_handlers_back():
    before = handlers()
    with contextlib.suppress(RuntimeError), Interrupts():
        raise RuntimeError
    assert handlers() == before


def test_outside_the_main_thread_signals_are_left_alone():
    before, seen = handlers(), []

    def enter():
        with Interrupts() as interrupts:
            seen.append((handlers(), interrupts.signal))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(before, 0)]
    assert handlers() == before


PROGRAM = """
import hashlib, time
from glomjax.training.interrupts import Interrupts
with Interrupts() as interrupts:
    print("ready", flush=True)
    {first}
    print("noted", interrupts.signal, flush=True)
    {then}
    print("ended", flush=True)
"""
WAIT = "while not interrupts.signal: time.sleep(0.01)"
# One call of a C library, which runs no Python and so no handler until it returns, as a compilation
# does: some 20 s.
LONG_CALL = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**8)"


@contextlib.contextmanager
def program(first: str, then: str):
    """The program in a process of its own, which has printed its first line."""
    text = PROGRAM.format(first=first, then=then)
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True) as run:
        try:
            assert run.stdout.readline() == "ready\n"
            yield run
        finally:
            run.kill()


@pytest.mark.parametrize("number", HANDLED, ids=lambda number: number.name)
@pytest.mark.parametrize("then", ["time.sleep(30)", LONG_CALL], ids=["sleep", "C call"])
def test_ctrl_c_after_a_signal_kills_at_once(number, then):
    with program(WAIT, then) as run:
        run.send_signal(number)
        assert run.stdout.readline() == f"noted {int(number)}\n"
        run.send_signal(signal.SIGINT)
        assert run.wait(5) == -signal.SIGINT
        assert run.stdout.read() == ""


def test_two_within_one_call_of_a_c_library_end_the_process_too():
    with program(LONG_CALL, "pass") as run:
        # It may not have begun the call yet: the first must fall into it.
        with pytest.raises(subprocess.TimeoutExpired):
            run.wait(0.3)
        run.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            run.wait(0.3)
        run.send_signal(signal.SIGINT)
        assert run.wait(5) == 128 + signal.SIGINT
        assert run.stdout.read() == ""


@pytest.mark.parametrize("number", HANDLED, ids=lambda number: number.name)
def test_before_there_is_something_to_save_a_signal_raises(number):
    before = handlers()
    with (
        pytest.raises(Interrupted, match="before the first step") as caught,
        Interrupts(can_save=False),
    ):
        os.kill(os.getpid(), number)
    assert caught.value.exit_code == 128 + number
    assert handlers() == before


def test_before_that_even_a_compilation_does_not_hold_the_process():
    with program(f"interrupts.can_save = False; {LONG_CALL}", "pass") as run:
        with pytest.raises(subprocess.TimeoutExpired):
            run.wait(0.5)
        begun = time.monotonic()
        run.send_signal(signal.SIGTERM)
        assert run.wait(15) == 143
        assert time.monotonic() - begun >= Interrupts._PATIENCE


def test_a_limit_of_time_leaves_room_for_a_step_and_for_saving_it(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    limit = TimeLimit(1)
    interrupts = Interrupts(limit)
    assert interrupts.request == NONE
    now += 3600 - TimeLimit.SPARE_SECONDS - 1
    assert interrupts.request == NONE
    limit.took("step", 2)
    limit.took("step", 1)
    assert interrupts.request == TIME_IS_UP
    now -= 60
    assert interrupts.request == NONE
    limit.took("save", 40)
    assert interrupts.request == TIME_IS_UP
    interrupts.signal = signal.SIGTERM
    assert interrupts.request == STOP
    assert not TimeLimit().is_up
