"""`glomjax convert`: the same weights, bit for bit, in a file of ours."""

import dataclasses
import errno
import hashlib
import pathlib
import re
import shlex
import shutil

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from glomjax import checkpoints
from glomjax.cli.main import main
from glomjax.errors import UserError
from glomjax.files import checksum
from glomjax.models import create_model, params_of
from glomjax.preprocessing.preprocessing import IMAGENET
from glomjax.pretrained import PUBLISHED, load_weights, read_weights

DATA = pathlib.Path(__file__).parents[1] / "data"
KECAM = DATA / "davit_kecam" / "kecam_davit.h5"
WHOLE_MODEL = DATA / "davit_kecam" / "kecam_davit_full_model.h5"
TIMM = DATA / "davit_timm" / "timm_davit.safetensors"
SIZES = {"depths": (1, 1, 2, 1), "embed_dims": (16, 32, 64, 128), "num_heads": (2, 4, 8, 16)}

pytestmark = pytest.mark.usefixtures("home")


def loaded(source, preset: str) -> dict[str, np.ndarray]:
    """The parameters of a small DaViT that had none but those of `source`."""
    options = {"num_classes": 5, "preset": preset} | SIZES
    model = nnx.eval_shape(lambda: create_model("davit_tiny", rngs=nnx.Rngs(0), **options))
    load_weights(model, source)
    return {path: np.asarray(value) for path, value in params_of(model).items()}


