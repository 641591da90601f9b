"""Bias and activation in one pass, with their gradients."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from glomjax.ops import native
from glomjax.ops.boundary import isolated
from glomjax.ops.reduction import with_column_sum


def plain_add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """x + bias in x's type. x [..., C], bias [C].

    Added in float32, so that the bias' gradient, a sum over all positions, is summed in it too.
    """
    wide = bias.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
    return (x.astype(jnp.float32) + wide).astype(x.dtype)


@jax.custom_vjp
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """`plain_add_bias`, whose gradient is a `column_sum`. x [..., C], bias [C] -> [..., C]."""
    return plain_add_bias(x, bias)


def _add_bias_forward(x: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    return add_bias(x, bias), bias


def _add_bias_backward(bias: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    return with_column_sum(g, bias.dtype)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


def plain_bias_gelu(x: jax.Array, bias: jax.Array) -> jax.Array:
    """GELU(x + bias) with the exact error function. x [..., C], bias [C]."""
    return jax.nn.gelu(_add(x, bias), approximate=False)


def plain_bias_relu(x: jax.Array, bias: jax.Array) -> jax.Array:
    """max(x + bias, 0). x [..., C], bias [C]."""
    return jax.nn.relu(_add(x, bias))


def bias_gelu(x: jax.Array, bias: jax.Array, *, after: jax.Array | None = None) -> jax.Array:
    """GELU(x + bias), exact (Hendrycks and Gimpel 2016). x [..., C], bias [C] -> [..., C].

    With `after`, a CPU computes it no sooner than that array: see `gelu_dense`.
    """
    return _bias_gelu(x, bias, bias if after is None else after)


@jax.custom_vjp
def _bias_gelu(x: jax.Array, bias: jax.Array, witness: jax.Array) -> jax.Array:
    """Written with erf, since `jax.nn.gelu` uses erfc, which XLA:CPU computes more slowly; the
    backward pass keeps the derivative instead of evaluating erf again."""
    return isolated(lambda x, bias: _gelu(_add(x, bias))[0], witness, x, bias)


def _bias_gelu_forward(
    x: jax.Array, bias: jax.Array, witness: jax.Array
) -> tuple[jax.Array, tuple]:
    y, slope = isolated(lambda x, bias: _gelu(_add(x, bias)), witness, x, bias)
    return y, (slope, bias)


def _bias_gelu_backward(residuals: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    slope, bias = residuals
    dx, dbias = isolated(lambda g, slope: with_column_sum(g * slope, bias.dtype), bias, g, slope)
    return dx, dbias, None


_bias_gelu.defvjp(_bias_gelu_forward, _bias_gelu_backward)


@jax.custom_vjp
def bias_relu(x: jax.Array, bias: jax.Array) -> jax.Array:
    """max(x + bias, 0). x [..., C], bias [C] -> [..., C].

    The gradient at 0 is 0, as in Keras and PyTorch. The backward pass masks by the output.
    """
    return plain_bias_relu(x, bias)


def _bias_relu_forward(x: jax.Array, bias: jax.Array) -> tuple[jax.Array, tuple]:
    y = plain_bias_relu(x, bias)
    return y, (y, bias)


def _bias_relu_backward(residuals: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    y, bias = residuals
    if native.supports(y, bias, g):
        return native.call("bias_relu_gradient", relu_gradients, y, g)
    dx, dbias = isolated(relu_gradients, bias, y, g)
    return dx, dbias.astype(bias.dtype)


bias_relu.defvjp(_bias_relu_forward, _bias_relu_backward)


def _add(x: jax.Array, bias: jax.Array) -> jax.Array:
    return x + lax.broadcast_in_dim(bias.astype(x.dtype), x.shape, (x.ndim - 1,))


def _gelu(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """GELU and its derivative, computed in float32 and returned in z's type."""
    z32 = z.astype(jnp.float32)
    cdf = 0.5 * (1.0 + lax.erf(z32 * math.sqrt(0.5)))
    pdf = math.sqrt(0.5 / math.pi) * jnp.exp(-0.5 * z32 * z32)
    # At -inf the product z * cdf is NaN where GELU's limit is 0; as in jax.nn.gelu, it stays NaN.
    return (z32 * cdf).astype(z.dtype), (cdf + z32 * pdf).astype(z.dtype)


def relu_gradients(y: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Those of x and bias [C] from `bias_relu`'s output y [..., C] and its gradient g."""
    # A NaN output is not <= 0, so its gradient passes and the NaN stays visible.
    return with_column_sum(jnp.where(y <= 0, jnp.zeros_like(g), g), jnp.dtype(jnp.float32))
