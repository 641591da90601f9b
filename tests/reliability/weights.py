"""Weight files and what is asked of them."""

import functools
import io
import os
import pathlib
import re
import shutil
import zipfile
from collections.abc import Callable
from typing import Any
from unittest import mock

import h5py
import numpy as np
import safetensors.numpy
from flax import nnx

from glomjax import checkpoints
from glomjax.models import create_model
from glomjax.preprocessing.preprocessing import IMAGENET
from glomjax.pretrained import load_weights
from reliability.situations import Answer, Case, command

HEADING = "Weight files"
DATA = pathlib.Path(__file__).parents[1] / "data"
TIMM = DATA / "davit_timm" / "timm_davit.safetensors"
KECAM = DATA / "davit_kecam" / "kecam_davit.h5"
RUN = DATA / "old_run" / "finished"
OURS = DATA / "old_run" / "finished.safetensors"
Tensors = dict[str, np.ndarray]


@functools.cache
def network(preset: str = "msft", outputs: int = 5) -> nnx.Module:
    """The network of the weight files here, in shapes alone."""
    return nnx.eval_shape(
        lambda: create_model(
            "davit_tiny",
            num_classes=outputs,
            rngs=nnx.Rngs(0),
            preset=preset,
            depths=(1, 1, 2, 1),
            embed_dims=(16, 32, 64, 128),
            num_heads=(2, 4, 8, 16),
        )
    )


def loaded(source: str | os.PathLike[str], **options: Any) -> Answer:
    model = network(options.pop("preset", "msft"), options.pop("outputs", 5))
    report = load_weights(model, source, **options)
    return Answer("raw", str(report))


def load(source: pathlib.Path, **options: Any):
    """A file as it is."""
    return lambda folder: loaded(shutil.copy(source, folder), **options)


def content(name: str, encoded: bytes):
    """A file with this content."""

    def answer(folder: pathlib.Path) -> Answer:
        (folder / name).write_bytes(encoded)
        return loaded(folder / name)

    return answer


def timm(change: Callable[[Tensors], Tensors], **options: Any):
    """The tensors of PyTorch, changed."""

    def answer(folder: pathlib.Path) -> Answer:
        tensors = change(safetensors.numpy.load_file(TIMM))
        safetensors.numpy.save_file(tensors, folder / "weights.safetensors")
        return loaded(folder / "weights.safetensors", **options)

    return answer


def prefixed(prefix: str):
    """What training programs put before the names; the report says what was taken off."""
    load_all = timm(lambda tensors: {f"{prefix}{name}": t for name, t in tensors.items()})

    def answer(folder: pathlib.Path) -> Answer:
        report = load_all(folder).text
        taken = f"'{prefix}'" in report
        return Answer("told" if taken else "raw", re.sub(r", sha256 \w+", "", report))

    return answer


