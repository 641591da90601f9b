"""What a script finds: the names of each package, their examples, and what importing them loads."""

import doctest
import importlib
import inspect
import json
import pathlib
import shutil
import subprocess
import sys
import tomllib

import pytest

import glomjax

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = [
    "glomjax",
    "glomjax.data",
    "glomjax.evaluation",
    "glomjax.inference",
    "glomjax.models",
    "glomjax.ops",
    "glomjax.preprocessing",
    "glomjax.pretrained",
    "glomjax.report",
    "glomjax.training",
]
HEAVY = ("numpy", "PIL", "jax", "flax", "optax", "orbax", "scipy", "sklearn", "matplotlib")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_of_a_package_is_there_and_says_what_it_is(package):
    module = importlib.import_module(package)
    names = set(module.__all__)
    assert len(names) == len(module.__all__) > 3
    assert names - {"__version__"} <= set(dir(module))
    for name in names:
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
            assert len(inspect.getdoc(value) or "") > 20, name
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name


def test_the_top_leads_to_every_package():
    assert {f"glomjax.{name}" for name in dir(glomjax)} >= set(PACKAGES) - {"glomjax"}
    for package in PACKAGES[1:]:
        assert f"`{package}`" in glomjax.__doc__


@pytest.mark.parametrize("package", PACKAGES[1:])
def test_the_examples_of_a_package_run(package, small_run, tmp_path, monkeypatch):
    shutil.copytree(small_run[1], tmp_path / "runs" / "davit")
    monkeypatch.chdir(tmp_path)
    results = doctest.testmod(importlib.import_module(package))
    assert results.attempted > 1
    assert results.failed == 0


def test_importing_a_package_loads_nothing_before_it_is_used():
    lazy = [package for package in PACKAGES if package not in ("glomjax.models", "glomjax.ops")]
    code = f"import {', '.join(lazy)}, sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(json.loads(done.stdout)) & set(HEAVY)


@pytest.mark.parametrize(
    ("name", "never"),
    [
        ("from glomjax.data import make_splits", ("PIL", "jax", "flax", "sklearn", "matplotlib")),
        ("from glomjax.evaluation import classification_metrics", ("jax", "flax", "matplotlib")),
        ("from glomjax.evaluation import auroc_interval", ("jax", "scipy", "sklearn")),
        ("from glomjax.training import EarlyStopping", ("jax", "flax", "optax", "orbax")),
        ("from glomjax.models import create_model", ("orbax", "scipy", "sklearn", "matplotlib")),
    ],
)
def test_a_piece_loads_no_more_than_it_needs(name, never):
    code = f"{name}; import sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(json.loads(done.stdout)) & set(never)


def test_what_is_pinned_is_the_lower_end_of_what_is_allowed():
    with open(ROOT / "pyproject.toml", "rb") as file:
        allowed = tomllib.load(file)["project"]["dependencies"]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pinned = [line for line in lines if not line.startswith("#")]
    assert [text.split(",")[0].replace(">=", "==") for text in allowed] == pinned
