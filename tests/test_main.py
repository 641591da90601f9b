"""The command line: whatever is wrong with it is one sentence and exit code 2."""

import io
import pathlib
import shutil
import signal
import sys

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

import glomjax.training
import main
from glomjax.training import loop

ROOT = pathlib.Path(main.__file__).parent
ALEXNET, DAVIT = str(ROOT / "configs" / "alexnet_mini.py"), str(ROOT / "configs" / "davit.py")


@pytest.fixture
def command(monkeypatch, tmp_path):
    """`main.main` with arguments, in an empty folder, as if in a process of its own."""
    monkeypatch.chdir(tmp_path)
    cache = jax.config.jax_compilation_cache_dir

    def fit(_):
        raise AssertionError("this command line should not train")

    monkeypatch.setattr(loop._Training, "fit", fit)

    def run(*arguments: str) -> int:
        argv = ["main.py", *arguments]
        monkeypatch.setattr(sys, "argv", argv)
        # The module of an earlier config file would lend its names to the next.
        monkeypatch.delitem(sys.modules, "config_config", raising=False)
        with flagsaver.flagsaver():
            flags.FLAGS.unparse_flags()
            return main.main(argv)

    yield run
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
        ([], ["--config configs/davit.py"]),
        (["--config", "configs/nothing.py"], ["configs/nothing.py"]),
        (["--config", f"{DAVIT}:scrach"], ["'scrach'", "pretrained or scratch"]),
        (["--config", ALEXNET, "--config.lerning_rate=1"], ["lerning_rate"]),
        (["--config", ALEXNET, "--config.data.sorce=x"], ["sorce"]),
        (["--config", ALEXNET, "--lerning_rate=1"], ["lerning_rate"]),
        (["--config", ALEXNET, "--config.batch_size=many"], ["batch_size", "many"]),
        (["--config", ALEXNET, "--config.learning_rate=fast"], ["learning_rate", "fast"]),
        (["--config", ALEXNET, "config.learning_rate=1e-4"], ["'config.learning_rate=1e-4'"]),
        (["--config", ALEXNET, "--config.learning_rate=nan"], ["learning_rate is nan"]),
        (["--config", ALEXNET, "--config.plateau.min_lr=inf"], ["plateau.min_lr is inf"]),
        (["--config", ALEXNET, "--config.batch_size=0"], ["batch_size is 0"]),
        (["--config", ALEXNET, "--config.data.source=nothing"], ["nothing", "does not exist"]),
        (["--config", ALEXNET, "--config.model.options.width=3"], ["width"]),
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
def test_a_wrong_command_line_is_one_sentence(command, capsys, arguments, parts):
    assert_one_sentence(command(*arguments), capsys, *parts)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("def get_config(:\n    pass\n", "syntax"),
        ("import nothing_of_this_name\n", "nothing_of_this_name"),
        ("x = 1\n", "get_config"),
        ("def get_config():\n    raise ValueError('first\\nsecond')\n", "second"),
    ],
    ids=["syntax", "import", "no get_config", "two lines"],
)
def test_a_broken_config_file_is_one_sentence(command, capsys, tmp_path, text, part):
    (tmp_path / "broken.py").write_text(text)
    assert_one_sentence(command("--config", "broken.py"), capsys, part)


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
        (["--config", f"{DAVIT}:scratch"], "runs/davit"),
        (["--config", ALEXNET, "--workdir", "elsewhere/x"], "elsewhere/x"),
    ],
    ids=["default", "with a mode", "given"],
)
def test_a_run_gets_its_config_and_its_folder(command, monkeypatch, arguments, workdir):
    calls = []
    monkeypatch.setattr(glomjax.training, "train_and_evaluate", lambda *a: calls.append(a))
    assert command(*arguments, "--config.learning_rate=0.25") == 0
    ((config, folder),) = calls
    assert folder == workdir
    assert config.learning_rate == 0.25
    assert config.freeze.regime == "scratch"


def test_an_interrupted_run_says_how_it_goes_on(command, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(glomjax.training, "train_and_evaluate", interrupted)
    assert command("--config", ALEXNET) == 130
    assert "the same command continues" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_a_signal_ends_has_its_exit_code(command, monkeypatch, capsys, number, code):
    def interrupted(*_):
        raise glomjax.training.Interrupted(number)

    monkeypatch.setattr(glomjax.training, "train_and_evaluate", interrupted)
    assert command("--config", ALEXNET) == code
    assert capsys.readouterr().err == ""  # the loop has said it


@pytest.fixture
def folders(monkeypatch):
    """What a run would find in its folder, for each that `main.main` would start."""
    seen = []
    monkeypatch.setattr(
        glomjax.training,
        "train_and_evaluate",
        lambda _, workdir: seen.append(
            sorted(path.name for path in pathlib.Path(workdir).glob("*"))
        ),
    )
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
    assert command(*arguments) == 0
    assert command(*arguments, "--overwrite") == 0
    assert folders == [["checkpoints", "config.json", "test_metrics.json"], []]


def test_overwrite_keeps_a_link_to_another_disk_and_what_a_run_links_to(command, folders, tmp_path):
    leave_run(tmp_path / "disk")
    (tmp_path / "patches").mkdir()
    (tmp_path / "patches" / "a.png").write_bytes(png())
    (tmp_path / "disk" / "patches").symlink_to(tmp_path / "patches")
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    assert command("--config", ALEXNET, "--workdir", "run", "--overwrite") == 0
    assert folders == [[]]
    assert (tmp_path / "run").resolve() == tmp_path / "disk"
    assert (tmp_path / "patches" / "a.png").read_bytes() == png()


@pytest.mark.parametrize("empty", [True, False], ids=["empty", "not there"])
def test_overwrite_takes_a_free_folder_as_it_is(command, folders, tmp_path, empty):
    if empty:
        (tmp_path / "run").mkdir()
    assert command("--config", ALEXNET, "--workdir", "run", "--overwrite") == 0
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


def test_the_entry_stays_short():
    assert len((ROOT / "main.py").read_text().splitlines()) < 80