def cut(source: pathlib.Path):
    def answer(folder: pathlib.Path) -> Answer:
        encoded = source.read_bytes()
        return content(source.name, encoded[: len(encoded) // 2])(folder)

    return answer


def flipped(source: pathlib.Path):
    def answer(folder: pathlib.Path) -> Answer:
        encoded = bytearray(source.read_bytes())
        encoded[-100] ^= 1
        return content(source.name, bytes(encoded))(folder)

    return answer


def archive(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name in names:
            file.writestr(name, b"x")
    return stream.getvalue()


def keras_3(folder: pathlib.Path) -> Answer:
    with h5py.File(folder / "model.weights.h5", "w") as file:
        for layer, shape in (("conv2d", (3, 3, 3, 8)), ("dense", (8, 1))):
            group = file.create_group(f"layers/{layer}/vars")
            group["0"], group["1"] = np.zeros(shape, np.float32), np.zeros(shape[-1:], np.float32)
    return loaded(folder / "model.weights.h5")


def another(name: str):
    """A file of tensors as another network names them."""

    def answer(folder: pathlib.Path) -> Answer:
        tensors = {"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}
        if name.endswith(".h5"):
            with h5py.File(folder / name, "w") as file:
                file["conv1/kernel:0"] = np.zeros((7, 7, 3, 64), np.float32)
        else:
            safetensors.numpy.save_file(tensors, folder / name)
        return loaded(folder / name)

    return answer


def checkpoint(change: Callable[[pathlib.Path], None], part: str = "checkpoints/best"):
    """A run whose folder was changed."""

    def answer(folder: pathlib.Path) -> Answer:
        run = folder / "run"
        shutil.copytree(RUN, run)
        change(run / part)
        return loaded(run)

    return answer


def damaged(best: pathlib.Path) -> None:
    file = best / "arrays" / "manifest.ocdbt"
    encoded = bytearray(file.read_bytes())
    encoded[50] ^= 1
    file.write_bytes(encoded)


def newer(**changes: Any):
    """A checkpoint that a later version has written."""

    def answer(folder: pathlib.Path) -> Answer:
        spec = {"format": 2, "architecture": "davit_tiny", "options": {}, "outputs": 1}
        spec |= {"classes": ["a", "b"], "image_size": [64, 64]}
        spec |= {"preprocessing": IMAGENET.to_dict()} | changes
        checkpoints.save(folder / "best", {"params/a": np.zeros(1, np.float32)}, {"spec": spec})
        return loaded(folder / "best")

    return answer


def published(source: str):
    """Published weights where nothing is cached and nothing can be downloaded."""

    def answer(folder: pathlib.Path) -> Answer:
        with mock.patch.dict(os.environ, {"GLOMJAX_CACHE": str(folder / "cache")}):
            return loaded(source)

    return answer


def from_scratch_or_not(folder: pathlib.Path) -> Answer:
    """The default configuration on a user's data, without a network."""
    with mock.patch.dict(os.environ, {"GLOMJAX_CACHE": str(folder / "cache")}):
        return command("train", "--config", "davit", "--config.data.source=patches")


def convert(source: pathlib.Path, *more: str, prepare: str = ""):
    def answer(folder: pathlib.Path) -> Answer:
        if prepare:
            (folder / prepare).write_bytes(b"x")
        return command("convert", shutil.copy(source, folder), *more)

    return answer


def partly(folder: pathlib.Path) -> Answer:
    tensors = safetensors.numpy.load_file(TIMM) | {"neck.weight": np.zeros(3, np.float32)}
    safetensors.numpy.save_file(tensors, folder / "more.safetensors")
    return command("convert", "more.safetensors", "--out", "ours.safetensors")


def not_finite(tensors: Tensors) -> Tensors:
    changed = tensors["stem.conv.weight"].copy()
    changed.flat[0] = np.nan
    return tensors | {"stem.conv.weight": changed}


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {n: value for n, value in tensors.items() if n not in names}


CASES = [
    Case("weights that are not there", lambda folder: loaded("weights.h5")),
    Case("a published id with a mistake in it", lambda folder: loaded("kecam/davit_tiny_imagenet")),
    Case("published weights without a network", published("kecam/davit_t_imagenet")),
    Case("published weights of timm without a network", published("timm/davit_tiny.msft_in1k")),
    Case("the default configuration without a network", from_scratch_or_not),
    Case(
        "weights of a network for which none are published",
        lambda folder: command(
            "train",
            "--config",
            "googlenet",
            "--config.freeze.regime=full",
            "--config.pretrained.source=auto",
            "--config.preprocessing=imagenet",
            "--config.data.source=patches",
        ),
    ),
    Case("a folder without a checkpoint as weights", lambda folder: loaded(folder)),
    Case("an empty weight file", content("weights.h5", b"")),
    Case("a weight file of zeros", content("weights.safetensors", bytes(1000))),
    Case("a text as a weight file", content("weights.h5", b"these are no weights\n")),
    Case("a web page as a weight file", content("weights.h5", b"<!DOCTYPE html><html></html>")),
    Case(
        "a stand-in of Git LFS as a weight file",
        content(
            "weights.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 113000000\n",
        ),
    ),
    Case(
        "a checkpoint of PyTorch (.pth)",
        content("weights.pth", archive("archive/data.pkl", "archive/data/0")),
    ),
    Case(
        "a checkpoint of PyTorch called .bin",
        content("pytorch_model.bin", archive("pytorch_model/data.pkl", "pytorch_model/data/0")),
    ),
    Case("a pickle", content("weights.pkl", b"\x80\x04\x95\x0f\x00")),
    Case(
        "a model of Keras 3 (.keras)",
        content("model.keras", archive("metadata.json", "config.json", "model.weights.h5")),
    ),
    Case("weights of Keras 3 (.weights.h5)", keras_3),
    Case("arrays of NumPy (.npz)", content("weights.npz", archive("stem.npy", "head.npy"))),
    Case("an ONNX model", content("model.onnx", b"\x08\x08\x12\x07pytorch" + bytes(50))),
    Case("a TensorFlow Lite model", content("model.tflite", b"\x1c\0\0\0TFL3" + bytes(50))),
    Case(
        "a list of weights in several files",
        content("model.safetensors.index.json", b'{"metadata": {}, "weight_map": {}}'),
    ),
    Case("a compressed weight file", content("weights.h5.gz", b"\x1f\x8b\x08" + bytes(50))),
    Case("a safetensors file that is cut short", cut(TIMM)),
    Case("an HDF5 file that is cut short", cut(KECAM)),
    Case("a file of ours with a flipped bit", flipped(OURS)),
    Case("weights whose names begin with module.", prefixed("module.")),
    Case("weights whose names begin with model.", prefixed("model.")),
    Case("weights whose names begin with _orig_mod.", prefixed("_orig_mod.")),
    Case(
        "weights as float16",
        timm(lambda tensors: {name: value.astype(np.float16) for name, value in tensors.items()}),
    ),
    Case("weights with a NaN", timm(not_finite)),
    Case("weights that lack a tensor", timm(without("stem.norm.bias"))),
    Case(
        "weights with a tensor too many",
        timm(lambda tensors: tensors | {"neck.weight": np.zeros(3, np.float32)}),
    ),
    Case(
        "weights with a tensor of another shape",
        timm(
            lambda tensors: (
                tensors
                | {"stem.conv.weight": np.ascontiguousarray(tensors["stem.conv.weight"][:, :1])}
            )
        ),
    ),
    Case("weights with a head of other classes", load(TIMM, outputs=1)),
    Case("weights of another preset", load(TIMM, preset="kecam")),
    Case("weights of another network as safetensors", another("resnet.safetensors")),
    Case("weights of another network as HDF5", another("resnet.h5")),
    Case("an exclusion that matches no tensor", load(TIMM, exclude=("head.weight",))),
    Case("an exclusion that is no regular expression", load(TIMM, exclude=("head(",))),
    Case("another word than error and allow", load(TIMM, preset_mismatch="ignore")),
    Case("a run's weights for a network with other options", checkpoint(lambda best: None)),
    Case("a run whose best weights are not what was written", checkpoint(damaged)),
    Case(
        "a run whose best weights have an empty manifest",
        checkpoint(lambda best: (best / "manifest.json").write_bytes(b"")),
    ),
    Case("a run without its best weights", checkpoint(shutil.rmtree)),
    Case(
        "a run whose metadata is zeros",
        checkpoint(lambda best: (best / "metadata.json").write_bytes(bytes(500))),
    ),
    Case("a checkpoint of a later version", newer(format=99)),
    Case(
        "a checkpoint whose images were decoded by other rules",
        newer(preprocessing=IMAGENET.to_dict() | {"decoding": 99}),
    ),
    Case(
        "convert over a file that is there",
        convert(TIMM, "--out", "ours.safetensors", prepare="ours.safetensors"),
    ),
    Case("convert of a file with tensors that no network here has", partly),
    Case("inspect of weights that are not there", lambda folder: command("inspect", "a.h5")),
]
