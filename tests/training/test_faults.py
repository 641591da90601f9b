"""Disks that are full, files that are damaged, folders that go: a run ends with a sentence, and the
same call goes on."""

import collections
import contextlib
import json
import os
import pathlib
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from small_runs import config_for, write_patches

from glomjax import checkpoints
from glomjax.errors import UserError
from glomjax.training import Interrupted, loop, resources, train_and_evaluate
from glomjax.training.progress import EpochBar


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    return write_patches(tmp_path_factory.mktemp("patches"))


def config(patches, **changes):
    return config_for(patches, **{"num_epochs": 3, "early_stopping.patience": 9} | changes)


def train(patches, folder, **changes):
    return train_and_evaluate(config(patches, **changes), folder, progress=False)


@contextlib.contextmanager
def stopped_at(batch: int, how: Callable[[], object] | None = None) -> Iterator[None]:
    """After so many training batches of this process something happens, by default SIGTERM."""
    done, advance = 0, EpochBar.advance

    def counting(bar, images):
        nonlocal done
        done += 1
        if done == batch:
            (how or (lambda: os.kill(os.getpid(), signal.SIGTERM)))()
        advance(bar, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EpochBar, "advance", counting)
        yield


@pytest.fixture(scope="module")
def whole(patches, tmp_path_factory):
    """(folder, metrics) of a run to which nothing happens."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, train(patches, folder)


@pytest.fixture(scope="module")
def begun(patches, tmp_path_factory):
    """The folder of a run that was stopped in its third epoch; its best is not of the second."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    with stopped_at(11), pytest.raises(Interrupted):
        train(patches, folder)
    return folder


@pytest.fixture
def copy(begun, tmp_path):
    """That folder, to be damaged."""
    shutil.copytree(begun, tmp_path / "run")
    return tmp_path / "run"


def outcome(folder: pathlib.Path) -> tuple:
    """What two runs have in common that computed the same."""
    best, _ = checkpoints.restore(folder / "checkpoints" / "best")
    return (
        {path: value.tobytes() for path, value in best.items()},
        (folder / "predictions.csv").read_bytes(),
        json.loads((folder / "test_metrics.json").read_text()),
    )


