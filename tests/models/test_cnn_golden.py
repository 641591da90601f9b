"""AlexNet-mini and GoogLeNet against golden numbers of the Keras models, at two image sizes."""

import json
import math
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from glomjax.errors import UserError
from glomjax.models import create_model, params_of, set_params

DATA = pathlib.Path(__file__).parents[1] / "data" / "cnn"
SPEC = json.loads((DATA / "cnn_spec.json").read_text())
# The golden files' names and what makes those networks.
NETWORKS = {
    "alexnet_mini": {"name": "alexnet_mini"},
    "googlenet": {"name": "googlenet"},
    "googlenet_paper": {"name": "googlenet", "preset": "paper"},
}
GOOGLENETS = ("googlenet", "googlenet_paper")


def abstract_model(key: str, **options) -> nnx.Module:
    """The network without numbers."""
    return nnx.eval_shape(lambda: create_model(**NETWORKS[key], **options, rngs=nnx.Rngs(0)))


def count(model: nnx.Module) -> int:
    return sum(math.prod(leaf.shape) for leaf in params_of(model).values())


def weight(path: str, shape: tuple[int, ...]) -> jax.Array:
    """A weight by the formula in cnn_spec.json."""
    rng = np.random.RandomState((zlib.crc32(path.encode()) + SPEC["seed"]) & 0x7FFFFFFF)
    deviation = math.sqrt(2 / math.prod(shape[:-1])) if path.endswith("kernel") else 0.05
    return jnp.asarray(rng.standard_normal(shape) * deviation, jnp.float32)


def filled(key: str, **options) -> nnx.Module:
    """The network with the formula's weights."""
    model = abstract_model(key, **options)
    set_params(model, {path: weight(path, leaf.shape) for path, leaf in params_of(model).items()})
    return model


def compiled(function, model: nnx.Module, *args):
    """function(model, *args) as one program, the weights an argument."""
    graphdef, state = nnx.split(model)
    return jax.jit(lambda state, *args: function(nnx.merge(graphdef, state), *args))(state, *args)


def shapes_of(function, model: nnx.Module, *args) -> list[tuple[int, ...]]:
    graphdef, state = nnx.split(model)

    def call(state, *args):
        return function(nnx.merge(graphdef, state), *args)

    return [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(call, state, *args))]


def inference_call(model, images):
    return model(images)


def training_call(model, images, key):
    return model(images, deterministic=False, rngs=nnx.Rngs(dropout=key))


