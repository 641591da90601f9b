"""What every network of `create_model` offers."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from quick_programs import FEW_BLOCKS, quickly

from glomjax.errors import UserError
from glomjax.models import (
    MODELS,
    check_options,
    create_model,
    davit,
    googlenet,
    params_of,
    set_params,
)

# The first size of each architecture.
NETWORKS = {network: name for name, (network, _) in reversed(MODELS.items())}.values()


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    """The network without numbers, for images of 96 x 128 and seven classes."""
    options = {"image_size": (96, 128), "num_classes": 7}
    return nnx.eval_shape(lambda: create_model(request.param, **options, rngs=nnx.Rngs(0)))


def test_a_network_knows_the_size_of_its_images(network):
    assert network.image_size == (96, 128)


def test_a_network_names_its_layers_of_logits_and_the_last_of_them(network):
    outputs = {path for path, leaf in params_of(network).items() if leaf.shape[-1] == 7}
    assert outputs == {p for p in network.forward_order if re.fullmatch(network.LOGITS_PATHS, p)}
    head = [path for path in network.forward_order if re.fullmatch(network.HEAD_PATHS, path)]
    assert tuple(head) == network.forward_order[-2:]  # kernel and bias


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("alexnet_mini", (112, 124), {}),
        ("googlenet", (128, 161), {"aux_heads": False}),
        ("googlenet", (129, 160), {"aux_heads": False, "preset": "paper"}),
        ("davit_tiny", (64, 96), {"depths": (1, 1), "embed_dims": (8, 16), "num_heads": (1, 2)}),
    ],
)
def test_the_cells_of_the_feature_map_look_where_the_grids_say(name, size, options, monkeypatch):
    monkeypatch.setattr(googlenet, "_BLOCKS", FEW_BLOCKS | {"4e": FEW_BLOCKS["3b"]})
    model = create_model(name, image_size=size, rngs=nnx.Rngs(0), **options)
    if name != "davit_tiny":  # means in place of random filters, whose echoes may outdo the change
        means = {path: leaf * 0 + 1 / leaf[..., 0].size for path, leaf in params_of(model).items()}
        set_params(model, {path: leaf for path, leaf in means.items() if leaf.ndim == 4})
    image = np.random.default_rng(0).uniform(0, 1, (*size, 3)).astype(np.float32)
    rows, columns = jax.eval_shape(model.feature_map, jnp.asarray(image)[None]).shape[1:3]
    cells = [
        (rows // 4, columns // 2),
        (rows // 2, 3 * columns // 4),
        (3 * rows // 4, columns // 4),
    ]
    images = np.stack([image] * (1 + len(cells)))
    for changed, cell in zip(images[1:], cells, strict=True):
        places = zip(cell, model.map_grids(), strict=True)
        top, left = (int(first + step * number) - 2 for number, (first, step) in places)
        changed[top : top + 5, left : left + 5] += 3
    maps = np.asarray(jax.jit(model.feature_map, compiler_options=quickly())(images))
    changes = np.abs(maps[1:] - maps[:1]).sum(axis=-1)  # [3, h, w]
    found = [np.unravel_index(change.argmax(), change.shape) for change in changes]
    assert found == cells


TINY = {"depths": (1,), "embed_dims": (8,), "num_heads": (1,), "image_size": (32, 32)}


def abstract(name: str = "davit_tiny", **options) -> nnx.Module:
    """A network without numbers."""
    options = (TINY if name == "davit_tiny" else {}) | options
    return nnx.eval_shape(lambda: create_model(name, **{"rngs": nnx.Rngs(0)} | options))


@pytest.mark.parametrize(
    "size", [280, 280.0, "280", None, (280,), (280, 280, 3), (280.0, 280), (0, 280), (True, 280)]
)
def test_an_image_size_of_another_kind_is_refused(size):
    with pytest.raises(UserError, match=r"image_size is .*; it is \(height, width\) in pixels"):
        abstract(image_size=size)


@pytest.mark.parametrize("size", [[32, 48], (np.int64(32), np.int32(48)), np.array([32, 48])])
def test_an_image_size_may_be_a_list_or_numpy_s_numbers(size):
    model = abstract(image_size=size)
    assert model.image_size == (32, 48)
    assert [type(side) for side in model.image_size] == [int, int]


@pytest.mark.parametrize("rngs", [0, None, jax.random.key(0), nnx.Rngs(dropout=0)])
def test_random_numbers_of_another_kind_are_refused(rngs):
    with pytest.raises(UserError, match=r"rngs is of type .*; it is flax\.nnx\.Rngs\(seed\)"):
        create_model("davit_tiny", **TINY, rngs=rngs)


@pytest.mark.parametrize("number", [-1, 1.0, True, "2", None])
def test_a_number_of_logits_of_another_kind_is_refused(number):
    with pytest.raises(UserError, match="num_classes is .*; it is a whole number of logits"):
        abstract(num_classes=number)


@pytest.mark.parametrize("name", [None, ["davit_tiny"], "davit"])
def test_an_unknown_network_is_refused_with_those_that_there_are(name):
    with pytest.raises(UserError, match="there is no network .*; choose one of alexnet_mini"):
        create_model(name, rngs=nnx.Rngs(0))


def call(model: nnx.Module, images, method: str = "__call__", **options) -> None:
    """Traces a call, which computes nothing."""
    graphdef, params = nnx.split(model)

    def run(params, images):
        return getattr(nnx.merge(graphdef, params), method)(images, **options)

    jax.eval_shape(run, params, images)


def images(*shape: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize("method", ["__call__", "embed"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            images(2, 96, 128, 3, dtype=jnp.uint8),
            r"images are uint8 \[2, 96, 128, 3\]; a network t",
        ),
        (images(2, 96, 128, 3, dtype=jnp.int32), "images are int32"),
        (images(96, 128, 3), r"images are float32 \[96, 128, 3\]; .* takes float \[B, H, W, 3\]"),
        (images(2, 3, 96, 128), r"\[2, 3, 96, 128\] with the channels first; a network takes"),
        (images(2, 96, 128, 1), r"\[2, 96, 128, 1\]; a network takes"),
        (images(2, 96, 128, 4), r"\[2, 96, 128, 4\]; a network takes"),
        ([images()], "images are of type list; a network takes"),
    ],
)
def test_images_of_another_form_are_refused_as_the_call_is_traced(network, method, given, message):
    with pytest.raises(UserError, match=message):
        call(network, given, method)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_preprocessed_images_are_taken(network, dtype):
    call(network, images(2, 96, 128, 3, dtype=dtype))


@pytest.mark.parametrize("rngs", [None, 0, jax.random.key(0), nnx.Rngs(params=0)])
def test_dropout_without_its_random_numbers_is_refused(rngs):
    model = abstract(dropout_rate=0.1)
    with pytest.raises(UserError, match=r"rngs is of type .*Rngs\(dropout=seed\)"):
        call(model, images(2, 32, 32, 3), deterministic=False, rngs=rngs)


def test_training_without_dropout_needs_no_random_numbers():
    call(abstract(), images(2, 32, 32, 3), deterministic=False)


@pytest.mark.parametrize(
    ("name", "size", "method", "message"),
    [
        ("alexnet_mini", 128, "embed", r"images are 128 x 128 pixels .* made for image_size \(96,"),
        ("googlenet", 128, "auxiliary_logits", r"heads were made for image_size \(96, 96\)"),
        ("googlenet", 60, "embed", "60 x 60 pixels are too small for googlenet; use 61 or more"),
    ],
)
def test_images_of_a_size_that_does_not_fit_are_refused(name, size, method, message):
    with pytest.raises(UserError, match=message):
        call(abstract(name, image_size=(96, 96)), images(1, size, size, 3), method)


def test_a_googlenet_too_small_for_its_pools_is_refused():
    with pytest.raises(UserError, match="60 x 61 pixels are too small"):
        abstract("googlenet", image_size=(60, 61), aux_heads=False)
    abstract("googlenet", image_size=(61, 61), aux_heads=False)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("alexnet_mini", {"width": 2}, r"has no option 'width'; it has dropout_rate"),
        (
            "alexnet_mini",
            {"dropout_rate": True},
            r"'dropout_rate' is True; it must be of type float",
        ),
        ("alexnet_mini", {"dropout_rate": float("nan")}, r"dropout_rate is nan"),
        ("googlenet", {"preset": "kecam"}, r"model preset is 'kecam'; it is 'notebook' or 'paper'"),
        ("googlenet", {"aux_heads": 1}, r"'aux_heads' is 1; it must be of type bool"),
        ("davit_tiny", {"preset": "x\n" * 10**5}, r"model preset is 'x\\nx.*\.\.\..*x"),
        ("davit_tiny", {"depths": None}, r"'depths' is None; it must be of type tuple\[int, ...\]"),
        ("davit_tiny", {"depths": (1, 1, True, 1)}, r"'depths' is \(1, 1, True, 1\)"),
        ("davit_tiny", {"depths": 4}, r"'depths' is 4"),
        ("davit_tiny", {"depths": (1, 1)}, r"depths \(1, 1\), embed_dims .* differ in length"),
        ("davit_tiny", {"depths": (1, 1, 10**9, 1)}, r"depths add up to at most 32"),
        ("davit_tiny", {"depths": (1, 0, 1, 1)}, r"each entry is at least 1"),
        ("davit_tiny", {"embed_dims": (0, 0, 0, 0)}, r"each entry is at least 1"),
        ("davit_tiny", {"num_heads": (-3, 6, 12, 24)}, r"each entry is at least 1"),
        ("davit_tiny", {"num_heads": (5, 6, 12, 24)}, r"num_heads 5 does not divide embed_dims 96"),
        (
            "davit_tiny",
            {"embed_dims": (96, 192, 384, 24 * 2**30)},
            r"a network of [\d,]{20,} parameters; it can have at most 4,294,967,296",
        ),
        # A product of more digits than Python writes.
        ("davit_tiny", {"embed_dims": (24 * 10**4000,) * 4}, r"more than 10\^30 parameters"),
        ("davit_tiny", {"drop_path_rate": -0.1}, r"drop_path_rate is -0.1"),
        ("davit_tiny", {"window_size": 25}, r"window_size is 25, .* of 96 x 96 is 24 x 24"),
        ("davit_tiny", {"window_size": (7, 100)}, r"window_size is \(7, 100\)"),
        ("davit_tiny", {"window_size": (7, 0)}, r"a side is at least 1"),
        ("davit_tiny", {"window_size": (7, 7, 7)}, r"must be of type int \| tuple\[int, int\]"),
        ("davit_tiny", {"window_size": 10**30}, r"window_size is 1000"),
    ],
)
def test_an_option_that_a_network_cannot_have_is_one_sentence(name, options, message):
    with pytest.raises(UserError, match=message) as error:
        create_model(name, image_size=(96, 96), rngs=nnx.Rngs(0), **options)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("size", [32, 64, 96, 280, 512])
@pytest.mark.parametrize("preset", ["kecam", "msft"])
def test_every_preset_goes_with_images_of_any_usual_size(preset, size):
    for name in davit.SIZES:
        check_options(name, (size, size), {"preset": preset})
    check_options("davit_tiny", (size, size), {"window_size": 7})
    check_options("davit_tiny", (size, size), {"window_size": min(size // 4, 48)})


def test_windows_of_which_one_image_fills_the_memory_are_refused():
    with pytest.raises(
        UserError, match=r"windows of 150 x 150 make an array of [\d,]{14,} numbers"
    ):
        check_options("davit_tiny", (600, 600), {"window_size": 150})
    with pytest.raises(UserError, match=r"image_size is \(5000, 64\); a side has at most 4096"):
        check_options("alexnet_mini", (5000, 64), {})


@pytest.mark.parametrize(
    "sizes",
    [
        davit.SIZES["davit_tiny"],
        {"depths": (1, 2), "embed_dims": (64, 256), "num_heads": (1, 2)},
    ],
    ids=["davit_tiny", "two stages"],
)
def test_the_size_that_is_checked_is_that_of_the_network(sizes):
    model = nnx.eval_shape(
        lambda: create_model("davit_tiny", num_classes=0, rngs=nnx.Rngs(0), **sizes)
    )
    count = sum(math.prod(value.shape) for value in params_of(model).values())
    parameters, values = davit._extent((9, 9), (70, 70), **sizes)
    assert parameters == pytest.approx(count, rel=1e-2)
    assert values == max(70 * 70 * 4 * sizes["embed_dims"][0], 35 * 35 * 4 * sizes["embed_dims"][1])
