"""The README's commands are true: the pieces of each are run or parsed here."""

import json
import pathlib
import re
import shlex
import sys

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

import main
from glomjax.data.sources.manifest import COLUMN_SYNONYMS
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


def test_the_manifest_s_columns_are_those_that_are_read():
    for column in COLUMN_SYNONYMS:
        assert f"`{column}`" in README, column
    table = README.split("or called | what it is for |")[1].split("**Have a patient")[0]
    known = {name for names in COLUMN_SYNONYMS.values() for name in names}
    named = set(re.findall(r"`(\w+)`", table.replace("`--config.data.split_by=site`", "")))
    assert len(named) > 20
    assert named <= known


def test_the_script_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        labels = np.arange(8) % 2
        images = rng.integers(0, 156, (8, 140, 140, 3)) + 100 * labels[:, None, None, None]
        patients = [f"{split} {i // 2}" for i in range(8)]
        file = tmp_path / f"{split}.npz"
        np.savez(file, images=images.astype(np.uint8), labels=labels, patients=patients)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    (script,) = blocks("python")
    assert len(script.splitlines()) <= 20
    exec(script, {})
    metrics = json.loads((tmp_path / "runs" / "mine" / "test_metrics.json").read_text())
    assert (metrics["n"], metrics["epochs"], metrics["patients"]) == (8, 2, 4)
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{metrics['auroc']} ")


def test_every_file_that_is_named_exists():
    for name in re.findall(r"`((?:glomjax|configs|docs|benchmarks|tests)/[\w/]+\.\w+)`", README):
        assert (ROOT / name).exists(), name