@pytest.mark.parametrize("size", [280, 224])
@pytest.mark.parametrize("key", NETWORKS)
def test_every_output_equals_the_golden_one(key, size):
    golden = np.load(DATA / "cnn_outputs.npz")
    seed = int(golden[f"{key}.{size}.input_seed"])
    images = np.random.RandomState(seed).uniform(-1, 1, (2, size, size, 3)).astype(np.float32)
    names = ["logits"]
    if key in GOOGLENETS:
        names += ["aux1_logits", "aux2_logits"]

    def outputs(model, images):
        return (model(images), *(model.auxiliary_logits(images) if key in GOOGLENETS else ()))

    results = compiled(outputs, filled(key, image_size=(size, size)), images)
    for name, result in zip(names, results, strict=True):
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(result, golden[f"{key}.{size}.{name}"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("key", NETWORKS)
def test_parameter_paths_and_shapes_are_those_of_the_published_layers(key):
    params = params_of(abstract_model(key))
    assert {path: list(leaf.shape) for path, leaf in params.items()} == SPEC["layers"][key]


@pytest.mark.parametrize(
    ("key", "size", "options", "parameters"),
    [
        ("alexnet_mini", 280, {}, 7_742_721),
        ("googlenet", 280, {}, 11_560_835),
        ("googlenet", 224, {}, 9_725_827),
        ("googlenet", 280, {"aux_heads": False}, 7_229_057),
        ("googlenet_paper", 280, {}, 12_665_651),
        ("googlenet_paper", 224, {}, 10_306_355),
        ("googlenet_paper", 280, {"aux_heads": False}, 5_974_577),
    ],
)
def test_parameter_counts_are_the_published_ones(key, size, options, parameters):
    assert count(abstract_model(key, image_size=(size, size), **options)) == parameters


def test_inception_3a_has_163_696_parameters():
    params = params_of(abstract_model("googlenet"))
    block = [math.prod(v.shape) for k, v in params.items() if k.startswith("inception_3a/")]
    assert sum(block) == 163_696


# The paper's preset, non-square: a swap of height and width could not pass.
@pytest.fixture(scope="module")
def googlenet():
    return filled("googlenet_paper", image_size=(96, 160))


@pytest.fixture(scope="module")
def images():
    return np.random.RandomState(0).uniform(-1, 1, (2, 96, 160, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def logits(googlenet, images):
    return compiled(inference_call, googlenet, images)


def test_inference_gives_the_logits_alone_and_needs_no_auxiliary_head(googlenet, images, logits):
    assert logits.shape == (2, 1)
    smaller = abstract_model("googlenet_paper", image_size=(96, 160), aux_heads=False)
    trained = params_of(googlenet)
    kept = {path: trained[path] for path in params_of(smaller)}
    assert {path.split("/")[0] for path in trained.keys() - kept.keys()} == {"aux1", "aux2"}
    set_params(smaller, kept)
    alone = compiled(inference_call, smaller, images)
    np.testing.assert_allclose(alone, logits, rtol=0, atol=1e-5)
    # Without auxiliary heads, training gives the logits alone, too.
    assert shapes_of(training_call, smaller, images, jax.random.key(0)) == [(2, 1)]


def test_training_gives_the_logits_and_both_auxiliary_logits(googlenet, images, logits):
    def outputs(model, images, key):
        dropped = training_call(model, images, key)
        for layer in (model, model.aux1, model.aux2):
            layer.dropout.rate = 0.0
        return dropped, training_call(model, images, key), model.auxiliary_logits(images)

    dropped, kept, auxiliary = compiled(outputs, googlenet, images, jax.random.key(0))
    assert dropped[0].shape == logits.shape
    assert [out.shape for out in dropped[1]] == [(2, 1), (2, 1)]
    # With dropout off, the training call's numbers are the deterministic ones.
    np.testing.assert_allclose(kept[0], logits, rtol=0, atol=1e-5)
    np.testing.assert_allclose(kept[1], auxiliary, rtol=0, atol=1e-5)
    for a, b in zip(jax.tree.leaves(dropped), jax.tree.leaves(kept), strict=True):
        assert np.abs(a - b).max() > 1e-3


@pytest.mark.parametrize("key", NETWORKS)
@pytest.mark.parametrize("size", [(97, 130), (150, 101)])
def test_the_dense_layers_fit_any_declared_size(key, size):
    model = abstract_model(key, image_size=size, num_classes=3)
    image = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    assert set(shapes_of(training_call, model, image, jax.random.key(0))) == {(2, 3)}


@pytest.mark.parametrize(
    ("key", "features"), [("alexnet_mini", 128), ("googlenet", 1000), ("googlenet_paper", 1024)]
)
def test_no_classes_gives_the_features_before_the_logits(key, features):
    model = abstract_model(key, image_size=(96, 112), num_classes=0)
    assert not any(path.startswith(("head/", "aux")) for path in params_of(model))
    image = jax.ShapeDtypeStruct((2, 96, 112, 3), jnp.float32)
    assert shapes_of(inference_call, model, image) == [(2, features)]


@pytest.mark.parametrize(
    ("key", "size"), [("alexnet_mini", (20, 280)), ("googlenet", (280, 64)), ("googlenet", (9, 9))]
)
def test_an_image_too_small_for_the_dense_layers_is_refused(key, size):
    with pytest.raises(UserError, match=key):
        abstract_model(key, image_size=size)


@pytest.mark.parametrize(
    ("key", "options", "named"),
    [
        ("alexnet_mini", {"preset": "paper"}, "preset"),
        ("googlenet", {"drop_rate": 0.1}, "drop_rate"),
        ("googlenet", {"preset": "timm"}, "'timm'.*'notebook'.*'paper'"),
    ],
)
def test_an_unknown_option_or_preset_is_named(key, options, named):
    with pytest.raises(UserError, match=named):
        abstract_model(key, **options)
