"""One process trains in a run folder: who may take it, and what the holder notices."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from small_runs import config_for, write_patches

from glomjax.errors import UserError
from glomjax.training import clear, run_lock, train_and_evaluate
from glomjax.training.run_lock import LOCK, SILENCE_SECONDS, Holder, RunLock

ELSEWHERE = {"host": "node7", "system": "another boot"}


def put(folder, *, age: float = 0.0, **changes) -> Holder:
    """A lock of the given holder, by default this process, that gave its last sign of life some
    seconds ago."""
    holder = dataclasses.replace(Holder.here(), **changes)
    (folder / LOCK).write_text(json.dumps(dataclasses.asdict(holder)))
    then = time.time() - age
    os.utime(folder / LOCK, (then, then))
    return holder


@pytest.fixture
def sleeper():
    """A process that does nothing."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def refusal(folder) -> str:
    with pytest.raises(UserError) as caught, RunLock(folder):
        pass
    return str(caught.value)


def test_it_names_its_holder_while_it_is_held_and_is_gone_afterwards(tmp_path):
    with RunLock(tmp_path) as lock:
        lock.check()
        text = refusal(tmp_path)
        assert f"in use by process {os.getpid()} on " in text
        assert " since 2" in text
        assert "--workdir" in text or "workdir" in text
        lock.check()
    assert list(tmp_path.iterdir()) == []
    with RunLock(tmp_path):
        pass


def test_an_error_inside_releases_it(tmp_path):
    with pytest.raises(RuntimeError), RunLock(tmp_path):
        raise RuntimeError
    assert not (tmp_path / LOCK).exists()


def test_a_living_process_of_this_machine_keeps_it_however_long_it_is_silent(tmp_path, sleeper):
    started = run_lock._started(sleeper.pid)
    put(tmp_path, process=sleeper.pid, started=started, age=10 * SILENCE_SECONDS)
    before = (tmp_path / LOCK).read_bytes()
    assert f"process {sleeper.pid}" in refusal(tmp_path)
    os.kill(sleeper.pid, signal.SIGSTOP)  # a laptop asleep
    assert f"process {sleeper.pid}" in refusal(tmp_path)
    assert (tmp_path / LOCK).read_bytes() == before


@pytest.mark.parametrize("reaped", [False, True], ids=["a zombie", "gone"])
def test_that_of_a_dead_process_of_this_machine_is_taken_over_at_once(tmp_path, sleeper, reaped):
    put(tmp_path, process=sleeper.pid, started=run_lock._started(sleeper.pid))
    sleeper.send_signal(signal.SIGKILL)
    if reaped:
        sleeper.wait()
    else:
        os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    with RunLock(tmp_path) as lock:
        lock.check()


def test_a_process_that_has_the_number_of_a_dead_one_is_another(tmp_path, sleeper):
    put(tmp_path, process=sleeper.pid, started="1")
    with RunLock(tmp_path) as lock:
        lock.check()


@pytest.mark.parametrize(
    "about",
    [ELSEWHERE, {"system": "the same name, another container", "process": 2**22}],
    ids=["another machine", "another container"],
)
def test_elsewhere_the_last_sign_of_life_decides(tmp_path, about):
    put(tmp_path, **about, age=SILENCE_SECONDS / 2)
    text = refusal(tmp_path)
    assert "its last sign of life was 60 s ago; 120 s after the last one the folder is free" in text
    put(tmp_path, **about, age=SILENCE_SECONDS + 1)
    with RunLock(tmp_path) as lock:
        lock.check()


def test_the_clock_of_this_machine_does_not_matter(tmp_path, monkeypatch):
    put(tmp_path, **ELSEWHERE, age=1)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert "in use" in refusal(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"host": 1}', "\0" * 300])
