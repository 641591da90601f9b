"""`python -m glomjax`: what convert writes, what inspect prints, and one sentence for a mistake."""

import dataclasses
import errno
import hashlib
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from glomjax import __main__ as cli
from glomjax import checkpoints, pretrained
from glomjax.errors import UserError
from glomjax.models import create_model, params_of
from glomjax.preprocessing.preprocessing import IMAGENET
from glomjax.pretrained import PUBLISHED, load_weights, read_weights

ROOT = pathlib.Path(cli.__file__).parents[1]
DATA = ROOT / "tests" / "data"
KECAM = DATA / "davit_kecam" / "kecam_davit.h5"
WHOLE_MODEL = DATA / "davit_kecam" / "kecam_davit_full_model.h5"
TIMM = DATA / "davit_timm" / "timm_davit.safetensors"
SIZES = {"depths": (1, 1, 2, 1), "embed_dims": (16, 32, 64, 128), "num_heads": (2, 4, 8, 16)}
DAVIT = str(ROOT / "configs" / "davit.py")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(tmp_path) -> pathlib.Path:
    """The folder of a run with a tiny network, its classes named."""
    options = {"preset": "notebook"}
    metadata = {
        "model": {"name": "googlenet", "options": options, "image_size": [64, 64]},
        "classes": ["other", "glomerulus"],
        "preprocessing": IMAGENET.to_dict(),
    }
    arrays = {
        "params/stem/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
        "params/head/bias": np.full(1, -0.0, np.float32),
        "optimizer/0": np.zeros((), np.int32),
    }
    checkpoints.save(tmp_path / "runs" / "tiny" / "checkpoints" / "best", arrays, metadata)
    return tmp_path / "runs" / "tiny"


def loaded(source, preset: str) -> dict[str, np.ndarray]:
    """The parameters of a small DaViT that had none but those of `source`."""
    options = {"num_classes": 5, "preset": preset} | SIZES
    model = nnx.eval_shape(lambda: create_model("davit_tiny", rngs=nnx.Rngs(0), **options))
    load_weights(model, source)
    return {path: np.asarray(value) for path, value in params_of(model).items()}


def assert_one_sentence(code: int, capsys, *parts: str) -> None:
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert len(captured.err.splitlines()) == 1, captured.err
    for part in parts:
        assert part in captured.err


# --- convert


