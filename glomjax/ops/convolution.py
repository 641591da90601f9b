"""Dense layers, and convolutions, NHWC with HWIO kernels."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax

from glomjax.ops import native
from glomjax.ops.activation import add_bias, bias_gelu
from glomjax.ops.boundary import isolated
from glomjax.ops.normalization import layer_norm

_LAYOUT = ("NHWC", "HWIO", "NHWC")
Padding = str | Sequence[tuple[int, int]]
Pads = tuple[tuple[int, int], tuple[int, int]]
NO_PADS: Pads = ((0, 0), (0, 0))


def plain_dense(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """x @ kernel, + bias where there is one. x [..., I], kernel [I, O], bias [O] -> [..., O]."""
    y = x @ kernel
    return y if bias is None else add_bias(y, bias)


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


def dense(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """`plain_dense`; natively the gradients of kernel and bias are taken in one pass."""
    if x.ndim > 1 and native.serves(x, kernel):
        return _dense(x, kernel, bias)
    return plain_dense(x, kernel, bias)


def layer_norm_dense(
    x: jax.Array, scale: jax.Array, bias: jax.Array, kernel: jax.Array
) -> jax.Array:
    """`layer_norm(x, scale, bias) @ kernel`; on a CPU the backward pass normalises again.

    Kept from the forward pass, normalised maps and GELUs are a third of a step's memory.
    """
    return _dense_of(layer_norm, (x, scale, bias), kernel, None)


def gelu_dense(x: jax.Array, x_bias: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """`bias_gelu(x, x_bias) @ kernel + bias`; on a CPU the backward pass computes GELU again."""
    return _dense_of(bias_gelu, (x, x_bias), kernel, bias)


def conv2d(
    x: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding = "SAME"
) -> jax.Array:
    """`plain_conv2d`, natively where that serves.

    Elsewhere, and where filters do not overlap, a CPU takes a 1x1 filter as a dense layer and a
    strided one over space-to-depth blocks.

    x [B, H, W, I], kernel [h, w, I, O] -> [B, h', w', O].
    """
    pads = _pads(x, kernel, stride, padding)
    if native.serves(x, kernel) and kernel.shape[:2] != (stride, stride):
        return _native_conv2d(x, kernel, stride, pads)
    if stride == 1:
        return _unit_stride_conv2d(x, kernel, pads)
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: _unit_stride_conv2d(*_space_to_depth(x, kernel, stride, pads)),
        default=lambda x, kernel: plain_conv2d(x, kernel, stride, pads),
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
    return reduce(jnp.add, products)


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


def _unit_stride_conv2d(x: jax.Array, kernel: jax.Array, pads: Pads = NO_PADS) -> jax.Array:
    if kernel.shape[:2] == (1, 1) and pads == NO_PADS:
        return dense(x, kernel[0, 0])
    return plain_conv2d(x, kernel, 1, pads)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _native_conv2d(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    (top, _), (left, _) = pads
    plain = partial(plain_conv2d, stride=stride, padding=pads)
    return native.call("conv2d", plain, x, kernel, stride=stride, top=top, left=left)


def _native_forward(
    x: jax.Array, kernel: jax.Array, stride: int, pads: Pads
) -> tuple[jax.Array, tuple]:
    return _native_conv2d(x, kernel, stride, pads), (x, kernel)


def _native_backward(stride: int, pads: Pads, residuals: tuple, g: jax.Array) -> tuple:
    x, kernel = residuals
    height, width = kernel.shape[:2]
    dkernel, _ = _weight_gradient(x, g, (height, width), stride, pads)
    if stride > 1:  # of images, which no training asks for
        blocks = partial(_space_to_depth, kernel=kernel, stride=stride, pads=pads)
        return *jax.vjp(lambda x: _unit_stride_conv2d(*blocks(x)), x)[1](g), dkernel
    # The gradient of x is the correlation of g with the filters turned by 180 degrees, over so many
    # zeros that it is as large as x.
    (top, _), (left, _) = pads
    above, before = height - 1 - top, width - 1 - left
    below = x.shape[1] + height - 1 - above - g.shape[1]
    behind = x.shape[2] + width - 1 - before - g.shape[2]
    turned = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    return _native_conv2d(g, turned, 1, ((above, below), (before, behind))), dkernel


_native_conv2d.defvjp(_native_forward, _native_backward)


@jax.custom_vjp
def _dense(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    return plain_dense(x, kernel, bias)


def _dense_forward(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> tuple:
    return _dense(x, kernel, bias), (x, kernel, bias is not None)


def _dense_backward(residuals: tuple, g: jax.Array) -> tuple:
    x, kernel, biased = residuals
    pixels = (-1, 1, 1)
    dkernel, dbias = _weight_gradient(
        x.reshape(*pixels, x.shape[-1]), g.reshape(*pixels, g.shape[-1]), (1, 1), 1, NO_PADS
    )
    return g @ kernel.T, dkernel[0, 0], dbias if biased else None


_dense.defvjp(_dense_forward, _dense_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dense_of(
    function: Callable[..., jax.Array], args: tuple, kernel: jax.Array, bias: jax.Array | None
) -> jax.Array:
    return dense(function(*args), kernel, bias)


def _dense_of_forward(
    function: Callable, args: tuple, kernel: jax.Array, bias: jax.Array | None
) -> tuple[jax.Array, tuple]:
    return _dense_of(function, args, kernel, bias), (args, kernel, bias)


def _dense_of_backward(function: Callable, residuals: tuple, g: jax.Array) -> tuple:
    args, kernel, bias = residuals
    # Without this XLA would find that it knows the value already, and keep it. Of several devices
    # it would wait for the first one's share of g.
    after = g if jax.device_count() == 1 else None
    x, function_backward = jax.vjp(partial(function, after=after), *args)
    dx, dkernel, dbias = jax.vjp(dense, x, kernel, bias)[1](g)
    return function_backward(dx), dkernel, dbias


_dense_of.defvjp(_dense_of_forward, _dense_of_backward)


def _weight_gradient(
    x: jax.Array, g: jax.Array, size: tuple[int, int], stride: int, pads: Pads
) -> tuple[jax.Array, jax.Array]:
    """The gradients of kernel and bias of a convolution of x [B, H, W, I] with filters of `size`,
    from that of its output, g [B, H', W', O]: [h, w, I, O] and [O]. Natively."""
    (top, _), (left, _) = pads

    def plain(x: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        kernel = jnp.zeros((*size, x.shape[-1], g.shape[-1]), x.dtype)
        (dkernel,) = jax.vjp(lambda kernel: plain_conv2d(x, kernel, stride, pads), kernel)[1](g)
        return dkernel, jnp.sum(g, axis=(0, 1, 2))

    return native.call("weight_gradient", plain, x, g, stride=stride, top=top, left=left)
