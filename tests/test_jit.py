"""The training step of every network: compiled as it runs eagerly, once, and for whom it should."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from glomjax.inference.steps import make_predict_step
from glomjax.models import params_of
from glomjax.preprocessing.preprocessing import IMAGENET
from glomjax.training.steps import cross_entropy, make_train_step, zero_sums

ADAM = optax.scale_by_adam()
# Adam's direction of a gradient of rounding errors is as long as any other, so two programs are
# compared by plain descent at rate 1, where the parameters move by the gradient itself.
DESCENT = optax.identity()


class CountingPreprocessing:
    """ImageNet's, counting how often the step is traced."""

    def __init__(self):
        self.calls = 0

    def __call__(self, images):
        self.calls += 1
        return IMAGENET(images)


@pytest.fixture(scope="module", autouse=True)
def cache_small_programs():
    """An eager step is hundreds of small programs, which the suite's cache leaves out otherwise."""
    option = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, option)
    jax.config.update(option, 0.0)
    yield
    jax.config.update(option, before)


@pytest.fixture(scope="module")
def network(small_network):
    """(graphdef, numpy parameters, image size)."""
    model, size = small_network
    rng = np.random.default_rng(0)
    params = {}
    for path, leaf in params_of(model).items():
        values = rng.standard_normal(leaf.shape, np.float32)
        kernel = path.endswith("kernel")
        params[path] = values * (math.sqrt(2 / math.prod(leaf.shape[:-1])) if kernel else 0.05)
    return nnx.graphdef(model), params, size


@pytest.fixture(scope="module")
def counting():
    return CountingPreprocessing()


@pytest.fixture(scope="module")
def descend(network, counting):
    """The compiled step of plain descent."""
    return make_train_step(network[0], counting, DESCENT)


@pytest.fixture(scope="module")
def train_with_adam(network):
    """The step of Adam, which compiles for the parameters that it is given to train."""
    return make_train_step(network[0], IMAGENET, ADAM)


def batch_of(size, count=2, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (count, size, size, 3)), jnp.uint8),
        "label": jnp.asarray(rng.integers(0, 2, count), jnp.int32),
        "mask": jnp.ones(count, jnp.float32),
    }


def take_step(step, params, batch, *, optimizer=DESCENT, frozen=(), learning_rate=1.0, seed=0):
    """One step from fresh copies, since the step donates its arguments."""
    trainable = {k: jnp.array(v) for k, v in params.items() if k not in frozen}
    fixed = {k: jnp.array(v) for k, v in params.items() if k in frozen}
    sums = {name: jnp.asarray(value) for name, value in zero_sums().items()}
    state = optimizer.init(trainable)
    rate = jnp.asarray(learning_rate, jnp.float32)
    return step(trainable, fixed, state, sums, batch, rate, jax.random.key(seed))


def assert_same_step(params, ours, theirs):
    """The sums to 1e-5, and each tensor's gradient to 1e-4 of its largest entry."""
    for name, value in theirs[2].items():
        np.testing.assert_allclose(ours[2][name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    for path, new in theirs[0].items():
        tolerance = 1e-4 * np.abs(new - params[path]).max() + 1e-6
        np.testing.assert_allclose(ours[0][path], new, rtol=0, atol=tolerance, err_msg=path)


def test_the_compiled_step_equals_the_eager_one(network, descend):
    _, params, size = network
    compiled = take_step(descend, params, batch_of(size))
    with jax.disable_jit():
        eager = take_step(descend, params, batch_of(size))
    assert_same_step(params, compiled, eager)


def test_the_compiled_logits_and_loss_equal_the_eager_ones(network):
    graphdef, params, size = network
    batch = batch_of(size)
    step = make_predict_step(graphdef, IMAGENET)
    compiled = step(params, batch["image"])
    with jax.disable_jit():
        eager = step(params, batch["image"])
    assert compiled.shape == (2, 1)
    np.testing.assert_allclose(compiled, eager, rtol=0, atol=1e-4)
    losses = (cross_entropy(logits, batch["label"]) for logits in (compiled, eager))
    np.testing.assert_allclose(*losses, rtol=0, atol=1e-4)


def test_new_batches_learning_rates_and_keys_compile_nothing_new(network, counting, descend):
    _, params, size = network
    take_step(descend, params, batch_of(size))
    before = counting.calls, descend._cache_size()
    assert min(before) > 0
    results = [
        take_step(descend, params, batch_of(size, seed=i), learning_rate=10.0**-i, seed=i)
        for i in (2, 3, 4)
    ]
    assert (counting.calls, descend._cache_size()) == before
    assert len({float(sums["loss"]) for _, _, sums in results}) == 3


def test_masked_examples_change_nothing(network, descend):
    _, params, size = network
    batch, other = batch_of(size), batch_of(size, count=1, seed=9)
    padded = {name: jnp.concatenate([batch[name], other[name]]) for name in batch}
    padded["mask"] = jnp.asarray([1, 1, 0], jnp.float32)
    # Random numbers go by example, so that the first two see the same dropout in both batches.
    ours, theirs = take_step(descend, params, padded), take_step(descend, params, batch)
    assert_same_step(params, ours, theirs)
    assert float(ours[2]["count"]) == 2


def test_frozen_parameters_get_neither_update_nor_optimizer_state(
    network, descend, train_with_adam
):
    _, params, size = network
    frozen = {path for path in params if not path.startswith("head/")}
    trained, state, _ = take_step(
        train_with_adam, params, batch_of(size), optimizer=ADAM, frozen=frozen, learning_rate=1e-3
    )
    assert trained.keys() == state.mu.keys() == state.nu.keys() == params.keys() - frozen
    # The rest has the gradient of full training: Adam's first mean is a tenth of it.
    whole, _, _ = take_step(descend, params, batch_of(size))
    for path, mean in state.mu.items():
        np.testing.assert_allclose(10 * mean, params[path] - whole[path], rtol=1e-3, atol=1e-5)


def test_frozen_parameters_stay_bit_identical_and_usable(network, train_with_adam):
    _, params, size = network
    trainable = {path: jnp.array(params[path]) for path in ("head/kernel", "head/bias")}
    frozen = {k: jnp.array(v) for k, v in params.items() if k not in trainable}
    state, rate = ADAM.init(trainable), jnp.float32(1e-3)
    sums = {name: jnp.asarray(value) for name, value in zero_sums().items()}
    for seed in range(2):
        key = jax.random.key(seed)
        batch = batch_of(size)
        trainable, state, sums = train_with_adam(trainable, frozen, state, sums, batch, rate, key)
    assert float(sums["count"]) == 4
    for path, value in frozen.items():
        np.testing.assert_array_equal(value, params[path])