def flip(file: pathlib.Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "truncated": lambda file: os.truncate(file, file.stat().st_size // 2),
    "empty": lambda file: os.truncate(file, 0),
    "flipped": flip,
    "removed": pathlib.Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_file_of_a_checkpoint_is_missed_if_it_is_damaged(begun, tmp_path, damage):
    good, copy = begun / "checkpoints" / "last", tmp_path / "last"
    files = [file.relative_to(good) for file in sorted(good.rglob("*")) if file.is_file()]
    assert len(files) > 5
    for file in files:
        shutil.copytree(good, copy)
        DAMAGES[damage](copy / file)
        with pytest.raises(UserError, match=r"is damaged: file .* is not what|holds no checkpoint"):
            checkpoints.restore(copy)
        shutil.rmtree(copy)


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_other_file_of_a_run_may_be_damaged(begun, whole, patches, tmp_path, damage):
    files = {file.name for file in begun.iterdir() if file.is_file()}
    needed, read = {"config.json"}, {"environment.json", "splits.csv"}
    assert files > needed | read
    for number, name in enumerate(sorted(needed | read)):
        copy = tmp_path / str(number)
        shutil.copytree(begun, copy)
        DAMAGES[damage](copy / name)
        before = checkpoints.fingerprint(copy / "checkpoints" / "last")
        said = ""
        try:
            train(patches, copy)
        except UserError as error:
            said = str(error)
        if said:
            assert name in said
            assert "\n" not in said
            # It can be put right: nothing has become of it.
            assert checkpoints.fingerprint(copy / "checkpoints" / "last") == before
        else:
            assert name not in needed
            assert outcome(copy) == outcome(whole[0])
    # What is only there to be read may be damaged all at once.
    copy = tmp_path / "rest"
    shutil.copytree(begun, copy)
    for file in copy.rglob("*"):
        inside = "checkpoints" in file.parts or file.name in needed | read
        if file.is_file() and not inside:
            DAMAGES[damage](file)
    train(patches, copy)
    assert outcome(copy) == outcome(whole[0])


@pytest.mark.parametrize("name", ["config.json", "test_metrics.json", "environment.json"])
@pytest.mark.parametrize("content", ["", "[]", "null", "{", "\0" * 99, "\xff"])
def test_a_json_file_that_is_none_is_a_sentence(small_run, tmp_path, name, content):
    patches, run = small_run
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(content.encode("latin-1"))
    changes = {"num_epochs": 3} if name == "environment.json" else {}
    with pytest.raises(UserError, match=rf"{name}' is not") as caught:
        train_and_evaluate(config_for(patches, **changes), tmp_path / "run", progress=False)
    assert "\n" not in str(caught.value)


def test_a_changed_digit_in_the_configuration_does_not_train_another_network(copy, patches):
    file = copy / "config.json"
    text = file.read_text()
    assert text.count('"learning_rate": 0.003') == 2
    head, _, tail = text.rpartition('"learning_rate": 0.003')
    file.write_text(f'{head}"learning_rate": 0.007{tail}')
    with pytest.raises(UserError, match=r"config.json' is not what the run wrote"):
        train(patches, copy)


@pytest.mark.parametrize("damage", ["flipped", "gone", "no manifest"])
def test_without_its_best_weights_a_run_goes_on_from_the_last_and_says_so(
    copy, patches, damage, caplog
):
    best = copy / "checkpoints" / "best"
    if damage == "gone":
        shutil.rmtree(best)
    elif damage == "flipped":
        flip(max((f for f in best.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size))
    else:
        (best / "manifest.json").unlink()
    metrics = train(patches, copy)
    (note,) = [note for note in metrics["notes"] if "are lost" in note]
    assert note.startswith("The best weights, of epoch ")
    assert "those of epoch 3, in which it goes on, take their place" in note
    assert note in (copy / "run.log").read_text()
    # Nothing earlier can be the best, and what is kept is what is said.
    assert metrics["best_epoch"] == 3
    _, metadata = checkpoints.restore(best)
    assert metadata["position"]["epoch"] == 3


def test_between_two_epochs_the_last_weights_take_the_place_of_lost_ones(patches, tmp_path):
    folder = tmp_path / "run"
    first_is_best = {"early_stopping.min_delta": 100.0}
    train(patches, folder, num_epochs=2, **first_is_best)
    best = folder / "checkpoints" / "best"
    assert json.loads((folder / "test_metrics.json").read_text())["best_epoch"] == 1
    shutil.rmtree(best)
    metrics = train(patches, folder, num_epochs=3, **first_is_best)
    (note,) = [note for note in metrics["notes"] if "are lost" in note]
    assert "those of epoch 2, the last one, take their place" in note
    assert metrics["best_epoch"] == 2
    _, metadata = checkpoints.restore(best)
    assert metadata["position"]["epoch"] == 2


def test_weights_of_another_epoch_are_not_taken_for_the_best(patches, tmp_path):
    folder, other = tmp_path / "run", tmp_path / "other"
    first_is_best = {"early_stopping.min_delta": 100.0}
    train(patches, folder, num_epochs=2, **first_is_best)
    train(patches, other, num_epochs=2)
    best = folder / "checkpoints" / "best"
    shutil.rmtree(best)
    shutil.copytree(other / "checkpoints" / "best", best)
    _, metadata = checkpoints.restore(best)
    assert metadata["early_stopping"]["best_epoch"] == 1
    metrics = train(patches, folder, num_epochs=3, **first_is_best)
    (note,) = [note for note in metrics["notes"] if "are lost" in note]
    assert "best' holds those of epoch 2; those of epoch 2, the last one, take" in note


def test_a_checkpoint_without_its_manifest_gives_way_with_a_word(copy, whole, patches, capsys):
    (copy / "checkpoints" / "last" / "manifest.json").unlink()
    train_and_evaluate(config(patches), copy)
    assert (
        "'manifest.json' is not what was written; going on from the one" in capsys.readouterr().out
    )
    assert outcome(copy) == outcome(whole[0])


def test_a_process_whose_folder_is_taken_over_while_it_saves_replaces_nothing(tmp_path):
    def taken():
        raise UserError("was taken over")

    folder = tmp_path / "last"
    checkpoints.save(folder, {"a": np.arange(3)}, {})
    before = checkpoints.fingerprint(folder)
    with pytest.raises(UserError, match="was taken over"):
        checkpoints.save(folder, {"a": np.arange(4)}, {}, check=taken)
    assert checkpoints.fingerprint(folder) == before


def test_a_run_whose_last_checkpoint_is_gone_does_not_begin_anew_over_its_best(copy, patches):
    for name in ("last", "last.old"):
        shutil.rmtree(copy / "checkpoints" / name)
    kept = checkpoints.fingerprint(copy / "checkpoints" / "best")
    with pytest.raises(UserError, match=r"'.*last', from which the run .* is not there any more"):
        train(patches, copy)
    assert checkpoints.fingerprint(copy / "checkpoints" / "best") == kept


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file can grow: what a full disk does, to files that Python writes and to others."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_one_sentence_and_earlier_checkpoints_stay_whole(tmp_path, capfd):
    folder = tmp_path / "last"
    checkpoints.save(folder, {"a": np.arange(1000)}, {"number": 1})
    capfd.readouterr()
    with full_disk(), pytest.raises(UserError) as caught:
        checkpoints.save(folder, {"a": np.arange(2000)}, {"number": 2})
    assert "cannot be written (File too large); make room, and" in str(caught.value)
    # Neither a word of Orbax, nor what it has begun, which would take the room that is made.
    assert capfd.readouterr() == ("", "")
    assert [file.name for file in tmp_path.iterdir()] == ["last"]
    arrays, metadata = checkpoints.restore(folder)
    assert (len(arrays["a"]), metadata["number"]) == (1000, 1)


@pytest.mark.parametrize("batch", [1, 8])
def test_a_run_that_finds_its_disk_full_goes_on_once_there_is_room(
    patches, whole, tmp_path, batch, capfd
):
    with contextlib.ExitStack() as stack:
        stack.enter_context(stopped_at(batch, lambda: stack.enter_context(full_disk())))
        with pytest.raises(UserError, match=r"cannot be written \(File too large\)"):
            train(patches, tmp_path / "run")
    assert "Traceback" not in capfd.readouterr().err
    train(patches, tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(whole[0])


def test_what_a_run_writes_is_said_at_its_start_and_the_one_before_the_last_goes(
    patches, tmp_path, monkeypatch, capsys
):
    usage = collections.namedtuple("usage", "total used free")
    for free, stands_out in ((2_000_000, False), (100_000, True)):
        found = usage(0, 0, free)
        monkeypatch.setattr(resources.shutil, "disk_usage", lambda folder, found=found: found)
        folder = tmp_path / str(free)
        with stopped_at(2), pytest.raises(Interrupted):
            train_and_evaluate(config(patches), folder)
        lines = capsys.readouterr().out.splitlines()
        (line,) = [line for line in lines if "checkpoints: up" in line]
        assert line.startswith("*** ") == line.endswith(", which is too little ***") == stands_out
        assert " while it trains and " in line
    monkeypatch.undo()
    train(patches, folder)
    assert {f.name for f in (folder / "checkpoints").iterdir()} == {"best", "last"}


def test_a_folder_that_goes_while_a_run_trains_ends_it_and_does_not_come_back(patches, tmp_path):
    folder = tmp_path / "run"
    with (
        stopped_at(6, lambda: folder.rename(tmp_path / "elsewhere")),
        pytest.raises(UserError, match="is not there any more: it was removed or renamed"),
    ):
        train(patches, folder)
    assert not folder.exists()


def test_a_folder_that_goes_while_a_checkpoint_is_written_does_not_come_back(tmp_path):
    folder = tmp_path / "run" / "checkpoints" / "last"
    folder.parent.mkdir(parents=True)

    asked = []

    def gone():
        if not asked:
            shutil.rmtree(tmp_path / "run")
            folder.with_name("last.new").mkdir(parents=True)  # as Orbax does
        asked.append(1)
        raise UserError("it is not there any more")

    writer = checkpoints.Writer(gone)
    writer.save(folder, {"a": np.zeros(3)}, {})
    with pytest.raises(UserError, match="not there any more"):
        writer.close()
    assert not (tmp_path / "run").exists()


def test_what_orbax_says_of_a_folder_that_went_is_not_what_is_said(tmp_path, monkeypatch):
    folder = tmp_path / "run" / "checkpoints" / "last"
    folder.parent.mkdir(parents=True)

    def missing(*arguments, **options):
        shutil.rmtree(tmp_path / "run")
        folder.with_name("last.new").mkdir(parents=True)
        raise ValueError("Save failed: 1/1 params are missing .zarray in checkpoint")

    def check():
        if not (tmp_path / "run").exists():
            raise UserError("it is not there any more")

    monkeypatch.setattr(checkpoints, "_save", missing)
    writer = checkpoints.Writer(check)
    writer.save(folder, {"a": np.zeros(3)}, {})
    with pytest.raises(UserError, match="not there any more"):
        writer.close()


def test_a_clock_that_jumps_changes_nothing(patches, whole, tmp_path, monkeypatch):
    now = time.time
    with stopped_at(3, lambda: monkeypatch.setattr(time, "time", lambda: now() - 86400)):
        train(patches, tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(whole[0])


def test_a_signal_before_the_first_step_ends_a_run_that_has_nothing_to_save(patches, tmp_path):
    def interrupt(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it goes on")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "prepare_run", interrupt)
        with pytest.raises(Interrupted, match="before the first step") as caught:
            train(patches, tmp_path / "run")
    assert caught.value.exit_code == 143
    assert not (tmp_path / "run" / "lock.json").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_while_the_test_is_scored_leaves_a_run_that_goes_on(patches, whole, tmp_path):
    predict = loop.Trainer._predict

    def interrupt(trainer, step, params, batches, **options):
        if trainer.state.position.epoch == 3 and len(batches.examples) == len(
            trainer.setup.splits.test
        ):
            os.kill(os.getpid(), signal.SIGTERM)
        return predict(trainer, step, params, batches, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Trainer, "_predict", interrupt)
        with pytest.raises(Interrupted):
            train(patches, tmp_path / "run")
    assert not (tmp_path / "run" / "test_metrics.json").exists()
    assert "before the test and saved" in (tmp_path / "run" / "run.log").read_text()
    train(patches, tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(whole[0])


def test_a_limit_of_time_saves_and_asks_to_be_started_again(
    patches, whole, tmp_path, monkeypatch, capsys
):
    started = time.monotonic()
    with (
        stopped_at(7, lambda: monkeypatch.setattr(time, "monotonic", lambda: started + 3595)),
        pytest.raises(Interrupted, match=r"the time that max_hours gives is up") as caught,
    ):
        train_and_evaluate(config(patches), tmp_path / "run", max_hours=1)
    assert caught.value.exit_code == 75
    assert "stopped since its time is up in epoch 2" in capsys.readouterr().out
    monkeypatch.undo()
    train(patches, tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(whole[0])


@pytest.mark.parametrize("hours", [-1, float("nan"), float("inf"), "2", True, None])
def test_a_limit_that_is_no_time_is_refused(patches, tmp_path, hours):
    with pytest.raises(UserError, match="max_hours is .*; it is a number of hours"):
        train_and_evaluate(config(patches), tmp_path / "run", max_hours=hours)
