"""Layer normalisation over the last axis."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from glomjax.ops import native
from glomjax.ops.boundary import isolated
from glomjax.ops.reduction import column_sum

EPSILON = 1e-5


def plain_layer_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float = EPSILON
) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis (Ba et al. 2016).

    x [..., C], scale [C], bias [C]; statistics in float32, the result in x's type.
    """
    normalised, _ = _normalise(x, epsilon)
    y = normalised * _wide(scale, x.shape) + _wide(bias, x.shape)
    return y.astype(x.dtype)


def layer_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float = EPSILON,
    *,
    after: jax.Array | None = None,
) -> jax.Array:
    """`plain_layer_norm`, kept apart from its neighbours on a CPU, forward and backward.

    With `after`, XLA computes it no sooner than that array on a CPU: see `layer_norm_dense`.
    """
    if native.supports(x, scale, bias):
        plain = partial(plain_layer_norm, epsilon=epsilon)
        return native.call("layer_norm", plain, x, scale, bias, epsilon=epsilon)
    return _layer_norm(x, scale, bias, scale if after is None else after, epsilon)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _layer_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, witness: jax.Array, epsilon: float
) -> jax.Array:
    return isolated(partial(plain_layer_norm, epsilon=epsilon), witness, x, scale, bias)


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, witness: jax.Array, epsilon: float
) -> tuple[jax.Array, tuple]:
    return _layer_norm(x, scale, bias, witness, epsilon), (x, scale)


def _backward(epsilon: float, residuals: tuple, g: jax.Array) -> tuple:
    x, scale = residuals

    def backward(x: jax.Array, scale: jax.Array, g: jax.Array) -> tuple:
        normalised, inverse_std = _normalise(x, epsilon)
        g = g.astype(jnp.float32)
        dscale, dbias = column_sum(g * normalised), column_sum(g)
        g = g * _wide(scale, x.shape)
        mean_g = jnp.mean(g, axis=-1, keepdims=True)
        mean_gn = jnp.mean(g * normalised, axis=-1, keepdims=True)
        dx = (g - mean_g - normalised * mean_gn) * inverse_std
        return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(scale.dtype)

    return *isolated(backward, scale, x, scale, g), None


_layer_norm.defvjp(_forward, _backward)


def _normalise(x: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """The normalised x and the inverse standard deviation, both float32."""
    x = x.astype(jnp.float32)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    inverse_std = lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + epsilon)
    return centred * inverse_std, inverse_std


def _wide(vector: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return lax.broadcast_in_dim(vector.astype(jnp.float32), shape, (len(shape) - 1,))
