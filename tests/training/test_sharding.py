"""A run over several devices, or several processes, gives the numbers of one device.

Called as a script, this file is what one process of such a run does.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
from unittest import mock

import jax
import numpy as np
import pytest

from glomjax import checkpoints
from glomjax.data import pipeline
from glomjax.errors import UserError
from glomjax.files import cache_dir
from glomjax.preprocessing.preprocessing import Preprocessing
from glomjax.training import (
    Interrupted,
    default_config,
    loop,
    processes,
    sharding,
    train_and_evaluate,
)
from glomjax.training.progress import EpochBar

BATCH, EPOCHS, STEPS = 6, 2, 9  # 50 examples: the last batch has two
STOP = STEPS + 4  # the step after which a run is interrupted, in the second epoch


def toy(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy grey squares, those of class 1 a little greener."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    images = rng.uniform(70, 170, (n, 1, 1, 1)) + rng.normal(0, 12, (n, 32, 32, 3))
    images[..., 1] += 25 * labels[:, None, None]
    return images.clip(0, 255).astype(np.uint8), labels


DATA = {"train": toy(50, 0), "validation": toy(20, 1), "test": toy(30, 2)}


def tiny_config(**changes):
    """A small DaViT with everything that several devices could upset.

    It descends plainly, since Adam's direction of a gradient of rounding errors is as long as any
    other, and no image is kept, so that each reading of one can be counted.
    """
    config = default_config()
    config.update(
        report="none",
        image_size=(32, 32),
        batch_size=BATCH,
        num_epochs=EPOCHS,
        optimizer="sgd",
        learning_rate=0.02,
        clip_norm=1.0,
        ema_decay=0.5,
        preprocessing="standardize",
    )
    config.data.cache_gib = 0.0
    config.freeze.regime = "scratch"
    config.model.options.update(
        {"depths": (1,), "embed_dims": (16,), "num_heads": (2,), "dropout_rate": 0.1}
    )
    config.update_from_flattened_dict(changes)
    return config


def train(workdir: pathlib.Path, notes: pathlib.Path, *, stop_at: int = 0, **changes) -> dict:
    """Trains, and notes what this process did: `read`, the images in the order in which it asked
    for them; `trained`, the examples of each of its steps; `written`, the files; `divided`, the
    parameters that no device holds whole; `stopped`, whether a signal ended it.

    Args:
      stop_at: send SIGTERM to this process while this step runs, counted from 1.
    """
    noted: dict = {"read": [], "trained": [], "written": [], "divided": [], "stopped": False}
    opened, epoch, advance = Preprocessing.open, pipeline.Batches.epoch, EpochBar.advance
    constructor = loop.Trainer.__init__

    def counted(preprocessing, data, *, name):
        noted["read"].append(name)
        return opened(preprocessing, data, name=name)

    def followed(batches, seed=None, *, start=0):
        for batch in epoch(batches, seed, start=start):
            if seed is not None:
                noted["trained"].append(batch["index"].tolist())
            yield batch

    def stopping(bar, images):
        if len(noted["trained"]) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        advance(bar, images)

    def constructed(trainer, *arguments):
        constructor(trainer, *arguments)
        for path, value in trainer.state.trainable.items():
            if not value.is_fully_replicated:
                noted["divided"].append(path)

    with contextlib.ExitStack() as patches:
        for owner, name, new in (
            (Preprocessing, "open", counted),
            (pipeline.Batches, "epoch", followed),
            (EpochBar, "advance", stopping),
            (loop.Trainer, "__init__", constructed),
        ):
            patches.enter_context(mock.patch.object(owner, name, new))
        patches.enter_context(written_below(workdir, noted["written"]))
        try:
            train_and_evaluate(tiny_config(**changes), workdir, data=DATA)
        except Interrupted:
            noted["stopped"] = True
    notes.write_text(json.dumps(noted))
    return noted


@contextlib.contextmanager
def written_below(folder: pathlib.Path, names: list[str]):
    """Appends the name of each file that this process opens for writing, renames (the new
    one) or removes."""
    active = True

    def hook(event, arguments):
        if not active or event not in ("open", "os.rename", "os.remove"):
            return
        if event == "open" and not (arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            return
        changed = arguments[1] if event == "os.rename" else arguments[0]
        if isinstance(changed, (str, bytes, os.PathLike)):
            changed = os.fsdecode(changed)
            if changed.startswith(str(folder)):
                names.append(os.path.relpath(changed, folder))

    sys.addaudithook(hook)  # for the rest of the process
    try:
        yield
    finally:
        active = False


def process(folder: pathlib.Path) -> None:
    """What one process of a test does, as `folder / "jobs.json"` says."""
    me = f"process{jax.process_index()}"
    for job in json.loads((folder / "jobs.json").read_text()):
        stop_at = job.pop("stop_at", {}).get(me, 0)
        minimum = job.pop("min_sharded", sharding._MIN_SHARDED)
        name = job.pop("name")
        run = job.pop("run")
        with mock.patch.object(sharding, "_MIN_SHARDED", minimum):
            train(folder / run, folder / f"{name}.{me}.json", stop_at=stop_at, **job)


def launch(folder: pathlib.Path, jobs: list[dict], *, processes: int = 1, devices: int = 1):
    """Starts the processes of `jobs`; a function that waits for them and gives their notes, a list
    with an item per process for each job."""
    folder.mkdir(exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Compiled in a third of the time; how the programs are divided is settled before.
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
        "JAX_COMPILATION_CACHE_DIR": str(cache_dir("jit-tests")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        "PYTHONPATH": str(pathlib.Path(__file__).parents[2]),
        "XLA_FLAGS": flags,
    }
    command = [sys.executable, __file__, str(folder)]
    if processes > 1:
        command += ["--coordinator", f"127.0.0.1:{port}", "--processes", str(processes)]
    started = [
        subprocess.Popen(
            [*command, "--process", str(i)] if processes > 1 else command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(processes)
    ]

    def wait() -> dict[str, list[dict]]:
        try:
            outputs = [one.communicate(timeout=300)[0] for one in started]
        finally:
            for one in started:
                one.kill()
        assert [one.returncode for one in started] == [0] * processes, "\n".join(outputs)
        return {
            job["name"]: [
                json.loads((folder / f"{job['name']}.process{i}.json").read_text())
                for i in range(processes)
            ]
            for job in jobs
        }

    return wait


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """(folder, notes) of the run on one device, `whole`, and of one stopped there, `stopped`."""
    folder = tmp_path_factory.mktemp("one")
    whole = train(folder / "whole", folder / "whole.json", devices=1)
    stopped = train(folder / "stopped", folder / "stopped.json", devices=1, stop_at=STOP)
    assert stopped["stopped"]
    return folder, {"whole": whole, "stopped": stopped}


def resumable(reference, folder: pathlib.Path) -> None:
    shutil.copytree(reference[0] / "stopped", folder / "resumed")


@pytest.fixture(scope="module")
def eight(reference, tmp_path_factory):
    """(folder, notes) of runs over eight devices."""
    folder = tmp_path_factory.mktemp("eight")
    resumable(reference, folder)
    jobs: list[dict] = [
        {"name": "whole", "run": "whole"},
        {"name": "resumed", "run": "resumed"},
        {"name": "sharded", "run": "sharded", "shard_params": True, "min_sharded": 256},
    ]
    return folder, launch(folder, jobs, devices=8)()


@pytest.fixture(scope="module")
def two(reference, tmp_path_factory):
    """(folder, notes) of runs over two processes with a device each."""
    folder = tmp_path_factory.mktemp("two")
    resumable(reference, folder)
    jobs: list[dict] = [
        # Only process 1 is told to stop, while the step before runs.
        {"name": "stopped", "run": "whole", "stop_at": {"process1": STOP - 1}},
        {"name": "continued", "run": "whole"},
        {"name": "resumed", "run": "resumed"},
        {"name": "sharded", "run": "sharded", "shard_params": True, "min_sharded": 256},
    ]
    return folder, launch(folder, jobs, processes=2)()


def assert_same_run(workdir: pathlib.Path, expected: pathlib.Path) -> None:
    """Parameters, optimizer, metrics and the test's results to 1e-5."""
    for name in ("best", "last"):
        theirs, their_metadata = checkpoints.restore(expected / "checkpoints" / name)
        ours, metadata = checkpoints.restore(workdir / "checkpoints" / name)
        assert ours.keys() == theirs.keys()
        for path, value in theirs.items():
            np.testing.assert_allclose(ours[path], value, rtol=1e-5, atol=1e-5, err_msg=path)
        spec, their_spec = metadata["spec"], their_metadata["spec"]
        assert spec["preprocessing"] == their_spec["preprocessing"]
        for split in ("train", "validation"):
            ours, theirs = (s["trained_on"][split] for s in (spec, their_spec))
            assert ours["image_hashes"] == theirs["image_hashes"] != ""
    rows = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (workdir, expected)
    ]
    assert len(rows[0]) == EPOCHS
    for our_row, their_row in zip(*rows, strict=True):
        del our_row["time"], their_row["time"]
        assert our_row == pytest.approx(their_row, rel=1e-5, abs=1e-5)
    ours, theirs = (
        json.loads((folder / "test_metrics.json").read_text()) for folder in (workdir, expected)
    )
    for name in ("loss", "accuracy", "auroc", "best_epoch", "epochs", "n"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-5), name
    assert ours["controls"]
    for name, control in ours["controls"].items():
        assert control["loss"] == theirs["controls"][name]["loss"]