@pytest.mark.parametrize(
    ("source", "preset"),
    [(KECAM, "kecam"), (WHOLE_MODEL, "kecam"), (TIMM, "msft")],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_converted_file_loads_as_its_source_does_bit_for_bit(source, preset, capsys):
    assert cli.main(["convert", str(source), "--out", "ours.safetensors"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("wrote ours.safetensors: 180 tensors, ")
    assert len(captured.out.splitlines()) == 1
    before, after = loaded(source, preset), loaded("ours.safetensors", preset)
    assert before.keys() == after.keys()
    assert all(before[path].tobytes() == after[path].tobytes() for path in before)
    info = read_weights("ours.safetensors")[1]
    assert (info.layout, info.preset, info.classes) == ("glomjax", preset, ())
    assert (info.preprocessing, info.origin) == (IMAGENET.to_dict(), str(source))
    assert info.sha256[:12] in captured.out


def test_a_converted_run_keeps_its_name_its_classes_and_its_bits(run):
    assert cli.main(["convert", "runs/tiny", "--out", "tiny.safetensors"]) == 0
    params, info = read_weights("tiny.safetensors")
    assert params["head/bias"].tobytes() == np.full(1, -0.0, np.float32).tobytes()
    assert np.array_equal(params["stem/kernel"], np.arange(12).reshape(3, 4))
    assert len(params) == 2
    assert (info.model, info.preset, info.origin) == ("googlenet", "notebook", "runs/tiny")
    assert info.classes == ("other", "glomerulus")
    assert cli.main(["convert", "tiny.safetensors", "--out", "again.safetensors"]) == 0
    again = read_weights("again.safetensors")[1]
    assert (again.model, again.classes) == (info.model, info.classes)


def test_a_published_id_names_its_model(monkeypatch, tmp_path):
    monkeypatch.setenv("GLOMJAX_CACHE", str(tmp_path / "cache"))
    name = "kecam/davit_t_imagenet"
    entry = dataclasses.replace(PUBLISHED[name], md5=hashlib.md5(KECAM.read_bytes()).hexdigest())
    monkeypatch.setitem(PUBLISHED, name, entry)
    entry.cached.parent.mkdir(parents=True)
    shutil.copy(KECAM, entry.cached)
    assert cli.main(["convert", name, "--out", "ours.safetensors"]) == 0
    info = read_weights("ours.safetensors")[1]
    assert (info.model, info.origin) == ("davit_tiny", name)


def test_a_partial_conversion_is_refused_and_the_unknown_tensors_are_listed(capsys, tmp_path):
    tensors = safetensors.numpy.load_file(TIMM)
    tensors["stages.9.extra"] = tensors["another.bias"] = np.zeros(3, np.float32)
    safetensors.numpy.save_file(tensors, "more.safetensors")
    code = cli.main(["convert", "more.safetensors", "--out", "ours.safetensors"])
    assert_one_sentence(code, capsys, "2 tensors", "another.bias", "stages.9.extra")
    assert [file.name for file in tmp_path.iterdir()] == ["more.safetensors"]


def test_an_existing_output_is_named_and_stays(capsys):
    pathlib.Path("ours.safetensors").write_text("precious")
    code = cli.main(["convert", str(KECAM), "--out", "ours.safetensors"])
    assert_one_sentence(code, capsys, "'ours.safetensors' exists already")
    assert pathlib.Path("ours.safetensors").read_text() == "precious"


# --- inspect


@pytest.mark.parametrize(
    ("mode", "last"),
    [
        ("", "168 of 212 tensors, 27,273,601 parameters train"),
        (":scratch", "212 of 212 tensors, 27,591,937 parameters train"),
    ],
)
def test_a_configuration_ends_with_what_trains(capsys, mode, last):
    assert cli.main(["inspect", DAVIT + mode]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == last
    (stem,) = [line for line in lines if line.startswith("stem/conv/kernel ")]
    assert re.search(r"7 x 7 x 3 x 96 +14,112 ", stem)
    assert stem.endswith("trainable" if mode else "frozen")


def test_a_weight_file_is_listed_tensor_by_tensor(capsys):
    assert cli.main(["inspect", str(KECAM)]) == 0
    out = capsys.readouterr().out
    params, info = read_weights(KECAM)
    for part in ("kecam", "imagenet", "[0.485, 0.456, 0.406]", info.sha256):
        assert part in out
    for path, value in params.items():
        shape = " x ".join(map(str, value.shape))
        assert re.search(rf"^{path} +{shape} +{value.size:,}$", out, re.MULTILINE), path
    total = sum(value.size for value in params.values())
    assert out.splitlines()[-1] == f"180 tensors, {total:,} parameters"


def test_a_run_is_listed_with_its_classes(run, capsys):
    assert cli.main(["inspect", "runs/tiny"]) == 0
    out = capsys.readouterr().out
    for part in ("checkpoint", "googlenet", "notebook", "other, glomerulus", "stem/kernel"):
        assert part in out
    assert out.endswith("\n2 tensors, 13 parameters\n")


def test_tensors_that_are_none_of_ours_are_named(capsys):
    tensors = safetensors.numpy.load_file(TIMM) | {"another.bias": np.zeros(3, np.float32)}
    safetensors.numpy.save_file(tensors, "more.safetensors")
    assert cli.main(["inspect", "more.safetensors"]) == 0
    assert "1 tensors: another.bias" in capsys.readouterr().out


def test_a_closed_pipe_is_no_traceback():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "glomjax", "inspect", str(KECAM)]
    done = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


# --- mistakes


@pytest.fixture
def mistakes():
    """Files that are wrong in one way each."""
    pathlib.Path("empty").mkdir()
    pathlib.Path("file").write_text("")
    pathlib.Path("short.h5").write_bytes(KECAM.read_bytes()[:5000])
    pathlib.Path("short.safetensors").write_bytes(TIMM.read_bytes()[:5000])
    pathlib.Path("raises.py").write_text("def get_config():\n    raise ValueError('a\\nreason')\n")
    pathlib.Path("syntax.py").write_text("def get_config(:\n")
    pathlib.Path("bare.py").write_text("x = 1\n")
    pathlib.Path("other.py").write_text("def get_config():\n    return {}\n")
    pathlib.Path("unknown.py").write_text(
        "from glomjax.training import default_config\n\n"
        "def get_config():\n    config = default_config()\n    config.lerning_rate = 1\n"
        "    return config\n"
    )


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("convert nothing.h5 --out a.safetensors", ["'nothing.h5'", "neither a file"]),
        ("convert empty --out a.safetensors", ["'empty'", "without a checkpoint"]),
        ("convert short.h5 --out a.safetensors", ["short.h5", "damaged or incomplete"]),
        ("convert {kecam} --out none/a.safetensors", ["'none'", "does not exist"]),
        ("convert {kecam} --out file/a.safetensors", ["'file'"]),
        ("convert {kecam} --out a.h5", ["'a.h5'", ".safetensors"]),
        ("convert {kecam} --out " + "a" * 300 + ".safetensors", ["cannot be written"]),
        ("inspect nothing.safetensors", ["'nothing.safetensors'"]),
        ("inspect kecam/davit_t_imagenet1", ["nearest: kecam/davit_t_imagenet"]),
        ("inspect empty", ["'empty'", "without a checkpoint"]),
        ("inspect .", ["'.'", "without a checkpoint"]),
        ("inspect short.safetensors", ["short.safetensors", "damaged or incomplete"]),
        ("inspect nothing.py", ["'nothing.py' does not exist"]),
        ("inspect {davit}:scrach", ["'scrach'", "pretrained or scratch"]),
        ("inspect raises.py", ["'raises.py' raises ValueError (reason)"]),
        ("inspect raises.py:mode", ["'raises.py' raises TypeError"]),
        ("inspect syntax.py", ["'syntax.py' raises SyntaxError"]),
        ("inspect bare.py", ["'bare.py' has no get_config()"]),
        ("inspect other.py", ["'other.py' returns dict"]),
        ("inspect unknown.py", ["'lerning_rate'", "learning_rate"]),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_a_mistake_is_one_sentence(mistakes, tmp_path, capsys, arguments, parts):
    before = sorted(tmp_path.iterdir())
    code = cli.main(shlex.split(arguments.format(kecam=KECAM, davit=DAVIT)))
    assert_one_sentence(code, capsys, *parts)
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_that_cannot_be_written_is_one_sentence(monkeypatch, capsys, tmp_path):
    def refused(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "write_bytes", refused)  # root may write everywhere
    code = cli.main(["convert", str(KECAM), "--out", "ours.safetensors"])
    assert_one_sentence(code, capsys, "ours.safetensors", "cannot be written (Permission denied)")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("argv", [["convert"], ["convert", "a.h5"], ["inspect"], ["predcit"]])
def test_a_wrong_command_line_is_exit_code_2(argv, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(argv)
    assert exit_.value.code == 2
    assert "usage: python -m glomjax" in capsys.readouterr().err


def test_no_verb_prints_the_help(capsys):
    assert cli.main([]) == 2
    err = capsys.readouterr().err
    assert "convert" in err
    assert "inspect" in err


def test_an_interrupt_is_exit_code_130(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrained, "convert_weights", interrupted)
    assert cli.main(["convert", str(KECAM), "--out", "ours.safetensors"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_every_command_of_the_readme_is_a_valid_one():
    readme = (ROOT / "README.md").read_text()
    commands = re.findall(r"python -m glomjax (.*)", readme)
    assert commands
    for command in commands:
        cli.parser().parse_args(shlex.split(command))


@pytest.mark.parametrize("window", [5, (5, 6)])
def test_a_window_other_than_that_of_training_is_refused_also_after_a_conversion(tmp_path, window):
    options = {"num_classes": 5, "preset": "kecam"} | SIZES
    model = create_model("davit_tiny", rngs=nnx.Rngs(0), window_size=window, **options)
    metadata = {
        "model": {"name": "davit_tiny", "options": options | {"window_size": window}},
        "classes": ["other", "glomerulus"],
        "preprocessing": IMAGENET.to_dict(),
    }
    arrays = {f"params/{path}": np.asarray(value) for path, value in params_of(model).items()}
    checkpoints.save(tmp_path / "best", arrays, metadata)
    assert cli.main(["convert", "best", "--out", "ours.safetensors"]) == 0
    other = create_model("davit_tiny", rngs=nnx.Rngs(1), **options)
    for source in ("best", "ours.safetensors"):
        refusal = re.escape(f"window_size={window} and the model davit_tiny has 0")
        with pytest.raises(UserError, match=refusal):
            load_weights(other, source)
        load_weights(model, source)
    load_weights(other, "ours.safetensors", preset_mismatch="allow")
