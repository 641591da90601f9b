"""A file that holds no weights of ours is named as what it is, whatever its own name says."""

import gzip
import io
import json
import pathlib
import pickle
import re
import tarfile
import zipfile
from collections.abc import Callable

import h5py
import numpy as np
import pytest
import safetensors.numpy

from glomjax.errors import UserError
from glomjax.pretrained import read_weights

FILE = pathlib.Path(__file__).parents[1] / "data" / "davit_timm" / "timm_davit.safetensors"


def stream(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def zipped(*names: str) -> bytes:
    def write(buffer):
        with zipfile.ZipFile(buffer, "w") as archive:
            for name in names:
                archive.writestr(name, "x")

    return stream(write)


def tarred() -> bytes:
    def write(buffer):
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("a"), io.BytesIO())

    return stream(write)


TORCH = r"which can run code .* load it with PyTorch and convert it to \.safetensors"
KERAS = r"does not hold their names.*model\.save\('NAME\.h5'\)"
NUMPY = r"save .* as \.safetensors"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "model.keras",
            zipped("metadata.json", "config.json", "model.weights.h5"),
            rf"is a Keras model in the format \.keras, .*{KERAS}",
        ),
        ("model.pt", zipped("archive/data.pkl", "archive/data/0"), f"pickle in a ZIP.*{TORCH}"),
        ("pytorch_model.bin", zipped("pytorch_model/data.pkl"), f"pickle in a ZIP.*{TORCH}"),
        ("pytorch_model.bin", pickle.dumps({"a": 1}, 2), f"is a pickle .*{TORCH}"),
        ("last.ckpt", pickle.dumps({"a": 1}), f"is a pickle .*{TORCH}"),
        ("cut.pth", zipped("archive/data.pkl")[:20], "damaged or incomplete ZIP archive; fetch"),
        ("a.npz", stream(lambda f: np.savez(f, a=np.zeros(2))), rf"NumPy archive .*{NUMPY}"),
        ("a.npy", stream(lambda f: np.save(f, np.zeros(2))), f"is a NumPy array.*{NUMPY}"),
        ("a.zip", zipped("a/b.safetensors"), "ZIP archive of a/b.safetensors: unpack it"),
        ("a.tar.gz", gzip.compress(b"x"), "is a compressed file: unpack it"),
        ("a.tar", tarred(), "is a tar archive: unpack it"),
        ("a.msgpack", b"\x81\xa6params\x81\xa1a\xc7", f"is a MessagePack file .*{NUMPY}"),
        ("a.onnx", b"\x08\x07\x12\x07pytorch", "named as an ONNX model, which holds a program"),
        ("saved_model.pb", b"\x08\x01\x12\xaa", "named as a TensorFlow model, which holds a prog"),
        ("a.tflite", b"\x1c\0\0\0TFL3", "is a TensorFlow Lite model, which holds a program"),
        ("variables.data-00000-of-00001", b"\1\2\3", "named as a part of a TensorFlow checkpoint"),
        ("a.gguf", b"GGUF\3\0\0\0", r"is a GGUF file: name a \.safetensors"),
        ("a.h5", b"version https://git-lfs.github.com/spec/v1\noid", "LFS pointer.*`git lfs pull`"),
        ("a.h5", b"/annex/objects/SHA256E-s3--x", "git-annex pointer.*`git annex get`"),
        ("a.h5", b"\n<!DOCTYPE html><html>Sign in", "is a web page.*download the file itself"),
        ("a.h5", b"<?xml version='1.0'?><Error>", "is a web page.*download the file itself"),
        ("index.json", json.dumps({"weight_map": {}}).encode(), "is a JSON text"),
        ("a.h5", b'{ "a":  {"b": 1}}', "is a JSON text"),  # a brace where safetensors have theirs
        ("a.h5", b"", "is empty; fetch it again"),
        ("a.h5", bytes(100), "holds zeros alone; fetch it again"),
        ("a.h5", b"hello world", "is neither an HDF5 nor a safetensors file; fetch it again"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_a_file_of_another_format_is_named_with_the_way_out(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_weights(tmp_path / name)


@pytest.mark.parametrize("group", ["layers/conv2d", "_layer_checkpoint_dependencies/conv2d"])
def test_a_keras_3_weight_file_is_named_as_such(tmp_path, group):
    path = tmp_path / "davit.weights.h5"
    with h5py.File(path, "w") as file:
        for layer in ("", "_1"):
            file[f"{group}{layer}/vars/0"] = np.zeros(3, np.float32)
    with pytest.raises(UserError, match=f"is a Keras 3 weight file, .*{KERAS}"):
        read_weights(path)


def test_a_file_without_tensors_says_so(tmp_path):
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file.create_group("model_weights")
    with pytest.raises(UserError, match="holds no tensor; name another"):
        read_weights(tmp_path / "empty.h5")


def test_safetensors_are_read_under_any_name(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(FILE.read_bytes())
    params, _ = read_weights(tmp_path / "pytorch_model.bin")
    assert params.keys() == read_weights(FILE)[0].keys()


@pytest.fixture(scope="module")
def tensors():
    return safetensors.numpy.load_file(FILE)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "model.backbone."])
def test_a_wrapper_s_prefix_is_named_with_what_takes_it_away(tmp_path, tensors, prefix):
    path = tmp_path / "wrapped.safetensors"
    safetensors.numpy.save_file({prefix + name: value for name, value in tensors.items()}, path)
    with pytest.raises(UserError, match=f"names begin with '{re.escape(prefix)}', as a") as caught:
        read_weights(path)
    code = str(caught.value).partition("without it: ")[2]
    code = code.replace("OLD", repr(str(path))).replace("NEW", repr(str(tmp_path / "new.bin")))
    eval(code, {"safetensors": safetensors})
    expected, params = read_weights(FILE)[0], read_weights(tmp_path / "new.bin")[0]
    assert params.keys() == expected.keys()
    assert all(np.array_equal(params[key], expected[key]) for key in params)


@pytest.mark.parametrize("other", ["head.fc.weight", "criterion.weight", "ema.stem.norm.bias"])
def test_tensors_beside_a_network_under_a_prefix_are_named(tmp_path, tensors, other):
    path = tmp_path / "several.safetensors"
    wrapped = {f"model.{name}": value for name, value in tensors.items()}
    safetensors.numpy.save_file(wrapped | {other: np.zeros(2, np.float32)}, path)
    with pytest.raises(UserError, match=rf"'model\.', .*beside 1 other tensors \({other}\)"):
        read_weights(path)


@pytest.mark.parametrize("source", [None, 5, "", b"davit.h5", ["davit.h5"]])
def test_what_names_no_source_is_refused(source):
    with pytest.raises(UserError, match="the weight source is .*; it is the path of a weight file"):
        read_weights(source)
