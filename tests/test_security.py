"""What data, tables and weights from somebody else cannot do: run code, command a terminal, or have
a file read that lies elsewhere."""

import ast
import csv
import dataclasses
import io
import os
import pathlib
import pickletools
import re

import pytest
from PIL import Image
from small_runs import blots, config_for

from glomjax import load_classifier
from glomjax.cli.command import print_text
from glomjax.cli.main import main
from glomjax.errors import printable
from glomjax.models import params_of
from glomjax.pretrained import load_weights, write_weights
from glomjax.training import train_and_evaluate

ROOT = pathlib.Path(__file__).parents[1]

# --- no code from files

PROGRAMS = [ROOT / "main.py"]
for part in ("glomjax", "configs", "benchmarks"):
    PROGRAMS += sorted((ROOT / part).rglob("*.py"))
# Modules whose files run code when they are read.
UNSAFE_MODULES = {"pickle", "_pickle", "dill", "cloudpickle", "shelve", "joblib", "marshal"}
UNSAFE_CALLS = {"torch.load", "pandas.read_pickle", "pd.read_pickle"}


def unsafe(program: str) -> list[str]:
    """What in a program would run code that a file or a text holds.

    Configuration files are run by `runpy`: they are the user's own programs.
    """
    found = []
    for node in ast.walk(ast.parse(program)):
        names: list[str | None] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in UNSAFE_CALLS or called.removeprefix("builtins.") in ("eval", "exec"):
                found.append(called)
            if called.split(".")[-1] in ("import_module", "__import__"):
                names = [a.value for a in node.args if isinstance(a, ast.Constant)]
            for keyword in node.keywords:
                value = keyword.value
                refused = isinstance(value, ast.Constant) and value.value is False
                if keyword.arg == "allow_pickle" and not refused:
                    found.append(f"{called} with allow_pickle")
            # numpy.load(file, mmap_mode, allow_pickle) takes it by its place, too.
            if called in ("np.load", "numpy.load") and len(node.args) > 2:
                found.append(f"{called} with allow_pickle")
        found += [name for name in names if name and name.split(".")[0] in UNSAFE_MODULES]
    return found


@pytest.mark.parametrize(
    "program",
    [
        "import numpy, pickle",
        "import joblib.numpy_pickle as numbers",
        "def f():\n    from cloudpickle import loads",
        "from multiprocessing import pickle",
        "importlib.import_module('dill')",
        "np.load(file, allow_pickle=True)",
        "np.load(file, None, True)",
        "np.lib.format.read_array(file, allow_pickle=flag)",
        "torch.load(file)",
        "eval(text)",
        "builtins.exec(text)",
    ],
)
def test_what_would_run_code_is_found(program):
    assert unsafe(program)


def test_what_only_looks_so_is_not_found():
    assert not unsafe(
        "'pickle'; model.eval(); spec.loader.exec_module(m); np.load(f, 'r', allow_pickle=False)"
    )


def test_no_program_here_runs_code_that_a_file_holds():
    assert len(PROGRAMS) > 100
    found = {file.relative_to(ROOT): unsafe(file.read_text(encoding="utf-8")) for file in PROGRAMS}
    assert {file: what for file, what in found.items() if what} == {}


def pickles(content: bytes) -> list[int]:
    """Where a whole pickle begins: at the start, of any protocol, or at the mark of a later one."""
    starts = {0, *(match.start() for match in re.finditer(rb"\x80[\x02-\x05]", content))}
    found = []
    for start in sorted(starts):
        try:
            pickletools.dis(content[start:], io.StringIO())
            found.append(start)
        except Exception:  # what no pickle raises is up to the reader
            continue
    return found


def test_a_pickle_is_found():
    # A list of `os.system` and its argument, in protocols 0, 2 and 4, as pickletools describe them.
    classic = b"cos\nsystem\n(S'true'\ntR."
    assert pickles(classic) == [0]
    assert pickles(b"\x80\x02" + classic) == [0]
    assert pickles(b"four\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.") == [4]
    assert pickles(b"") == pickles(b"path,label\n") == pickles(b'{"a": 1}') == []


def test_a_run_and_its_weight_file_hold_no_pickle(small_run, tmp_path):
    weights = tmp_path / "weights.safetensors"
    assert main(["convert", str(small_run[1]), "--out", str(weights)]) == 0
    files = [file for file in small_run[1].rglob("*") if file.is_file()]
    assert any("checkpoints" in file.parts for file in files)
    for file in [*files, weights]:
        content = file.read_bytes()
        assert not re.match(rb"\x80[\x02-\x05]|PK", content), file  # nor an archive of pickles
        assert pickles(content) == [], file


# --- names command nothing

