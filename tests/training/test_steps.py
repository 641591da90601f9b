"""The training step: whose rate and decay a parameter gets, and the head by itself."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from glomjax.data.preprocessing import IMAGENET
from glomjax.models import create_model, params_of
from glomjax.training.steps import make_eval_step, make_train_step, zero_sums

SIZES = {"depths": (1,), "embed_dims": (8,), "num_heads": (1,), "dropout_rate": 0.5}
RNG = np.random.default_rng(0)
BATCH = {
    "image": RNG.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8),
    "label": np.array([0, 1, 1, 0], np.int32),
    "mask": np.ones(4, np.float32),
}
RATE = np.float32(0.1)


@pytest.fixture(scope="module")
def network():
    """(graphdef, numpy parameters) of a DaViT of one stage."""
    model = create_model("davit_tiny", rngs=nnx.Rngs(0), **SIZES)
    graphdef, _ = nnx.split(model, nnx.Param)
    return graphdef, jax.device_get(params_of(model))


def step_once(graphdef, trainable, frozen, optimizer, batch=BATCH, **options):
    step = make_train_step(graphdef, IMAGENET, optimizer, **options)
    # The step donates its arguments.
    given = {path: np.array(value) for path, value in trainable.items()}
    key = jax.random.key(0)
    return step(given, frozen, optimizer.init(given), zero_sums(), batch, RATE, key)


def test_a_rate_scales_the_move_of_its_parameter_alone(network):
    graphdef, params = network
    rates = {"head/kernel": 0.5, "stem/conv/kernel": 0.0}
    plain, _, _ = step_once(graphdef, params, {}, optax.identity())
    scaled, _, _ = step_once(graphdef, params, {}, optax.identity(), rates=rates)
    for path, before in params.items():
        expected = before + rates.get(path, 1.0) * (plain[path] - before)
        np.testing.assert_allclose(scaled[path], expected, atol=1e-6, err_msg=path)
    assert np.array_equal(scaled["stem/conv/kernel"], params["stem/conv/kernel"])


def test_weight_decay_takes_its_share_beside_the_gradient(network):
    graphdef, params = network
    decays = {"head/kernel": 0.5, "stem/conv/kernel": 0.2, "head/bias": 0.0}
    after, _, _ = step_once(graphdef, params, {}, optax.set_to_zero(), decays=decays)
    for path, before in params.items():
        expected = before * (1 - RATE * decays.get(path, 0.0))
        np.testing.assert_allclose(after[path], expected, rtol=1e-6, err_msg=path)


def test_the_head_learns_the_same_from_images_and_from_their_features(network):
    graphdef, params = network
    head = {path: value for path, value in params.items() if path.startswith("head/")}
    rest = {path: value for path, value in params.items() if path not in head}
    features = make_eval_step(graphdef, IMAGENET, part="embed")(params, BATCH["image"])
    logits = make_eval_step(graphdef, IMAGENET, part="classify")(params, features)
    whole = make_eval_step(graphdef, IMAGENET)(params, BATCH["image"])
    np.testing.assert_allclose(logits, whole, atol=1e-6)
    adam = optax.scale_by_adam()
    one, _, sums = step_once(graphdef, head, rest, adam, trains="head")
    batch = BATCH | {"image": np.asarray(features)}
    other, _, same = step_once(graphdef, head, rest, adam, batch, trains="head_on_features")
    network_step, _, _ = step_once(graphdef, head, rest, adam)
    for path in head:
        np.testing.assert_allclose(one[path], other[path], atol=1e-5)
        # The only dropout is the head's own, so the whole network says the same.
        np.testing.assert_allclose(one[path], network_step[path], atol=1e-5)
        assert not np.array_equal(one[path], head[path])
    assert float(sums["loss"]) == pytest.approx(float(same["loss"]), abs=1e-5)
