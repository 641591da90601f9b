"""Convolutions, NHWC with HWIO kernels."""

from collections.abc import Iterator, Sequence
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from glomjax.ops import native
from glomjax.ops.activation import (
    add_bias,
    bias_relu,
    plain_add_bias,
    plain_bias_relu,
    relu_gradients,
)
from glomjax.ops.boundary import isolated
from glomjax.ops.dense import dense
from glomjax.ops.reduction import column_sum, plain_column_sum

_LAYOUT = ("NHWC", "HWIO", "NHWC")
Padding = str | Sequence[tuple[int, int]]
Pads = tuple[tuple[int, int], tuple[int, int]]
NO_PADS: Pads = ((0, 0), (0, 0))
Branch = tuple[jax.Array, jax.Array, jax.Array]  # x, kernel and bias of a convolution


def plain_conv2d(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    *,
    stride: int = 1,
    padding: Padding = "SAME",
    relu: bool = False,
) -> jax.Array:
    """Cross-correlation of x [B, H, W, I] with kernel [h, w, I, O], + bias [O], then ReLU where
    `relu`; padding as TensorFlow's."""
    activate = plain_bias_relu if relu else plain_add_bias
    return activate(_correlation(x, kernel, stride, padding), bias)


def plain_conv2d_branches(*branches: Branch) -> jax.Array:
    """`plain_conv2d(..., relu=True)` of each (x, kernel, bias), side by side in the channels."""
    return jnp.concatenate([plain_conv2d(*branch, relu=True) for branch in branches], axis=-1)


def plain_depthwise_conv2d(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Each channel with its own filter, SAME, stride 1. x [B, H, W, C], kernel [h, w, 1, C]."""
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=_LAYOUT, feature_group_count=x.shape[-1]
    )


def plain_residual_depthwise_conv2d(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """x + (`plain_depthwise_conv2d` + bias): DaViT's position encoding. bias [C]."""
    return x + plain_add_bias(plain_depthwise_conv2d(x, kernel), bias)


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    *,
    stride: int = 1,
    padding: Padding = "SAME",
    relu: bool = False,
) -> jax.Array:
    """`plain_conv2d`, by a native kernel where there is one.

    Elsewhere, and where filters do not overlap, a CPU takes a 1x1 filter as a dense layer and a
    strided one over space-to-depth blocks.

    x [B, H, W, I], kernel [h, w, I, O], bias [O] -> [B, h', w', O].
    """
    pads = _pads(x, kernel, stride, padding)
    side_by_side = stride > 1 and kernel.shape[:2] == (stride, stride)
    if native.supports(x, kernel, bias) and not side_by_side:
        return _convolutions(_Geometry(stride, (pads,), relu, native.rounds()), x, kernel, bias)
    if stride == 1:
        return _unit_stride_conv2d(x, kernel, bias, pads, relu)
    return lax.platform_dependent(
        x,
        kernel,
        bias,
        cpu=lambda x, kernel, bias: _unit_stride_conv2d(
            *_space_to_depth(x, kernel, stride, pads), bias, NO_PADS, relu
        ),
        default=partial(plain_conv2d, stride=stride, padding=pads, relu=relu),
    )


def conv2d_branches(*branches: Branch) -> jax.Array:
    """`plain_conv2d_branches`; a native kernel writes every branch to its place at once.

    (x [B, H, W, I], kernel [h, w, I, O], bias [O]), ... -> [B, H, W, sum of all O]. Each branch has
    its own h, w, I and O.
    """
    arrays = [array for branch in branches for array in branch]
    if native.supports(*arrays):
        pads = tuple(_pads(x, kernel, 1, "SAME") for x, kernel, _ in branches)
        return _convolutions(_Geometry(1, pads, True, native.rounds()), *arrays)
    return jnp.concatenate([conv2d(*branch, relu=True) for branch in branches], axis=-1)