def test_a_damaged_lock_counts_as_held_until_it_has_been_silent_for_long(tmp_path, content):
    (tmp_path / LOCK).write_text(content)
    assert "by a process that has just begun" in refusal(tmp_path)
    long_ago = time.time() - SILENCE_SECONDS - 1
    os.utime(tmp_path / LOCK, (long_ago, long_ago))
    with RunLock(tmp_path) as lock:
        lock.check()


def test_a_holder_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "BEAT_SECONDS", 0.01)
    with RunLock(tmp_path):
        os.utime(tmp_path / LOCK, (0, 0))
        end = time.monotonic() + 10
        while (tmp_path / LOCK).stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.01)
        assert (tmp_path / LOCK).stat().st_mtime > time.time() - 60


def test_a_holder_that_was_replaced_while_it_slept_leaves_the_folder_to_the_other(tmp_path):
    with RunLock(tmp_path) as lock:
        other = put(tmp_path, **ELSEWHERE, process=12)
        with pytest.raises(UserError, match=r"was taken over by process 12 on node7 since"):
            lock.check()
    assert json.loads((tmp_path / LOCK).read_text())["token"] == other.token


def test_a_holder_notices_that_its_folder_is_gone(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with RunLock(folder) as lock:
        shutil.rmtree(folder)
        with pytest.raises(UserError, match=r"is not there any more: it was removed or renamed"):
            lock.check()
    assert not folder.exists()


def test_a_lock_that_somebody_has_removed_is_put_back(tmp_path):
    (tmp_path / "config.json").touch()
    with RunLock(tmp_path) as lock:
        (tmp_path / LOCK).unlink()
        lock.check()
        assert "in use" in refusal(tmp_path)


def test_a_lock_that_is_damaged_under_a_living_holder_is_written_again(tmp_path):
    with RunLock(tmp_path) as lock:
        whole = (tmp_path / LOCK).read_text()
        (tmp_path / LOCK).write_text("")
        lock.check()
        assert (tmp_path / LOCK).read_text() == whole
    assert list(tmp_path.iterdir()) == []


def test_a_holder_that_cannot_begin_leaves_no_lock(tmp_path, monkeypatch):
    def fail(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(RuntimeError), RunLock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_of_many_that_want_the_lock_of_a_dead_process_one_gets_it(tmp_path):
    put(tmp_path, **ELSEWHERE, age=SILENCE_SECONDS + 1)
    got, refused, start, leave = [], [], threading.Barrier(8), threading.Event()

    def contend():
        start.wait()
        try:
            with RunLock(tmp_path) as lock:
                got.append(lock)
                leave.wait(30)
                lock.check()
        except UserError as error:
            refused.append(str(error))
        if len(refused) == 7:
            leave.set()

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (len(got), len(refused)) == (1, 7)
    assert all("in use" in text for text in refused)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    assert "cannot be written" in refusal(tmp_path)


def test_neither_a_second_training_nor_clearing_touches_a_run_that_trains(tmp_path, capsys):
    patches = write_patches(tmp_path / "patches")
    folder = tmp_path / "run"
    folder.mkdir()
    with RunLock(folder):
        for overwrite in (False, True):
            with pytest.raises(UserError, match="is in use by process"):
                train_and_evaluate(config_for(patches), folder, overwrite=overwrite)
        (folder / "config.json").write_text('{"requested": {}}')
        for attempt in (
            lambda: clear(folder),
            lambda: train_and_evaluate(config_for(patches), folder, overwrite=True),
        ):
            with pytest.raises(UserError, match="is in use by process"):
                attempt()
        assert {file.name for file in folder.iterdir()} == {LOCK, "config.json"}
    clear(folder)
    assert list(folder.iterdir()) == []


def test_a_finished_run_is_shown_whoever_holds_its_folder(small_run, tmp_path):
    patches, run = small_run
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    put(copy, **ELSEWHERE)
    assert train_and_evaluate(config_for(patches), copy)["auroc"] is not None
    with pytest.raises(UserError, match="is in use by process"):
        train_and_evaluate(config_for(patches, num_epochs=3), copy)
