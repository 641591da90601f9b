"""The README's commands are true: the pieces of each are run or parsed here."""

import pathlib
import re
import shlex
import sys

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

import glomjax.training
import main
from glomjax.training.config import check_config

ROOT = pathlib.Path(main.__file__).parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


TRAINING = [
    line.split("main.py", 1)[1]
    for block in blocks("bash")
    for line in block.splitlines()
    if "python main.py" in line
]


def test_the_first_two_commands_make_their_own_environment():
    job, tests = blocks("bash")[:2]
    for command in (job, tests):
        assert command.startswith(
            "python3 -m venv .venv\n.venv/bin/pip install -r requirements.txt"
        )
    assert job.strip().endswith("main.py --config configs/davit.py")
    for tool in ("ruff check .", "ruff format --check .", "mypy", "pytest"):
        assert f".venv/bin/{tool}\n" in tests


def test_ci_runs_the_readme_s_test_command():
    script = (ROOT / ".ci" / "run").read_text()
    assert "<!-- tests -->" in script
    assert f"<!-- tests -->\n```bash\n{blocks('bash')[1]}```" in README


@pytest.mark.parametrize("arguments", TRAINING)
def test_every_training_command_is_a_valid_run(arguments, monkeypatch):
    monkeypatch.chdir(ROOT)
    argv = ["main.py", *shlex.split(arguments)]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        config, _ = main.parse(argv)
        check_config(config)


def test_the_script_calls_what_exists(monkeypatch):
    calls = []
    monkeypatch.setattr(
        glomjax.training, "train_and_evaluate", lambda *a, **k: calls.append((a, k)) or {}
    )
    monkeypatch.syspath_prepend(str(ROOT))
    names = ("images", "more", "rest", "labels", "their_labels", "last_labels")
    (script,) = blocks("python")
    exec(script, dict.fromkeys(names, np.zeros(1)))
    ((config, workdir), keywords) = calls[0]
    check_config(config)
    assert workdir
    assert sorted(keywords["data"]) == ["test", "train", "validation"]


def test_every_file_that_is_named_exists():
    for name in re.findall(r"`((?:glomjax|configs|docs|benchmarks|tests)/[\w/]+\.\w+)`", README):
        assert (ROOT / name).exists(), name
