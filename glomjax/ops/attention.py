"""The two attentions of DaViT, from the product with their weights to the mixed values."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from glomjax.ops import native
from glomjax.ops.activation import plain_add_bias
from glomjax.ops.boundary import isolated
from glomjax.ops.reduction import with_column_sum

Parts = tuple[jax.Array, jax.Array, jax.Array]


def plain_window_attention(
    qkv: jax.Array, bias: jax.Array, heads: int, rows: int, columns: int
) -> jax.Array:
    """Multi-head self-attention within windows of rows x columns (Liu et al. 2021).

    qkv [B, H, W, 3 C], query, key and value of every head without their bias [3 C] -> [B, H, W, C].
    Maps are padded with zeros to whole windows, below and to the right, and nothing is masked: a
    token of padding has the bias alone. A map smaller than the window is padded to it.
    """
    return _window_attention(plain_split, qkv, bias, heads, rows, columns)


def plain_channel_attention(qkv: jax.Array, bias: jax.Array, heads: int) -> jax.Array:
    """Multi-head attention between channels: softmax((k / sqrt(d))^T v) applied to q.

    qkv [B, N, 3 C] without its bias [3 C] -> [B, N, C] (Ding et al. 2022, equation 6, with the
    head's d as the authors' code has it).
    """
    return _channel_attention(plain_split, qkv, bias, heads)


def plain_split(qkv: jax.Array, bias: jax.Array, heads: int) -> Parts:
    """[..., L, 3 C] and its bias -> query, key and value, [..., L, heads, size] each."""
    parts = plain_add_bias(qkv, bias)
    parts = parts.reshape(*qkv.shape[:-1], 3, heads, qkv.shape[-1] // (3 * heads))
    return parts[..., 0, :, :], parts[..., 1, :, :], parts[..., 2, :, :]


def window_attention(
    qkv: jax.Array, bias: jax.Array, heads: int, window: tuple[int, int]
) -> jax.Array:
    """`plain_window_attention`; the native kernel reads and writes the map in place of windows."""
    rows, columns = window
    if native.supports(qkv, bias):
        attributes: dict[str, Any] = {"heads": heads, "rows": rows, "columns": columns}
        plain = partial(plain_window_attention, **attributes)
        return native.call("window_attention", plain, qkv, bias, **attributes)
    return _window_attention(split, qkv, bias, heads, rows, columns)


def channel_attention(qkv: jax.Array, bias: jax.Array, heads: int) -> jax.Array:
    """`plain_channel_attention`."""
    if native.supports(qkv, bias):
        plain = partial(plain_channel_attention, heads=heads)
        return native.call("channel_attention", plain, qkv, bias, heads=heads)
    return _channel_attention(split, qkv, bias, heads)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def split(qkv: jax.Array, bias: jax.Array, heads: int) -> Parts:
    """`plain_split`. XLA:CPU would join the three gradients anew for each of their uses."""
    return plain_split(qkv, bias, heads)


def _split_forward(qkv: jax.Array, bias: jax.Array, heads: int) -> tuple[Parts, jax.Array]:
    return split(qkv, bias, heads), bias


def _split_backward(heads: int, bias: jax.Array, gradients: Parts) -> tuple[jax.Array, jax.Array]:
    def joined(*gradients: jax.Array) -> tuple[jax.Array, jax.Array]:
        dqkv = jnp.stack(gradients, axis=-3)
        return with_column_sum(dqkv.reshape(*dqkv.shape[:-3], bias.size), bias.dtype)

    return isolated(joined, bias, *gradients)


split.defvjp(_split_forward, _split_backward)


def _window_attention(
    split: Callable[..., Parts],
    qkv: jax.Array,
    bias: jax.Array,
    heads: int,
    rows: int,
    columns: int,
) -> jax.Array:
    batch, height, width, channels = qkv.shape
    down, right = -height % rows, -width % columns
    padded = jnp.pad(qkv, ((0, 0), (0, down), (0, right), (0, 0)))
    grid_h, grid_w = (height + down) // rows, (width + right) // columns
    windows = padded.reshape(batch, grid_h, rows, grid_w, columns, channels)
    windows = windows.transpose(0, 1, 3, 2, 4, 5).reshape(-1, rows * columns, channels)
    # [B*windows, heads, L, size], of which XLA:CPU multiplies matrices without turning them.
    query, key, value = (jnp.swapaxes(part, 1, 2) for part in split(windows, bias, heads))
    scores = jnp.einsum("bhld,bhmd->bhlm", query * (1 / math.sqrt(query.shape[-1])), key)
    weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(qkv.dtype)
    y = jnp.swapaxes(jnp.einsum("bhlm,bhmd->bhld", weights, value), 1, 2)
    y = y.reshape(batch, grid_h, grid_w, rows, columns, channels // 3).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(*padded.shape[:3], channels // 3)[:, :height, :width, :]


def _channel_attention(
    split: Callable[..., Parts], qkv: jax.Array, bias: jax.Array, heads: int
) -> jax.Array:
    query, key, value = split(qkv, bias, heads)  # [B, N, heads, size]
    scores = jnp.einsum("bnhd,bnhe->bhde", key * (1 / math.sqrt(query.shape[-1])), value)
    weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(qkv.dtype)
    y = jnp.einsum("bhde,bnhe->bnhd", weights, query)
    return y.reshape(*qkv.shape[:2], qkv.shape[2] // 3)
