"""Weights of keras_cv_attention_models: both file layouts, and the numbers that come out."""

import pathlib
import shutil

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from glomjax.models import create_model, params_of
from glomjax.pretrained import load_weights, read_weights

DATA = pathlib.Path(__file__).parents[1] / "data" / "davit_kecam"
FILE, WHOLE_MODEL = DATA / "kecam_davit.h5", DATA / "kecam_davit_full_model.h5"
TIMM = DATA.parent / "davit_timm" / "timm_davit.safetensors"
SMALL = {
    "depths": (1, 1, 2, 1),
    "embed_dims": (16, 32, 64, 128),
    "num_heads": (2, 4, 8, 16),
    "num_classes": 5,
}


def preprocessed(pixels: np.ndarray, preprocessing: dict) -> jnp.ndarray:
    """uint8 [B, H, W, 3] as the report of a loaded file says."""
    mean, std = (np.float32(preprocessing[key]).reshape(1, 1, 1, 3) for key in ("mean", "std"))
    return jnp.asarray((pixels.astype(np.float32) / 255 - mean) / std)


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
    model = abstract_model(preset="kecam", **SMALL)
    return model, load_weights(model, FILE)


@pytest.mark.parametrize("size", ["140x140", "96x130", "224x224"])
def test_a_loaded_kecam_file_gives_the_golden_features_and_logits(loaded, size):
    model, report = loaded
    golden = np.load(DATA / "kecam_davit_outputs.npz")
    images = preprocessed(golden[f"{size}.image_uint8"], report.preprocessing)
    features, logits = forward(model, images)
    expected = golden[f"{size}.features"]
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(logits, golden[f"{size}.logits"], rtol=0, atol=1e-4)


def test_the_report_counts_every_tensor_and_parameter(loaded):
    model, report = loaded
    assert set(report.loaded) == set(params_of(model))
    assert report.num_parameters == sum(leaf.size for leaf in params_of(model).values())
    assert (report.preset, report.excluded) == ("kecam", ())
    assert "\n" not in str(report)
    assert "180 tensors" in str(report)


def test_both_keras_layouts_hold_the_same_bits():
    weights, _ = read_weights(FILE)
    whole, _ = read_weights(WHOLE_MODEL)
    assert weights.keys() == whole.keys()
    assert all(np.array_equal(weights[path], whole[path]) for path in weights)


def test_every_dataset_arrives_under_its_path_with_its_bits(loaded):
    params = params_of(loaded[0])
    with h5py.File(FILE) as file:

        def stored(layer, weight):
            return file[f"{layer}/{layer}/{weight}:0"][()]

        pairs = {
            "stem/conv/kernel": stored("stem_conv", "kernel"),
            "stages/3/downsample/norm/scale": stored("stack4_downsample_ln", "gamma"),
            "stages/2/blocks/1/spatial/cpe2/bias": stored(
                "stack3_block3_pre_ffn_cpe_dw_conv", "bias"
            ),
            "stages/2/blocks/1/channel/attention/qkv/kernel": stored(
                "stack3_block4_channel_attn_qkv", "kernel"
            ),
            "stages/0/blocks/0/spatial/cpe1/kernel": stored(
                "stack1_block1_pre_attn_cpe_dw_conv", "depthwise_kernel"
            ).transpose(0, 1, 3, 2),
            "norm/bias": stored("pre_output_ln", "beta"),
            "head/kernel": stored("predictions", "kernel"),
        }
    for path, value in pairs.items():
        np.testing.assert_array_equal(params[path], value, err_msg=path)


def forward_order(state: dict[str, np.ndarray]) -> list[str]:
    """timm's modules with weights, from the input to the logits."""
    inside = ("cpe1.proj", "norm1", "attn.qkv", "attn.proj", "cpe2.proj", "norm2")
    inside += ("mlp.fc1", "mlp.fc2")
    modules = ["stem.conv", "stem.norm"]
    for stage, depth in enumerate((1, 1, 2, 1)):
        if stage:
            modules += [f"stages.{stage}.downsample.{name}" for name in ("norm", "conv")]
        modules += [
            f"stages.{stage}.blocks.{block}.{half}.{name}"
            for block in range(depth)
            for half in (0, 1)
            for name in inside
        ]
    modules += ["head.norm", "head.fc"]
    assert {f"{m}.{leaf}" for m in modules for leaf in ("weight", "bias")} == set(state)
    return modules


def test_one_original_gives_the_same_bits_through_both_sources(tmp_path):
    # The layers of the Keras file lie in forward order, too: its own listing says which is which.
    state = safetensors.numpy.load_file(TIMM)
    file = tmp_path / "same.h5"
    shutil.copyfile(FILE, file)
    with h5py.File(file, "r+") as stored:
        layers = [stored[name] for name in stored.attrs["layer_names"]]
        layers = [layer for layer in layers if len(layer.attrs["weight_names"])]
        for layer, module in zip(layers, forward_order(state), strict=True):
            weight, bias = (layer[name] for name in layer.attrs["weight_names"])
            value = state[f"{module}.weight"]
            if value.ndim == 4:
                depthwise = value.shape[1] == 1
                value = value.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))
            weight[...] = value.T if value.ndim == 2 else value
            bias[...] = state[f"{module}.bias"]
    ours, _ = read_weights(file)
    theirs, _ = read_weights(TIMM)
    assert ours.keys() == theirs.keys()
    assert len(ours) == 180
    for path, value in theirs.items():
        assert ours[path].tobytes() == value.tobytes(), path


def test_depthwise_kernels_are_read_as_keras_3_calls_them(tmp_path):
    path = pathlib.Path(shutil.copy(WHOLE_MODEL, tmp_path / "keras_3.h5"))
    with h5py.File(path, "r+") as file:
        found = []
        file.visit(lambda name: found.append(name) if "depthwise_kernel" in name else None)
        for name in found:
            file.move(name, name.replace("depthwise_kernel", "kernel"))
    expected, given = read_weights(WHOLE_MODEL)[0], read_weights(path)[0]
    assert found
    assert given.keys() == expected.keys()
    assert all(np.array_equal(given[key], expected[key]) for key in expected)
