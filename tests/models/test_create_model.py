"""What every network of `create_model` offers."""

import re

import pytest
from flax import nnx

from glomjax.models import MODELS, create_model, params_of

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
