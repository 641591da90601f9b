"""The command without its verbs: help, version, mistakes, output, and what is installed."""

import os
import pathlib
import subprocess
import sys
import tomllib

import pytest

import glomjax
from glomjax import pretrained
from glomjax.cli.main import VERBS, main

ROOT = pathlib.Path(glomjax.__file__).parents[1]


def started(*arguments: str, **options) -> subprocess.CompletedProcess:
    """`python -m glomjax` as a process of its own."""
    command = [sys.executable, "-m", "glomjax", *arguments]
    return subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, **options)


def imported(*arguments: str) -> list[str]:
    """The modules that a command line loads until it has answered."""
    script = (
        "import sys\nfrom glomjax.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stderr.split()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_verb_has_a_help_with_an_example(capsys, verb, option):
    with pytest.raises(SystemExit) as exit_:
        main([verb, option])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: glomjax {verb} ")
    assert f"  glomjax {verb} " in out[out.index("\nexample") :]


def test_the_help_lists_the_verbs(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    for verb, module in VERBS.items():
        assert f"\n  {verb} " in out
        assert module.HELP in out


def test_no_verb_prints_the_help_and_is_a_mistake(capsys):
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: glomjax VERB ")


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"glomjax {glomjax.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["trian"], "no verb 'trian'; did you mean train"),
        (["check_data"], "did you mean check-data"),
        (
            ["zzz"],
            "known are train, crossval, predict, evaluate, compare, convert, inspect, check-data",
        ),
        (["--vesion"], "did you mean --version"),
        (["check-data", "patches", "--config.data.fold=x"], "must be of type int"),
        (["check-data", "patches", "--otu=1"], "did you mean --out"),
        (["check-data"], "no source is named"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_command_line_is_one_sentence(fails, arguments, part):
    fails(arguments, part)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["trian"],
        ["convert", "--help"],
        ["check-data", "--help"],
        ["train", "--workdr=x"],
        ["train", "--config", "nothing"],
    ],
    ids=" ".join,
)
def test_help_and_mistakes_are_answered_before_anything_heavy_is_loaded(arguments):
    modules = imported(*arguments)
    assert "glomjax.cli.train" in modules
    assert not {"jax", "flax", "numpy"} & set(modules)


def test_an_interrupt_is_exit_code_130(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrained, "convert_weights", interrupted)
    assert main(["convert", "a.h5", "--out", "ours.safetensors"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_closed_pipe_is_no_traceback():
    for arguments in (["check-data", "--help"], ["check-data", "nothing"]):
        read, write = os.pipe()
        os.close(read)
        done = started(*arguments, stdout=write)
        os.close(write)
        assert done.stderr == ""
        assert done.returncode == (2 if "nothing" in arguments else 0)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_letter_that_the_terminal_lacks_is_replaced(encoding):
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = started("check-data", "腎patches", stdout=subprocess.PIPE, env=environment)
    assert (done.returncode, done.stderr) == (2, "")
    assert "/?patches' does not exist" in done.stdout
    done = started("train", "--config=腎\nx", env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith(r"error: configuration '?\nx' does not exist")
    assert len(done.stderr.splitlines()) == 1


def test_the_package_that_is_built_is_complete():
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)
    setuptools = project["tool"]["setuptools"]
    folders = {".".join(f.parent.relative_to(ROOT).parts) for f in ROOT.glob("glomjax/**/*.py")}
    assert set(setuptools["packages"]) == folders | {"glomjax.configs"}
    assert (ROOT / setuptools["package-dir"]["glomjax.configs"] / "davit.py").is_file()
    for package, files in setuptools["package-data"].items():
        for name in files:
            assert list((ROOT / package.replace(".", "/")).glob(name)), name
    module, _, function = project["project"]["scripts"]["glomjax"].partition(":")
    assert (module, function) == (main.__module__, main.__name__)