NAMES = (
    "\x1b]0;owned\x07\x1b[2J",
    "line one\nNOTE: line two\rover it",
    "$x_1$ ${",
    "[red]Anna[/red] [link=file:///]here",
    "<img src=x onerror=alert(1)>",
    "{0.__class__} %s %(name)d",
)
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> pathlib.Path:
    """A folder with a manifest of 48 patches whose patients, files and one class have odd names."""
    folder = tmp_path_factory.mktemp("odd")
    rows = [["path", "label", "patient"]]
    for i in range(48):
        name = f"a\x1b[2J\n[red]{i:02d}.png"
        blots(i, 50 * (i % 2)).save(folder / name, "PNG")
        # Of each name two patients, who are told where exact names are asked for.
        patient = NAMES[i // 8] + (" A", " a")[i // 4 % 2]
        rows.append([name, ("[red]$x_1$<b>", "glomerulus")[i % 2], patient])
    with open(folder / "manifest.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return folder


@pytest.fixture(scope="module")
def odd_run(odd, tmp_path_factory) -> tuple[pathlib.Path, str]:
    """(the folder of a run on it, what its training printed)."""
    folder = tmp_path_factory.mktemp("run")
    changes = {"data.exact_names": True, "num_epochs": 1}
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", printed)
        train_and_evaluate(config_for(odd / "manifest.csv", **changes), folder / "run")
    return folder / "run", printed.getvalue()


def test_check_data_prints_and_draws_odd_names(odd, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--config.data.exact_names=True", "--config.image_size=32", "--out", str(out)]
    assert main(["check-data", str(odd / "manifest.csv"), *arguments]) == 0
    printed = capsys.readouterr().out
    assert not CONTROL.search(printed)
    assert not CONTROL.search((out / "check.txt").read_text())
    # A table breaks long names into several lines, but the note has them whole.
    for name in NAMES:
        assert printable(name) in printed
    assert "NOTE: line two" not in [line.strip() for line in printed.splitlines()]
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.height > 300


def test_training_prints_logs_and_keeps_odd_names(odd_run):
    run, printed = odd_run
    for text in (printed, (run / "run.log").read_text(encoding="utf-8")):
        assert not CONTROL.search(text)
        for name in NAMES:
            assert printable(name) in text
    found = set()
    for table in ("predictions.csv", "predictions_validation.csv"):
        with open(run / table, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert all(re.fullmatch(r"a\x1b\[2J\n\[red\]\d\d\.png", row["id"]) for row in rows)
        assert all("probability_[red]$x_1$<b>" in row for row in rows)
        found |= {row["patient"] for row in rows}
    with open(run / "splits.csv", newline="", encoding="utf-8") as file:
        found |= {row["patient"] for row in csv.DictReader(file)}
    assert found == {f"{name} {letter}" for name in NAMES for letter in "Aa"}


def test_a_table_of_predictions_has_the_very_names_unless_it_is_shown(
    odd, odd_run, capsys, monkeypatch
):
    command = ["predict", str(odd_run[0]), "--data", str(odd / "manifest.csv")]
    assert main(command) == 0
    captured = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(captured.out, newline="")))
    assert {row["patient"][:-2] for row in rows} == set(NAMES)
    assert not CONTROL.search(captured.err)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert not CONTROL.search(shown)
    assert printable(NAMES[0]) in shown


def test_a_weight_file_of_somebody_else_commands_no_terminal(small_run, tmp_path, capsys):
    """Its classes and its tensors have odd names."""
    spec = load_classifier(small_run[1]).spec
    model = spec.create_model()
    load_weights(model, small_run[1])
    file = tmp_path / "weights.safetensors"
    classes = (NAMES[0], f"glomerulus {NAMES[1]}")
    params = params_of(model) | {f"{NAMES[0]}/kernel": params_of(model)["head/bias"]}
    write_weights(file, params, dataclasses.replace(spec, classes=classes))
    assert main(["inspect", str(file)]) == 0
    printed = capsys.readouterr().out
    assert not CONTROL.search(printed)
    assert printed.count(printable(NAMES[0])) == 2
    write_weights(file, params_of(model), dataclasses.replace(spec, classes=classes))
    command = ["evaluate", str(file), "--data", str(small_run[0]), "--out", str(tmp_path / "out")]
    renamed = ["--rename", f"other={classes[0]}", "--rename", f"glomerulus={classes[1]}"]
    assert main([*command, *renamed, "--allow-seen"]) == 0
    for text in (capsys.readouterr().out, (tmp_path / "out" / "report.txt").read_text()):
        assert not CONTROL.search(text)
        assert printable(NAMES[0]) in text


def test_a_text_keeps_its_lines_when_it_is_printed(capsys):
    assert print_text("one\n  two \x1b[1mbold\x1b[0m\n")
    assert capsys.readouterr().out == "one\n  two \\x1b[1mbold\\x1b[0m\n\n"


# --- nothing outside the folder is read


@pytest.fixture
def lists(small_run, tmp_path) -> pathlib.Path:
    """A manifest that lists patches of another folder."""
    patches = small_run[0]
    text = (patches / "manifest.csv").read_text()
    (tmp_path / "manifest.csv").write_text(
        re.sub(r"^(other|glomerulus)/", rf"{patches}/\1/", text, flags=re.MULTILINE)
    )
    return tmp_path / "manifest.csv"


@pytest.mark.parametrize("verb", ["predict", "check-data"])
def test_a_flag_takes_images_outside_the_folder(small_run, lists, tmp_path, capsys, verb):
    """Of `evaluate` and of a training it is in the tables of `docs/reliability.md`."""
    command = {
        "predict": ["predict", str(small_run[1]), "--data", str(lists)],
        "check-data": ["check-data", str(lists), "--config.image_size=32"],
    }[verb]
    assert main(command) == 2
    captured = capsys.readouterr()
    assert "48 image(s) outside its folder, the first is" in captured.out + captured.err
    assert main([*command, "--allow-outside"]) == 0
    assert "outside" not in capsys.readouterr().out


def test_a_refused_file_is_not_even_looked_up(small_run, lists, monkeypatch):
    """Else it would be told whether it exists."""
    looked_up = []
    isfile, exists = os.path.isfile, os.path.exists

    def noted(ask):
        return lambda path: looked_up.append(os.fspath(path)) or ask(path)

    monkeypatch.setattr("os.path.isfile", noted(isfile))
    monkeypatch.setattr("os.path.exists", noted(exists))
    assert main(["predict", str(small_run[1]), "--data", str(lists)]) == 2
    assert main(["check-data", str(lists)]) == 2
    assert not [path for path in looked_up if path.startswith(str(small_run[0]))]
