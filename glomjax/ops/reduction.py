"""Sums over positions: the gradients of biases and scales."""

import jax
import jax.numpy as jnp
from jax import lax


def plain_column_sum(x: jax.Array) -> jax.Array:
    """The sum of x [..., C] over all axes but the last, in float32. -> [C]."""
    return jnp.sum(x, axis=tuple(range(x.ndim - 1)), dtype=jnp.float32)


def column_sum(x: jax.Array) -> jax.Array:
    """`plain_column_sum`; on a CPU a product with ones for each row [..., W, C] of x, then a sum.

    XLA:CPU takes up to 40 times as long for the plain sum, and loses a digit in it.
    """
    if x.ndim < 3 or x.size == 0:
        return plain_column_sum(x)

    def on_cpu(x: jax.Array) -> jax.Array:
        rows = x.astype(jnp.float32).reshape(-1, *x.shape[-2:])
        ones = jnp.ones(rows.shape[:2], jnp.float32)
        return jnp.sum(lax.dot_general(ones, rows, (((1,), (1,)), ((0,), (0,)))), axis=0)

    return lax.platform_dependent(x, cpu=on_cpu, default=plain_column_sum)


def with_column_sum(x: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """The gradients of what a bias was added to, x itself, and of that bias, of type `dtype`."""
    return x, column_sum(x).astype(dtype)
