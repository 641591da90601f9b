"""`glomjax inspect`: what weights hold and what a configuration trains."""

import pathlib
import re
import shutil

import numpy as np
import pytest
import safetensors.numpy

from glomjax.cli.main import main
from glomjax.pretrained import read_weights

ROOT = pathlib.Path(__file__).parents[2]
KECAM = ROOT / "tests" / "data" / "davit_kecam" / "kecam_davit.h5"
TIMM = ROOT / "tests" / "data" / "davit_timm" / "timm_davit.safetensors"
DAVIT = str(ROOT / "configs" / "davit.py")

pytestmark = pytest.mark.usefixtures("home")


@pytest.mark.parametrize(
    ("mode", "last"),
    [
        ("", "168 of 212 tensors, 27,273,601 parameters train"),
        (":scratch", "212 of 212 tensors, 27,591,937 parameters train"),
    ],
)
def test_a_configuration_ends_with_what_trains(capsys, mode, last):
    assert main(["inspect", DAVIT + mode]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == last
    (stem,) = [line for line in lines if line.startswith("stem/conv/kernel ")]
    assert re.search(r"7 x 7 x 3 x 96 +14,112 ", stem)
    assert stem.endswith("trainable" if mode else "frozen")


def test_a_weight_file_is_listed_tensor_by_tensor(capsys):
    assert main(["inspect", str(KECAM)]) == 0
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
    assert main(["inspect", "runs/tiny"]) == 0
    out = capsys.readouterr().out
    for part in ("checkpoint", "googlenet", "notebook", "other, glomerulus", "stem/kernel"):
        assert part in out
    assert out.endswith("\n2 tensors, 13 parameters\n")


def test_tensors_that_are_none_of_ours_are_named(capsys):
    tensors = safetensors.numpy.load_file(TIMM) | {"another.bias": np.zeros(3, np.float32)}
    safetensors.numpy.save_file(tensors, "more.safetensors")
    assert main(["inspect", "more.safetensors"]) == 0
    assert "1 tensors: another.bias" in capsys.readouterr().out


def test_fields_can_be_set_as_in_training(capsys):
    assert main(["inspect", "davit", "--config.freeze.regime", "head_only"]) == 0
    out = capsys.readouterr().out
    assert "regime        head_only" in out
    assert out.endswith("\n2 of 212 tensors, 769 parameters train\n")


def test_paths_may_start_at_home(home, capsys):
    shutil.copy(KECAM, home / "w.h5")
    shutil.copy(DAVIT, home / "mine.py")
    assert main(["inspect", "~/w.h5"]) == 0
    assert main(["inspect", "~/mine.py:scratch"]) == 0
    assert capsys.readouterr().out.endswith("212 of 212 tensors, 27,591,937 parameters train\n")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["nothing.safetensors"], ["'nothing.safetensors'"]),
        (["kecam/davit_t_imagenet1"], ["nearest: kecam/davit_t_imagenet"]),
        (["empty"], ["'empty'", "without a checkpoint"]),
        (["."], ["'.'", "without a checkpoint"]),
        (["short.safetensors"], ["short.safetensors", "damaged or incomplete"]),
        (["nothing.py"], ["'nothing.py' does not exist"]),
        (["davit:scrach"], ["'scrach'", "pretrained or scratch"]),
        (["raises.py"], ["'raises.py' raises ValueError (reason)"]),
        (["raises.py:mode"], ["'raises.py' has no modes"]),
        (["unknown.py"], ["'lerning_rate'", "learning_rate"]),
        (["davit", "--config.lr=1"], ["mean --config.learning_rate"]),
        ([str(KECAM), "--config.lr=1"], ["--config.lr", "kecam_davit.h5"]),
        ([], ["required: WHAT"]),
    ],
    ids=lambda value: " ".join(value).replace(str(ROOT), "") if isinstance(value, list) else None,
)
def test_a_mistake_is_one_sentence(fails, home, arguments, parts):
    pathlib.Path("empty").mkdir()
    pathlib.Path("short.safetensors").write_bytes(TIMM.read_bytes()[:5000])
    pathlib.Path("raises.py").write_text("def get_config():\n    raise ValueError('a\\nreason')\n")
    pathlib.Path("unknown.py").write_text(
        "from glomjax.training import default_config\n\n"
        "def get_config():\n    config = default_config()\n    config.lerning_rate = 1\n"
        "    return config\n"
    )
    fails(["inspect", *arguments], *parts)
