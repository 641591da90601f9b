"""The README's commands are true: the pieces of each are run or parsed here."""

import json
import pathlib
import re
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image
from small_runs import blots, write_patches

from glomjax.cli.configuration import apply_overrides, load_config
from glomjax.cli.main import VERBS, main, verb_parser
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


# What a network that is trained in no time needs besides.
SMALL = [
    *("--config.image_size=32", "--config.batch_size=8", "--config.num_epochs=1"),
    *("--config.model.options.depths=1,", "--config.model.options.embed_dims=8,"),
    *("--config.model.options.num_heads=1,", "--config.model.options.dropout_rate=0.0"),
    "--config.model.options.drop_path_rate=0.1",
]


def test_a_trained_network_is_used_by_every_command_of_its_section(
    small_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_run[1], "runs/davit")
    others = write_patches(tmp_path / "other_hospital", first=500, numbered=True)
    lines = (others / "manifest.csv").read_text().splitlines()
    renamed = [line.replace(",other,", ",Tubule,") for line in lines]
    rows = [f"other_hospital/{line}" for line in renamed[1:]]
    (tmp_path / "renamed.csv").write_text("\n".join([lines[0], *rows]) + "\n")
    splits = ["train"] * 16 + ["validation"] * 8 + ["test"] * 24
    rows = [f"{line},{part}" for line, part in zip(lines[1:], splits, strict=True)]
    (others / "manifest.csv").write_text("\n".join([f"{lines[0]},split", *rows]) + "\n")
    (tmp_path / "new_patches").mkdir()
    for n in range(3):
        blots(900 + n).save(tmp_path / "new_patches" / f"{n}.png")
    section = README.split("## Use a trained network")[1].split("\n## ")[0]
    ran = []
    for block in re.findall(r"<!-- trained -->\n```bash\n(.*?)```", section, re.DOTALL):
        for line in block.splitlines():
            verb, arguments = START.fullmatch(line).groups("train")
            config = str(ROOT / "configs" / "davit.py")
            words = [config if w == "configs/davit.py" else w for w in shlex.split(arguments)]
            assert main([verb, *words, *(SMALL if verb == "train" else [])]) == 0, line
            ran.append(verb)
    assert ran == ["predict", "convert", "predict", "evaluate", "evaluate", "evaluate", "train"]
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 4
    assert json.loads((tmp_path / "test" / "test_metrics.json").read_text())["n"] == 24
    assert "the weights were trained with" not in capsys.readouterr().out


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