@pytest.mark.parametrize(
    ("source", "preset"),
    [(KECAM, "kecam"), (WHOLE_MODEL, "kecam"), (TIMM, "msft")],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_converted_file_loads_as_its_source_does_bit_for_bit(source, preset, capsys):
    assert main(["convert", str(source), "--out", "ours.safetensors"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("wrote ours.safetensors: 180 tensors, ")
    assert len(captured.out.splitlines()) == 1
    before, after = loaded(source, preset), loaded("ours.safetensors", preset)
    assert before.keys() == after.keys()
    assert all(before[path].tobytes() == after[path].tobytes() for path in before)
    info = read_weights("ours.safetensors")[1]
    assert (info.layout, info.preset, info.classes) == ("glomjax", preset, ())
    assert info.spec.preprocessing == IMAGENET
    assert info.origin == f"sha256 {checksum(source)}"
    assert info.sha256[:12] in captured.out


def test_a_converted_run_keeps_its_name_its_classes_and_its_bits(run):
    assert main(["convert", "runs/tiny", "--out", "tiny.safetensors"]) == 0
    params, info = read_weights("tiny.safetensors")
    assert params["head/bias"].tobytes() == np.full(1, -0.0, np.float32).tobytes()
    assert np.array_equal(params["stem/kernel"], np.arange(12).reshape(3, 4))
    assert len(params) == 2
    assert (info.model, info.preset) == ("googlenet", "notebook")
    assert info.origin.startswith("sha256 ")  # the name of a run may be that of a patient
    assert info.classes == ("other", "glomerulus")
    assert main(["convert", "tiny.safetensors", "--out", "again.safetensors"]) == 0
    again = read_weights("again.safetensors")[1]
    assert (again.model, again.classes) == (info.model, info.classes)


def test_a_published_id_names_its_model(monkeypatch, tmp_path):
    monkeypatch.setenv("GLOMJAX_CACHE", str(tmp_path / "cache"))
    name = "kecam/davit_t_imagenet"
    entry = dataclasses.replace(PUBLISHED[name], md5=hashlib.md5(KECAM.read_bytes()).hexdigest())
    monkeypatch.setitem(PUBLISHED, name, entry)
    entry.cached.parent.mkdir(parents=True)
    shutil.copy(KECAM, entry.cached)
    assert main(["convert", name, "--out", "ours.safetensors"]) == 0
    info = read_weights("ours.safetensors")[1]
    assert (info.model, info.origin) == ("davit_tiny", name)


def test_a_partial_conversion_is_refused_and_the_unknown_tensors_are_listed(fails, tmp_path):
    tensors = safetensors.numpy.load_file(TIMM)
    tensors["stages.9.extra"] = tensors["another.bias"] = np.zeros(3, np.float32)
    safetensors.numpy.save_file(tensors, "more.safetensors")
    fails(
        ["convert", "more.safetensors", "--out", "ours.safetensors"],
        "2 tensors",
        "another.bias",
        "stages.9.extra",
    )
    assert [file.name for file in tmp_path.iterdir()] == ["more.safetensors"]


def test_an_existing_output_is_named_and_stays(fails):
    pathlib.Path("ours.safetensors").write_text("precious")
    fails(["convert", str(KECAM), "--out", "ours.safetensors"], "'ours.safetensors' exists already")
    assert pathlib.Path("ours.safetensors").read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("nothing.h5 --out a.safetensors", ["'nothing.h5'", "neither a file"]),
        ("empty --out a.safetensors", ["'empty'", "without a checkpoint"]),
        ("short.h5 --out a.safetensors", ["short.h5", "damaged or incomplete"]),
        ("{kecam} --out none/a.safetensors", ["'none'", "does not exist"]),
        ("{kecam} --out file/a.safetensors", ["'file'"]),
        ("{kecam} --out a.h5", ["'a.h5'", ".safetensors"]),
        ("{kecam} --out " + "a" * 300 + ".safetensors", ["cannot be written"]),
        ("{kecam}", ["required: --out"]),
        ("--out a.safetensors", ["required: source"]),
        ("{kecam} --ot a.safetensors", ["no option --ot; did you mean --out"]),
        ("{kecam} more.h5 --out a.safetensors", ["'more.h5'"]),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(fails, home, arguments, parts):
    pathlib.Path("empty").mkdir()
    pathlib.Path("file").write_text("")
    pathlib.Path("short.h5").write_bytes(KECAM.read_bytes()[:5000])
    before = sorted(home.iterdir())
    fails(["convert", *shlex.split(arguments.format(kecam=KECAM))], *parts)
    assert sorted(home.iterdir()) == before


def test_paths_may_start_at_home(home):
    shutil.copy(KECAM, home / "w.h5")
    (home / "out").mkdir()
    assert main(["convert", "~/w.h5", "--out=~/out/ours.safetensors"]) == 0
    assert (home / "out" / "ours.safetensors").is_file()


def test_a_folder_that_cannot_be_written_is_one_sentence(monkeypatch, fails, tmp_path):
    def refused(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "write_bytes", refused)  # root may write everywhere
    fails(
        ["convert", str(KECAM), "--out", "ours.safetensors"],
        "ours.safetensors",
        "cannot be written (Permission denied)",
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("window", [5, (5, 6)])
def test_a_window_other_than_that_of_training_is_refused_also_after_a_conversion(tmp_path, window):
    options = {"num_classes": 5, "preset": "kecam"} | SIZES
    model = create_model("davit_tiny", rngs=nnx.Rngs(0), window_size=window, **options)
    metadata = {
        "model": {
            "name": "davit_tiny",
            "options": options | {"window_size": window},
            "image_size": [280, 280],
        },
        "classes": ["other", "glomerulus"],
        "preprocessing": IMAGENET.to_dict(),
    }
    arrays = {f"params/{path}": np.asarray(value) for path, value in params_of(model).items()}
    checkpoints.save(tmp_path / "best", arrays, metadata)
    assert main(["convert", "best", "--out", "ours.safetensors"]) == 0
    other = create_model("davit_tiny", rngs=nnx.Rngs(1), **options)
    for source in ("best", "ours.safetensors"):
        refusal = re.escape(f"window_size={window} and the model davit_tiny has 9")
        with pytest.raises(UserError, match=refusal):
            load_weights(other, source)
        load_weights(model, source)
    load_weights(other, "ours.safetensors", preset_mismatch="allow")