def trained(notes: list[dict]) -> list[list[int]]:
    """The examples of each step, those of all processes one after another."""
    steps = zip(*(note["trained"] for note in notes), strict=True)
    return [[i for part in step for i in part if i >= 0] for step in steps]


@pytest.mark.parametrize("run", ["whole", "sharded"])
def test_eight_devices_give_the_numbers_of_one(reference, eight, run):
    assert_same_run(eight[0] / run, reference[0] / "whole")
    (notes,) = eight[1][run]
    assert {len(rows) for rows in notes["trained"]} == {8}  # six examples and two rows of padding
    assert trained([notes]) == trained([reference[1]["whole"]])


def test_shard_params_divides_the_large_parameters_and_nothing_is_divided_without(eight):
    (whole,), (sharded,) = eight[1]["whole"], eight[1]["sharded"]
    assert whole["divided"] == []
    large = {
        path
        for path, value in checkpoints.restore(eight[0] / "sharded/checkpoints/last")[0].items()
        if path.startswith("params/") and value.size >= 256
    }
    assert len(large) > 5
    assert {f"params/{path}" for path in sharded["divided"]} == large


@pytest.mark.parametrize("machine", ["eight", "two"])
def test_a_run_stopped_on_one_device_goes_on_over_several(reference, machine, request):
    folder, notes = request.getfixturevalue(machine)
    assert_same_run(folder / "resumed", reference[0] / "whole")
    before, after = trained([reference[1]["stopped"]]), trained(notes["resumed"])
    assert len(before) >= STOP
    assert before[:STOP] + after == trained([reference[1]["whole"]])


