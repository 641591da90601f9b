"""What every network of `create_model` offers."""

import math
import re

import pytest
from flax import nnx

from glomjax.errors import UserError
from glomjax.models import MODELS, check_options, create_model, davit, params_of

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
