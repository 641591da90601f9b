"""The README's commands are true: the pieces of each are run or parsed here."""

import json
import pathlib
import re
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

from glomjax.cli.configuration import apply_overrides, load_config
from glomjax.cli.main import VERBS, verb_parser
from glomjax.data.sources.columns import COLUMN_SYNONYMS
from glomjax.training.config_checks import read_config

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


START = re.compile(r"\.venv/bin/(?:python main\.py|(?:python -m )?glomjax ([\w-]+))( .*)")
# (verb, its arguments) of every command, in the three ways there are to start one.
COMMANDS = [
    START.fullmatch(line).groups("train")
    for block in blocks("bash")
    for line in block.splitlines()
    if line.startswith((".venv/bin/python ", ".venv/bin/glomjax "))
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


@pytest.mark.parametrize(("verb", "arguments"), COMMANDS)
def test_every_command_is_a_valid_one(verb, arguments, monkeypatch):
    monkeypatch.chdir(ROOT)
    parsed = verb_parser(verb, "glomjax").parse(shlex.split(arguments))
    if verb == "train":
        read_config(apply_overrides(load_config(parsed.config), parsed.overrides))


def test_the_readme_shows_every_verb():
    assert {verb for verb, _ in COMMANDS} == set(VERBS)


def test_the_manifest_s_columns_are_those_that_are_read():
    for column in COLUMN_SYNONYMS:
        assert f"`{column}`" in README, column
    table = README.split("or called | what it is for |")[1].split(
        "Columns that are called nearly so"
    )[0]
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
    (script,) = (block for block in blocks("python") if "train_and_evaluate" in block)
    assert len(script.splitlines()) <= 20
    exec(script, {})
    metrics = json.loads((tmp_path / "runs" / "mine" / "test_metrics.json").read_text())
    assert (metrics["n"], metrics["epochs"], metrics["patients"]) == (8, 2, 4)
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{metrics['auroc']} ")


def test_every_file_that_is_named_exists():
    for name in re.findall(r"`((?:glomjax|configs|docs|benchmarks|tests)/[\w/]+\.\w+)`", README):
        assert (ROOT / name).exists(), name


def test_a_trained_network_is_used_in_six_lines(tmp_path, monkeypatch, capsys):
    (script,) = (block for block in blocks("python") if "load_classifier" in block)
    assert f"<!-- use -->\n```python\n{script}```" in README
    assert len([line for line in script.splitlines() if line]) <= 6
    shutil.copytree(ROOT / "tests" / "data" / "old_run" / "finished", tmp_path / "runs" / "davit")
    for n in range(3):
        image = Image.new("RGB", (40, 32), (90 * n, 100, 120))
        (tmp_path / "new_patches").mkdir(exist_ok=True)
        image.save(tmp_path / "new_patches" / f"{n}.png")
    monkeypatch.chdir(tmp_path)
    exec(script, {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["0.png", "1.png", "2.png"]
    assert all(line.split()[1] in ("0", "1") for line in lines)