def test_two_processes_give_the_numbers_of_one_device(reference, two):
    folder, notes = two
    assert_same_run(folder / "whole", reference[0] / "whole")  # with a stop in between
    assert_same_run(folder / "sharded", reference[0] / "whole")
    assert all(note["divided"] for note in notes["sharded"])
    assert trained(notes["sharded"]) == trained([reference[1]["whole"]])


def test_each_of_two_processes_reads_its_own_share_of_the_images_alone(reference, two):
    shares = [note["read"] for note in two[1]["sharded"]]
    # Together they read each image as often as one process does, so none that is the other's.
    assert sorted(shares[0] + shares[1]) == sorted(reference[1]["whole"]["read"])
    assert min(len(share) for share in shares) > 0.4 * max(len(share) for share in shares)


def test_process_0_alone_writes(two):
    for name, (first, second) in two[1].items():
        assert first["written"], name
        assert second["written"] == [], name


def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step_and_saves_once(two):
    notes = two[1]["stopped"]
    assert [note["stopped"] for note in notes] == [True, True]
    resumed = two[1]["continued"]
    assert len(resumed[0]["trained"]) == len(resumed[1]["trained"]) == STEPS * EPOCHS - STOP
    saved = [name for name in notes[0]["written"] if name == "checkpoints/last"]
    assert len(saved) == 2  # after the first epoch, and when it stopped


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("host:1", 0, -1), "coordinator, processes and process go together"),
        (("", 2, -1), "go together"),
        (("", 0, 0), "go together"),
        (("host:1", 2, -1), "go together"),
        (("host:1", 2, 2), "^process is 2; of 2 processes the last is 1"),
    ],
)
def test_processes_that_are_named_by_halves_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        processes.initialize(*given)


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "node[1-2]"}, True),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "node1"}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, False),  # a batch script, without srun
        # A shell of `salloc -n 2`, and a step of one task in a larger job.
        (
            {"SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "node1", "SLURM_STEP_NUM_TASKS": "1"},
            False,
        ),
        (
            {"SLURM_NTASKS": "8", "SLURM_STEP_NODELIST": "node1", "SLURM_STEP_NUM_TASKS": "4"},
            True,
        ),
        ({"TPU_WORKER_HOSTNAMES": "host0,host1"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "host0"}, True),  # several slices of one host
        ({"OMPI_COMM_WORLD_SIZE": "2", "WORLD_SIZE": "2"}, False),
    ],
)
def test_launchers_of_several_processes_are_recognised(environment, several):
    assert processes._is_cluster(environment) == several


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--coordinator", default="")
    parser.add_argument("--processes", type=int, default=0)
    parser.add_argument("--process", type=int, default=-1)
    given = parser.parse_args()
    processes.initialize(given.coordinator, given.processes, given.process)
    process(given.folder)
