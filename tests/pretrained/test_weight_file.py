"""Our own weight file: the bits, the preset and the preprocessing come back, or an error does."""

import pathlib

import numpy as np
import pytest
import safetensors.numpy

from glomjax.errors import UserError
from glomjax.preprocessing.preprocessing import IMAGENET
from glomjax.pretrained import read_weights, write_weights
from glomjax.pretrained.spec import NetworkSpec

SPEC = NetworkSpec(
    architecture="davit_tiny",
    options={"preset": "kecam"},
    outputs=1,
    classes=("other", "glomerulus"),
    image_size=(64, 64),
    preprocessing=IMAGENET,
)


@pytest.fixture
def weights():
    random = np.random.default_rng(0)
    square = random.standard_normal((8, 8)).astype(np.float32)
    return {"norm/scale": np.ones(8, np.float32), "head/kernel": square.T}  # a transposed view


@pytest.fixture
def file(tmp_path, weights) -> pathlib.Path:
    path = tmp_path / "ours.safetensors"
    write_weights(path, weights, SPEC, source="run")
    return path


def test_the_bits_and_all_that_was_said_of_them_come_back(file, weights):
    again, info = read_weights(file)
    assert again.keys() == weights.keys()
    assert all(np.array_equal(again[key], weights[key]) for key in weights)
    assert (info.layout, info.spec, info.origin) == ("glomjax", SPEC, "run")
    assert (info.model, info.preset) == ("davit_tiny", "kecam")
    assert list(file.parent.iterdir()) == [file]


def test_one_flipped_bit_in_the_values_is_an_error(file):
    body = bytearray(file.read_bytes())
    body[-50] ^= 1
    file.write_bytes(body)
    with pytest.raises(UserError, match="its contents are not those it was written with"):
        read_weights(file)


@pytest.mark.parametrize(("was", "now"), [("0.485", "0.405"), ("kecam", "kecal")])
def test_changed_metadata_is_an_error(file, was, now):
    body = file.read_bytes()
    file.write_bytes(body.replace(was.encode(), now.encode(), 1))
    with pytest.raises(UserError, match="its contents are not those it was written with"):
        read_weights(file)


def test_damaged_metadata_is_an_error(tmp_path, weights):
    path = tmp_path / "ours.safetensors"
    safetensors.numpy.save_file({"norm/scale": weights["norm/scale"]}, path, {"glomjax": "{"})
    with pytest.raises(UserError, match=r"glomjax metadata reads '{'"):
        read_weights(path)


@pytest.mark.parametrize("text", ["[" * 100_000, "\U000e0001" * 1000, '{"sha256": 1' + "0" * 5000])
def test_absurd_metadata_is_one_short_sentence(tmp_path, weights, text):
    path = tmp_path / "ours.safetensors"
    safetensors.numpy.save_file({"norm/scale": weights["norm/scale"]}, path, {"glomjax": text})
    with pytest.raises(UserError, match="glomjax metadata reads") as caught:
        read_weights(path)
    assert len(str(caught.value)) < 600


def test_a_folder_that_is_not_there_is_an_error(tmp_path, weights):
    (tmp_path / "file").write_text("")
    for folder in ("none", "file"):
        with pytest.raises(UserError, match="cannot be written"):
            write_weights(tmp_path / folder / "ours.safetensors", weights, SPEC)