def residual_depthwise_conv2d(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """`plain_residual_depthwise_conv2d`. x [B, H, W, C], kernel [h, w, 1, C] (odd), bias [C]."""
    if kernel.shape[:2] == (3, 3) and native.supports(x, kernel, bias):
        name, plain = "residual_depthwise_conv2d", plain_residual_depthwise_conv2d
        return native.call(name, plain, x, kernel, bias)
    return x + add_bias(depthwise_conv2d(x, kernel), bias)


@jax.custom_vjp
def depthwise_conv2d(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`plain_depthwise_conv2d` for 3x3 filters and the like, as a sum of shifted products.

    Not on TPUs. On GPUs because XLA hands grouped convolutions to cuDNN, and their gradients do the
    work of full ones (jax-ml/jax issue 13800).

    x [B, H, W, C], kernel [h, w, 1, C] (h and w odd) -> [B, H, W, C].
    """
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: isolated(_shifted_products, kernel, x, kernel),
        cuda=_exact_shifted_products,
        rocm=_exact_shifted_products,
        default=plain_depthwise_conv2d,
    )


def _depthwise_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple]:
    return depthwise_conv2d(x, kernel), (x, kernel)


def _depthwise_backward(residuals: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals

    def reference(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple:
        return jax.vjp(plain_depthwise_conv2d, x, kernel)[1](g)

    def on_cpu(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple:
        # The gradient of a SAME correlation is the correlation with the filter turned by 180
        # degrees. Both results in one unit would make XLA compute the taps twice.
        dx = isolated(_shifted_products, kernel, g, kernel[::-1, ::-1])
        dkernel = isolated(_tap_gradients, kernel, x, g, kernel)
        return dx, dkernel

    def on_gpu(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple:
        turned = kernel[::-1, ::-1]
        return _exact_shifted_products(g, turned), _tap_gradients(x, g, kernel)

    return lax.platform_dependent(
        x, kernel, g, cpu=on_cpu, cuda=on_gpu, rocm=on_gpu, default=reference
    )


depthwise_conv2d.defvjp(_depthwise_forward, _depthwise_backward)


def _shifted_products(x: jax.Array, kernel: jax.Array) -> jax.Array:
    height, width = kernel.shape[:2]
    products = (
        view * lax.broadcast_in_dim(kernel[i, j, 0], view.shape, (3,))
        for i, j, view in _taps(x, height, width)
    )
    return reduce(jnp.add, products)


def _exact_shifted_products(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`_shifted_products` summed in float32, as cuDNN sums bfloat16."""
    return _shifted_products(x.astype(jnp.float32), kernel.astype(jnp.float32)).astype(x.dtype)


def _tap_gradients(x: jax.Array, g: jax.Array, kernel: jax.Array) -> jax.Array:
    """d loss / d kernel: all taps in one variadic reduction, so that g is read once. It sums rows
    alone, since XLA:CPU divides a reduction over everything but channels among no threads."""
    height, width = kernel.shape[:2]
    g = g.astype(jnp.float32)
    products = tuple(view.astype(jnp.float32) * g for _, _, view in _taps(x, height, width))
    zeros = tuple(jnp.zeros((), jnp.float32) for _ in products)
    rows = lax.reduce(
        products, zeros, lambda a, b: tuple(p + q for p, q in zip(a, b, strict=True)), (2,)
    )
    sums = [column_sum(row) for row in rows]
    return jnp.stack(sums).reshape(kernel.shape).astype(kernel.dtype)


def _taps(x: jax.Array, height: int, width: int) -> Iterator[tuple[int, int, jax.Array]]:
    """(i, j, x shifted so that position p holds the pixel under tap (i, j) of the filter at p)."""
    top, left = height // 2, width // 2
    padded = jnp.pad(x, ((0, 0), (top, top), (left, left), (0, 0)))
    for i in range(height):
        for j in range(width):
            yield i, j, padded[:, i : i + x.shape[1], j : j + x.shape[2], :]


def _pads(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> Pads:
    """(rows above, rows below), (columns left, columns right) of zeros."""
    if isinstance(padding, str):
        sizes = x.shape[1:3], kernel.shape[:2], (stride, stride)
        padding = lax.padtype_to_pads(*sizes, padding)
    (top, bottom), (left, right) = padding
    return (top, bottom), (left, right)


def _space_to_depth(
    x: jax.Array, kernel: jax.Array, stride: int, pads: Pads
) -> tuple[jax.Array, jax.Array]:
    """A strided convolution's arguments as those of one of stride 1, unpadded, over stride x stride
    blocks moved into channels.

    XLA:CPU's strided gradients are dilated convolutions, which it runs without Eigen.
    """
    height, width, inputs, outputs = kernel.shape
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
    return x, kernel


def _unit_stride_conv2d(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, pads: Pads, relu: bool
) -> jax.Array:
    pointwise = kernel.shape[:2] == (1, 1) and pads == NO_PADS
    if pointwise and not relu:
        return dense(x, kernel[0, 0], bias)
    y = dense(x, kernel[0, 0]) if pointwise else _correlation(x, kernel, 1, pads)
    return (bias_relu if relu else add_bias)(y, bias)


def _correlation(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=_LAYOUT)


class _Geometry(NamedTuple):
    """Of convolutions whose outputs lie side by side: one stride, the padding of each, whether they
    are rectified and whether products round their factors to bfloat16."""

    stride: int
    pads: tuple[Pads, ...]
    relu: bool
    bfloat16: bool


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolutions(geometry: _Geometry, *branches: jax.Array) -> jax.Array:
    """Natively, of x, kernel and bias of each in turn."""
    return _convolve(geometry, (0,) * len(geometry.pads), *branches)


def _convolutions_forward(geometry: _Geometry, *branches: jax.Array) -> tuple[jax.Array, tuple]:
    y = _convolutions(geometry, *branches)
    return y, (branches[::3], branches[1::3], y if geometry.relu else None)


def _convolutions_backward(geometry: _Geometry, residuals: tuple, g: jax.Array) -> tuple:
    xs, kernels, y = residuals
    rectified = native.call("bias_relu_gradient", relu_gradients, y, g) if geometry.relu else None
    g, dbias = rectified or (g, None)
    gradients: list[jax.Array] = []
    channel = 0  # of g, at which a branch begins
    for x, kernel, pads in zip(xs, kernels, geometry.pads, strict=True):
        end = channel + kernel.shape[3]
        alone = geometry._replace(pads=(pads,), relu=False)
        dkernel, sums = _weight_gradient(alone, x, g, channel, kernel.shape)
        dx = _input_gradient(alone, x, kernel, g, channel)
        gradients += dx, dkernel, sums if dbias is None else dbias[channel:end]
        channel = end
    return tuple(gradients)


_convolutions.defvjp(_convolutions_forward, _convolutions_backward)


def _convolve(geometry: _Geometry, channels: tuple[int, ...], *branches: jax.Array) -> jax.Array:
    """Each branch reads the channels of its x from one of `channels` on."""

    def plain(*branches: jax.Array) -> jax.Array:
        outputs = [
            plain_conv2d(
                x[..., channel : channel + kernel.shape[2]],
                kernel,
                bias,
                stride=geometry.stride,
                padding=pads,
                relu=geometry.relu,
            )
            for x, kernel, bias, pads, channel in zip(
                branches[::3],
                branches[1::3],
                branches[2::3],
                geometry.pads,
                channels,
                strict=True,
            )
        ]
        return jnp.concatenate(outputs, axis=-1)

    return native.call(
        "conv2d",
        plain,
        *branches,
        bfloat16=geometry.bfloat16,
        channel=channels,
        left=tuple(left for _, (left, _) in geometry.pads),
        relu=geometry.relu,
        stride=geometry.stride,
        top=tuple(top for (top, _), _ in geometry.pads),
    )


def _input_gradient(
    geometry: _Geometry, x: jax.Array, kernel: jax.Array, g: jax.Array, channel: int
) -> jax.Array:
    """The gradient of a convolution's x from that of its output, channels of g from one on."""
    height, width, _, outputs = kernel.shape
    stride, (pads,) = geometry.stride, geometry.pads
    if stride > 1:  # of images, which no training asks for

        def over_blocks(x: jax.Array) -> jax.Array:
            return _correlation(*_space_to_depth(x, kernel, stride, pads), 1, NO_PADS)

        return jax.vjp(over_blocks, x)[1](g[..., channel : channel + outputs])[0]
    # The correlation of g with the filters turned by 180 degrees, over so many zeros that it is as
    # large as x.
    (top, _), (left, _) = pads
    above, before = height - 1 - top, width - 1 - left
    below = x.shape[1] + height - 1 - above - g.shape[1]
    behind = x.shape[2] + width - 1 - before - g.shape[2]
    turned = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    turned_pads = (((above, below), (before, behind)),)
    geometry = geometry._replace(pads=turned_pads)
    return _convolve(geometry, (channel,), g, turned, jnp.zeros(x.shape[-1:]))


def _weight_gradient(
    geometry: _Geometry, x: jax.Array, g: jax.Array, channel: int, shape: Sequence[int]
) -> tuple[jax.Array, jax.Array]:
    """The gradients of kernel (its `shape` [h, w, I, O]) and bias [O] of a convolution of x
    [B, H, W, I], from that of its output: the channels of g [B, H', W', ..] from one on."""
    stride, (pads,) = geometry.stride, geometry.pads
    (top, _), (left, _) = pads

    def plain(x: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        g = g[..., channel : channel + shape[3]]
        correlation = partial(_correlation, x, stride=stride, padding=pads)
        (dkernel,) = jax.vjp(correlation, jnp.zeros(shape, x.dtype))[1](g)
        return dkernel, plain_column_sum(g)

    return native.call(
        "weight_gradient",
        plain,
        x,
        g,
        bfloat16=geometry.bfloat16,
        channel=channel,
        left=left,
        stride=stride,
        top=top,
    )
