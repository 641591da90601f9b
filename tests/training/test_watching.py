"""A run that is looked at while it trains, and what its folder says of how it was computed."""

import contextlib
import json
import math
import pathlib
import shutil

import pytest
from small_runs import config_for

from glomjax import checkpoints
from glomjax.errors import UserError
from glomjax.training import scoring, train_and_evaluate
from glomjax.training.progress import Curves, describe_viewing

pytestmark = pytest.mark.usefixtures("drawn_curves")


def train(patches, folder, epochs=2):
    return train_and_evaluate(config_for(patches, num_epochs=epochs), folder, progress=False)


@contextlib.contextmanager
def drawing(monkeypatch, folder: pathlib.Path, instead=None):
    """A list of (epochs that are drawn, epochs in `metrics.jsonl` then); `instead` is called before
    each drawing."""
    drawn, draw = [], scoring.history_png

    def drawing(history, **options):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        drawn.append((len(history), len(lines)))
        if instead is not None:
            instead()
        return draw(history, **options)

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "history_png", drawing)
        yield drawn


def assert_same_results(folder, expected):
    for name in ("predictions.csv", "predictions_validation.csv", "test_metrics.json"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    for name in ("best", "last"):
        ours, theirs = (
            checkpoints.restore(f / "checkpoints" / name)[0] for f in (folder, expected)
        )
        assert {path: value.tobytes() for path, value in ours.items()} == {
            path: value.tobytes() for path, value in theirs.items()
        }


def test_curves_are_drawn_after_each_epoch_where_there_is_time(small_run, tmp_path, monkeypatch):
    patches, expected = small_run
    folder = tmp_path / "run"
    monkeypatch.setattr(Curves, "SPACING", 0)
    with drawing(monkeypatch, folder) as drawn:
        train(patches, folder)
    assert drawn == [(1, 1), (2, 2), (2, 2)]  # once more at the end
    assert (folder / "history.png").read_bytes() == (expected / "history.png").read_bytes()
    assert {f.name for f in folder.iterdir()} == {f.name for f in expected.iterdir()}
    assert_same_results(folder, expected)


def test_a_run_that_dies_while_it_draws_goes_on_to_the_same_numbers(
    small_run, tmp_path, monkeypatch
):
    patches, expected = small_run
    folder = tmp_path / "run"

    def die():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, drawing(patch, folder, die) as drawn:
        patch.setattr(Curves, "SPACING", 0)
        with pytest.raises(KeyboardInterrupt):
            train(patches, folder)
    assert not (folder / "history.png").exists()
    begun = json.loads((folder / "environment.json").read_text())
    with monkeypatch.context() as patch, drawing(patch, folder) as drawn:
        patch.setattr(Curves, "SPACING", math.inf)
        train(patches, folder)
    assert drawn == [(2, 2)]  # where there is no time for more, at the end
    assert (folder / "history.png").read_bytes() == (expected / "history.png").read_bytes()
    assert_same_results(folder, expected)
    # What was spent on the part that died counts, as far as it was noted at the end of its epoch.
    after = json.loads((folder / "environment.json").read_text())
    (part,) = after["resumed"]
    assert after["seconds"] == begun["seconds"] == begun["total_seconds"] > 0
    assert after["total_seconds"] == pytest.approx(after["seconds"] + part["seconds"], abs=2e-3)
    assert after["started"] <= part["started"]


def test_a_folder_that_goes_while_it_is_drawn_into_does_not_come_back(
    small_run, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    gone = drawing(monkeypatch, folder, lambda: folder.rename(tmp_path / "elsewhere"))
    with gone, pytest.raises(UserError, match="is not there any more"):
        train(small_run[0], folder, epochs=1)
    assert not folder.exists()


def test_each_part_of_a_run_says_what_it_took_and_a_finished_one_nothing_more(small_run, tmp_path):
    patches, expected = small_run
    folder = pathlib.Path(shutil.copytree(expected, tmp_path / "run"))
    file = folder / "environment.json"
    first = json.loads(file.read_text())
    assert first["processor"]
    assert first["memory_bytes"] > first["peak_memory_bytes"] > 0
    # As an earlier version left it: when it began and how long it took is not known.
    file.write_text(json.dumps({"seed": 0, "command": ["earlier"]}))
    train(patches, folder, epochs=3)
    after = json.loads(file.read_text())
    (part,) = after.pop("resumed")
    assert after == {"seed": 0, "command": ["earlier"], "total_seconds": None}
    assert part.keys() == first.keys() - {"total_seconds"}
    assert part["seconds"] > 0
    before = file.read_bytes()
    train(patches, folder, epochs=3)
    assert file.read_bytes() == before


def test_an_environment_with_other_parts_is_a_sentence(small_run, tmp_path):
    patches, run = small_run
    folder = pathlib.Path(shutil.copytree(run, tmp_path / "run"))
    (folder / "environment.json").write_text('{"seed": 0, "resumed": 5}')
    with pytest.raises(UserError, match="environment.json' is not what the run wrote; restore it"):
        train(patches, folder, epochs=3)


@pytest.mark.parametrize(
    ("on_path", "importable", "expected"),
    [
        (True, True, "or tensorboard --logdir '/my runs/x'"),
        (True, False, "or tensorboard --logdir '/my runs/x'"),
        (False, True, "or /env/python -m tensorboard.main --logdir '/my runs/x'"),
        (
            False,
            False,
            "or tensorboard --logdir '/my runs/x' (pip install tensorboard gives that command)",
        ),
    ],
)
def test_how_to_look_at_a_run_is_said_as_it_works_here(monkeypatch, on_path, importable, expected):
    from glomjax.training import progress

    monkeypatch.setattr(progress.sys, "executable", "/env/python")
    monkeypatch.setattr(progress.shutil, "which", lambda name: on_path or None)
    monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name: importable or None)
    line = describe_viewing(pathlib.Path("/my runs/x"))
    assert line == f"to look at it while it trains: '/my runs/x/history.png', {expected}"
