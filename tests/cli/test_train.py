"""`glomjax train`: what it starts, and one sentence and exit code 2 for whatever is wrong."""

import dataclasses
import io
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import glomjax.training
from glomjax.cli.main import main
from glomjax.training import loop
from glomjax.training.config import RunConfig

ROOT = pathlib.Path(__file__).parents[2]
ALEXNET, DAVIT = str(ROOT / "configs" / "alexnet_mini.py"), str(ROOT / "configs" / "davit.py")


@pytest.fixture
def command(monkeypatch, tmp_path):
    """`glomjax train` with arguments, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    cache = jax.config.jax_compilation_cache_dir

    def fit(_):
        raise AssertionError("this command line should not train")

    monkeypatch.setattr(loop.Trainer, "fit", fit)
    yield lambda *arguments: main(["train", *arguments])
    jax.config.update("jax_compilation_cache_dir", cache)


def png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), 200, np.uint8)).save(stream, "png")
    return stream.getvalue()


def assert_one_sentence(code: int, capsys, *parts: str) -> None:
    captured = capsys.readouterr()
    assert code == 2
    assert captured.err.startswith("error: ")
    assert len(captured.err.splitlines()) == 1, captured.err
    assert "Traceback" not in captured.err
    for part in parts:
        assert part in captured.err


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["--config davit", "alexnet_mini, davit, googlenet"]),
        (["--config", "configs/nothing.py"], ["configs/nothing.py", "alexnet_mini, davit"]),
        (["--config"], ["--config", "expected one argument"]),
        (["--config", f"{DAVIT}:scrach"], ["'scrach'", "pretrained or scratch"]),
        (["--config", ALEXNET, "--lerning_rate=1"], ["--lerning_rate", "as --config.KEY=VALUE"]),
        (["--config", ALEXNET, "--epochs=1"], ["--epochs", "mean --config.num_epochs"]),
        (["--config", ALEXNET, "--workdr", "x"], ["--workdr; did you mean --workdir"]),
        (["--confg", ALEXNET], ["--confg; did you mean --config"]),
        (["--config", ALEXNET, "-w", "x"], ["option -w"]),
        (["--config", ALEXNET, "--processes=two"], ["--processes", "'two'"]),
        (["--config", ALEXNET, "config.learning_rate=1e-4"], ["'config.learning_rate=1e-4'"]),
        (["--config", ALEXNET, "--config.lr=1"], ["mean --config.learning_rate"]),
        (["--config", ALEXNET, "--config.learning_rate=nan"], ["learning_rate is nan"]),
        (["--config", ALEXNET, "--config.plateau.min_lr=inf"], ["plateau.min_lr is inf"]),
        (["--config", ALEXNET, "--config.batch_size=0"], ["batch_size is 0"]),
        (["--config", ALEXNET, "--config.data.source=nothing"], ["nothing", "does not exist"]),
        (["--config", ALEXNET, "--config.data.source=~/nothing"], ["{home}/nothing", "not exist"]),
        (["--config", ALEXNET, "--config.class_weights=1"], ["class_weights is '1'"]),
        (["--config", ALEXNET, "--coordinator=localhost:1"], ["go together"]),
        (["--config", ALEXNET, "--processes=2"], ["go together"]),
        (["--config", ALEXNET, "--process=0", "--processes=2"], ["go together"]),
        (["--config", ALEXNET, "--coordinator=localhost:1", "--process=0"], ["go together"]),
        (
            ["--config", ALEXNET, "--coordinator=localhost:1", "--processes=2", "--process=2"],
            ["--process is 2", "the last is 1"],
        ),
    ],
    ids=lambda value: " ".join(value).replace(str(ROOT), "") if isinstance(value, list) else None,
)
def test_a_wrong_command_line_is_one_sentence(command, capsys, tmp_path, arguments, parts):
    parts = [part.format(home=tmp_path) for part in parts]
    assert_one_sentence(command(*arguments), capsys, *parts)


def test_an_empty_data_folder_is_one_sentence(command, capsys, tmp_path):
    (tmp_path / "patches").mkdir()
    code = command("--config", ALEXNET, "--config.data.source=patches")
    assert_one_sentence(code, capsys, "patches", "no image")


def test_a_data_folder_with_one_class_is_one_sentence(command, capsys, tmp_path):
    (tmp_path / "patches" / "glomerulus").mkdir(parents=True)
    for i in range(4):
        (tmp_path / "patches" / "glomerulus" / f"{i}.png").write_bytes(png())
    code = command("--config", ALEXNET, "--config.data.source=patches")
    assert_one_sentence(code, capsys, "patches", "glomerulus")


def test_a_workdir_that_cannot_be_made_is_one_sentence(command, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code = command("--config", ALEXNET, "--workdir", "file/run")
    assert_one_sentence(code, capsys, "file/run", "--workdir")


def test_a_corrected_mistake_can_use_the_same_folder(command, capsys):
    command("--config", ALEXNET, "--config.data.source=nothing")
    capsys.readouterr()
    code = command("--config", ALEXNET, "--config.data.source=neither")
    assert_one_sentence(code, capsys, "neither", "does not exist")


@pytest.mark.parametrize(
    ("arguments", "workdir"),
    [
        (["--config", ALEXNET], "runs/alexnet_mini"),
        (["--config=alexnet_mini"], "runs/alexnet_mini"),
        (["--config", f"{DAVIT}:scratch"], "runs/davit"),
        (["--config", "~/mine.py"], "runs/mine"),
        (["--config", ALEXNET, "--workdir", "elsewhere/x"], "elsewhere/x"),
        (["--config", ALEXNET, "--workdir=~/x"], "{home}/x"),
    ],
    ids=["default", "by name", "with a mode", "at home", "given", "given at home"],
)
def test_a_run_gets_its_config_what_it_began_as_and_its_folder(
    command, monkeypatch, tmp_path, arguments, workdir
):
    shutil.copy(ALEXNET, tmp_path / "mine.py")
    calls = []
    monkeypatch.setattr(
        glomjax.training,
        "train_and_evaluate",
        lambda config, workdir, **options: calls.append((config, workdir, options)),
    )
    assert command(*arguments, "--config.learning_rate=0.25") == 0
    ((config, folder, options),) = calls
    shipped = options.pop("shipped")
    assert options == {"overwrite": False, "progress": True, "max_hours": 0.0}
    assert folder == workdir.format(home=tmp_path)
    assert (config.learning_rate, config.freeze.regime) == (0.25, "scratch")
    if "~/mine.py" in arguments:
        assert shipped is None  # a file of the user's own has no version of ours
    else:
        name, base = shipped
        learning_rates = {"alexnet_mini": 1e-4, "davit:scratch": 3e-5}
        assert base.learning_rate == learning_rates[name]


def test_a_quiet_run_prints_nothing_but_its_error(command, capsys, tmp_path):
    (tmp_path / "patches").mkdir()
    code = command("--config", ALEXNET, "--config.data.source=patches", "--quiet")
    assert_one_sentence(code, capsys, "no image")
    assert " ended by UserError: " in (tmp_path / "runs/alexnet_mini/run.log").read_text()


def test_an_interrupted_run_says_how_it_goes_on(command, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(glomjax.training, "train_and_evaluate", interrupted)
    assert command("--config", ALEXNET) == 130
    assert "the same command continues" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (0, 75)])
@pytest.mark.parametrize("saved", [True, False])
def test_a_run_that_is_stopped_has_its_exit_code(command, monkeypatch, capsys, number, code, saved):
    def interrupted(*_, **__):
        raise glomjax.training.Interrupted(number, saved=saved)

    monkeypatch.setattr(glomjax.training, "train_and_evaluate", interrupted)
    assert command("--config", ALEXNET) == code
    said = capsys.readouterr().err
    # Where something is saved, the loop has said it.
    assert said == "" if saved else "before the first step; the same command" in said


@pytest.mark.parametrize("hours", ["-1", "nan"])
def test_a_limit_that_is_no_time_is_one_sentence(command, capsys, hours):
    code = command("--config", ALEXNET, f"--max-hours={hours}")
    assert_one_sentence(code, capsys, f"--max-hours is {float(hours)}")


def test_a_cache_that_cannot_be_written_is_said_once_and_hinders_nothing(
    command, monkeypatch, capsys, caplog, tmp_path
):
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("GLOMJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(glomjax.training, "train_and_evaluate", lambda *_, **__: None)
    assert command("--config", ALEXNET) == 0
    (record,) = caplog.records
    assert "cache' cannot be written (Not a directory), so that programs and" in record.message
    assert "GLOMJAX_CACHE" in record.message


@pytest.fixture
def folders(monkeypatch):
    """What a run finds in its folder, for each that starts; it goes no further."""
    seen = []

    def look(workdir, writes):
        seen.append(sorted(path.name for path in pathlib.Path(workdir).glob("*")))
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "RunFolder", look)
    return seen


def leave_run(folder: pathlib.Path) -> None:
    """Some of the files of a finished run."""
    (folder / "checkpoints" / "best").mkdir(parents=True)
    for name in ("checkpoints/best/manifest.json", "test_metrics.json"):
        (folder / name).write_text("{}")
    (folder / "config.json").write_text('{"requested": {}, "effective": {}}')


def test_overwrite_clears_a_folder_that_holds_a_run(command, folders, tmp_path):
    leave_run(tmp_path / "run")
    arguments = ("--config", ALEXNET, "--workdir", "run")
    assert command(*arguments) == 130
    assert command(*arguments, "--overwrite") == 130
    assert folders == [["checkpoints", "config.json", "test_metrics.json"], []]


def test_overwrite_keeps_a_link_to_another_disk_and_what_a_run_links_to(command, folders, tmp_path):
    leave_run(tmp_path / "disk")
    (tmp_path / "patches").mkdir()
    (tmp_path / "patches" / "a.png").write_bytes(png())
    (tmp_path / "disk" / "patches").symlink_to(tmp_path / "patches")
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    assert command("--config", ALEXNET, "--workdir", "run", "--overwrite") == 130
    assert folders == [[]]
    assert (tmp_path / "run").resolve() == tmp_path / "disk"
    assert (tmp_path / "patches" / "a.png").read_bytes() == png()


@pytest.mark.parametrize("empty", [True, False], ids=["empty", "not there"])
def test_overwrite_takes_a_free_folder_as_it_is(command, folders, tmp_path, empty):
    if empty:
        (tmp_path / "run").mkdir()
    assert command("--config", ALEXNET, "--workdir", "run", "--overwrite") == 130
    assert folders == [[]]


@pytest.mark.parametrize(
    "config",
    [
        None,
        "no JSON",
        "5",
        "null",
        "[]",
        '"requested"',
        '["requested"]',
        '{"name": "mine"}',
        b"\xff",
    ],
)
def test_overwrite_leaves_a_folder_alone_that_holds_no_run(
    command, folders, capsys, tmp_path, config
):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    if config is not None:
        content = config if isinstance(config, bytes) else config.encode()
        (tmp_path / "mine" / "config.json").write_bytes(content)
    before = sorted((tmp_path / "mine").iterdir())
    code = command("--config", ALEXNET, "--workdir", "mine", "--overwrite")
    assert_one_sentence(code, capsys, "'mine' holds no run", "--workdir")
    assert sorted((tmp_path / "mine").iterdir()) == before
    assert folders == []


def test_overwrite_with_a_wrong_configuration_keeps_the_run(command, folders, capsys, tmp_path):
    leave_run(tmp_path / "run")
    arguments = ("--config", ALEXNET, "--workdir", "run", "--overwrite", "--config.batch_size=0")
    assert_one_sentence(command(*arguments), capsys, "batch_size is 0")
    assert (tmp_path / "run" / "test_metrics.json").is_file()


def test_overwrite_of_a_file_is_one_sentence(command, folders, capsys, tmp_path):
    (tmp_path / "file").write_text("years of work")
    code = command("--config", ALEXNET, "--workdir", "file", "--overwrite")
    assert_one_sentence(code, capsys, "'file' holds no run")
    assert (tmp_path / "file").read_text() == "years of work"
    assert folders == []


def test_a_run_that_cannot_be_removed_is_one_sentence(command, capsys, tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    leave_run(tmp_path / "run")
    monkeypatch.setattr(shutil, "rmtree", refused)
    code = command("--config", ALEXNET, "--workdir", "run", "--overwrite")
    assert_one_sentence(code, capsys, "'run'", "Permission denied", "--workdir")
    # Its last file to go says what the folder is, so that the same command may be tried again.
    assert (tmp_path / "run" / "config.json").is_file()


# --- help


def fields_of(config, prefix: str = ""):
    """(name, default, help) of every field of a dataclass and of the dataclasses in it."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value, field.metadata["help"]


