"""What the tests of several verbs need."""

import pathlib
from collections.abc import Sequence

import numpy as np
import pytest

from glomjax import checkpoints
from glomjax.cli.main import main
from glomjax.preprocessing.preprocessing import IMAGENET


@pytest.fixture
def home(tmp_path, monkeypatch) -> pathlib.Path:
    """The current folder and the user's, empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def run(home) -> pathlib.Path:
    """The folder of a run with a tiny network, its classes named."""
    options = {"preset": "notebook"}
    metadata = {
        "model": {"name": "googlenet", "options": options, "image_size": [64, 64]},
        "classes": ["other", "glomerulus"],
        "preprocessing": IMAGENET.to_dict(),
    }
    arrays = {
        "params/stem/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
        "params/head/bias": np.full(1, -0.0, np.float32),
        "optimizer/0": np.zeros((), np.int32),
    }
    checkpoints.save(home / "runs" / "tiny" / "checkpoints" / "best", arrays, metadata)
    return home / "runs" / "tiny"


@pytest.fixture
def fails(capsys):
    """Checks that a verb with these arguments is one sentence on standard error, with `parts`."""

    def check(arguments: Sequence[str], *parts: str) -> None:
        code = main(arguments)
        captured = capsys.readouterr()
        assert code == 2
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert len(captured.err.splitlines()) == 1, captured.err
        for part in parts:
            assert part in captured.err

    return check
