"""`glomjax crossval`: what it starts, and one sentence and exit code 2 for whatever is wrong."""

import pathlib

import jax
import pytest

import glomjax.training
from glomjax.cli.main import main
from glomjax.training import Interrupted

ALEXNET = str(pathlib.Path(__file__).parents[2] / "configs" / "alexnet_mini.py")


@pytest.fixture
def started(home, monkeypatch):
    """The arguments with which cross-validations were started, none of which trains."""
    calls = []
    cache = jax.config.jax_compilation_cache_dir
    monkeypatch.setattr(
        glomjax.training,
        "cross_validate",
        lambda config, workdir, **options: calls.append((config, workdir, options)),
    )
    yield calls
    jax.config.update("jax_compilation_cache_dir", cache)


def test_it_starts_what_the_command_line_says(started):
    given = ["--config", ALEXNET, "--config.batch_size=4", "--folds=5", "--repeats", "3"]
    assert main(["crossval", *given, "--quiet", "--max-hours=2.5", "--workdir=~/cv"]) == 0
    [(config, workdir, options)] = started
    assert config.batch_size == 4
    assert workdir == str(pathlib.Path.home() / "cv")
    assert options.pop("shipped")[0] == "alexnet_mini"
    assert options == {"folds": 5, "repeats": 3, "progress": False, "max_hours": 2.5}


def test_a_shipped_configuration_names_the_folder(started):
    assert main(["crossval", "--config", "alexnet_mini", "--folds", "4"]) == 0
    [(_, workdir, options)] = started
    assert workdir == str(pathlib.Path("runs") / "alexnet_mini_folds")
    assert options["shipped"][0] == "alexnet_mini"
    assert options["repeats"] == 1


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--folds", "5"], "no configuration is named"),
        (["--config", ALEXNET], "--folds"),
        (["--config", ALEXNET, "--folds", "two"], "--folds"),
        (["--config", ALEXNET, "--folds", "5", "--overwrite"], "there is no option --overwrite"),
        (["--config", ALEXNET, "--folds", "1"], "--folds is 1; it is a whole number from 2"),
        (
            ["--config", ALEXNET, "--folds", "5", "--config.data.folds=5"],
            "--config.data.folds is 5, and a cross-validation goes through all of its folds",
        ),
        (
            ["--config", ALEXNET, "--folds", "5", "--config.data.source=nowhere"],
            "nowhere",
        ),
        (["--config", ALEXNET, "--folds", "5"], "the embedded data is divided already"),
    ],
)
def test_a_mistake_is_one_sentence(home, fails, arguments, part):
    cache = jax.config.jax_compilation_cache_dir
    fails(["crossval", *arguments], part)
    jax.config.update("jax_compilation_cache_dir", cache)


@pytest.mark.parametrize(("interrupt", "code"), [(Interrupted(0), 75), (KeyboardInterrupt(), 130)])
def test_what_stops_it_gives_the_exit_code(started, monkeypatch, interrupt, code):
    def stopped(*_, **__):
        raise interrupt

    monkeypatch.setattr(glomjax.training, "cross_validate", stopped)
    assert main(["crossval", "--config", ALEXNET, "--folds", "5"]) == code