def test_help_has_every_field_with_its_default_and_what_it_is(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--help"])
    assert exit_.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    text = " ".join(" ".join(lines).split())
    for name, default, about in fields_of(RunConfig()):
        known = f"--config.{name}" + ("." if name == "model.options" else "=")
        assert text.count(f" {known}") >= 1, name
        assert about in text, name
        if isinstance(default, int | float):
            assert f"{known}{default} " in text, name
    assert "[plateau, cosine, constant]" in text
    assert "\naugmentation: " in "\n".join(lines)


def test_the_examples_of_the_help_are_valid(capsys, monkeypatch):
    monkeypatch.setattr(glomjax.training, "train_and_evaluate", lambda *_, **__: None)
    with pytest.raises(SystemExit):
        main(["train", "-h"])
    examples = re.findall(r"^  glomjax train (.*)", capsys.readouterr().out, re.MULTILINE)
    assert len(examples) == 2
    for example in examples:
        assert main(["train", *example.split()]) == 0


def test_main_py_is_the_same_command(tmp_path):
    command = [sys.executable, str(ROOT / "main.py"), "--config", "nothing"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: configuration 'nothing' does not exist; ")
    command = [sys.executable, str(ROOT / "main.py"), "-h"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"COLUMNS": "100"}
    )
    assert done.returncode == 0
    assert done.stdout.startswith("usage: python main.py --config CONFIG ")
    assert len((ROOT / "main.py").read_text().splitlines()) < 80
