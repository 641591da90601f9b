"""Initial values of parameters: the numbers of `jax.nn.initializers`, bit for bit, made quickly.

JAX compiles the random draw of each shape, which takes far longer than the numbers do: 19 seconds
for GoogLeNet. Here, outside of `jax.jit`, one small program draws the kernels of all shapes chunk
by chunk.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# (key, shape) -> float32 values.
Initializer = Callable[[jax.Array, tuple[int, ...]], jax.Array]

_CHUNK = 2**16  # elements per call: few calls for large kernels, little waste for small ones


def glorot_uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform within sqrt(6 / (fan_in + fan_out)), Keras' default (Glorot and Bengio 2010).

    A kernel of shape [..., I, O] has fan_in = I and fan_out = O times its other axes' product.
    """
    data = jax.random.key_data(key)
    # Only in this one of JAX's generators does an element depend on the key and its position alone.
    # Inside a program that is being traced there is no key yet to draw with.
    if (
        isinstance(data, jax.core.Tracer)
        or jax.random.key_impl(key) != "threefry2x32"
        or not jax.threefry_partitionable.value
    ):
        return jax.nn.initializers.glorot_uniform()(key, shape, jnp.float32)
    size = math.prod(shape)
    fans = (shape[-2] + shape[-1]) * math.prod(shape[:-2])
    variance = np.float32(1 / (fans / 2))
    starts = range(0, size, _CHUNK)
    chunks = [_uniform_chunk(data, np.uint32(start), variance) for start in starts]
    values = np.empty(size, np.float32)
    for start, chunk in zip(starts, chunks, strict=True):
        values[start : start + _CHUNK] = np.asarray(chunk)[: size - start]
    return jax.device_put(values.reshape(shape))


def truncated_normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A normal of deviation 0.02 cut at two deviations, the transformers' default."""
    return jax.nn.initializers.truncated_normal(0.02)(key, shape, jnp.float32)


# `jnp.zeros` and `jnp.ones` compile a program for each shape, as `jnp.asarray` does.
def zeros(shape: tuple[int, ...]) -> jax.Array:
    return jax.device_put(np.zeros(shape, np.float32))


def ones(shape: tuple[int, ...]) -> jax.Array:
    return jax.device_put(np.ones(shape, np.float32))


@jax.jit
def _uniform_chunk(key: jax.Array, start: jax.Array, variance: jax.Array) -> jax.Array:
    """Elements `start` to `start + _CHUNK` of a flat uniform draw with mean 0 and that variance.

    The order of the operations is that of `jax.random.uniform` and `jax.nn.initializers`, so that
    they round alike.
    """
    low = start + lax.iota(jnp.uint32, _CHUNK)
    # The counter of an element is its position in 64 bits; no kernel needs the upper 32.
    first, second = _threefry2x32(key, jnp.zeros_like(low), low)
    # 23 random bits as the mantissa of a number in [1, 2).
    bits = (first ^ second) >> 9 | jnp.float32(1).view(jnp.uint32)
    unit = lax.bitcast_convert_type(bits, jnp.float32) - 1
    return (2 * unit - 1) * jnp.sqrt(3 * variance)


def _threefry2x32(key: jax.Array, x0: jax.Array, x1: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The Threefry-2x32 hash with 20 rounds (Salmon et al. 2011): uint32 key [2], counters [N].

    `jax.extend.random.threefry_2x32` has a loop inside, which on CPUs takes ten times as long.
    """
    keys = key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA)
    x0, x1 = x0 + keys[0], x1 + keys[1]
    for i in range(5):
        for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[i % 2]:
            x0 = x0 + x1
            x1 = x0 ^ (x1 << rotation | x1 >> 32 - rotation)
        x0, x1 = x0 + keys[(i + 1) % 3], x1 + keys[(i + 2) % 3] + np.uint32(i + 1)
    return x0, x1
