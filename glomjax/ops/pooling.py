"""Max pooling whose gradient avoids XLA:CPU's slow select-and-scatter."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from glomjax.ops import native
from glomjax.ops.boundary import isolated


def plain_max_pool(x: jax.Array, window: int, stride: int, padding: str = "VALID") -> jax.Array:
    """Maximum over window x window, NHWC; `padding` is VALID or SAME, as TensorFlow pads."""
    # A NumPy scalar, since JAX differentiates only an identity that it can recognise.
    low = np.asarray(-np.inf, x.dtype)
    return lax.reduce_window(
        x, low, lax.max, (1, window, window, 1), (1, stride, stride, 1), padding
    )


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def max_pool(x: jax.Array, window: int, stride: int, padding: str = "VALID") -> jax.Array:
    """`plain_max_pool`. Among equal maxima the first in row-major order gets the gradient.

    x [B, H, W, C] -> [B, h, w, C].
    """
    if native.supports(x):
        plain = partial(plain_max_pool, window=window, stride=stride, padding=padding)
        return native.call("max_pool", plain, x, **_attributes(x, window, stride, padding))
    return plain_max_pool(x, window, stride, padding)


def _forward(x: jax.Array, window: int, stride: int, padding: str) -> tuple[jax.Array, tuple]:
    y = max_pool(x, window, stride, padding)
    return y, (x, y)


def _backward(window: int, stride: int, padding: str, residuals: tuple, g: jax.Array) -> tuple:
    x, y = residuals
    pool = partial(plain_max_pool, window=window, stride=stride, padding=padding)

    def reference(x: jax.Array, y: jax.Array, g: jax.Array) -> jax.Array:
        del y
        return jax.vjp(pool, x)[1](g)[0]

    if native.supports(x, y, g):
        attributes = _attributes(x, window, stride, padding)
        return (native.call("max_pool_gradient", reference, x, y, g, **attributes),)

    def on_cpu(x: jax.Array, y: jax.Array, g: jax.Array) -> jax.Array:
        scatter = partial(_shifted_views, window=window, stride=stride, padding=padding)
        return isolated(scatter, x[:1, :1, :1, 0], x, y, g)

    return (lax.platform_dependent(x, y, g, cpu=on_cpu, default=reference),)


max_pool.defvjp(_forward, _backward)


def _attributes(x: jax.Array, window: int, stride: int, padding: str) -> dict[str, Any]:
    """What the kernels are told."""
    (top, _), (left, _) = _pads(x, window, stride, padding)
    return {"window": window, "stride": stride, "top": int(top), "left": int(left)}


def _pads(x: jax.Array, window: int, stride: int, padding: str) -> Sequence[tuple[int, int]]:
    """(rows above, rows below), (columns left, columns right) of padding."""
    return lax.padtype_to_pads(x.shape[1:3], (window, window), (stride, stride), padding)


def _shifted_views(
    x: jax.Array, y: jax.Array, g: jax.Array, *, window: int, stride: int, padding: str
) -> jax.Array:
    """Each of the window's positions in turn: where it holds the maximum, it takes the gradient."""
    batch, height, width, channels = x.shape
    spatial = _pads(x, window, stride, padding)
    pads = [(low, high, 0) for low, high in ((0, 0), *spatial, (0, 0))]
    padded = lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), pads)
    rows, columns = y.shape[1:3]
    dx = jnp.zeros_like(padded)
    taken = jnp.zeros(y.shape, bool)
    for i in range(window):
        for j in range(window):
            end = (batch, i + stride * (rows - 1) + 1, j + stride * (columns - 1) + 1, channels)
            view = lax.slice(padded, (0, i, j, 0), end, (1, stride, stride, 1))
            # A NaN equals nothing: it wins by itself, so that the gradient stays NaN as well.
            wins = ((view == y) | (view != view)) & ~taken
            taken = taken | wins
            share = jnp.where(wins, g, jnp.zeros_like(g))
            placed = [
                (0, 0, 0),
                (i, padded.shape[1] - end[1], stride - 1),
                (j, padded.shape[2] - end[2], stride - 1),
                (0, 0, 0),
            ]
            dx = dx + lax.pad(share, jnp.zeros((), g.dtype), placed)
    (top, _), (left, _) = spatial
    return dx[:, top : top + height, left : left + width, :]
