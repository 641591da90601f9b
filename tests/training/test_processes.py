"""Processes of one job: how they find each other, and that none waits for one that is gone."""

import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest
from small_runs import write_patches

from glomjax.files import cache_dir
from glomjax.training.run_lock import LOCK, Holder

ROOT = pathlib.Path(__file__).parents[2]


def environment(**more: str) -> dict[str, str]:
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache_dir("jit-tests")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(ROOT),
        **more,
    }


def start(*command: object, **more: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def errors(text: str) -> list[str]:
    assert "Traceback" not in text
    assert "Check failure" not in text
    return [line for line in text.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    return write_patches(tmp_path_factory.mktemp("patches"))


@pytest.fixture(scope="module")
def config(tmp_path_factory, patches):
    """A configuration file of a tiny network that trains for long."""
    file = tmp_path_factory.mktemp("config") / "tiny.py"
    file.write_text(
        textwrap.dedent(f"""
            from small_runs import config_for

            def get_config():
                return config_for({str(patches)!r}, **{{
                    "num_epochs": 400, "early_stopping.patience": 400, "batch_size": 8,
                }})
            """)
    )
    return file


def test_processes_that_do_not_all_come_end_with_a_sentence_after_a_stated_time():
    program = textwrap.dedent("""
        import sys
        from glomjax.training import initialize
        initialize(f"127.0.0.1:{sys.argv[1]}", 3, int(sys.argv[2]), timeout=3)
    """)
    port = free_port()
    for process in [start("-c", program, port, number) for number in (0, 2)]:
        text, _ = process.communicate(timeout=60)
        assert process.returncode == 2
        (line,) = errors(text)
        assert f"the 3 processes of this job have not all come together at 127.0.0.1:{port}" in line
        assert "within 3 s; see to it that each of them is started, with its own process" in line


def pair(config: pathlib.Path, workdir: pathlib.Path, *more: str) -> list[subprocess.Popen]:
    port = free_port()
    return [
        start(
            ROOT / "main.py", "--config", config, f"--workdir={workdir}", *more,
            "--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process", number,
            PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}",
        )
        for number in range(2)
    ]  # fmt: skip


def wait_for(file: pathlib.Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < end, f"{file} does not come"
        time.sleep(0.05)


def test_where_one_process_dies_the_other_says_so_and_both_go_on_together(config, tmp_path):
    workdir = tmp_path / "run"
    for victim in (1, 0):
        both = pair(config, workdir)
        (workdir / "metrics.jsonl").unlink(missing_ok=True)
        wait_for(workdir / "metrics.jsonl")
        both[victim].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        text, _ = both[1 - victim].communicate(timeout=60)
        assert time.monotonic() - killed < 60
        both[victim].communicate()
        assert both[1 - victim].returncode == 2
        (line,) = errors(text)
        assert f"process {victim} of 2 ({both[victim].pid} on " in line
        assert "has died, so this one ends as well; start all of them again" in line
    # The lock of process 0, which was killed the last time, hinders nobody.
    assert (workdir / "lock.json").exists()
    # And the time that is up for one ends both with the same code.
    both = pair(config, workdir, "--max-hours=0.004")
    texts = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [75, 75]
    assert [errors(text) for text in texts] == [[], []]
    assert "resumed after" in texts[0]
    assert "stopped since its time is up in epoch" in texts[0]
    assert not (workdir / "lock.json").exists()


@pytest.mark.parametrize(
    ("fields", "held", "said"),
    [
        (("", "--config.batch_size=0"), False, "batch_size is 0"),
        (("", ""), True, "is in use by process 12 on node7"),
    ],
    ids=["an error in one", "a folder that is in use"],
)
def test_what_one_process_refuses_ends_both_with_sentences(config, tmp_path, fields, held, said):
    port, workdir = free_port(), tmp_path / "run"
    if held:
        workdir.mkdir()
        holder = dataclasses.replace(Holder.here(), host="node7", system="another", process=12)
        (workdir / LOCK).write_text(json.dumps(dataclasses.asdict(holder)))
    both = [
        start(
            ROOT / "main.py", "--config", config, f"--workdir={workdir}",
            *filter(None, [fields[number]]),
            "--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process", number,
            PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}",
        )
        for number in range(2)
    ]  # fmt: skip
    lines = []
    for process in both:
        text, _ = process.communicate(timeout=60)
        assert process.returncode == 2
        lines += errors(text)
    assert len(lines) == 2
    assert any(said in line for line in lines)
    assert all(said in line or "has ended by an error, so this one ends" in line for line in lines)


SRUN = """
import os, signal, subprocess, sys
os.makedirs("tasks", exist_ok=True)
tasks = []
for i in range(2):
    step = {"SLURM_JOB_ID": os.environ["SLURM_JOB_ID"], "SLURM_STEP_NODELIST": "localhost",
            "SLURM_NTASKS": "9", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": str(i),
            "SLURM_LOCALID": str(i)}
    tasks.append(subprocess.Popen(sys.argv[1:], env=os.environ | step))
with open("tasks/ids", "w") as file:
    file.write(" ".join(str(task.pid) for task in tasks))
sys.exit(max(task.wait() % 256 for task in tasks))
"""


def test_the_script_for_slurm_goes_on_by_itself_after_sigterm(config, tmp_path):
    """The scheduler is a stand-in, which starts two tasks and sends them the signal."""
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "srun").write_text(f"#!{sys.executable}\n{SRUN}")
    (commands / "scontrol").write_text('#!/bin/bash\necho "$@" >> requeued\n')
    for command in commands.iterdir():
        command.chmod(0o755)
    more = {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "SLURM_JOB_ID": str(free_port()),
        "SLURM_SUBMIT_DIR": str(tmp_path),
    }
    workdir = tmp_path / "run"

    def sbatch(*arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", ROOT / "docs" / "slurm.sh", "--config", config, "--workdir=run", *arguments],
            env=environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    job = sbatch()
    wait_for(workdir / "metrics.jsonl")
    job.send_signal(signal.SIGTERM)  # the shell that runs the script gets it, too
    for task in (tmp_path / "tasks" / "ids").read_text().split():
        os.kill(int(task), signal.SIGTERM)
    text, _ = job.communicate(timeout=60)
    assert job.returncode == 143
    assert errors(text) == []
    assert "the job is put back into the queue, and goes on from there" in text
    assert (tmp_path / "requeued").read_text() == f"requeue {more['SLURM_JOB_ID']}\n"
    epochs = len((workdir / "metrics.jsonl").read_text().splitlines())
    job = sbatch(f"--config.num_epochs={epochs + 1}")
    text, _ = job.communicate(timeout=120)
    assert job.returncode == 0
    assert f"resumed after {epochs} epochs" in text
    assert (workdir / "test_metrics.json").exists()
