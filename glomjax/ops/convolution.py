"""Convolutions, NHWC with HWIO kernels."""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from glomjax.ops import native
from glomjax.ops.activation import add_bias
from glomjax.ops.boundary import isolated

_LAYOUT = ("NHWC", "HWIO", "NHWC")
Padding = str | Sequence[tuple[int, int]]


def plain_conv2d(
    x: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding = "SAME"
) -> jax.Array:
    """Cross-correlation of x [B, H, W, I] with kernel [h, w, I, O]; padding as TensorFlow's."""
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=_LAYOUT)


def plain_depthwise_conv2d(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Each channel with its own filter, SAME, stride 1. x [B, H, W, C], kernel [h, w, 1, C]."""
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=_LAYOUT, feature_group_count=x.shape[-1]
    )


def plain_residual_depthwise_conv2d(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """x + (`plain_depthwise_conv2d` + bias): DaViT's position encoding. bias [C]."""
    return x + add_bias(plain_depthwise_conv2d(x, kernel), bias)


def conv2d(
    x: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding = "SAME"
) -> jax.Array:
    """`plain_conv2d`: a 1x1 filter as a matrix product, a strided one over space-to-depth blocks.

    x [B, H, W, I], kernel [h, w, I, O] -> [B, h', w', O].
    """
    if kernel.shape[:2] == (1, 1) and stride == 1:
        return jnp.einsum("bhwi,io->bhwo", x, kernel[0, 0])
    if stride == 1:
        return plain_conv2d(x, kernel, stride, padding)
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: _space_to_depth_conv2d(x, kernel, stride, padding),
        default=lambda x, kernel: plain_conv2d(x, kernel, stride, padding),
    )


def residual_depthwise_conv2d(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """`plain_residual_depthwise_conv2d`. x [B, H, W, C], kernel [h, w, 1, C] (odd), bias [C]."""
    if kernel.shape[:2] == (3, 3) and native.serves(x, kernel, bias):
        name, plain = "residual_depthwise_conv2d", plain_residual_depthwise_conv2d
        return native.call(name, plain, x, kernel, bias)
    return x + add_bias(depthwise_conv2d(x, kernel), bias)


@jax.custom_vjp
def depthwise_conv2d(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`plain_depthwise_conv2d` for 3x3 filters and the like: on a CPU, a sum of shifted products.

    x [B, H, W, C], kernel [h, w, 1, C] (h and w odd) -> [B, H, W, C].
    """
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: isolated(_shifted_products, kernel, x, kernel),
        default=plain_depthwise_conv2d,
    )


def _depthwise_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple]:
    return depthwise_conv2d(x, kernel), (x, kernel)


def _depthwise_backward(residuals: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals

    def natively(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple:
        return jax.vjp(plain_depthwise_conv2d, x, kernel)[1](g)

    def on_cpu(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple:
        # The gradient of a SAME correlation is the correlation with the filter turned by 180
        # degrees. Both results in one unit would make XLA compute the taps twice.
        dx = isolated(_shifted_products, kernel, g, kernel[::-1, ::-1])
        dkernel = isolated(_tap_gradients, kernel, x, g, kernel)
        return dx, dkernel

    return lax.platform_dependent(x, kernel, g, cpu=on_cpu, default=natively)


depthwise_conv2d.defvjp(_depthwise_forward, _depthwise_backward)


def _shifted_products(x: jax.Array, kernel: jax.Array) -> jax.Array:
    height, width = kernel.shape[:2]
    products = (
        view * lax.broadcast_in_dim(kernel[i, j, 0], view.shape, (3,))
        for i, j, view in _taps(x, height, width)
    )
    return functools.reduce(jnp.add, products)


def _tap_gradients(x: jax.Array, g: jax.Array, kernel: jax.Array) -> jax.Array:
    """d loss / d kernel: all taps in one variadic reduction, so that g is read once."""
    height, width = kernel.shape[:2]
    g = g.astype(jnp.float32)
    products = tuple(view.astype(jnp.float32) * g for _, _, view in _taps(x, height, width))
    zeros = tuple(jnp.zeros((), jnp.float32) for _ in products)
    sums = lax.reduce(
        products, zeros, lambda a, b: tuple(p + q for p, q in zip(a, b, strict=True)), (0, 1, 2)
    )
    return jnp.stack(sums).reshape(kernel.shape).astype(kernel.dtype)


def _taps(x: jax.Array, height: int, width: int) -> Iterator[tuple[int, int, jax.Array]]:
    """(i, j, x shifted so that position p holds the pixel under tap (i, j) of the filter at p)."""
    top, left = height // 2, width // 2
    padded = jnp.pad(x, ((0, 0), (top, top), (left, left), (0, 0)))
    for i in range(height):
        for j in range(width):
            yield i, j, padded[:, i : i + x.shape[1], j : j + x.shape[2], :]


def _space_to_depth_conv2d(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> jax.Array:
    """A strided convolution as one of stride 1 over stride x stride blocks moved into channels.

    XLA:CPU's strided gradients are dilated convolutions, which it runs without Eigen.
    """
    height, width, inputs, outputs = kernel.shape
    pads: Sequence[tuple[int, int]]
    if isinstance(padding, str):
        pads = lax.padtype_to_pads(x.shape[1:3], (height, width), (stride, stride), padding)
    else:
        pads = padding
    sizes = [
        (size + low + high - extent) // stride + 1
        for size, (low, high), extent in zip(x.shape[1:3], pads, (height, width), strict=True)
    ]
    blocks = [-(-extent // stride) for extent in (height, width)]  # filter size in blocks
    needed = [(n + b - 1) * stride for n, b in zip(sizes, blocks, strict=True)]
    # Grow or crop the right and bottom edges so that whole blocks cover exactly what is read.
    config = [(0, 0, 0)] + [
        (low, want - size - low, 0)
        for want, size, (low, _) in zip(needed, x.shape[1:3], pads, strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), [*config, (0, 0, 0)])
    kernel = jnp.pad(
        kernel, ((0, blocks[0] * stride - height), (0, blocks[1] * stride - width), (0, 0), (0, 0))
    )
    x = x.reshape(x.shape[0], needed[0] // stride, stride, needed[1] // stride, stride, inputs)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(*x.shape[:2], x.shape[3], stride * stride * inputs)
    kernel = kernel.reshape(blocks[0], stride, blocks[1], stride, inputs, outputs)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(*blocks, stride**2 * inputs, outputs)
    return plain_conv2d(x, kernel, 1, "VALID")
