"""PyTorch DaViT weights: timm's keys, the original authors' keys, and the numbers that come out."""

import json
import pathlib
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from glomjax.errors import UserError
from glomjax.models import create_model, params_of
from glomjax.pretrained import load_weights, read_weights

DATA = pathlib.Path(__file__).parents[1] / "data"
FILE = DATA / "davit_timm" / "timm_davit.safetensors"
SMALL = {
    "depths": (1, 1, 2, 1),
    "embed_dims": (16, 32, 64, 128),
    "num_heads": (2, 4, 8, 16),
    "num_classes": 5,
}


def abstract_model(**options) -> nnx.Module:
    """A DaViT-T without numbers: the file alone can give them."""
    return nnx.eval_shape(lambda: create_model("davit_tiny", rngs=nnx.Rngs(0), **options))


def forward(model, images):
    """(features, logits), compiled as one program."""
    graphdef, params = nnx.split(model)

    def run(params, images):
        model = nnx.merge(graphdef, params)
        return model.features(images), model(images)

    return jax.jit(run)(params, images)


@pytest.fixture(scope="module")
def loaded():
    model = abstract_model(preset="msft", **SMALL)
    return model, load_weights(model, FILE)


@pytest.mark.parametrize("size", ["112x112", "140x140", "96x130", "224x224"])
def test_a_loaded_timm_file_gives_the_golden_features_and_logits(loaded, size):
    model, report = loaded
    golden = np.load(DATA / "davit_timm" / "timm_davit_outputs.npz")
    mean, std = (np.float32(report.preprocessing[k]).reshape(1, 1, 1, 3) for k in ("mean", "std"))
    images = jnp.asarray((golden[f"{size}.image_uint8"].astype(np.float32) / 255 - mean) / std)
    features, logits = forward(model, images)
    expected = golden[f"{size}.features"]
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(logits, golden[f"{size}.logits"], rtol=0, atol=1e-4)


def test_every_tensor_arrives_transposed_and_bit_for_bit(loaded):
    params = params_of(loaded[0])
    stored = safetensors.numpy.load_file(FILE)
    pairs = {
        "stem/conv/kernel": stored["stem.conv.weight"].transpose(2, 3, 1, 0),
        "stages/1/downsample/conv/bias": stored["stages.1.downsample.conv.bias"],
        "stages/2/blocks/1/spatial/cpe1/kernel": stored[
            "stages.2.blocks.1.0.cpe1.proj.weight"
        ].transpose(2, 3, 1, 0),
        "stages/2/blocks/1/channel/mlp/fc2/kernel": stored["stages.2.blocks.1.1.mlp.fc2.weight"].T,
        "norm/scale": stored["head.norm.weight"],
        "head/kernel": stored["head.fc.weight"].T,
    }
    for path, value in pairs.items():
        np.testing.assert_array_equal(params[path], value, err_msg=path)
    assert sum(v.size for v in params.values()) == sum(v.size for v in stored.values())


def authors_key(key: str) -> str:
    """timm's key as github.com/dingmyu/davit names it."""
    key = re.sub(r"^stem\.conv\.", "patch_embeds.0.proj.", key)
    key = re.sub(r"^stem\.norm\.", "patch_embeds.0.norm.", key)
    key = re.sub(r"^stages\.(\d)\.downsample\.conv\.", r"patch_embeds.\1.proj.", key)
    key = re.sub(r"^stages\.(\d)\.downsample\.norm\.", r"patch_embeds.\1.norm.", key)
    key = re.sub(r"^stages\.(\d)\.blocks\.", r"main_blocks.\1.", key)
    key = key.replace(".cpe1.proj.", ".cpe.0.proj.").replace(".cpe2.proj.", ".cpe.1.proj.")
    return key.replace("head.norm.", "norms.").replace("head.fc.", "head.")


def test_the_original_authors_keys_give_the_same_leaves(tmp_path):
    stored = safetensors.numpy.load_file(FILE)
    renamed = {authors_key(key): value for key, value in stored.items()}
    assert not renamed.keys() & stored.keys()
    safetensors.numpy.save_file(renamed, tmp_path / "davit.safetensors")
    ours, info = read_weights(tmp_path / "davit.safetensors")
    theirs, _ = read_weights(FILE)
    assert info.preset == "msft"
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[path], theirs[path]) for path in ours)


def test_two_layouts_of_one_tensor_in_one_file_are_refused(tmp_path):
    stored = safetensors.numpy.load_file(FILE)
    stored["norms.weight"] = stored["head.norm.weight"]
    safetensors.numpy.save_file(stored, tmp_path / "both.safetensors")
    with pytest.raises(UserError, match="holds norm/scale under two names"):
        read_weights(tmp_path / "both.safetensors")


@pytest.fixture(scope="module")
def formula_file(tmp_path_factory) -> pathlib.Path:
    """DaViT-T at full size, its weights made by the golden file's formula under timm's names."""
    spec = json.loads((DATA / "davit_full" / "davit_tiny_spec.json").read_text())

    def weight(key: str, shape: list[int]) -> np.ndarray:
        seed = (zlib.crc32(key.encode()) + spec["seed"]) & 0x7FFFFFFF
        r = np.random.RandomState(seed).standard_normal(shape)
        if key.endswith("bias"):
            r = 0.05 * r
        elif "norm" in key:
            r = 1 + 0.1 * r
        else:
            r = r / np.sqrt(np.prod(shape[1:]))
        return r.astype(np.float32)

    path = tmp_path_factory.mktemp("full") / "davit_tiny.safetensors"
    safetensors.numpy.save_file({k: weight(k, s) for k, s in spec["tensors"].items()}, path)
    return path


# FULL SIZE: 28 million parameters and four compilations; the costliest tests of this folder.
@pytest.mark.parametrize("preset", ["msft", "kecam"])
def test_davit_tiny_at_full_size_gives_the_golden_logits_of_both_presets(formula_file, preset):
    model = abstract_model(preset=preset, num_classes=5)
    report = load_weights(model, formula_file, preset_mismatch="allow")
    assert len(report.loaded) == 212
    golden = np.load(DATA / "davit_full" / "davit_tiny_outputs.npz")
    graphdef, params = nnx.split(model)
    logits_of = jax.jit(lambda params, images: nnx.merge(graphdef, params)(images))
    for size in ("280x280", "200x280"):
        height, width = map(int, size.split("x"))
        random = np.random.RandomState(int(golden[f"{size}.input_seed"]))
        images = random.uniform(-2, 2, (2, height, width, 3)).astype(np.float32)
        logits = logits_of(params, jnp.asarray(images))
        expected = golden[f"{size}.{preset}.logits"]
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
