"""Initial values: those of jax.nn.initializers, bit for bit, without a compilation per shape."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from glomjax.models import create_model, googlenet, params_of
from glomjax.models.initializers import glorot_uniform

REFERENCE = nnx.initializers.glorot_uniform()
# The smallest that keep every kind of layer.
NETWORKS = {
    "alexnet_mini": {"image_size": (37, 37)},
    "googlenet": {"image_size": (96, 96), "preset": "paper"},
    "davit_tiny": {"depths": (1,), "embed_dims": (8,), "num_heads": (1,)},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_eager_and_compiled_networks_start_from_the_same_values(name, monkeypatch):
    # One of the nine Inception blocks, which are alike, in a fraction of the compile time.
    monkeypatch.setattr(googlenet, "_BLOCKS", {"4a": googlenet._BLOCKS["4a"]})

    def initial():
        return params_of(create_model(name, rngs=nnx.Rngs(3), **NETWORKS[name]))

    eager, compiled = initial(), jax.jit(initial)()
    assert eager.keys() == compiled.keys()
    for path, values in eager.items():
        np.testing.assert_array_equal(values, compiled[path], err_msg=path)
        assert values.dtype == compiled[path].dtype == jnp.float32


# A vector-like kernel, a depthwise one, and one that is not a whole number of chunks.
@pytest.mark.parametrize("shape", [(768, 1), (3, 3, 1, 96), (5, 5, 96, 131)])
def test_values_are_those_of_jax(shape):
    key = jax.random.key(5)
    values = glorot_uniform(key, shape)
    np.testing.assert_array_equal(values, REFERENCE(key, shape, jnp.float32))
    assert isinstance(values, jax.Array)


def test_another_generator_has_the_values_of_jax_too():
    shape = (40, 7)
    key = jax.random.key(5, impl="rbg")
    np.testing.assert_array_equal(glorot_uniform(key, shape), REFERENCE(key, shape, jnp.float32))
    key = jax.random.key(5)
    with jax.threefry_partitionable(False):
        values = glorot_uniform(key, shape)
        np.testing.assert_array_equal(values, REFERENCE(key, shape, jnp.float32))
    assert not np.array_equal(values, glorot_uniform(key, shape))


def test_kernels_have_the_mean_variance_and_bounds_of_glorot():
    # fan_in is 5 * 5 * 64, fan_out 5 * 5 * 128.
    values = np.asarray(glorot_uniform(jax.random.key(0), (5, 5, 64, 128)), np.float64)
    limit = math.sqrt(6 / (1600 + 3200))
    assert 0.999 * limit < np.abs(values).max() <= limit * (1 + 1e-6)
    # Six standard errors; a uniform variable's square has a variance of 4/45 of limit ** 4.
    assert abs(values.mean()) < 6 * limit / math.sqrt(3 * values.size)
    assert abs(values.var() - limit**2 / 3) < 6 * limit**2 * math.sqrt(4 / 45 / values.size)
    # A repeated or shifted chunk would repeat values; 23 random bits rarely do twenty in a row.
    rows = values.reshape(-1, 20)
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_new_shapes_compile_nothing():
    compilations = []

    def listener(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            compilations.append(event)

    create_model("alexnet_mini", image_size=(37, 37), rngs=nnx.Rngs(0))
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        create_model("alexnet_mini", image_size=(80, 61), num_classes=3, rngs=nnx.Rngs(0))
        assert not compilations
        REFERENCE(jax.random.key(0), (11, 3), jnp.float32)  # the listener hears compilations
        assert compilations
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
